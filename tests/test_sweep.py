"""Studies: read strictly, run once, resumed when cut, and collected as they are."""

import functools
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import models, pretrain, runtime, sweep
from helpers.checkpoints import CheckpointWarning
from helpers.sweep import Study, cli, schedule
from helpers.sweep import family as families
from helpers.sweep import rows as rows_of
from helpers.sweep.family import Failure
from helpers.sweep.planning import wall_hours
from helpers.sweep.status import clock, render, seconds_left

STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    monkeypatch.setenv("HELPERS_PRECISION", "fp32")


@pytest.fixture
def study(write_study) -> Study:
    return Study.read(write_study())


@pytest.fixture
def family(study):
    return study.family(models.Size(1, 32), 0)


def test_a_study_is_every_combination(write_study):
    longer = ('["1x32"]', '["1x32", "2x64"]'), ("[0]", "[0, 1]"), ("[1024, 2048]", "[2048, 1024]")
    study = Study.read(write_study(*longer))
    runs = [(str(c.size), c.seed, c.tokens) for c in study.configs()]
    assert runs == [(size, s, t) for size in ("1x32", "2x64") for s in (0, 1) for t in (1024, 2048)]
    assert all(c.seq_len == 16 and c.batch == 8 for c in study.configs())


def test_rates_and_scales_multiply_both_learning_rates(write_study):
    more = 'lr_scales = [0.5, 1.0]\n[rates]\n"1x32" = 0.1\n[pretrain]\nlr = 1'
    study = Study.read(write_study(("[pretrain]", more)))
    assert [(c.lr, c.lr_adam) for c in study.configs()][::2] == [(0.05, 0.0001), (0.1, 0.0002)]
    assert [study.name_of(f) for f in study.families()] == ["1x32 seed 0 lr 0.05", "1x32 seed 0 lr 0.1"]


def test_unique_tokens_bound_the_text_and_drop_budgets_that_repeat_nothing(tmp_path, write_study, corpus):
    study = Study.read(write_study(("[pretrain]", "unique_tokens = [512, 2048]\n[pretrain]")))
    runs = [(c.unique_blocks, c.tokens) for c in study.configs()]
    assert runs == [(32, 1024), (32, 2048), (128, 2048)]
    row = sweep.run_family(study.families()[0], corpus, tmp_path)[0]
    assert (row["tokens"], row["unique_tokens"]) == (1024, 512)


def test_runs_of_the_shipped_table_have_the_ids_they_were_made_with():
    """Hours of finished runs resume by these: a setting added later must not change them."""
    digest = "0123456789abcdef"
    config = pretrain.PretrainConfig(models.Size(2, 64), 500_000)
    assert sweep.run_id(config, digest) == "a25e1de768b9"
    ladder = Study.read(STUDIES / "ladder.toml")
    assert sweep.run_id(ladder.family(models.Size(2, 64), 0)[0], digest) == "a25e1de768b9"
    scaled = replace(ladder, lr_scales=(1.0, 2.0)).families()
    assert [sweep.run_id(scaled[i][0], digest) == "a25e1de768b9" for i in (2, 3)] == [True, False]


def test_the_studies_of_the_book_can_be_read():
    for path in STUDIES.glob("*.toml"):
        assert Study.read(path).configs()


def test_the_id_of_a_run_depends_on_what_decides_its_weights(tiny):
    config = tiny()
    one = sweep.run_id(config, "digest")
    assert one == sweep.run_id(replace(config, precision="bf16", compile=True), "digest") and len(one) == 12
    others = [
        replace(config, lr=0.5),
        replace(config, seed=1),
        replace(config, size=models.Size(2, 32)),
        replace(config, tokens=2048),
    ]
    assert len({one, sweep.run_id(config, "other"), *(sweep.run_id(c, "digest") for c in others)}) == 6


def test_a_trunk_holds_every_branch(family):
    trunk, branches = sweep.trunk_of(family)
    assert branches == {config.steps - config.decay_steps for config in family}
    assert trunk.steps == max(branches) and trunk.decay_steps == 0


