"""What the studies share, and that each of them starts."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from helpers import pretrain, sweep

FOLDER = Path(__file__).parents[1] / "studies"
RESULTS = Path(__file__).parents[1] / "book" / "results"
STUDIES = [path for path in sorted(FOLDER.glob("*.py")) if path.stem != "common"]


def load(path: Path, monkeypatch):
    """A study as a module; its own name may be that of a package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def common(monkeypatch):
    return load(FOLDER / "common.py", monkeypatch)


def test_a_row_is_made_once_and_kept(common, tmp_path):
    path, made = tmp_path / "a.json", []

    def make():
        made.append(1)
        return {"loss": 0.1, "seed": len(made)}

    assert common.kept(path, make) == common.kept(path, make) == {"loss": 0.1, "seed": 1}
    assert made == [1] and json.loads(path.read_text()) == {"loss": 0.1, "seed": 1}


def test_a_run_that_fails_leaves_nothing(common, tmp_path):
    with pytest.raises(ZeroDivisionError):
        common.kept(tmp_path / "a.json", lambda: 1 / 0)
    assert os.listdir(tmp_path) == []


def test_tables_are_sorted_and_have_six_digits(common, tmp_path):
    common.write([{"seed": 1, "loss": 1 / 3}, {"seed": 0, "loss": 2.0}], tmp_path / "t.csv", by=["seed"])
    assert (tmp_path / "t.csv").read_text() == "seed,loss\n0,2\n1,0.333333\n"
    assert pd.read_csv(tmp_path / "t.csv")["seed"].tolist() == [0, 1]


def test_the_folder_of_runs_is_made(common, tmp_path):
    words = ["m", "--runs", str(tmp_path / "a" / "b"), "--output", "t.csv"]
    options = common.parser("A study.", model=True, workers=True).parse_args(words)
    assert options.runs.is_dir() and options.model == Path("m") and options.workers == 2


def test_a_row_says_where_it_comes_from(common):
    row = common.provenance("bf16")
    assert list(row) == ["device", "precision", "torch", "commit"] and row["precision"] == "bf16"
    assert common.provenance()["precision"] in ("fp32", "bf16", "fp16")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_tells_how_it_is_run(path, monkeypatch, capsys):
    module = load(path, monkeypatch)
    monkeypatch.setattr("sys.argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert "--output" in capsys.readouterr().out and f"studies/{path.name}" in module.__doc__


TABLES = {
    "ladder": ("ladder", "seeds", "seeds_wide"),
    "again": ("ladder",),
    "heldout": ("heldout", "heldout_long", "heldout_small"),
    "tuning": ("tuning", "tuning_long"),
    "repeats": ("repeats",),
}


@pytest.mark.slow
def test_every_shipped_row_is_a_run_of_its_study_on_this_machine():
    """The text, its tokens and the hash are the same everywhere; else a live run finds no shipped twin."""
    digest = pretrain.load_corpus().digest
    for name, files in TABLES.items():
        studies = [sweep.Study.read(FOLDER / f"{file}.toml") for file in files]
        trunks = {
            sweep.run_id(config, digest): sweep.stable_id(config, digest)
            for study in studies
            for config in study.configs()
        }
        table = pd.read_csv(RESULTS / f"{name}.csv")
        assert not table["run_id"].duplicated().any()
        assert dict(zip(table["run_id"], table["trunk"], strict=True)).items() <= trunks.items(), name


def test_what_is_held_out_stands_in_no_table_that_is_fitted():
    held, ladder = (set(pd.read_csv(RESULTS / f"{name}.csv")["run_id"]) for name in ("heldout", "ladder"))
    assert held and not held & ladder
    again = set(pd.read_csv(RESULTS / "again.csv")["run_id"])
    assert len(again) >= 3 and again <= ladder
