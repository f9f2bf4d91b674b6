"""The tools: environment, pins, gate, labels, text round trip, execution, address."""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import chapters
import colab
import environment
import execution
import gate
import labels
import nbformat
import notebooks
import pins
import pytest
import roundtrip
from nbclient.exceptions import CellExecutionError
from nbformat import v4
from packaging.requirements import Requirement

from helpers import runtime

ROOT = Path(__file__).resolve().parent.parent
TEXT = """\
# 7. Pre-training BERT

A question.

```{code-cell} ipython3
x=1
```

## Exercises

```{code-cell} ipython3
:tags: [solution]

x + 1
```
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small repository: settings, one chapter and the pages with tables."""
    (tmp_path / "book" / "results").mkdir(parents=True)
    for name in (
        "pyproject.toml",
        "_config.yml",
        "README.md",
        "CITATION.cff",
        "book/intro.md",
        "requirements.txt",
        "LICENSE-TEXT",
        "book/results/README.md",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "07_pretraining.md").write_text(TEXT)
    notebooks.command_new([str(tmp_path / "07_pretraining.md")], tmp_path)
    return tmp_path


def chapter(tree: Path) -> Path:
    return tree / "book" / "07_pretraining.ipynb"


def a_label(**changes) -> labels.Label:
    values = {
        "chapter": "07_pretraining",
        "profile": "quick",
        "minutes": 1.5,
        "peak_gib": 1.2,
        "download_mb": 0,
    }
    values |= {
        "cores": 2,
        "machine": "M",
        "precision": "fp32",
        "precomputed": "ladder.csv",
        "torch": "2.13.0",
    }
    return labels.Label(**values | changes)


# Text round trip


def test_a_new_chapter_has_what_every_chapter_has(tree):
    notebook = chapters.read(chapter(tree))
    assert notebook.cells[0].source.splitlines()[2].startswith("[![Open in Colab]")
    assert [chapters.tags(cell) for cell in notebook.cells[1:3]] == [["label"], chapters.SETUP_TAGS]
    solution = notebook.cells[-1]
    assert solution.metadata.jupyter.source_hidden and solution.metadata.cellView == "form"
    assert chapters.tags(solution) == ["hide-cell", "solution"]
    assert "x = 1" in [cell.source for cell in notebook.cells]  # formatted


def test_making_a_chapter_twice_gives_the_same_file(tree):
    before = chapter(tree).read_bytes()
    chapter(tree).unlink()
    notebooks.command_new([str(tree / "07_pretraining.md")], tree)
    assert chapter(tree).read_bytes() == before


def test_a_chapter_is_not_made_over_another(tree):
    with pytest.raises(ValueError, match="exists"):
        notebooks.command_new([str(tree / "07_pretraining.md")], tree)


def test_the_round_trip_changes_nothing(tree):
    notebook = chapters.read(chapter(tree))
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [v4.new_output("stream", name="stdout", text="out\n")]
    notebook.cells[-1].metadata["mystnb"] = {"image": {"alt": "A line that falls"}}
    chapters.write(chapter(tree), notebook)
    before = chapter(tree).read_bytes()
    notebooks.command_text([], tree)
    notebooks.command_untext([], tree)
    assert chapter(tree).read_bytes() == before


def test_an_edited_cell_keeps_its_id_and_loses_its_outputs(tree):
    notebook = chapters.read(chapter(tree))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 1, [v4.new_output("stream", name="stdout", text="out\n")]
    chapters.write(chapter(tree), notebook)
    text = roundtrip.to_text(chapter(tree))
    text.write_text(
        text.read_text().replace("x + 1", "x + 2").replace("## Exercises", "New.\n\n+++\n\n## Exercises")
    )
    changed = roundtrip.from_text(chapter(tree), tree)
    after = {cell.id: cell for cell in chapters.read(chapter(tree)).cells}
    assert set(after) > {cell.id for cell in notebook.cells} and len(after) == len(notebook.cells) + 1
    assert changed == [notebook.cells[-1].id]
    assert after[changed[0]].source == "x + 2" and after[changed[0]].outputs == []
    assert all(after[c.id].get("outputs") == c.get("outputs") for c in notebook.cells[:-1])


def test_a_moved_cell_keeps_its_id():
    old = [v4.new_markdown_cell(text) for text in ("one thing", "another matter", "something else")]
    new = [v4.new_markdown_cell(old[i].source) for i in (2, 0, 1)]
    assert [cell.id for cell in roundtrip.combine(new, old, "x")] == [old[i].id for i in (2, 0, 1)]


