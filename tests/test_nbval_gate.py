"""`pytest --nbval` with the project's settings passes twice, and fails on a false number or a false claim."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import chapters
import execution
import gate
import pytest
from nbformat import NotebookNode, v4

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

CELLS = (
    "import sys\n\nfrom helpers.claims import check, claim",
    "parameters = 12 * 128**2\nprint(f'parameters: {parameters:,}')",
    "claim(f'{parameters:,} parameters are fewer than 200,000', parameters < 200_000)",
    "answer = ...\ncheck('7.1', answer, parameters)",
    "print('a progress bar', id(sys), file=sys.stderr)",
    "print(f'{-1e-9:.1f}')",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Iterator[Path]:
    """The project's settings beside one executed notebook."""
    root = tmp_path_factory.mktemp("a tree")
    (root / "tests").mkdir()
    (root / "book").mkdir()
    for name in ("pyproject.toml", "conftest.py", "tests/nbval_sanitize.cfg"):
        shutil.copy(ROOT / name, root / name)
    # The source of this tree, not whichever `helpers` is installed.
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in CELLS])
    notebook.cells.append(v4.new_code_cell("import time\n\ntime.time()"))
    notebook.cells[-1].metadata["tags"] = ["nbval-ignore-output"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root / "src"))
        execution.run(notebook, root / "book")
        execution.tidy(notebook)
        chapters.write(root / "book" / "notebook.ipynb", chapters.normalise(notebook))
        yield root


def nbval(root: Path) -> subprocess.CompletedProcess:
    """Run the gate's own command on the tree."""
    command = [sys.executable, *gate.PYTEST, "--nbval", "book", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=root, env=gate.environment(), capture_output=True, text=True)


def spoiled(tree: Path, tmp_path: Path, old: str, new: str) -> Path:
    """A copy of the tree in which one text of the notebook is another."""
    root = tmp_path / "tree"
    shutil.copytree(tree, root)
    path = root / "book" / "notebook.ipynb"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return root


def stored(tree: Path) -> NotebookNode:
    return chapters.read(tree / "book" / "notebook.ipynb")


def test_a_true_notebook_passes_twice(tree):
    for _ in range(2):
        done = nbval(tree)
        assert done.returncode == 0, done.stdout
        assert f"{len(stored(tree).cells)} passed" in done.stdout


def test_a_stored_number_changed_by_hand_fails(tree, tmp_path):
    done = nbval(spoiled(tree, tmp_path, '"parameters: 196,608\\n"', '"parameters: 196,609\\n"'))
    assert done.returncode == 1
    assert "1 failed" in done.stdout and "196,609" in done.stdout


def test_a_claim_made_false_fails(tree, tmp_path):
    done = nbval(spoiled(tree, tmp_path, "parameters < 200_000", "parameters < 100_000"))
    assert done.returncode == 1
    assert "ClaimError" in done.stdout


def test_a_solution_that_is_wrong_fails(tree, tmp_path):
    done = nbval(spoiled(tree, tmp_path, "answer = ...", "answer = 7"))
    assert done.returncode == 1
    assert "WrongAnswer: exercise 7.1" in done.stdout


def test_an_ignored_output_may_change(tree, tmp_path):
    notebook = stored(tree)
    number = notebook.cells[-1].outputs[0].data["text/plain"]
    assert nbval(spoiled(tree, tmp_path, number, "1.5")).returncode == 0


@pytest.mark.parametrize("path", chapters.find([], ROOT), ids=lambda path: path.stem)
def test_each_chapter_has_outputs_that_are_compared(path):
    """A chapter whose every output were ignored or empty would pass whatever happens."""
    cells = [cell for cell in chapters.read(path).cells if cell.cell_type == "code"]
    compared = [cell for cell in cells if "nbval-ignore-output" not in chapters.tags(cell) and cell.outputs]
    assert len(compared) >= 5
