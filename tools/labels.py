"""Labels: what a chapter costs to run, measured by `execute`, kept in book/results/labels.csv, shown
everywhere.

The label cell of a chapter, the table of the README and the map of the introduction are made from that file.
"""

from __future__ import annotations

import csv
import io
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from chapters import PLAN, ROOT, Chapter

PLACES = {"README.md": "book/", "book/intro.md": ""}  # file with a table, and the links' way to the chapters
BEGIN, END = "<!-- chapters: generated, begin -->", "<!-- chapters: generated, end -->"


@dataclass(frozen=True)
class Label:
    """One measured run of one chapter."""

    chapter: str
    profile: str
    minutes: float
    peak_gib: float
    download_mb: int
    cores: int
    machine: str
    precision: str
    precomputed: str  # files of book/results that the chapter reads, separated by spaces
    torch: str


def table_path(root: Path) -> Path:
    return root / "book" / "results" / "labels.csv"


def load(root: Path = ROOT) -> dict[str, Label]:
    """Chapter to label, for the chapters that were measured."""
    path = table_path(root)
    if not path.exists():
        return {}
    kinds = {f.name: {"float": float, "int": int}.get(str(f.type), str) for f in fields(Label)}
    with path.open(newline="", encoding="utf-8") as lines:
        rows = [{key: kinds[key](value) for key, value in row.items()} for row in csv.DictReader(lines)]
    return {label.chapter: label for label in (Label(**row) for row in rows)}


def save(label: Label, root: Path = ROOT) -> None:
    """Put one label into the table, in the place of the chapter's old one."""
    rows = load(root) | {label.chapter: label}
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Label)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(rows[chapter]) for chapter in sorted(rows))
    replace(table_path(root), text.getvalue())


def replace(path: Path, text: str) -> None:
    """Write a file by renaming, only when its text changes."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def minutes(label: Label) -> str:
    return "under a minute" if label.minutes < 0.95 else f"{label.minutes:.1f} minutes"


def downloads(label: Label) -> str:
    return f"{label.download_mb} MB" if label.download_mb else "nothing"


def cores(label: Label) -> str:
    return f"{label.cores} CPU core{'s' if label.cores > 1 else ''}"


def cell_text(label: Label | None) -> str:
    """The Markdown of a chapter's label cell."""
    if label is None:
        return "> **What this chapter costs:** not measured yet."
    where = f"{cores(label)} ({label.machine}, {label.precision})"
    files = ", ".join(f"`results/{name}`" for name in label.precomputed.split())
    rest = f" It reads runs made before, from {files}." if files else " Everything in it runs live."
    return (
        f"> **What this chapter costs:** {minutes(label)}, {label.peak_gib:.1f} GiB of memory, downloads "
        f"{downloads(label)}. Measured in the `{label.profile}` profile on {where}.{rest}"
    )


def chapter_row(chapter: Chapter, label: Label | None, prefix: str, root: Path) -> str:
    if not chapter.path(root).exists():
        return f"| {chapter.number} | {chapter.title} | {chapter.question} | still being written | | |"
    title = f"[{chapter.title}]({prefix}{chapter.stem}.ipynb)"
    cost = ("not measured", "", "")
    if label:
        cost = (minutes(label), f"{label.peak_gib:.1f} GiB", downloads(label))
    return f"| {chapter.number} | {title} | {chapter.question} | {' | '.join(cost)} |"


def chapter_table(prefix: str, root: Path = ROOT) -> str:
    """The chapters with their questions and measured costs, as a Markdown table."""
    known = load(root)
    head = "| | Chapter | The question | Time | Memory | Downloads |\n|---|---|---|---|---|---|\n"
    table = head + "\n".join(chapter_row(c, known.get(c.stem), prefix, root) for c in PLAN)
    where = sorted({f"{cores(label)} ({label.machine})" for label in known.values()})
    note = f"\n\nMeasured in the `quick` profile on {' and on '.join(where)}, without a GPU." if where else ""
    return table + note


def with_table(text: str, table: str) -> str:
    """`text` with the table between its two markers."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"no place for the chapter table: expected {BEGIN} and {END}")
    between = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    return re.sub(between, lambda _: f"{BEGIN}\n\n{table}\n\n{END}", text, flags=re.DOTALL)


def update_tables(root: Path = ROOT) -> None:
    """Write the chapter tables of the README and the introduction."""
    for name, prefix in PLACES.items():
        path = root / name
        if path.exists():
            replace(path, with_table(path.read_text(encoding="utf-8"), chapter_table(prefix, root)))