# Execution


def write_code(tree: Path, *sources: str) -> None:
    notebook = chapters.read(chapter(tree))
    notebook.cells += [v4.new_code_cell(source) for source in sources]
    chapters.write(chapter(tree), notebook)


def test_a_label_names_tables_but_not_its_own(tree):
    for name in ("ladder", "labels", "other"):
        (tree / "book" / "results" / f"{name}.csv").write_text("a\n1\n")
    write_code(tree, "few = open('results/ladder.csv').read()['labels']")
    assert execution.precomputed(chapters.read(chapter(tree)), tree) == "ladder.csv"


def test_a_label_names_the_precision_that_the_chapter_used():
    cell = v4.new_code_cell(
        "print('cpu', 'fp32')", outputs=[v4.new_output("stream", text="{'a': 1} cpu fp32\n")]
    )
    assert execution.precision(v4.new_notebook(cells=[v4.new_code_cell("1"), cell])) == "fp32"
    assert execution.precision(v4.new_notebook()) == runtime.precision()


def test_one_core_is_singular(tree):
    label = labels.Label("07_pretraining", "quick", 1.0, 1.0, 0, 1, "Some", "fp32", "", "2.13.0")
    assert "on 1 CPU core (Some, fp32)" in labels.cell_text(label)
    labels.save(label, tree)
    assert "on 1 CPU core (Some), without" in labels.chapter_table("", tree)


@pytest.mark.slow
def test_execute_stores_outputs_label_and_tables(tree, capsys):
    (tree / "book" / "results" / "ladder.csv").write_text("a\n1\n")
    write_code(
        tree,
        "import os\nimport warnings\n\nprint(os.path.basename(os.getcwd()), os.environ['BOOK_PROFILE'])",
        "open('results/ladder.csv').read()",
        "warnings.warn('careful')",
        "from IPython.display import display\n\n"
        "display({'image/png': b'png'}, raw=True, metadata={'image/png': {'alt': 'A line that falls'}})",
    )
    assert notebooks.command_execute(["7"], tree) == 0
    notebook = chapters.read(chapter(tree))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert code[-4].outputs[0].text == "book quick\n"
    assert code[-2].outputs == [] and "careful" in capsys.readouterr().out
    assert code[-1].metadata.mystnb.image.alt == "A line that falls"
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    label = labels.load(tree)["07_pretraining"]
    assert 0 < label.minutes < 1 and 0.02 < label.peak_gib < 1 and label.precomputed == "ladder.csv"
    assert any(cell.source == labels.cell_text(label) for cell in notebook.cells)
    assert "under a minute" in (tree / "README.md").read_text()


@pytest.mark.slow
def test_a_chapter_that_fails_is_left_as_it_was(tree):
    write_code(tree, "1 / 0")
    before = chapter(tree).read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execution.execute(chapter(tree), tree)
    assert chapter(tree).read_bytes() == before and labels.load(tree) == {}
    assert notebooks.command_execute(["7"], tree) == 1


def test_peak_memory_counts_children():
    grandchild = "x = b'1' * 10**8; import time; time.sleep(1)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    memory = execution.PeakMemory(interval=0.05)
    with subprocess.Popen([sys.executable, "-c", child]) as process:
        memory.start(process.pid)
    assert memory.stop() > 10**8


def test_a_run_shorter_than_the_interval_is_sampled():
    memory = execution.PeakMemory(interval=3600)
    memory.start(os.getpid())
    assert memory.stop() > 10**6


# Labels


def test_labels_are_kept_sorted_and_replaced(tree):
    labels.save(a_label(), tree)
    labels.save(a_label(chapter="03_sharing"), tree)
    labels.save(a_label(minutes=2.5), tree)
    known = labels.load(tree)
    assert list(known) == ["03_sharing", "07_pretraining"]
    assert known["07_pretraining"] == a_label(minutes=2.5)


def test_label_texts():
    text = labels.cell_text(a_label())
    assert "1.5 minutes, 1.2 GiB of memory, downloads nothing" in text and "`results/ladder.csv`" in text
    assert "runs live" in labels.cell_text(a_label(precomputed=""))
    assert "84 MB" in labels.cell_text(a_label(download_mb=84))
    assert "not measured" in labels.cell_text(None)


def test_tables_link_what_is_written(tree):
    labels.save(a_label(), tree)
    notebooks.command_labels([], tree)
    readme, intro = (tree / "README.md").read_text(), (tree / "book" / "intro.md").read_text()
    assert "[Pre-training BERT](book/07_pretraining.ipynb)" in readme
    assert "[Pre-training BERT](07_pretraining.ipynb)" in intro
    assert readme.count("still being written") == len(chapters.PLAN) - 1


