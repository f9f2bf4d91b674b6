"""The chapters as files: where they are, how they are read and written, and what is the same in each."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbstripout._utils import strip_output

ROOT = Path(__file__).resolve().parent.parent
BRANCH = "main"
LABEL_TAG = "label"
SETUP_TAGS = ["hide-input", "nbval-ignore-output"]
SETUP_MARK = "import google.colab"
COLAB = "https://colab.research.google.com"

# Versions are left out: a notebook should not change because another Python ran it.
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}

SETUP = """\
# On Colab: fetch the book and install its helpers, keeping every version that Colab has. Elsewhere: nothing.
try:
    import google.colab  # noqa: F401
except ImportError:
    pass
else:
    ![ -d /content/book ] || git clone --quiet --depth 1 {address} /content/book
    !pip list --format=freeze > /content/has.txt
    %pip install --quiet --constraint /content/has.txt /content/book
    %cd /content/book/book"""


@dataclass(frozen=True)
class Chapter:
    """One page of the plan, written or not; a chapter is one page, or a few of one number."""

    number: int
    name: str
    title: str
    question: str

    @property
    def stem(self) -> str:
        return f"{self.number:02}_{self.name}"

    def path(self, root: Path = ROOT) -> Path:
        return root / "book" / f"{self.stem}.ipynb"


# A chapter too long for one page has several: pages of one number follow each other by name, as files do.
PLAN = (
    Chapter(1, "background", "Background", "What does pre-training buy, and what does scalable mean?"),
    Chapter(
        2, "complexity", "Complexity", "How many parameters, FLOPs, bytes and seconds does a model need?"
    ),
    Chapter(3, "sharing", "Weight sharing", "What does a model save by using a weight more than once?"),
    Chapter(
        4, "sparsity", "Sparse connections", "When does leaving weights out save time as well as memory?"
    ),
    Chapter(5, "lowrank", "Low rank", "How much of a weight matrix can a product of two thin ones replace?"),
    Chapter(6, "distillation", "Distillation", "What does a small model learn from a large one?"),
    Chapter(
        7,
        "pretraining",
        "Pre-training BERT",
        "Can you pre-train a BERT in minutes, and what must be right for it?",
    ),
    Chapter(8, "finetuning", "Fine-tuning", "When does a pre-trained model beat one trained from scratch?"),
    Chapter(
        8,
        "what_to_train",
        "Fine-tuning, part two",
        "Which weights should you train, how fast, and for how long?",
    ),
    Chapter(9, "study", "A scaling study", "How do you plan a grid of runs that a law can be fitted to?"),
    Chapter(10, "fitting_laws", "Fitting laws", "Which law do the runs follow, and how sure can you be?"),
    Chapter(
        11, "published_laws", "Published laws", "What is in the published fits, and why do they disagree?"
    ),
    Chapter(12, "planning", "Planning", "Which model and how much data should a budget buy?"),
)


def find(names: list[str], root: Path = ROOT) -> list[Path]:
    """The notebooks with these names ("7", "07", "07_pretraining", a path); every one for no name."""
    present = sorted((root / "book").glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return present
    chosen = []
    for name in names:
        stem = Path(name).stem
        fits = [p for p in present if p.stem == stem or (stem.isdigit() and int(p.stem[:2]) == int(stem))]
        if not fits:
            there = ", ".join(p.stem for p in present) or "none"
            raise ValueError(f"no chapter {name!r} in book/; there are: {there}")
        chosen += fits
    return chosen


def read(path: Path) -> NotebookNode:
    """The notebook, in the current format."""
    notebook = nbformat.read(path, as_version=4)
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)  # 4.5 is the first with cell ids
    return notebook


def write(path: Path, notebook: NotebookNode) -> None:
    """Write by renaming, so that an interrupted run leaves the old notebook whole."""
    nbformat.validate(notebook)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
    os.replace(temporary, path)


def address(root: Path = ROOT) -> str:
    """The repository's address, from the one place where it stands."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"].rstrip("/")