def test_a_family_equals_separate_runs(family, corpus, tmp_path, same_weights):
    rows = sweep.run_family(family, corpus, tmp_path)
    for config, row in zip(family, rows, strict=True):
        direct = pretrain.pretrain(corpus, config, progress=False)
        assert same_weights(models.load(tmp_path / row["run_id"] / "model"), direct.model)
        assert row["mlm_loss"] == direct.history.final["mlm_loss"]
        assert row["tokens"] == config.tokens and row["steps"] == config.steps
        assert row["params_total"] == sum(p.numel() for p in direct.model.parameters())
        assert row["unique_tokens"] <= row["tokens"] and row["precision"] == "fp32"
    (plain := tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*.safetensors")}
    assert modes == {plain.stat().st_mode}  # whoever shares the folder may read models and checkpoints


def test_what_is_done_is_not_done_again(family, study, corpus, tmp_path, monkeypatch):
    rows = sweep.run_family(family, corpus, tmp_path)
    monkeypatch.setattr(pretrain, "pretrain", lambda *a, **k: pytest.fail("a finished run was started again"))
    assert sweep.run_family(family, corpus, tmp_path) == rows
    pd.testing.assert_frame_equal(sweep.collect(study, corpus.digest, tmp_path), pd.DataFrame(rows))


@pytest.mark.parametrize("content", ["", '{"run_id": "a', "{}", "[]", "null", "\xff"])
def test_a_row_that_was_cut_short_is_made_again_from_its_checkpoint(
    content, family, study, corpus, tmp_path, go, trained
):
    rows = sweep.run_family(family, corpus, tmp_path)
    damaged = tmp_path / rows[1]["run_id"] / "row.json"
    damaged.write_bytes(content.encode("latin-1"))
    assert sweep.collect(study, corpus.digest, tmp_path)["tokens"].tolist() == [1024]
    (looked,) = sweep.status(study, corpus.digest, tmp_path).to_dict("records")
    assert (looked["done"], looked["state"]) == (1, "waiting") and looked["share"] == 1.0
    trained.clear()
    again, lines = go(study)
    assert trained == [] and len(lines) == 1
    measured = ["seconds", "tokens_per_second"]
    pd.testing.assert_frame_equal(again.drop(columns=measured), pd.DataFrame(rows).drop(columns=measured))
    assert json.loads(damaged.read_text())["run_id"] == rows[1]["run_id"]


class Killed(BaseException):
    """Stands for the end of a process."""


# The trunk takes 12 steps: cuts fall in it, in the first branch (2 steps) and in the second (4).
@pytest.mark.parametrize("cut", [3, 9, 13, 15])
def test_a_family_that_is_cut_anywhere_resumes_to_the_same_rows(
    cut, family, study, corpus, tmp_path, monkeypatch
):
    whole = pd.DataFrame(sweep.run_family(family, corpus, tmp_path / "whole"))
    make_batch, calls = pretrain.make_batch, []

    def cut_short(blocks, *arguments, **options):
        if blocks.ids.data_ptr() == corpus.train.ids.data_ptr():
            calls.append(1)
            if len(calls) == cut:
                raise Killed
        return make_batch(blocks, *arguments, **options)

    monkeypatch.setattr(pretrain, "make_batch", cut_short)
    with pytest.raises(Killed):
        sweep.run_family(family, corpus, tmp_path / "cut")
    assert len(sweep.collect(study, corpus.digest, tmp_path / "cut")) < 2
    sweep.run_family(family, corpus, tmp_path / "cut")
    again = sweep.collect(study, corpus.digest, tmp_path / "cut")
    measured = ["seconds", "tokens_per_second"]
    pd.testing.assert_frame_equal(again.drop(columns=measured), whole.drop(columns=measured))


@pytest.fixture
def trained(corpus, monkeypatch):
    """The steps that were trained since the list was made or cleared."""
    make_batch, steps = pretrain.make_batch, []

    def counted(blocks, *arguments, **options):
        if blocks.ids.data_ptr() == corpus.train.ids.data_ptr():
            steps.append(1)
        return make_batch(blocks, *arguments, **options)

    monkeypatch.setattr(pretrain, "make_batch", counted)
    return steps


def budgets(study: Study, *steps: int, decay_share: float = 0.25) -> list:
    """A family of runs of so many steps."""
    shared = study.pretrain | {"decay_share": decay_share}
    longer = replace(study, tokens=tuple(128 * count for count in steps), pretrain=shared)
    return longer.family(models.Size(1, 32), 0)


# The family's trunk is left after 6 and after 12 steps. The budgets leave it after 9, 12 and 18.
@pytest.mark.parametrize(
    ("steps", "decay_share", "expected"), [(12, 0.25, 3 + 3), (15, 0.2, 3), (24, 0.25, 6 + 6)]
)
def test_a_budget_added_later_goes_on_from_the_nearest_checkpoint(
    steps, decay_share, expected, study, family, corpus, tmp_path, same_weights, trained
):
    sweep.run_family(family, corpus, tmp_path)
    trained.clear()
    (more,) = budgets(study, steps, decay_share=decay_share)
    (row,) = sweep.run_family([more], corpus, tmp_path)
    assert len(trained) == expected
    direct = pretrain.pretrain(corpus, more, progress=False)
    assert same_weights(models.load(tmp_path / row["run_id"] / "model"), direct.model)
    assert row["mlm_loss"] == direct.history.final["mlm_loss"] and row["steps"] == more.steps


def test_budgets_between_two_checkpoints_share_the_stretch_that_they_lack(study, corpus, tmp_path, trained):
    sweep.run_family(budgets(study, 8, 64), corpus, tmp_path)
    trained.clear()
    sweep.run_family(budgets(study, 16, 24, 32, 64), corpus, tmp_path)
    assert len(trained) == (24 - 6) + 4 + 6 + 8


def test_only_what_is_missing_of_a_trunk_is_trained(study, corpus, tmp_path, trained):
    sweep.run_family(budgets(study, 8, 64), corpus, tmp_path)
    for path in tmp_path.glob("*/trunk-*"):
        shutil.rmtree(path)
    trained.clear()
    sweep.run_family(budgets(study, 8, 16, 64), corpus, tmp_path)
    assert len(trained) == 12 + 4


def test_studies_that_begin_alike_do_not_prune_each_other(study, corpus, tmp_path, trained):
    how = {"checkpoint_seconds": 0}
    sweep.run_family(budgets(study, 8, 64), corpus, tmp_path, **how)
    sweep.run_family(budgets(study, 16, 64), corpus, tmp_path, **how)
    left = {path.name for path in tmp_path.glob("*/trunk-*/step-*")}
    assert left == {f"step-{step:08d}" for step in (6, 12, 48)}


def test_a_damaged_checkpoint_of_the_trunk_is_passed_over(
    study, family, corpus, tmp_path, same_weights, trained
):
    sweep.run_family(family, corpus, tmp_path)
    (last,) = tmp_path.glob("*/trunk-*/step-00000012")
    (last / "model.safetensors").write_bytes(b"cut short")
    trained.clear()
    (more,) = budgets(study, 24)
    with pytest.warns(CheckpointWarning, match="not a whole checkpoint.*going on from one before"):
        (row,) = sweep.run_family([more], corpus, tmp_path)
    assert len(trained) == 12 + 6
    direct = pretrain.pretrain(corpus, more, progress=False)
    assert same_weights(models.load(tmp_path / row["run_id"] / "model"), direct.model)


def test_a_study_without_decay_runs(study, corpus, tmp_path):
    flat = replace(study, pretrain=study.pretrain | {"decay_share": 0.0})
    rows = sweep.run_family(flat.family(models.Size(1, 32), 0), corpus, tmp_path)
    assert [row["tokens"] for row in rows] == [1024, 2048]


def test_a_plan_counts_trunks_once(study, family):
    (row,) = sweep.plan(study).to_dict("records")
    trunk, _ = sweep.trunk_of(family)
    assert row["runs"] == 2 and row["flops"] > 0
    assert (
        row["tokens"]
        == trunk.tokens + 128 * sum(c.decay_steps for c in family)
        < sum(c.tokens for c in family)
    )


def test_a_plan_counts_the_flops_that_the_rows_report(study, corpus, tmp_path):
    """The vocabulary is the study's, not the usual one: it weighs most in small models."""
    one = replace(study, tokens=(1024,), text=sweep.Text(vocab_size=corpus.vocab_size))
    (row,) = sweep.run_family(one.families()[0], corpus, tmp_path)
    assert sweep.plan(one)["flops"].tolist() == [pytest.approx(row["flops_exact"])]
    assert sweep.status(one, corpus.digest, tmp_path)["flops"].tolist() == sweep.plan(one)["flops"].tolist()
    larger = replace(one, text=sweep.Text(vocab_size=8192))
    assert sweep.plan(larger)["flops"][0] > 5 * row["flops_exact"]


@pytest.fixture
def on_the_small_corpus(monkeypatch, corpus, here):
    """The command line on the small corpus, its families in this process."""
    monkeypatch.setattr(Study, "load_corpus", lambda study: corpus)
    monkeypatch.setattr(cli, "make_engine", lambda name, **options: here())


@pytest.fixture
def go(tmp_path, corpus, here):
    """Run a study in this process; returns its rows and the lines that were shown."""

    def run(study, **options):
        lines = []
        options = {"engine": here(), "load": lambda: corpus, "show": lines.append, "threads": 1} | options
        return sweep.run(study, tmp_path, **options), lines

    return run


@pytest.mark.usefixtures("on_the_small_corpus")
def test_the_command_line_runs_collects_and_plans(write_study, tmp_path, capsys):
    path, runs, output = write_study(), tmp_path / "runs", tmp_path / "rows.csv"
    sweep.main(["status", str(path), "--folder", str(runs)])
    assert "0 of 2 runs done" in capsys.readouterr().out
    for _ in range(2):
        sweep.main(["run", str(path), "--folder", str(runs)])
        assert "2 of 2 runs done" in capsys.readouterr().out
    logs = tmp_path / "logs.csv"
    sweep.main(["collect", str(path), "--folder", str(runs), "--output", str(output), "--logs", str(logs)])
    assert pd.read_csv(output)["tokens"].tolist() == [1024, 2048]
    assert pd.read_csv(logs).groupby("run_id", sort=False)["step"].last().tolist() == [8, 16]
    sweep.main(["plan", str(path), "--workers", "2"])
    assert "1x32" in (out := capsys.readouterr().out) and "hours with 2 at once" in out
    for wrong in (["collect", str(path)], ["plan", str(path), "--folder", "x"]):
        with pytest.raises(SystemExit):
            sweep.main(wrong)


@pytest.mark.usefixtures("on_the_small_corpus")
def test_a_table_grows_and_its_rows_stay_to_the_letter(write_study, tmp_path, capsys):
    path, table, logs = write_study(), tmp_path / "rows.csv", tmp_path / "logs.csv"

    def collect(folder):
        words = ["collect", str(path), "--folder", str(tmp_path / folder), "--output", str(table)]
        sweep.main([*words, "--logs", str(logs)])
        return capsys.readouterr().out

    assert "0 of 2 runs done" in collect("nothing") and not table.exists()
    sweep.main(["run", str(path), "--folder", str(tmp_path / "here")])
    capsys.readouterr()
    collect("here")
    # Rows from another machine, whose folders are not on this one.
    first = table.read_text().replace("e-", "E-").splitlines()
    first[1:] = [",".join(["0", *line.split(",")[1:-1], "0012345"]) for line in first[1:2]]
    table.write_text("\n".join(first) + "\n")
    curve = logs.read_text()
    assert "2 of 2 runs done" in collect("here")
    lines = table.read_text().splitlines()
    assert lines[:2] == first and len(lines) == 4  # the foreign row first, then both of this study
    assert logs.read_text() == curve
    assert "2 of 2 runs done" in (said := collect("here")) and "2 of them stood there already" in said
    assert table.read_text().splitlines() == lines
    assert "2 of 2 runs done" in collect("nothing") and table.read_text().splitlines() == lines


@pytest.mark.usefixtures("on_the_small_corpus")
def test_a_table_of_something_else_is_not_written_to(write_study, tmp_path, capsys):
    path, table, runs = write_study(), tmp_path / "rows.csv", tmp_path / "runs"
    sweep.main(["run", str(path), "--folder", str(runs)])
    for header in ("run_id,accuracy", "name,accuracy"):
        table.write_text(f"{header}\n7,0.5\n")
        with pytest.raises(SystemExit, match="2"):
            sweep.main(["collect", str(path), "--folder", str(runs), "--output", str(table)])
        assert f"another table: it has the columns {header.replace(',', ', ')}" in capsys.readouterr().err
        assert table.read_text() == f"{header}\n7,0.5\n"


def test_the_command_line_shows_what_a_file_gets_wrong_without_a_traceback(write_study, capsys):
    path = write_study(("batch", "bach"))
    with pytest.raises(SystemExit, match="2"):
        sweep.main(["plan", str(path)])
    assert "study.toml, line 9: unknown key 'bach'" in capsys.readouterr().err


def test_a_family_that_fails_does_not_stop_the_others(study, corpus, tmp_path, go, monkeypatch):
    run_family = families.run_family

    def fail_once(family, *arguments, **options):
        if family[0].seed == 1:
            raise FloatingPointError("loss is nan at step 3")
        return run_family(family, *arguments, **options)

    monkeypatch.setattr(families, "run_family", fail_once)
    both = replace(study, seeds=(1, 0))
    with pytest.raises(RuntimeError, match="1x32 seed 1: FloatingPointError: loss is nan at step 3"):
        go(both)
    rows = [json.loads(path.read_text()) for path in tmp_path.glob("*/row.json")]
    assert [row["seed"] for row in rows] == [0, 0]
    table = sweep.status(both, corpus.digest, tmp_path)
    assert table["state"].tolist() == ["failed", "done"] and "loss is nan" in render(table)
    monkeypatch.setattr(families, "run_family", run_family)
    assert len(go(both)[0]) == 4
    assert set(sweep.status(both, corpus.digest, tmp_path)["state"]) == {"done"}


def test_deaths_are_retried_while_there_is_progress_and_then_a_limited_number_of_times(
    study, corpus, tmp_path, go, monkeypatch
):
    attempts = []

    def dies(task):
        attempts.append(1)
        if len(attempts) <= 2:  # checkpoints of some steps: progress
            (tmp_path / sweep.run_id(task.family[0], corpus.digest) / f"step-{len(attempts):08d}").mkdir(
                parents=True
            )
        return Failure("the process ended with signal 9")

    monkeypatch.setattr(families, "work", dies)
    lines = []
    with pytest.raises(RuntimeError, match="1x32 seed 0: the process ended with signal 9"):
        go(study, retries=3, show=lines.append)
    assert len(attempts) == 2 + 3 + 1
    assert "0 of 3 retries" in lines[1] and "3 of 3 retries" in lines[-2] and "given up" in lines[-1]


def test_errors_that_would_come_back_are_not_retried(study, go):
    lines = []
    wide = replace(study, pretrain=study.pretrain | {"seq_len": 32})
    with pytest.raises(RuntimeError, match="cut for seq_len 16, the run wants 32"):
        go(wide, show=lines.append)
    assert len(lines) == 1 and "given up" in lines[0]


def test_families_whose_names_are_written_alike_are_both_run(study, go):
    rates = replace(study, lr_scales=(1.0, 1.0000001), tokens=(1024,))
    assert len({rates.name_of(family) for family in rates.families()}) == 1

    class Together:
        """An engine that ends all of its tasks together."""

        def __init__(self):
            self.ended = {}

        def free(self):
            return True

        def start(self, name, task):
            assert name not in self.ended
            self.ended[name] = families.work(task)

        def wait(self, seconds):
            ended, self.ended = list(self.ended.items()), {}
            return ended

        def close(self):
            pass

    rows, lines = go(rates, engine=Together())
    assert len(rows) == 2 == len(lines) and rows["lr_muon"].tolist() == [0.02, 0.02 * 1.0000001]


def test_what_lies_beside_the_checkpoints_of_a_run_ends_nothing(study, family, corpus, tmp_path):
    trunks = sweep.trunk_folder(tmp_path, family[0], corpus.digest)
    for folder in (trunks / "trunk-00000012", tmp_path / sweep.run_id(family[0], corpus.digest)):
        (folder / "step-old").mkdir(parents=True)
    assert sweep.status(study, corpus.digest, tmp_path)["share"].tolist() == [0.0]
    assert len(sweep.run_family(family, corpus, tmp_path)) == 2


def test_status_tells_how_far_and_how_long(study, corpus, tmp_path):
    assert clock(80) == "80 s" and clock(600) == "10 min" and clock(12_000) == "3 h 20 min"
    two = replace(study, seeds=(0, 1))
    table = sweep.status(two, corpus.digest, tmp_path)
    assert table["state"].tolist() == ["waiting"] * 2 and table["left"].isna().all()
    family = two.families()[0]
    trunk, _ = sweep.trunk_of(family)
    trunks = sweep.trunk_folder(tmp_path, trunk, corpus.digest)
    pretrain.pretrain(corpus, trunk, folder=trunks / "trunk-00000012", progress=False)
    with families.alone(trunks):
        table = sweep.status(two, corpus.digest, tmp_path)
    assert table["state"].tolist() == ["running", "waiting"]
    assert table["share"].tolist() == [12 / 18, 0.0]  # the trunk has 12 steps, the branches 2 and 4
    assert table["left"][1] == pytest.approx(3 * table["left"][0])  # timed by the family that runs
    assert seconds_left(table) == pytest.approx(table["left"].sum())
    sweep.run_family(family, corpus, tmp_path)
    assert sweep.status(two, corpus.digest, tmp_path)["state"].tolist() == ["done", "waiting"]


def test_status_counts_what_a_family_can_use_of_a_longer_trunk(study, corpus, tmp_path):
    sweep.run_family(budgets(study, 32), corpus, tmp_path)
    assert sweep.status(study, corpus.digest, tmp_path)["share"].tolist() == [0.0]  # it ends at 12, not 24
    sweep.run_family(budgets(study, 12), corpus, tmp_path)
    assert sweep.status(study, corpus.digest, tmp_path)["share"].tolist() == [9 / 18]


def test_a_folder_is_one_process_at_a_time(tmp_path):
    assert not families.at_work(tmp_path)
    with families.alone(tmp_path):
        assert families.at_work(tmp_path)
    assert not families.at_work(tmp_path)


def test_calibration_times_each_size_and_hours_are_those_of_the_longest_worker(study, corpus):
    two = replace(study, sizes=(models.Size(1, 32), models.Size(2, 64)))
    threads = torch.get_num_threads()
    speeds = sweep.calibrate(two, corpus, threads=1, seconds=0.05)
    assert torch.get_num_threads() == threads
    assert speeds[models.Size(1, 32)] > speeds[models.Size(2, 64)] > 0
    table = sweep.plan(two, dict.fromkeys(two.sizes, 3600.0))
    assert (table["hours"] > table["tokens"] / 3600**2).all()  # evaluations cost time too
    assert wall_hours(pd.Series([1.0, 2.0, 3.0, 4.0]), 2) == 5.0


def test_five_hundred_rows_load_resume_and_collect_in_two_seconds(family, write_study, corpus, tmp_path):
    seeds, runs = list(range(125)), tmp_path / "runs"
    path = write_study(("[0]", str(seeds)), ("[1024, 2048]", "[1024, 2048, 4096, 8192]"))
    row = sweep.run_family(family[:1], corpus, tmp_path / "one")[0]
    for config in Study.read(path).configs():
        name = sweep.run_id(config, corpus.digest)
        (runs / name).mkdir(parents=True)
        (runs / name / "row.json").write_text(json.dumps(row | {"run_id": name, "seed": config.seed}))
    start = time.process_time()  # the machine may be busy
    study = Study.read(path)
    rows = sweep.run(study, runs, load=lambda: corpus)
    assert len(rows) == 500 == rows["run_id"].nunique() and rows["seed"].tolist()[::4] == seeds
    assert time.process_time() - start < 2


def test_studies_share_the_workers_and_no_two_of_them_a_trunk(study, go):
    """A study of one long run must not leave a worker idle, nor have it wait at a lock."""
    starts, at_work = [], {}

    class Two:
        """An engine of two workers, of whom the one that began first ends first."""

        def free(self):
            return len(at_work) < 2

        def start(self, name, task):
            at_work[name] = task
            starts.append({(t.family[0].seed, t.family[-1].tokens) for t in at_work.values()})

        def wait(self, seconds):
            name = next(iter(at_work))
            return [(name, families.work(at_work.pop(name)))]

        def close(self):
            pass

    seeds = replace(study, name="seeds", seeds=(0, 1))
    longer = replace(study, name="longer", tokens=(4096,))
    rows, lines = go([seeds, longer], engine=Two())
    assert len(rows) == 5 == rows["run_id"].nunique()
    assert lines[0].startswith("longer: 1x32 seed 0 done")  # the largest family first
    # Two at once from the start; the other family of seed 0, on the same trunk, after the first of it.
    assert starts == [{(0, 4096)}, {(0, 4096), (1, 2048)}, {(1, 2048), (0, 2048)}]


def test_a_row_names_the_code_that_trained_it(family, corpus, tmp_path, monkeypatch):
    state, train = ["loaded"], pretrain.pretrain

    def meanwhile(*arguments, **options):
        state[0] = "committed since"
        return train(*arguments, **options)

    monkeypatch.setattr(runtime, "commit", functools.cache(lambda: state[0]))
    monkeypatch.setattr(pretrain, "pretrain", meanwhile)
    (row,) = sweep.run_family(family[:1], corpus, tmp_path)
    assert row["commit"] == "loaded"


@pytest.mark.usefixtures("on_the_small_corpus")
def test_a_curve_is_collected_with_the_row_of_its_own_training(write_study, tmp_path, capsys):
    path, output, logs = write_study(), tmp_path / "rows.csv", tmp_path / "logs.csv"
    words = ["collect", str(path), "--output", str(output), "--folder", str(tmp_path / "runs")]
    sweep.main(["run", str(path), "--folder", str(tmp_path / "runs")])
    sweep.main(words)
    other = pd.read_csv(output)
    other.loc[0, "device"] = "another machine"
    other.to_csv(output, index=False)
    sweep.main([*words, "--logs", str(logs)])
    assert set(pd.read_csv(logs)["run_id"]) == {other["run_id"][1]}


def test_two_who_grow_a_table_at_once_lose_no_row(tmp_path, monkeypatch):
    path, read, threads = tmp_path / "t.csv", rows_of._read_text, []

    def slow(file):
        table = read(file)
        if file == path and not threads:
            threads.append(threading.Thread(target=grow, args=("b",)))
            threads[0].start()
            time.sleep(0.2)
        return table

    def grow(name):
        rows_of.grow(path, pd.DataFrame({"run_id": [name], "x": [1.0]}), ["a", "b"])

    grow("z")
    monkeypatch.setattr(rows_of, "_read_text", slow)
    grow("a")
    threads[0].join()
    assert read(path)["run_id"].tolist() == ["z", "a", "b"]


def test_a_table_that_is_empty_is_named(tmp_path):
    (tmp_path / "t.csv").touch()
    with pytest.raises(ValueError, match=r"t\.csv is not a table: No columns"):
        rows_of.grow(tmp_path / "t.csv", pd.DataFrame({"run_id": ["a"]}), ["a"])


def test_adding_a_size_runs_only_what_is_missing(study, go):
    _, first = go(study)
    more = replace(study, sizes=(models.Size(1, 32), models.Size(1, 64)))
    rows, second = go(more)
    assert len(rows) == 4 and [line.split()[0] for line in first + second] == ["1x32", "1x64"]


def test_engines_refuse_what_they_cannot_use():
    for options, message in (
        ({"name": "slurm"}, "unknown engine 'slurm'"),
        ({"name": "local", "address": "auto"}, "has no address"),
        ({"name": "local", "workers": 0}, "workers must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            schedule.make_engine(**options)
