"""Every chapter follows the static rules, and every rule finds what it is for."""

import copy
import re
from pathlib import Path

import chapters
import labels
import nbformat
import pytest
import rules
import yaml
from nbformat import v4

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = chapters.find([], ROOT)
URL = chapters.address(ROOT)


def stream(text: str) -> dict:
    return v4.new_output("stream", name="stdout", text=text)


def png(dpi: int = 80) -> str:
    """A small figure as notebooks store it."""
    import base64
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG", dpi=(dpi, dpi))
    return base64.b64encode(data.getvalue()).decode()


def good() -> nbformat.NotebookNode:
    """The smallest chapter that meets every rule."""
    goals = "## What you will learn\n\n- one\n- two\n- three"
    figure = v4.new_output("display_data", data={"image/png": png(), "text/plain": "A line"})
    cells = [
        v4.new_markdown_cell("# 7. Pre-training BERT\n\nWhy?"),
        v4.new_markdown_cell(goals),
        v4.new_code_cell(
            "claim('a', True)\nclaim('b', True)\nclaim('c', True)", outputs=[stream("✓ a\n✓ b\n✓ c\n")]
        ),
        v4.new_code_cell("show(figure, alt='...')", outputs=[figure]),
    ]
    cells[-1].metadata["mystnb"] = {"image": {"alt": "A line that falls"}}
    for number in ("7.1", "7.2", "7.3"):
        cells += exercise(number)
    cells.append(v4.new_code_cell("versions()", metadata={"tags": ["nbval-ignore-output"]}))
    notebook = v4.new_notebook(cells=cells)
    chapters.furnish(notebook, "07_pretraining", URL, labels.cell_text(None))
    for count, (_, cell) in enumerate(rules.code_cells(notebook), start=1):
        cell.execution_count = count
    return notebook


def exercise(number: str) -> list[nbformat.NotebookNode]:
    stub = f"answer = ...\ncheck('{number}', answer, 12)"
    return [
        v4.new_markdown_cell(f"### Exercise {number} (easy, 5 min)\n\nHow many?"),
        v4.new_code_cell(
            stub, metadata={"tags": ["exercise"]}, outputs=[stream(f"exercise {number}: not solved yet\n")]
        ),
        v4.new_code_cell(
            stub.replace("...", "12"),
            metadata={"tags": ["solution"]},
            outputs=[stream(f"✓ exercise {number}\n")],
        ),
    ]


def found(notebook: nbformat.NotebookNode, rule: str) -> list[str]:
    return list(getattr(rules, rule)(notebook))


def test_the_good_notebook_meets_every_rule():
    assert [problem for rule in rules.RULES for problem in rule(good())] == []


def code(notebook: nbformat.NotebookNode, containing: str) -> nbformat.NotebookNode:
    return next(c for c in notebook.cells if c.cell_type == "code" and containing in c.source)


# Each line spoils the good notebook in one way: the rule that must notice, and what to do.
SPOILED = [
    ("counts_run_from_one", lambda n: code(n, "claim").update(execution_count=None)),
    ("counts_run_from_one", lambda n: code(n, "claim").update(execution_count=9)),
    (
        "no_errors_stored",
        lambda n: code(n, "claim").outputs.append(v4.new_output("error", ename="E", evalue="")),
    ),
    ("ids_are_unique", lambda n: n.cells[0].update(id=n.cells[1].id)),
    (
        "nothing_of_the_run_stored",
        lambda n: n.cells[2].metadata.update(execution={"iopub.status.idle": "now"}),
    ),
    (
        "nothing_of_the_run_stored",
        lambda n: code(n, "claim").outputs.append(v4.new_output("stream", name="stderr", text="x")),
    ),
    ("opens_as_planned", lambda n: n.cells[0].update(source="Pre-training")),
    ("opens_as_planned", lambda n: n.cells[1].update(source="## Goals")),
    ("opens_as_planned", lambda n: code(n, "google.colab").metadata.update(tags=[])),
    ("opens_as_planned", lambda n: n.cells.remove(code(n, "google.colab"))),
    ("opens_as_planned", lambda n: n.cells.pop()),
    ("goals_end_in_claims", lambda n: n.cells[1].update(source="## What you will learn\n\n- one")),
    ("goals_end_in_claims", lambda n: code(n, "claim").update(source="claim('a', True)")),
    ("claims_hold_as_stored", lambda n: code(n, "claim").update(outputs=[])),
    ("exercises_are_complete", lambda n: code(n, "'7.1', answer").update(outputs=[stream("✓ exercise 7.1")])),
    ("exercises_are_complete", lambda n: code(n, "answer = 12").update(outputs=[])),
    ("exercises_are_complete", lambda n: code(n, "answer = 12").metadata.update(tags=["hide-cell"])),
    ("solutions_are_folded", lambda n: code(n, "answer = 12").metadata.pop("cellView")),
    ("solutions_are_folded", lambda n: code(n, "answer = 12").metadata.pop("jupyter")),
    ("solutions_are_folded", lambda n: code(n, "answer = 12").metadata.update(tags=["solution"])),
    (
        "most_cells_are_compared",
        lambda n: [c.metadata.update(tags=["nbval-ignore-output"]) for _, c in rules.code_cells(n)],
    ),
    ("most_cells_are_compared", lambda n: code(n, "claim").update(source="# NBVAL_SKIP\nclaim('a', True)")),
    (
        "compared_outputs_repeat",
        lambda n: code(n, "claim").update(outputs=[stream("<X at 0x7f00aa11>")]),
    ),
    ("compared_outputs_repeat", lambda n: code(n, "claim").update(source="x = 1;")),
    ("code_is_short", lambda n: code(n, "claim").update(source="x = 1\n" * 26)),
    ("reads_raw", lambda n: n.cells[1].update(source="See {ref}`this`.")),
    ("reads_raw", lambda n: n.cells[1].update(source="```{note}\nHello\n```")),
    ("reads_raw", lambda n: n.cells[1].update(source=":::{note}\nHello\n:::")),
    ("figures_are_described", lambda n: code(n, "show").metadata.pop("mystnb")),
    ("figures_are_described", lambda n: code(n, "show").outputs[0].data.update({"image/png": png(200)})),
    ("figures_are_described", lambda n: code(n, "show").outputs[0].data.update({"image/svg+xml": "<svg/>"})),
    ("figures_are_described", lambda n: code(n, "show").outputs.append(code(n, "show").outputs[0])),
    ("figures_are_described", lambda n: n.cells[1].update(source="![](a.png)")),
    ("no_absolute_paths", lambda n: code(n, "claim").update(source="open('/home/me/data.csv')")),
    ("no_absolute_paths", lambda n: code(n, "claim").update(outputs=[stream("saved to /home/reader/run")])),
    ("results_come_from_code", lambda n: n.cells[1].update(source="The loss falls to 4.75 nats.")),
]


