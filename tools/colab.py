"""Run the chapters as on Colab: with what Colab holds, plus what the setup cell adds.

`python tools/colab.py [chapters]` makes `.venv-colab` from tools/colab.txt with Python 3.13 (once: several
GB, since Colab's PyTorch brings CUDA along). Then it does what the setup cell of a chapter does, with the
line of the cell itself, and fails when that changes the version of anything that was there. At last each
chapter runs in the quick profile, from top to bottom, with every claim and every exercise check; nothing is
stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import execution
from chapters import ROOT, SETUP, find, read
from environment import python_of

HELD = ROOT / "tools" / "colab.txt"
FOLDER = ROOT / ".venv-colab"
STAMP = "made-from.txt"
KERNEL = "colab-check"


def main(wanted: list[str]) -> int:
    make(FOLDER)
    before = versions(FOLDER)
    install_as_the_setup_cell(FOLDER)
    after = versions(FOLDER)
    added = sorted(name for name in after if name not in before)
    print("the setup cell added:", ", ".join(f"{name} {after[name]}" for name in added), flush=True)
    if changed := changes(before, after):
        print("the setup cell changed what Colab has:", "; ".join(changed), file=sys.stderr)
        return 1
    failed = [path.stem for path in find(wanted) if not runs(path)]
    if failed:
        print("failed:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


def make(folder: Path) -> None:
    """Colab's packages in a fresh environment, unless it stands already as it was made."""
    stamp = hashlib.sha256(HELD.read_bytes()).hexdigest()
    if folder.exists() and (folder / STAMP).is_file() and (folder / STAMP).read_text() == stamp:
        pip(folder, "uninstall", "--yes", "scalability-helpers")
        return
    python = interpreter()
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making {folder.name}: this downloads several GB once", flush=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip(folder, "install", "--requirement", str(HELD))
    (folder / STAMP).write_text(stamp)


def interpreter(name: str = "python3.13") -> str:
    """The first Python of this name on the path that starts: the stand-in of a version manager may not."""
    for place in os.get_exec_path():
        found = shutil.which(name, path=place)
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    raise SystemExit(f"colab-check needs {name}, as Colab has it, and none on the path starts")


def pip(folder: Path, *arguments: str) -> None:
    command = [python_of(folder), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True)


def versions(folder: Path) -> dict[str, str]:
    """Package to version, as pip lists them."""
    command = [python_of(folder), "-m", "pip", "--disable-pip-version-check", "list", "--format=json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {package["name"].lower(): package["version"] for package in listed}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What was up- or downgraded or removed, in words."""
    return [
        f"{name} {version} became {after.get(name, 'nothing')}"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def install_as_the_setup_cell(folder: Path) -> None:
    """The cell's own pip line, with a copy of this package in place of Colab's clone, and what is there."""
    found = re.search(r"%pip (install .*)", SETUP)
    if not found:
        raise SystemExit("the setup cell has no line that starts with %pip install")
    with tempfile.TemporaryDirectory() as temporary:
        has, clone = Path(temporary) / "has.txt", Path(temporary) / "book"
        has.write_text("\n".join(f"{name}=={version}" for name, version in versions(folder).items()))
        copy_package(clone)
        places = {"/content/has.txt": str(has), "/content/book": str(clone)}
        words = [places.get(word, word) for word in found.group(1).split()]
        pip(folder, *words)


def copy_package(clone: Path) -> None:
    """What pip builds `helpers` from. It builds in place, and would leave its files among the book's."""
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))


def runs(path: Path) -> bool:
    """Whether a chapter runs to its end with the environment's Python; says how long it took, or why not."""
    notebook = read(path)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        spec = Path(temporary) / "kernels" / KERNEL
        spec.mkdir(parents=True)
        argv = [python_of(FOLDER), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": KERNEL, "language": "python"})
        )
        os.environ["JUPYTER_PATH"] = temporary
        try:
            cost = execution.run(notebook, path.parent, kernel=KERNEL)
        except Exception as error:  # whatever a chapter raises, the others shall still run
            print(f"{path.stem}: failed after {time.perf_counter() - start:.0f} s\n{error}", flush=True)
            return False
    print(f"{path.stem}: {cost.seconds / 60:.1f} minutes, {cost.peak_bytes / 2**30:.1f} GiB", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
