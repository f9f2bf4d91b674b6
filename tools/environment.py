"""Make the virtual environment `.venv` from requirements.txt, or leave it alone when nothing has changed.

`python3.11 tools/environment.py [folder]` needs nothing but the standard library. When it has finished, the
folder holds a stamp: the hash of what it was made from. With the right stamp the script returns at once and
needs no network. Without one (first run, an interrupted run, other requirements, a moved folder, another
Python) it starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "made-from.json"


def wanted_stamp(root: Path, folder: Path) -> dict[str, str]:
    """What the environment depends on; `project` can be renewed without a download, the rest cannot."""

    def content(name: str) -> str:
        return hashlib.sha256((root / name).read_bytes()).hexdigest()

    place = f"{sys.version_info.major}.{sys.version_info.minor} {folder.resolve()} {root.resolve()}"
    return {"requirements": content("requirements.txt"), "place": place, "project": content("pyproject.toml")}


def read_stamp(folder: Path) -> dict[str, str]:
    """The stamp of a finished environment whose interpreter still starts; empty otherwise."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        subprocess.run([python_of(folder), "-c", ""], check=True, capture_output=True)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def python_of(folder: Path) -> str:
    """The environment's interpreter."""
    return str(folder / "bin" / "python")


def pip_install(folder: Path, *arguments: str) -> None:
    """`python -m pip`, since the pip script cannot start from a folder whose name has spaces."""
    command = [
        python_of(folder),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--quiet",
        *arguments,
    ]
    subprocess.run(command, check=True)


def make(root: Path, folder: Path) -> str:
    """Bring `folder` up to date; returns what was done, in one word."""
    wanted, found = wanted_stamp(root, folder), read_stamp(folder)
    if found == wanted:
        return "unchanged"
    fresh = any(found.get(key) != wanted[key] for key in ("requirements", "place"))
    if fresh:
        if folder.exists():
            shutil.rmtree(folder)
        venv.create(folder, with_pip=True)
        pip_install(folder, "-r", str(root / "requirements.txt"))
    # The pinned setuptools builds it: nothing is resolved a second time, and nothing is downloaded.
    pip_install(folder, "--no-deps", "--no-build-isolation", "--editable", str(root))
    write_stamp(folder, wanted)
    return "made" if fresh else "renewed"


def write_stamp(folder: Path, stamp: dict[str, str]) -> None:
    """Written last and renamed, so that a stamp is never older than what it stands for."""
    temporary = folder / f"{STAMP}.part"
    temporary.write_text(json.dumps(stamp, indent=1))
    os.replace(temporary, folder / STAMP)


def main(arguments: list[str]) -> int:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        print(f"this book needs Python 3.11, 3.12 or 3.13; this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    folder = ROOT / (arguments[0] if arguments else ".venv")
    if not read_stamp(folder):
        print(f"making {folder.name}: this downloads about 1 GB once and takes a few minutes", flush=True)
    try:
        print(f"{folder.name}: {make(ROOT, folder)}", flush=True)
    except subprocess.CalledProcessError as error:
        print(f"could not make {folder.name}: {error}; the next run starts afresh", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
