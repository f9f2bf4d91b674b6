"""The book's notebooks: execute them, edit them as text, keep their common parts the same.

    python tools/notebooks.py execute 7        run chapter 7 from a fresh kernel; store outputs and label
    python tools/notebooks.py text 7           write book/text/07_pretraining.md, to edit it
    python tools/notebooks.py untext 7         put the edited text back
    python tools/notebooks.py new FILE.md      make a chapter from MyST text, the first time
    python tools/notebooks.py check            list what the static rules find, as the tests do
    python tools/notebooks.py labels           make label cells and chapter tables again from labels.csv
    python tools/notebooks.py address          copy the repository's address from pyproject.toml everywhere

Without a chapter, a command takes all of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from chapters import COLAB, ROOT, address, find, furnish, read, slug, write
from labels import cell_text, load, replace, update_tables
from nbclient.exceptions import CellExecutionError

PAGES = ("README.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE-TEXT")
CONFIG = "_config.yml"


def command_execute(names: list[str], root: Path = ROOT) -> int:
    """Run chapters and store what they show and cost; stop at the first that fails."""
    from execution import execute

    for path in find(names, root):
        print(path.stem, flush=True)
        try:
            label, warnings = execute(path, root)
        except CellExecutionError as error:
            print(f"{error}\n{path.stem} failed; the notebook is as it was", file=sys.stderr)
            return 1
        print(f"  {label.minutes:.2f} minutes, {label.peak_gib:.2f} GiB, downloads {label.download_mb} MB")
        print("".join(f"  the cells warned: {line}\n" for line in warnings), end="")
    update_tables(root)
    return 0


def command_text(names: list[str], root: Path = ROOT) -> int:
    """Write chapters as text."""
    from roundtrip import to_text

    for path in find(names, root):
        print(to_text(path).relative_to(root))
    return 0


def command_untext(names: list[str], root: Path = ROOT) -> int:
    """Put the text of chapters back; without a name, of all that have a text."""
    from roundtrip import from_text, text_path

    paths = find(names, root)
    if names and (missing := [text_path(p) for p in paths if not text_path(p).exists()]):
        raise ValueError(f"{missing[0].relative_to(root)} does not exist; `text` writes it")
    for path in (p for p in paths if text_path(p).exists()):
        waiting = from_text(path, root)
        print(path.relative_to(root), f"({len(waiting)} cells to execute)" if waiting else "")
    return 0


def command_new(names: list[str], root: Path = ROOT) -> int:
    """Make chapters from MyST text files that are named like them."""
    from roundtrip import from_text

    for name in names:
        path = root / "book" / f"{Path(name).stem}.ipynb"
        if path.exists():
            raise ValueError(f"{path.relative_to(root)} exists; edit it with `text` and `untext`")
        if not re.fullmatch(r"\d\d_\w+", path.stem):
            raise ValueError(f"a chapter's file is named like 07_pretraining.md, not {Path(name).name}")
        from_text(path, root, Path(name))
        print(path.relative_to(root))
    return 0


def command_check(names: list[str], root: Path = ROOT) -> int:
    """Print what the static rules find."""
    from rules import problems

    found = [f"{path.stem}: {problem}" for path in find(names, root) for problem in problems(path, root)]
    print("\n".join(found) or "nothing found")
    return int(bool(found))


def command_labels(names: list[str], root: Path = ROOT) -> int:
    """Make label cells (and badges and setup cells with them) and the chapter tables again."""
    known = load(root)
    for path in find(names, root):
        notebook = read(path)
        furnish(notebook, path.stem, address(root), cell_text(known.get(path.stem)))
        write(path, notebook)
    update_tables(root)
    return 0


def command_address(names: list[str], root: Path = ROOT) -> int:
    """Replace the old address, which is the one in _config.yml, by that of pyproject.toml."""
    config = root / CONFIG
    match = re.search(r"^\s+url\s*:\s*(\S+)", config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not match:
        raise ValueError(f"{CONFIG} has no repository url")
    old, new = match[1].rstrip("/"), address(root)
    command_labels([], root)
    pages = [root / name for name in PAGES if (root / name).exists()]
    # _config.yml is last, since a second run after an interruption reads the old address from it.
    texts = (path for path in (root / "book").rglob("*.md") if path.parent.name != "text")
    for page in (*pages, *sorted(texts), config):
        text = page.read_text(encoding="utf-8").replace(old, new)
        replace(page, text.replace(f"{COLAB}/github/{slug(old)}/", f"{COLAB}/github/{slug(new)}/"))
    return 0


COMMANDS = {
    "execute": command_execute,
    "text": command_text,
    "untext": command_untext,
    "new": command_new,
    "check": command_check,
    "labels": command_labels,
    "address": command_address,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("chapters", nargs="*", help="such as 7, 07_pretraining or a path; all without it")
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command](options.chapters)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
