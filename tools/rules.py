"""Rules that a chapter must follow, found by reading its file: no cell is run.

Each rule is a function of a notebook that yields what is wrong, in words that say which cell. `RULES` is the
list; `problems` applies it to a chapter's file, with the rules that need the rest of the repository.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from chapters import (
    BRANCH,
    LABEL_TAG,
    PLAN,
    ROOT,
    SETUP_MARK,
    SETUP_TAGS,
    address,
    badge,
    read,
    setup_source,
    tags,
)
from labels import cell_text, load
from nbformat import NotebookNode
from PIL import Image

MAX_LINES, MAX_BYTES, MAX_IGNORED, MAX_DPI = 25, 400_000, 0.5, 100
EXERCISE = re.compile(r"^### Exercise (\d+\.\d+) \((easy|medium|hard), (\d+) min(?:utes)?\)", re.MULTILINE)
IGNORED = "nbval-ignore-output"
ABSOLUTE = re.compile(r"(?:^|[\s\"'(=])((?:/(?:home|root|Users|tmp|work|mnt|opt|var)/|[A-Z]:\\)[\w./\\-]*)")
MYST = re.compile(r"^\s*(?:```+|:::+)\s*\{|\{[a-z:-]+\}`|^\([\w-]+\)=\s*$|^\+\+\+", re.MULTILINE)
# A decimal with two or more places is nearly always a result; formulas, code and sourced numbers are taken
# out first.
RESULT = re.compile(r"(?<![\w.§])\d*\.\d{2,}\b")
NOT_PROSE = re.compile(r"Python \d+\.\d+|\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`\n]*`", re.DOTALL)


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def markdown_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"]


def stdout(cell: NotebookNode) -> str:
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def text_of(output: NotebookNode) -> str:
    """All the text of an output, whatever its kind."""
    data = output.get("data", {})
    return "\n".join([output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))])


def calls(cell: NotebookNode, name: str) -> list[ast.Call]:
    """The calls of a function in a cell; a cell with magics, which is not Python, has none."""
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:
        return []
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node for node in found if isinstance(node.func, ast.Name) and node.func.id == name]


def counts_run_from_one(notebook: NotebookNode) -> Iterator[str]:
    """A cell without a count is not compared by nbval at all; a gap means that single cells were run."""
    for expected, (i, cell) in enumerate(code_cells(notebook), start=1):
        if cell.execution_count != expected:
            yield f"cell {i} has count {cell.execution_count}, expected {expected}: execute the chapter"
            return


def no_errors_stored(notebook: NotebookNode) -> Iterator[str]:
    for i, cell in code_cells(notebook):
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed and "raises-exception" not in tags(cell):
            yield f"cell {i} stores an error and is not tagged raises-exception"


def ids_are_unique(notebook: NotebookNode) -> Iterator[str]:
    ids = Counter(cell.get("id", "") for cell in notebook.cells)
    yield from (f"id {name!r} stands {n} times" for name, n in ids.items() if n > 1 or not name)


def nothing_of_the_run_stored(notebook: NotebookNode) -> Iterator[str]:
    """Timestamps and view state change with each run; stderr holds progress bars."""
    for i, cell in enumerate(notebook.cells):
        if extra := {"execution", "ExecuteTime", "collapsed", "scrolled"} & set(cell.metadata):
            yield f"cell {i} stores {', '.join(sorted(extra))}"
        if any(output.get("name") == "stderr" for output in cell.get("outputs", [])):
            yield f"cell {i} stores stderr"


def opens_as_planned(notebook: NotebookNode) -> Iterator[str]:
    """Title in the first cell, then goals; the setup is the first code cell; versions close the chapter."""
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not re.match(r"# \d+\. \S", first.source):
        yield "the first cell does not start with '# N. Title'"
    if not re.search(r"^## What you will learn", prose(notebook), re.MULTILINE):
        yield "there is no section '## What you will learn'"
    if sum(LABEL_TAG in tags(cell) for cell in notebook.cells) != 1:
        yield "there is not exactly one label cell"
    code = code_cells(notebook)
    if not code or SETUP_MARK not in code[0][1].source or sorted(tags(code[0][1])) != sorted(SETUP_TAGS):
        yield f"the first code cell is not the setup cell with the tags {SETUP_TAGS}"
    if notebook.cells[-1].cell_type != "code" or IGNORED not in tags(notebook.cells[-1]):
        yield f"the last cell is not code (versions, device, seconds) tagged {IGNORED}"


def prose(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for _, cell in markdown_cells(notebook))


def goals_end_in_claims(notebook: NotebookNode) -> Iterator[str]:
    """Three to five goals, and at least a claim for each."""
    section = re.search(
        r"^## What you will learn[^\n]*\n(.*?)(?=^## |\Z)", prose(notebook), re.MULTILINE | re.DOTALL
    )
    goals = len(re.findall(r"^(?:[-*]|\d+\.) ", section[1].split("\n## ")[0], re.MULTILINE)) if section else 0
    claims = sum(len(calls(cell, "claim")) for _, cell in code_cells(notebook))
    if not 3 <= goals <= 5:
        yield f"{goals} goals are listed under 'What you will learn', expected 3 to 5"
    if claims < max(goals, 1):
        yield f"{claims} claims for {goals} goals"


def claims_hold_as_stored(notebook: NotebookNode) -> Iterator[str]:
    for i, cell in code_cells(notebook):
        if calls(cell, "claim") and "✓" not in stdout(cell):
            yield f"cell {i} makes a claim but its stored output has no ✓"


def exercises_are_complete(notebook: NotebookNode) -> Iterator[str]:
    """Each exercise has a heading with level and minutes, an unsolved stub, and a solution that was run."""
    named = [m[1] for _, cell in markdown_cells(notebook) for m in EXERCISE.finditer(cell.source)]
    if not 3 <= len(named) <= 5:
        yield f"{len(named)} exercises, expected 3 to 5 headings like '### Exercise 7.1 (easy, 5 min)'"
    for number in named:
        about = [cell for _, cell in code_cells(notebook) if number in checked_exercises(cell)]
        stubs = [cell for cell in about if "exercise" in tags(cell)]
        solved = [cell for cell in about if "solution" in tags(cell)]
        if not any(f"exercise {number}: not solved yet" in stdout(cell) for cell in stubs):
            yield f"exercise {number} has no stub (tag exercise) whose check says 'not solved yet'"
        if not any(f"✓ exercise {number}" in stdout(cell) for cell in solved):
            yield f"exercise {number} has no executed solution (tag solution) that its check accepts"


def checked_exercises(cell: NotebookNode) -> list[str]:
    first = [call.args[0] for call in calls(cell, "check") if call.args]
    return [str(node.value) for node in first if isinstance(node, ast.Constant)]


def solutions_are_folded(notebook: NotebookNode) -> Iterator[str]:
    for i, cell in code_cells(notebook):
        if "solution" not in tags(cell):
            continue
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden") is True
        if "hide-cell" not in tags(cell) or not hidden or cell.metadata.get("cellView") != "form":
            yield f"cell {i} is a solution that is not folded everywhere"
        if IGNORED in tags(cell):
            yield f"cell {i} is a solution whose output is not compared"


def most_cells_are_compared(notebook: NotebookNode) -> Iterator[str]:
    code = code_cells(notebook)
    ignored = sum(IGNORED in tags(cell) for _, cell in code)
    if ignored > MAX_IGNORED * len(code):
        yield f"{ignored} of {len(code)} code cells are tagged {IGNORED}, expected at most half"
    for i, cell in code:
        if re.search(r"^\s*#\s*(NBVAL_|PYTEST_VALIDATE)", cell.source, re.MULTILINE) or "nbval-skip" in tags(
            cell
        ):
            yield f"cell {i} turns nbval off by a comment or by nbval-skip"


def compared_outputs_repeat(notebook: NotebookNode) -> Iterator[str]:
    """Outputs that no second run can repeat: addresses of objects, widgets."""
    for i, cell in code_cells(notebook):
        if IGNORED not in tags(cell) and any(
            re.search(r"\b0x[0-9a-f]{6,}", text_of(o)) for o in cell.outputs
        ):
            yield f"cell {i} shows the address of an object"
        if any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in cell.outputs):
            yield f"cell {i} shows a widget"
        if re.search(r"\bclear_output\b|\.update_display\b|;\s*$", cell.source):
            yield f"cell {i} uses clear_output, update_display, or ends in a semicolon"


def code_is_short(notebook: NotebookNode) -> Iterator[str]:
    for i, cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES and "solution" not in tags(cell):
            yield f"cell {i} has {lines} lines, expected at most {MAX_LINES}"


def reads_raw(notebook: NotebookNode) -> Iterator[str]:
    """Colab and GitHub show Markdown as it stands, so a chapter has no MyST roles, directives or targets."""
    for i, cell in markdown_cells(notebook):
        if match := MYST.search(cell.source):
            yield f"cell {i} has MyST markup: {match[0].strip()!r}"


def figures_are_described(notebook: NotebookNode) -> Iterator[str]:
    """One PNG a cell, at most 100 dpi, with alt text; no image in the prose without one."""
    for i, cell in code_cells(notebook):
        data = [output.get("data", {}) for output in cell.outputs]
        if kinds := {k for d in data for k in d if k.startswith("image/")} - {"image/png"}:
            yield f"cell {i} stores {', '.join(kinds)}, expected PNG"
        figures = [d["image/png"] for d in data if "image/png" in d]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if figures and len(alt.split()) < 4:
            yield f"cell {i} has a figure without alt text: use helpers.plots.show(figure, alt=...)"
        if len(figures) > 1:
            yield f"cell {i} has {len(figures)} figures, expected one a cell"
        if any(dpi(figure) > MAX_DPI + 0.5 for figure in figures):
            yield f"cell {i} has a figure of more than {MAX_DPI} dpi"
    yield from (
        f"cell {i} has an image without alt text" for i, c in markdown_cells(notebook) if "![](" in c.source
    )


def dpi(figure: str) -> float:
    """Dots per inch as the PNG states them; 0 where it does not."""
    with Image.open(io.BytesIO(base64.b64decode(figure))) as image:
        return float(image.info.get("dpi", (0, 0))[0])


def no_absolute_paths(notebook: NotebookNode) -> Iterator[str]:
    for i, cell in enumerate(notebook.cells):
        texts = [cell.source, *(text_of(output) for output in cell.get("outputs", []))]
        for match in (m for text in texts for m in ABSOLUTE.finditer(text)):
            yield f"cell {i} has an absolute path: {match[1]}"


def results_come_from_code(notebook: NotebookNode) -> Iterator[str]:
    """A measured number in prose goes stale; one in a formula, in code or beside its source may stay."""
    for i, cell in markdown_cells(notebook):
        if LABEL_TAG in tags(cell):
            continue
        for paragraph in re.split(r"\n\s*\n", NOT_PROSE.sub("", cell.source)):
            if "](" not in paragraph and (match := RESULT.search(paragraph)):
                yield f"cell {i} states {match[0]} in prose: print it from code, or link its source"


RULES: tuple[Callable[[NotebookNode], Iterator[str]], ...] = (
    counts_run_from_one,
    no_errors_stored,
    ids_are_unique,
    nothing_of_the_run_stored,
    opens_as_planned,
    goals_end_in_claims,
    claims_hold_as_stored,
    exercises_are_complete,
    solutions_are_folded,
    most_cells_are_compared,
    compared_outputs_repeat,
    code_is_short,
    reads_raw,
    figures_are_described,
    no_absolute_paths,
    results_come_from_code,
)


def fits_repository(path: Path, notebook: NotebookNode, root: Path = ROOT) -> Iterator[str]:
    """What a chapter shares with other files: plan, label table, address, links, size."""
    url = address(root)
    chapter = next((c for c in PLAN if c.stem == path.stem), None)
    if chapter is None:
        yield f"{path.name} is not in the plan of tools/chapters.py"
    elif not notebook.cells[0].source.startswith(f"# {chapter.number}. {chapter.title}\n"):
        yield f"the title is not '# {chapter.number}. {chapter.title}', as the plan has it"
    if badge(path.stem, url) not in notebook.cells[0].source.splitlines():
        yield f"the first cell has no Colab badge for {url} and the branch {BRANCH}"
    if not any(cell.source == setup_source(url) for _, cell in code_cells(notebook)):
        yield "the setup cell differs from tools/chapters.py: `python tools/notebooks.py labels` renews it"
    label = cell_text(load(root).get(path.stem))
    if not any(LABEL_TAG in tags(cell) and cell.source == label for cell in notebook.cells):
        yield "the label cell differs from book/results/labels.csv"
    if path.stat().st_size > MAX_BYTES:
        yield f"the file has {path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}"
    yield from broken_links(path, notebook)


def broken_links(path: Path, notebook: NotebookNode) -> Iterator[str]:
    """Relative links of the prose that lead to no file."""
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", NOT_PROSE.sub("", prose(notebook))):
        if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
            yield f"the link to {target} leads nowhere"


def problems(path: Path, root: Path = ROOT) -> list[str]:
    """All that the rules find in a chapter."""
    if json.loads(path.read_text(encoding="utf-8")).get("nbformat") != 4:
        return ["the file is not in notebook format 4"]
    notebook = read(path)
    found = [f"{problem} [{rule.__name__}]" for rule in RULES for problem in rule(notebook)]
    return found + list(fits_repository(path, notebook, root))
