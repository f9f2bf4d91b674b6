"""Write requirements.txt: the exact versions, in this environment, of all that the build and tests need.

`python tools/pins.py` reads the ranges of pyproject.toml (`dependencies` and the extra `dev`), follows them
through what is installed, and pins each distribution it meets; `--check` only says whether the file agrees
with the ranges.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Exact versions for the build and for CI: the whole closure of pyproject.toml's ranges (Linux, Python 3.11).
# Written by `python tools/pins.py`; edit pyproject.toml instead.
"""


def groups(root: Path) -> dict[str, list[Requirement]]:
    """The top-level requirements by the group that needs them."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = {
        "helpers": project["dependencies"],
        "notebooks, checks and build": project["optional-dependencies"]["dev"],
    }
    return {name: [Requirement(line) for line in members] for name, members in lines.items()}


def closure(top: list[Requirement]) -> dict[str, str]:
    """Name to installed version (without a local suffix such as +cpu) of `top` and all that it requires."""
    versions: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(r.name, extra) for r in top for extra in ("", *r.extras)]
    while waiting:
        name, extra = waiting.pop()
        key = canonicalize_name(name)
        if (key, extra) in done:
            continue
        done.add((key, extra))
        found = distribution(name)
        versions[key] = found.version.split("+")[0]
        waiting += needs(found.requires or [], extra)
    return versions


def needs(lines: list[str], extra: str) -> list[tuple[str, str]]:
    """The (name, extra) pairs that these lines ask for here."""
    met = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": extra})]
    return [(r.name, inner) for r in met for inner in ("", *r.extras)]


def render(root: Path) -> str:
    """The text of requirements.txt."""
    by_group = groups(root)
    versions = closure([r for members in by_group.values() for r in members])
    parts = [HEADER]
    for group, members in by_group.items():
        names = sorted(canonicalize_name(r.name) for r in members)
        parts.append(f"\n# {group}\n" + "".join(f"{name}=={versions.pop(name)}\n" for name in names))
    parts.append("\n# what these require\n" + "".join(f"{n}=={v}\n" for n, v in sorted(versions.items())))
    return "".join(parts)


def read(root: Path) -> dict[str, str]:
    """Name to version, as requirements.txt has them."""
    lines = (line.split("#")[0].strip() for line in (root / "requirements.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def disagreements(root: Path) -> list[str]:
    """Ranges of pyproject.toml that requirements.txt leaves out or does not meet."""
    pinned, wrong = read(root), []
    for requirement in (r for members in groups(root).values() for r in members):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement}: pinned {version}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a range is not met")
    if parser.parse_args().check:
        print("\n".join(wrong := disagreements(ROOT)) or "requirements.txt agrees with pyproject.toml")
        return bool(wrong)
    (ROOT / "requirements.txt").write_text(render(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