def test_a_page_without_markers_is_an_error():
    with pytest.raises(ValueError, match="no place for the chapter table"):
        labels.with_table("text", "table")


# Address and names


# Whatever in the repository has its address, without tests and notebooks.
WITH_ADDRESS = [
    str(path.relative_to(ROOT))
    for folder in (ROOT, ROOT / "book", ROOT / "book" / "results")
    for path in folder.iterdir()
    if path.suffix in (".md", ".yml", ".toml", ".cff", "")
    and path.is_file()
    and "pretrained-scalability/book" in path.read_text(encoding="utf-8", errors="replace")
]


def test_the_address_is_copied_everywhere(tree):
    project = tree / "pyproject.toml"
    project.write_text(project.read_text().replace("pretrained-scalability/book", "other/place"))
    notebooks.command_address([], tree)
    old = "pretrained-scalability/book"
    files = [path for path in tree.rglob("*") if path.is_file() and path.parent.name != "text"]
    texts = {str(path.relative_to(tree)): path.read_text() for path in files}
    assert not [name for name, text in texts.items() if old in text and name != "07_pretraining.md"]
    assert WITH_ADDRESS
    assert all("other/place" in texts[name] for name in (*WITH_ADDRESS, "book/07_pretraining.ipynb"))


@pytest.mark.parametrize("name", ["7", "07", "07_pretraining", "book/07_pretraining.ipynb"])
def test_chapters_are_found_by_many_names(tree, name):
    assert chapters.find([name], tree) == [chapter(tree)]


def test_a_number_finds_every_page_of_its_chapter(tree):
    other = chapter(tree).with_name("07_second_page.ipynb")
    other.write_bytes(chapter(tree).read_bytes())
    assert chapters.find(["7"], tree) == [chapter(tree), other]
    assert chapters.find([other.stem], tree) == [other]


def test_the_plan_is_in_the_order_of_its_files():
    stems = [planned.stem for planned in chapters.PLAN]
    assert stems == sorted(set(stems))
    assert sorted({planned.number for planned in chapters.PLAN}) == list(range(1, 13))


def test_an_unknown_chapter_is_an_error(tree):
    with pytest.raises(ValueError, match="no chapter '9'"):
        chapters.find(["9"], tree)


