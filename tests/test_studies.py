"""What the studies share, and that each of them starts."""

import importlib.util
import json
import os
import re
import sys
import time
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


@pytest.mark.parametrize("content", ["", '{"loss": 0.', "\0"])
def test_a_row_that_was_cut_short_is_made_again(content, common, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert common.kept(path, lambda: {"loss": 0.1}) == {"loss": 0.1} == json.loads(path.read_text())


def test_a_run_that_fails_leaves_nothing(common, tmp_path):
    with pytest.raises(ZeroDivisionError):
        common.kept(tmp_path / "a.json", lambda: 1 / 0)
    assert os.listdir(tmp_path) == []


def test_tables_are_sorted_and_have_six_digits(common, tmp_path):
    common.write([{"seed": 1, "loss": 1 / 3}, {"seed": 0, "loss": 2.0}], tmp_path / "t.csv", by=["seed"])
    assert (tmp_path / "t.csv").read_text() == "seed,loss\n0,2\n1,0.333333\n"
    assert pd.read_csv(tmp_path / "t.csv")["seed"].tolist() == [0, 1]


def test_a_part_of_a_study_does_not_replace_the_whole(common, tmp_path):
    rows = [{"start": "rule", "f1": 0.5}]
    rows += [{"start": "scratch", "rate": 0.1, "seed": seed, "f1": 1 / 3} for seed in range(3)]
    output, by = tmp_path / "new" / "t.csv", ["start", "rate", "seed"]
    common.write(rows, output, by)
    before = output.read_text()
    with pytest.raises(ValueError, match="t.csv has 2 rows that this run would drop; write to another file"):
        common.write(rows[:2], output, by)
    with pytest.raises(ValueError, match="t.csv has 1 rows that this run would drop"):
        common.write(rows[1:], output, by)
    with pytest.raises(ValueError, match=r"t.csv has \['f1'\] that this run would drop"):
        common.write([{k: v for k, v in row.items() if k != "f1"} for row in rows], output, by)
    assert output.read_text() == before
    more = [row | {"f1": 0.7, "ms": 1} for row in rows] + [rows[1] | {"seed": 3}]
    common.write(more, output, by)
    table = pd.read_csv(output)
    assert len(table) == 5 and table["f1"][0] == 0.7 and "ms" in table


def test_a_value_that_a_table_has_is_not_emptied(common, tmp_path):
    output, rows = tmp_path / "t.csv", [{"name": name, "loss": 0.5, "ms": 1.5} for name in ("a", "b")]
    rows.append({"name": "c", "loss": 0.5})
    common.write(rows, output, by=["name"])
    before = output.read_text()
    with pytest.raises(ValueError, match=r"t.csv has \['ms'\] of \('b',\) that this run would empty"):
        common.write([rows[0], {"name": "b", "loss": 0.4}, rows[2]], output, by=["name"])
    with pytest.raises(ValueError, match=r"t.csv has \['loss', 'ms'\] of \('a',\)"):
        common.write([{"name": "a", "loss": float("nan")}, *rows[1:]], output, by=["name"])
    assert output.read_text() == before
    common.write([row | {"loss": 0.3, "ms": 2.5} for row in rows], output, by=["name"])
    assert pd.read_csv(output)["ms"].tolist() == [2.5] * 3
    with pytest.raises(ValueError, match=r"lacks \['seed'\], which tell its rows apart"):
        common.write([row | {"seed": 0} for row in rows], output, by=["name", "seed"])


def test_runs_of_one_model_are_not_taken_for_those_of_another(common, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    for _ in range(2):
        common.same_model(tmp_path, tmp_path / "one")
    assert (tmp_path / "model.txt").exists()
    with pytest.raises(ValueError, match="other is .*: choose another folder for --runs"):
        common.same_model(tmp_path, tmp_path / "other")
    (tmp_path / "model.txt").write_text("")  # else whoever comes next would own the runs
    with pytest.raises(ValueError, match="model.txt cannot be read, so whose runs these are is unknown"):
        common.same_model(tmp_path, tmp_path / "other")
    with pytest.raises(ValueError, match="none is not the folder of a model: no model.safetensors"):
        common.weights(tmp_path / "none")


MODEL = [path.stem for path in STUDIES if "model=True" in path.read_text()]


@pytest.mark.parametrize("name", MODEL)
def test_a_study_of_a_model_knows_whose_its_runs_are(name, monkeypatch, tmp_path):
    module = load(FOLDER / f"{name}.py", monkeypatch)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_text("one")
    (tmp_path / "model.txt").write_text('"another"')
    words = [name, str(tmp_path / "m"), "--runs", str(tmp_path), "--output", str(tmp_path / "t.csv")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(ValueError, match="choose another folder for --runs"):
        module.main()


@pytest.mark.parametrize(("name", "words"), [("downstream", ["2x64-499712"]), ("frozen", [])])
def test_a_study_of_models_that_are_not_there_ends_before_its_work(name, words, monkeypatch, tmp_path):
    module = load(FOLDER / f"{name}.py", monkeypatch)
    monkeypatch.setattr(module.common, "in_processes", lambda *a: pytest.fail("work was begun"))
    where = ["--models", str(tmp_path), "--ladder", str(RESULTS / "ladder.csv")]
    words = [name, *words, *where, "--runs", str(tmp_path), "--output", str(tmp_path / "t.csv")]
    if name == "frozen":
        chosen = [("MiniLM", None, {}), ("2x64", tmp_path / "2x64", {})]
        monkeypatch.setattr(module, "encoders", lambda *a: chosen)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(ValueError, match="not the folder of a model: no model.safetensors"):
        module.main()


@pytest.mark.parametrize("table", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_the_data_card_explains_every_column(table):
    card = (RESULTS / "README.md").read_text()
    sections = {part.partition("\n")[0]: part for part in card.split("\n## Columns of ")[1:]}
    own = [part for title, part in sections.items() if table.name in title] or [sections["`ladder.csv`"]]
    others = [part for title, part in sections.items() if any(f"As of {title}" in part for part in own)]
    told = set(re.findall(r"`([^`\n]+)`", " ".join(own + others)))
    columns = {re.sub(r"_(low|high|se)(?=_|$)", "", name) for name in pd.read_csv(table, nrows=0)}
    assert {name for name in columns - told if not name.startswith("f1_")} == set()
    assert f"`{table.name}`" in card.partition("\n## ")[0]


@pytest.mark.parametrize(
    ("name", "step", "settings"), [("downstream", "run", (100, 0)), ("frozen", "probes", ())]
)
def test_kept_rows_are_those_of_the_same_weights_and_copy_the_ladder_of_today(
    name, step, settings, monkeypatch, tmp_path
):
    """The folder may hold the rows of a sweep that was run again elsewhere."""
    module, made = load(FOLDER / f"{name}.py", monkeypatch), []

    def make(*arguments):
        made.append({"encoder": "e", "accuracy": 0.5 + len(made)})
        return made[-1] if name == "downstream" else [made[-1]]

    monkeypatch.setattr(module, step, make)
    for weights, loss, made_before in (("one", 5.0, 1), ("one", 5.1, 1), ("other", 5.1, 2)):
        (tmp_path / "model.safetensors").write_text(weights)
        found = module.one("e", tmp_path, {"mlm_loss": loss}, *settings, tmp_path / "runs")
        assert len(made) == made_before
        assert (found if name == "downstream" else found[0]) == made[-1] | {"mlm_loss": loss}


@pytest.mark.slow
def test_the_first_error_drops_the_jobs_that_wait(common):
    start = time.monotonic()
    with pytest.raises(TypeError):
        common.in_processes(time.sleep, [("soon",), *[(0.3,)] * 400], workers=1)
    assert time.monotonic() - start < 40


def test_both_parts_of_the_adaptation_study_share_processes_that_end_with_the_first_error(
    monkeypatch, tmp_path
):
    adaptation, jobs = load(FOLDER / "adaptation.py", monkeypatch), []

    def in_processes(work, given, workers):
        jobs.extend(given)
        return [work(*job) for job in given]

    def one(folder, runs, task, name):
        ends = {"kept_step": 1, "accuracy": 0.5, "test_loss": 1, "last_accuracy": 0.5, "last_loss": 1}
        about = {"seconds": 1, "device": "d", "precision": "p", "torch": "t", "commit": "c"}
        row = {"way": task.way, "labels": task.labels, "rate": task.rate, "seed": task.seed}
        return row | ends | about | {"val_accuracy": 1 - task.rate, "course": [{"step": 1}, {"step": 2}]}

    monkeypatch.setattr(adaptation.common, "in_processes", in_processes)
    monkeypatch.setattr(adaptation, "one", one)
    (tmp_path / "model.safetensors").write_text("one")
    where = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["adaptation", str(tmp_path), *where])
    adaptation.main()
    settings, arms = len(adaptation.WAYS) * len(adaptation.LABELS), len(adaptation.ARMS)
    assert len(jobs) == settings + 3 * arms
    assert len(pd.read_csv(tmp_path / "overfitting.csv")) == 2 * 3 * arms
    table = pd.read_csv(tmp_path / "adaptation.csv")
    assert len(table) == settings * (4 + 2) and "course" not in table
    assert (table[table["chosen"]].groupby(["way", "labels"])["seed"].nunique() == 3).all()


@pytest.fixture
def pareto(monkeypatch):
    return load(FOLDER / "pareto.py", monkeypatch)


def test_arms_bring_those_they_need(pareto):
    assert pareto.complete(["low rank 50 %"]) == ["dense", "low rank 50 %"]
    assert pareto.complete(["int8, distilled", "dense"]) == ["dense", "distilled", "int8, distilled"]
    assert pareto.complete(list(pareto.ARMS)) == list(pareto.ARMS)


def test_seeds_arms_and_costs_join_a_table_that_keeps_its_rows(pareto, monkeypatch, tmp_path):
    runs, output = tmp_path / "runs", tmp_path / "new" / "pareto.csv"
    (tmp_path / "model.safetensors").write_text("one")

    def measure(folder, runs, names, seed, repeats):
        (runs / "costs.json").write_text(json.dumps({name: {"latency_ms_1": 2.0} for name in names}))

    def row(folder, runs, name, seed):
        return {"name": name, "seed": seed, "accuracy": 0.7, "log_loss": 0.5, "seconds": 1.0}

    monkeypatch.setattr(pareto, "run", row)
    monkeypatch.setattr(pareto, "measure", measure)

    def call(*words):
        where = ["--runs", str(runs), "--output", str(output)]
        monkeypatch.setattr("sys.argv", ["pareto", str(tmp_path), *where, *words])
        pareto.main()
        return pd.read_csv(output)

    whole = call("--arms", "int8", "2:4", "--seeds", "0", "1")
    assert whole["name"].tolist() == ["dense"] * 2 + ["2:4"] * 2 + ["int8"] * 2
    more = call("--arms", "int8", "2:4", "--seeds", "0", "1", "--latency")
    assert (more["latency_ms_1"] == 2.0).all() and len(more) == 6
    with pytest.raises(ValueError, match="pareto.csv has 3 rows that this run would drop"):
        call("--arms", "int8", "2:4", "--seeds", "0")
    with pytest.raises(ValueError, match="costs.json has 2:4, which this run would drop: measure them as"):
        call("--arms", "int8", "--seeds", "0", "1", "--latency")
    before = output.read_text()
    (runs / "costs.json").write_text(json.dumps({"dense": {"latency_ms_1": 2.0}}))
    with pytest.raises(ValueError, match=r"pareto.csv has \['latency_ms_1'\] of \('2:4', 0\) that this run"):
        call("--arms", "int8", "2:4", "--seeds", "0", "1")
    assert output.read_text() == before


def test_a_setting_of_the_coverage_study_is_counted_once(monkeypatch, tmp_path):
    coverage, counted = load(FOLDER / "coverage.py", monkeypatch), []

    def count(setting, replications, n_boot):
        counted.append(setting)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return {**vars(setting), "replications": replications, "n_boot": n_boot, "E": 95.0}

    monkeypatch.setattr(coverage, "coverage", count)
    output = tmp_path / "coverage.csv"
    monkeypatch.setattr("sys.argv", ["coverage", "--runs", str(tmp_path / "runs"), "--output", str(output)])
    with pytest.raises(KeyboardInterrupt):
        coverage.main()
    assert not output.exists()
    coverage.main()
    assert len(counted) == len(coverage.SETTINGS) + 1 and len(set(counted)) == len(coverage.SETTINGS)
    table = pd.read_csv(output)
    assert table["sizes"].tolist() == [setting.sizes for setting in coverage.SETTINGS]
    assert table["delta"].tolist() == [setting.delta for setting in coverage.SETTINGS]
    # What is kept is known by what it says, not by its place.
    monkeypatch.setattr(coverage, "SETTINGS", coverage.SETTINGS[::-1])
    output.unlink()
    coverage.main()
    assert len(counted) == len(coverage.SETTINGS) + 1
    assert pd.read_csv(output)["delta"].tolist() == [setting.delta for setting in coverage.SETTINGS]


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
    "ladder": ("ladder", "seeds", "seeds_wide", "seeds_widest"),
    "precision": ("ladder", "seeds", "seeds_wide", "seeds_widest"),
    "again": ("ladder",),
    "heldout": ("heldout", "heldout_long", "heldout_small"),
    "tuning": ("tuning", "tuning_long"),
    "repeats": ("repeats", "repeats_long"),
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


def test_rows_in_bf16_have_twins_in_fp32():
    """Else chapter 9 compares an arithmetic with itself."""
    coarse, ladder = (pd.read_csv(RESULTS / f"{name}.csv") for name in ("precision", "ladder"))
    twins = ladder.set_index("run_id").loc[coarse["run_id"]]
    assert set(coarse["precision"]) == {"bf16"} and set(twins["precision"]) == {"fp32"}
    assert len(coarse) >= 12 and coarse["trunk"].nunique() >= 4
