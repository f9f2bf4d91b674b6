"""Chapters as MyST text and back. The text is for editing: it has no outputs, and git ignores it.

Coming back, a cell that was not edited keeps everything; an edited one keeps its id and the metadata that the
text does not carry, and loses its outputs, since they belong to other code. New cells get ids from what they
say.
"""

from __future__ import annotations

import copy
from difflib import SequenceMatcher
from pathlib import Path

import jupytext
import nbformat
from chapters import ROOT, address, cell_id, formatted, furnish, normalise, read, write
from labels import cell_text, load, replace
from nbformat import NotebookNode

TEXT_FORMAT = {"extension": ".md", "format_name": "myst"}
CARRIED = ("tags", "cellView", "jupyter")  # cell metadata that the text shows; the rest stays in the notebook
ALIKE = 0.5  # cells at least this similar are one cell, edited


def text_path(path: Path) -> Path:
    """Where the text of a notebook stands."""
    return path.parent / "text" / f"{path.stem}.md"


def to_text(path: Path) -> Path:
    """Write the MyST text of a chapter."""
    notebook = read(path)
    notebook.metadata["jupytext"] = {"cell_metadata_filter": ",".join((*CARRIED, "-all"))}
    text = jupytext.writes(notebook, fmt=TEXT_FORMAT)
    text_path(path).parent.mkdir(exist_ok=True)
    replace(text_path(path), text)
    return text_path(path)


def from_text(path: Path, root: Path = ROOT, source: Path | None = None) -> list[str]:
    """Put the text back into the chapter, or make the chapter; returns the ids of cells to execute."""
    text = (source or text_path(path)).read_text(encoding="utf-8")
    edited = jupytext.reads(text, fmt=TEXT_FORMAT)
    old = read(path).cells if path.exists() else []
    notebook = nbformat.v4.new_notebook(cells=edited.cells)
    furnish(notebook, path.stem, address(root), cell_text(load(root).get(path.stem)))
    notebook = formatted(normalise(notebook), path.stem, root)
    notebook.cells = combine(notebook.cells, old, path.stem)
    write(path, notebook)
    return [c.id for c in notebook.cells if c.cell_type == "code" and c.execution_count is None]


def combine(edited: list[NotebookNode], old: list[NotebookNode], stem: str) -> list[NotebookNode]:
    """The edited cells, each with the id, metadata and (if the same code) the outputs of its old self."""
    partner = matches(edited, old)
    taken = {cell.id for cell in old}
    return [
        merged(cell, old[partner[i]]) if i in partner else fresh(cell, stem, taken)
        for i, cell in enumerate(edited)
    ]


def matches(edited: list[NotebookNode], old: list[NotebookNode]) -> dict[int, int]:
    """Index of an edited cell to index of its old self: the unchanged in order first, then the most alike."""
    new_keys, old_keys = ([(c.cell_type, c.source) for c in cells] for cells in (edited, old))
    blocks = SequenceMatcher(None, new_keys, old_keys, autojunk=False).get_matching_blocks()
    partner = {b.a + k: b.b + k for b in blocks for k in range(b.size)}
    free = [j for j in range(len(old)) if j not in partner.values()]
    for i, (kind, source) in enumerate(new_keys):
        candidates = [j for j in free if i not in partner and old_keys[j][0] == kind]
        best = max(candidates, key=lambda j: similarity(source, old_keys[j][1]), default=None)
        if best is not None and similarity(source, old_keys[best][1]) >= ALIKE:
            partner[i] = best
            free.remove(best)
    return partner


def similarity(a: str, b: str) -> float:
    """Between 0 and 1; short cells count as alike only when they nearly are."""
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() >= ALIKE else 0.0


def merged(edited: NotebookNode, old: NotebookNode) -> NotebookNode:
    """The old cell with the edited source and the edited share of the metadata."""
    cell = copy.deepcopy(old)
    for key in CARRIED:
        cell.metadata.pop(key, None)
    cell.metadata.update({key: value for key, value in edited.metadata.items() if key in CARRIED})
    if cell.source != edited.source:
        cell.source = edited.source
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return cell


def fresh(cell: NotebookNode, stem: str, taken: set[str]) -> NotebookNode:
    cell.id = cell_id(stem, cell, taken)
    return cell
