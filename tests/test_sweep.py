"""Studies: read strictly, run once, resumed when cut, and collected as they are."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import models, pretrain, runtime, sweep
from helpers.sweep import Study

STUDY = """
[study]
name = "small"
sizes = ["1x32"]
tokens = [1024, 2048]
seeds = [0]
[pretrain]
seq_len = 16
batch = 8
warmup_tokens = 256
"""


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    monkeypatch.setenv("HELPERS_PRECISION", "fp32")


def write(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


@pytest.fixture
def study(tmp_path) -> Study:
    return Study.read(write(tmp_path))


@pytest.fixture
def family(study):
    return study.family(models.Size(1, 32), 0)


def test_a_study_is_every_combination(tmp_path):
    text = (
        STUDY.replace('["1x32"]', '["1x32", "2x64"]')
        .replace("[0]", "[0, 1]")
        .replace("[1024, 2048]", "[2048, 1024]")
    )
    study = Study.read(write(tmp_path, text))
    runs = [(str(c.size), c.seed, c.tokens) for c in study.configs()]
    assert runs == [(size, s, t) for size in ("1x32", "2x64") for s in (0, 1) for t in (1024, 2048)]
    assert all(c.seq_len == 16 and c.batch == 8 for c in study.configs())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seq_len = 16", "seqlen = 16", r"study.toml: unknown key 'seqlen' in \[pretrain\]"),
        ("seq_len = 16", "tokens = 16", r"unknown key 'tokens' in \[pretrain\]"),
        ('name = "small"', 'name = "small"\nsize = 1', r"unknown key 'size' in \[study\]"),
        ("[pretrain]", "[training]", r"unknown table \[training\]"),
        ("seeds = [0]", "", r"\[study\] lacks seeds"),
        (STUDY, "", r"\[study\] lacks name, seeds, sizes, tokens"),
        ("seeds = [0]", "seeds = []", "must each list at least one value"),
        ("seeds = [0]", "seeds = 3", "seeds must be a list of int, got 3"),
        ("1024,", "1e6,", "tokens must be a list of int"),
        ('"1x32"', "32", "sizes must be a list of str"),
        ('"1x32"', '"32"', "cannot read the size '32'"),
        ('"1x32"', '"1x33"', "multiple of 32"),
        ("1024,", "100,", "at least one step of 128, got 100"),
        ("batch = 8", "batch = 2", "at least 4 sequences"),
        ("batch = 8", "batch = 8\nlr = -1.0", "lr, lr_adam and clip must be positive"),
        ("batch = 8", 'batch = 8\narch = "gpt"', "unknown architecture 'gpt'"),
        ("seeds = [0]", "seeds = [0", "line|array"),
    ],
)
def test_studies_that_cannot_run_are_refused_when_read(old, new, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Study.read(write(tmp_path, STUDY.replace(old, new)))


def test_the_studies_of_the_book_can_be_read():
    for path in (Path(__file__).parents[1] / "studies").glob("*.toml"):
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


def test_what_is_done_is_not_done_again(family, study, corpus, tmp_path, monkeypatch):
    rows = sweep.run_family(family, corpus, tmp_path)
    monkeypatch.setattr(pretrain, "pretrain", lambda *a, **k: pytest.fail("a finished run was started again"))
    assert sweep.run_family(family, corpus, tmp_path) == rows
    pd.testing.assert_frame_equal(sweep.collect(study, corpus.digest, tmp_path), pd.DataFrame(rows))


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


def test_a_budget_added_later_runs_from_the_start(study, corpus, tmp_path, same_weights):
    size = models.Size(1, 32)
    sweep.run_family(study.family(size, 0), corpus, tmp_path)
    more = replace(study, tokens=(1024, 1536, 2048)).family(size, 0)
    row = sweep.run_family(more, corpus, tmp_path)[1]
    direct = pretrain.pretrain(corpus, more[1], progress=False)
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


@pytest.fixture
def in_threads(monkeypatch, corpus):
    """Workers in this process, on the small corpus."""
    monkeypatch.setattr(sweep, "_corpus", lambda config: corpus)
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", lambda workers, **options: ThreadPoolExecutor(1))


def test_the_command_line_runs_collects_and_plans(in_threads, tmp_path, capsys):
    path, runs, output = write(tmp_path), tmp_path / "runs", tmp_path / "rows.csv"
    sweep.main(["status", str(path), "--folder", str(runs)])
    assert "0 of 2 runs done" in capsys.readouterr().out
    for _ in range(2):
        sweep.main(["run", str(path), "--folder", str(runs)])
        assert "2 of 2 runs done" in capsys.readouterr().out
    sweep.main(["collect", str(path), "--folder", str(runs), "--output", str(output)])
    assert pd.read_csv(output)["tokens"].tolist() == [1024, 2048]
    sweep.main(["plan", str(path)])
    assert "1x32" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main(["collect", str(path), "--folder", str(runs)])


def test_a_family_that_fails_does_not_stop_the_others(in_threads, study, tmp_path, monkeypatch, capsys):
    run_family = sweep.run_family

    def fail_once(family, corpus, folder):
        if family[0].seed == 1:
            raise FloatingPointError("loss is nan at step 3")
        return run_family(family, corpus, folder)

    monkeypatch.setattr(sweep, "run_family", fail_once)
    with pytest.raises(RuntimeError, match="1x32 seed 1: loss is nan at step 3"):
        sweep.run(replace(study, seeds=(0, 1)), tmp_path)
    rows = [json.loads(path.read_text()) for path in tmp_path.glob("*/row.json")]
    assert [row["seed"] for row in rows] == [0, 0]
    assert "1x32 seed 0 done" in capsys.readouterr().out