def test_an_interrupted_write_leaves_the_old_notebook(tree, monkeypatch):
    before = chapter(tree).read_bytes()
    monkeypatch.setattr(chapters.nbformat, "writes", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chapters.write(chapter(tree), nbformat.from_dict(json.loads(before)))
    assert chapter(tree).read_bytes() == before


# Environment and pins


def fake_install(monkeypatch) -> list[tuple[str, ...]]:
    """Replace the slow parts; returns the list of pip's arguments."""
    calls: list[tuple[str, ...]] = []

    def create(folder, with_pip):
        (folder / "bin").mkdir(parents=True)
        Path(environment.python_of(folder)).symlink_to(sys.executable)

    monkeypatch.setattr(environment.venv, "create", create)
    monkeypatch.setattr(environment, "pip_install", lambda folder, *arguments: calls.append(arguments))
    return calls


def test_the_environment_is_made_once_and_renewed_when_needed(tree, monkeypatch):
    calls, folder = fake_install(monkeypatch), tree / ".venv"
    assert environment.make(tree, folder) == "made" and len(calls) == 2
    assert environment.make(tree, folder) == "unchanged" and len(calls) == 2
    (tree / "requirements.txt").touch()  # the content counts, not the time
    assert environment.make(tree, folder) == "unchanged"
    (tree / "pyproject.toml").write_text((tree / "pyproject.toml").read_text() + "\n")
    assert environment.make(tree, folder) == "renewed" and "--no-deps" in calls[-1]
    (tree / "requirements.txt").write_text("numpy==2.4.6\n")
    assert environment.make(tree, folder) == "made"


def test_a_half_made_environment_is_made_again(tree, monkeypatch):
    calls, folder = fake_install(monkeypatch), tree / ".venv"
    environment.make(tree, folder)
    (folder / environment.STAMP).unlink()
    (folder / "left-over").write_text("")
    assert environment.make(tree, folder) == "made" and not (folder / "left-over").exists()
    Path(environment.python_of(folder)).unlink()  # its Python was removed
    assert environment.make(tree, folder) == "made" and len(calls) == 6


def test_pins_meet_the_ranges():
    assert pins.disagreements(ROOT) == []


def test_pins_are_exact_and_without_local_versions():
    pinned = pins.read(ROOT)
    assert pinned["torch"] == "2.13.0" and not any("+" in version for version in pinned.values())


# The gate


def stage(code: str, **changes) -> gate.Stage:
    return gate.Stage(**{"name": "try", "command": (sys.executable, "-c", code), "budget": 10} | changes)


def test_the_gate_runs_everything_make_test_promises():
    names = [s.name for s in gate.stages(ROOT)]
    written = [f"chapters: {path.name}" for path in chapters.find([], ROOT)]
    assert names == ["lint", "format", "types", "unit", "slow", *written, "build"]
    marked = [gate.chosen([name], ROOT)[0].command[-1] for name in ("unit", "slow")]
    assert marked == ["not slow", "slow"]  # together, every test
    build = gate.stages(ROOT)[-1].command
    assert {"-n", "-W", "--keep-going"} <= set(build)


def test_contributing_names_the_stages_and_their_budgets():
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")]
    told = {name.strip(" `"): budget.split()[0] for _, name, _, budget, _ in (row.split("|") for row in rows)}
    assert told == {stage.name.split(":")[0]: str(stage.budget) for stage in gate.stages(ROOT)}


def test_a_failing_stage_fails_the_gate():
    results = [gate.run(stage(code), 10) for code in ("", "raise SystemExit(3)")]
    assert [r.code for r in results] == [0, 3]
    assert gate.summary(results).startswith("===== 1 failed, 1 passed in ")


def test_a_stage_that_takes_too_long_is_stopped_with_its_children():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.perf_counter()
    assert gate.run(stage(code), 0.5).code == 124
    assert time.perf_counter() - start < 10


def test_pytest_counts_are_read_from_its_report(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1"/></testsuites>')
    assert gate.counts(report, 1) == {"passed": 2, "failed": 2, "skipped": 1}
    assert gate.counts(tmp_path / "missing.xml", 0) == {"failed": 1}
    report.write_text('<testsuites><testsuite tests="0" failures="0" errors="0" skipped="0"/></testsuites>')
    assert gate.counts(report, 5)["failed"] == 1


def test_stages_can_be_chosen():
    assert [s.name for s in gate.chosen(["types"])] == ["types"]
    with pytest.raises(ValueError, match="unknown stage 'typos'"):
        gate.chosen(["typos"])


def test_the_colab_check_names_what_the_setup_cell_changed():
    before = {"numpy": "2.1.3", "torch": "2.11.0", "tqdm": "4.67.1"}
    after = {"numpy": "2.4.6", "torch": "2.11.0", "pooch": "1.9.0"}
    assert colab.changes(before, before | {"pooch": "1.9.0"}) == []
    assert colab.changes(before, after) == ["numpy 2.1.3 became 2.4.6", "tqdm 4.67.1 became nothing"]


def test_the_colab_check_installs_what_the_setup_cell_installs(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(colab, "versions", lambda folder: {"numpy": "2.1.3"})

    def pip(folder, *words):
        assert words[:3] == ("install", "--quiet", "--constraint") and len(words) == 5
        asked.append((Path(words[3]).read_text(), Path(words[4])))
        assert {path.name for path in asked[0][1].iterdir()} >= {"pyproject.toml", "src"}

    monkeypatch.setattr(colab, "pip", pip)
    colab.install_as_the_setup_cell(tmp_path)
    (held, clone) = asked[0]
    # Not from the book's own folder, where pip would leave what it builds.
    assert held == "numpy==2.1.3" and colab.ROOT not in (clone, *clone.parents)


def test_the_colab_check_passes_over_a_python_that_does_not_start(monkeypatch, tmp_path):
    for folder, code in (("stand-in", 127), ("real", 0)):
        script = tmp_path / folder / "python9.9"
        script.parent.mkdir()
        script.write_text(f"#!/bin/sh\nexit {code}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'stand-in'}:{tmp_path / 'real'}:/usr/bin:/bin")
    assert colab.interpreter("python9.9") == str(tmp_path / "real" / "python9.9")
    with pytest.raises(SystemExit, match=r"needs python9\.8"):
        colab.interpreter("python9.8")


def test_what_colab_holds_meets_the_ranges():
    lines = [line for line in colab.HELD.read_text().splitlines() if not line.startswith("#")]
    held = dict(line.split("==") for line in lines)
    project = tomllib.loads((colab.ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name in held:
            assert requirement.specifier.contains(held[requirement.name]), requirement