@pytest.mark.parametrize(
    ("rule", "spoil"), SPOILED, ids=[f"{rule}-{i}" for i, (rule, _) in enumerate(SPOILED)]
)
def test_a_rule_finds_what_it_is_for(rule, spoil):
    notebook = copy.deepcopy(good())
    spoil(notebook)
    assert found(notebook, rule)


def test_every_rule_is_tried_and_listed():
    assert {rule for rule, _ in SPOILED} == {rule.__name__ for rule in rules.RULES}


@pytest.mark.parametrize(
    "text",
    [
        "The rate is $0.25$.",
        "Use `lr=0.02`.",
        "It is 1.69 in [the paper](https://x.org).",
        "Python 3.11",
        "v1.2.13",
    ],
)
def test_numbers_with_a_source_may_stand_in_prose(text):
    notebook = good()
    notebook.cells[1].source = text
    assert not found(notebook, "results_come_from_code")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(path):
    assert rules.problems(path, ROOT) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda n: code(n, "google.colab").update(source="pass"), "setup cell differs"),
        (lambda n: n.cells[0].update(source="# 7. Pre-training BERT\n"), "no Colab badge"),
        (lambda n: n.cells[0].update(source="# 8. Other\n"), "the title is not"),
        (lambda n: n.cells[1].update(source="[there](nowhere.ipynb)"), "leads nowhere"),
        (lambda n: next(c for c in n.cells if "label" in rules.tags(c)).update(source="2 min"), "label cell"),
        (lambda n: code(n, "claim").update(source="x" * 400_001), "bytes"),
    ],
)
def test_what_a_chapter_shares_is_compared(spoil, words, tmp_path):
    for name in ("pyproject.toml", "_config.yml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    notebook, path = good(), tmp_path / "book" / "07_pretraining.ipynb"
    (path.parent / "images").mkdir(parents=True)
    (path.parent / "images" / "colab.svg").touch()
    chapters.write(path, notebook)
    assert list(rules.fits_repository(path, notebook, tmp_path)) == []
    spoil(notebook)
    chapters.write(path, notebook)
    assert any(words in problem for problem in rules.fits_repository(path, notebook, tmp_path))


def test_the_address_is_the_same_everywhere():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    assert (config["url"], config["branch"]) == (URL, chapters.BRANCH)
    for name in ("README.md", "CITATION.cff", "LICENSE-TEXT"):
        addresses = re.findall(r"https://github\.com/[\w.-]+/[\w-]+", (ROOT / name).read_text())
        assert addresses and set(addresses) == {URL}, name


def test_the_contents_list_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    listed = [page["file"] for entry in entries for page in (entry, *entry.get("sections", []))]
    assert [name for name in listed if re.match(r"book/\d\d_", name)] == [f"book/{p.stem}" for p in CHAPTERS]
    pages = {f"book/{p.stem}" for p in (ROOT / "book").glob("*.md")}
    assert pages <= {*listed, toc["root"]}


def test_the_config_does_what_the_book_promises():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["execute"]["execute_notebooks"] == "off"
    assert config["sphinx"]["recursive_update"] is True
    assert config["launch_buttons"]["colab_url"]
    assert "sphinx-mathjax-offline" in config["sphinx"]["extra_extensions"]  # formulas without a network
    static = config["sphinx"]["config"]
    for name in (*static["html_css_files"], *static["html_js_files"]):
        assert (ROOT / "_static" / name).is_file()


@pytest.mark.parametrize("name", labels.PLACES)
def test_the_chapter_tables_are_generated(name):
    text = (ROOT / name).read_text()
    assert labels.with_table(text, labels.chapter_table(labels.PLACES[name], ROOT)) == text


def test_labels_keep_to_the_budget():
    for label in labels.load(ROOT).values():
        assert label.profile == "quick" and label.download_mb == 0, label
        assert label.minutes <= 3 and label.peak_gib <= 3, label


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *(ROOT / "book").glob("*.md")], ids=lambda path: path.name
)
def test_links_of_the_pages_lead_somewhere(path):
    prose = rules.NOT_PROSE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", prose):
        assert re.match(r"[a-z]+:", target) or (path.parent / target).exists(), target