def slug(url: str) -> str:
    """The `owner/name` of a GitHub address."""
    return "/".join(url.rstrip("/").split("/")[-2:])


def badge(stem: str, url: str) -> str:
    """The Markdown line that opens a chapter on Colab."""
    link = f"{COLAB}/github/{slug(url)}/blob/{BRANCH}/book/{stem}.ipynb"
    return f"[![Open in Colab](images/colab.svg)]({link})"


def setup_source(url: str) -> str:
    """The source of the Colab setup cell."""
    return SETUP.format(address=url)


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def cell_id(stem: str, cell: NotebookNode, taken: set[str]) -> str:
    """A new id that depends on what the cell says, so that making a notebook twice gives the same ids."""
    for repeat in range(1000):
        text = "\0".join((stem, cell.cell_type, cell.source, str(repeat)))
        new = hashlib.sha256(text.encode()).hexdigest()[:8]
        if new not in taken:
            taken.add(new)
            return new
    raise AssertionError("a thousand equal cells")


def furnish(notebook: NotebookNode, stem: str, url: str, label: str) -> None:
    """Put in, or bring up to date, what every chapter has: badge, label, setup cell, folded solutions."""
    cells = notebook.cells
    set_badge(cells[0], badge(stem, url))
    code = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    taken = {cell.get("id", "") for cell in cells}
    if not any(SETUP_MARK in cell.source for cell in cells):
        cells.insert(code, new_cell("code", setup_source(url), SETUP_TAGS, stem, taken))
    if not any(LABEL_TAG in tags(cell) for cell in cells):
        cells.insert(code, new_cell("markdown", label, [LABEL_TAG], stem, taken))
    for cell in cells:
        if LABEL_TAG in tags(cell):
            cell.source = label
        elif SETUP_MARK in cell.source:
            cell.source, cell.metadata["tags"] = setup_source(url), list(SETUP_TAGS)
        elif "solution" in tags(cell) and cell.cell_type == "code":
            fold(cell)


def new_cell(kind: str, source: str, tag_names: list[str], stem: str, taken: set[str]) -> NotebookNode:
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    cell = make(source, metadata={"tags": list(tag_names)})
    cell.id = cell_id(stem, cell, taken)
    return cell


def set_badge(cell: NotebookNode, line: str) -> None:
    """Replace the badge line of the first cell, or add one below the title."""
    lines = cell.source.rstrip().split("\n")
    kept = [line if old.startswith("[![Open in Colab]") else old for old in lines]
    cell.source = "\n".join(kept if line in kept else [kept[0], "", line, *kept[1:]])


def fold(cell: NotebookNode) -> None:
    """Hide a solution on the built page, in Jupyter and on Colab; each has its own word for it."""
    cell.metadata["tags"] = ["hide-cell", *(tag for tag in tags(cell) if tag != "hide-cell")]
    cell.metadata["jupyter"] = {**cell.metadata.get("jupyter", {}), "source_hidden": True}
    cell.metadata["cellView"] = "form"


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Drop what differs between two equal runs (timestamps, view state); keep outputs, counts and ids."""
    view = "execution ExecuteTime collapsed scrolled hidden heading_collapsed"
    junk = ["metadata.widgets", "metadata.signature", "metadata.jupytext"]
    junk += [f"cell.metadata.{key}" for key in view.split()]
    strip_output(notebook, keep_output=True, keep_count=True, keep_id=True, extra_keys=junk)
    notebook.metadata.update(nbformat.from_dict(NOTEBOOK_METADATA))
    notebook.metadata.language_info = nbformat.from_dict(NOTEBOOK_METADATA["language_info"])
    return notebook


def formatted(notebook: NotebookNode, name: str, root: Path = ROOT) -> NotebookNode:
    """The notebook with its code cells as ruff formats them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.ipynb"
        write(path, notebook)
        ruff = [sys.executable, "-m", "ruff", "format", "--quiet", "--no-cache"]
        subprocess.run([*ruff, "--config", str(root / "pyproject.toml"), str(path)], check=True)
        return read(path)
