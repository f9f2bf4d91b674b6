"""What a sweep refuses before it works, and what it survives: study files, options, engines, late files."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import models, pretrain, sweep
from helpers.sweep import Study, cli, cluster
from helpers.sweep.family import Failure, Task

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


def write(folder: Path, text: str = STUDY, name: str = "study.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "\n[study]",
            "vocab_size = 4096\n[study]",
            r"1: vocab_size must stand in one of \[study\], .*got 4096",
        ),
        ("\n[study]", 'title = "a(b"\n[study]', "1: title must stand in one of"),
        ("\n[study]", "study = 3\n", r"1: study must be a table \[study\], got 3"),
        ("batch = 8", '"a(" = 8', r"9: unknown key 'a\(' in \[pretrain\]"),
        ("batch = 8", 'batch = 8\n"a(" = 8', r"10: unknown key 'a\(' in \[pretrain\]"),
        ("[pretrain]", '[rates]\n"a(" = 8.0\n[pretrain]', "8: cannot read the size 'a"),
        ("seq_len = 16", "seq_len = 0", "8: seq_len must be at least 8, .*got 0"),
        ("seq_len = 16", "seq_len = -16", "8: seq_len must be at least 8, .*got -16"),
        ("batch = 8", "batch = 8\ndecay_share = 1.0", "10: decay_share 1.0 leaves no step of 8 to the trunk"),
        ("batch = 8", "batch = 8\ndecay_share = 0.96", "10: decay_share 0.96 leaves no step of 8 to"),
        ("batch = 8", "batch = 8\nlr = nan", "10: lr, lr_adam and clip must be positive and finite, got nan"),
        ("batch = 8", "batch = 8\nlr_adam = inf", "10: lr, lr_adam and clip must be positive and finite"),
        ("batch = 8", "batch = 8\nweight_decay = -1", "10: weight_decay must be .*not negative, got -1"),
        ("batch = 8", "batch = 8\nweight_decay = nan", "10: weight_decay must be finite .*got nan"),
        ("warmup_tokens = 256", "warmup_tokens = -5", "10: warmup_tokens must not be negative, got -5"),
        ("batch = 8", "batch = 8\nunique_blocks = 0", "10: unique_blocks asks for 0 .*one batch of 8"),
        ("batch = 8", "batch = 8\nunique_blocks = -3", "10: unique_blocks asks for -3"),
        ("[0]", "[-1]", "6: seed must lie in .*got -1"),
        ("[0]", f"[0, {10**309}]", "6: seeds has an integer of more than 64 bits"),
        ("batch = 8", f"lr = {10**309}", "9: lr has an integer of more than 64 bits"),
        ("[0]", "[0, -1]", "6: seed must lie in .*got -1"),
        ("[1024, 2048]", "[1024, 1030]", r"5: tokens \[1024, 1030\] are all 8 times 128"),
        ("[pretrain]", "lr_scales = [nan]\n[pretrain]", "7: lr_scales must be positive and finite, got nan"),
        ("[pretrain]", "lr_scales = [1, inf]\n[pretrain]", "7: lr_scales must be .*finite, got inf"),
        (
            "[pretrain]",
            '[rates]\n"1x32" = inf\n[pretrain]',
            "8: the factor of 1x32 must be .*finite, got inf",
        ),
        (
            "[pretrain]",
            '[rates]\n"1x32" = nan\n[pretrain]',
            "8: the factor of 1x32 must be .*finite, got nan",
        ),
        (
            "[pretrain]",
            "unique_tokens = [10]\n[pretrain]",
            "7: unique_tokens must fill a batch of 128, got 10",
        ),
        (
            "[pretrain]",
            "unique_tokens = [513, 514]\n[pretrain]",
            r"7: unique_tokens \[513, 514\] are all 32 times 16",
        ),
        ("[pretrain]", "[corpus]\nvocab_size = -5\n[pretrain]", "8: vocab_size must be at least 100, got -5"),
    ],
)
def test_a_study_that_would_fail_later_is_refused_with_its_line(old, new, message, tmp_path):
    with pytest.raises(ValueError, match=f"study.toml, line {message}"):
        Study.read(write(tmp_path, STUDY.replace(old, new)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 7}, "seq_len must be at least 8"),
        ({"warmup_tokens": -1}, "warmup_tokens must not be negative, got -1"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"seed": -1}, "seed must lie in"),
        ({"unique_blocks": 7}, "unique_blocks asks for 7 blocks, fewer than one batch of 8"),
    ],
)
def test_settings_that_no_run_can_use_are_refused(settings, message, tiny):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan --workers 0", "--workers: must be at least 1, got 0"),
        ("plan --workers -1 --no-timing", "--workers: must be at least 1, got -1"),
        ("run --threads 0", "--threads: must be at least 1, got 0"),
        ("run --threads x", "--threads: invalid number value: 'x'"),
        ("run --retries -1", "--retries: must be at least 0, got -1"),
        ("run --checkpoint-seconds -0.5", "--checkpoint-seconds: must be at least 0, got -0.5"),
        ("run --checkpoint-seconds nan", "--checkpoint-seconds: must be at least 0, got nan"),
        ("status --watch -2", "--watch: must be at least 0.1, got -2"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_at_the_command_line(words, message, tmp_path, capsys):
    command, *options = words.split()
    with pytest.raises(SystemExit, match="2"):
        sweep.main([command, str(write(tmp_path)), *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"workers": 0}, {"threads": 0}, {"threads": -1}])
def test_a_study_is_not_begun_without_workers_or_threads(options, tmp_path, corpus):
    study = Study.read(write(tmp_path))
    with pytest.raises(ValueError, match="workers and threads must be at least 1, got"):
        sweep.run(study, tmp_path / "runs", load=lambda: corpus, **options)
    assert not (tmp_path / "runs").exists()


def test_a_study_that_fails_does_not_stop_the_next(tmp_path, corpus, monkeypatch, capsys):
    paths = [
        write(tmp_path, STUDY.replace('"small"', f'"{name}"'), f"{name}.toml") for name in ("a", "b", "c")
    ]
    begun = []

    def run(study, *arguments, **options):
        begun.append(study.name)
        if study.name != "b":
            raise RuntimeError("some runs failed")

    monkeypatch.setattr(Study, "load_corpus", lambda study: corpus)
    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(SystemExit, match="1"):
        sweep.main(["run", *map(str, paths), "--folder", str(tmp_path)])
    assert begun == ["a", "b", "c"]
    assert "a: some runs failed; c: some runs failed" in capsys.readouterr().err


def test_a_failure_with_a_long_reason_reaches_the_driver(tmp_path, tiny):
    engine, end = sweep.Local(1), time.monotonic() + 60
    engine.start("a", Task([tiny()], tmp_path, load=partial(models.Size.parse, "x" * 10**6)))
    ended = []
    while not ended and time.monotonic() < end:
        ended = engine.wait(1.0)
    engine.close()
    ((name, failure),) = ended
    assert name == "a" and failure.lasting and len(failure.reason) == 2000
    assert failure.reason.startswith("ValueError: cannot read the size 'xxx")


class FakeRay:
    """A cluster with nodes of these cores, the last of which is dead."""

    def __init__(self, *cores: float) -> None:
        self.cores, self.ended = cores, False

    def init(self, address, **options):
        pass

    def nodes(self):
        last = len(self.cores) - 1
        return [{"Alive": i < last, "Resources": {"CPU": cores}} for i, cores in enumerate(self.cores)]

    def cluster_resources(self):
        return {"CPU": sum(self.cores)}

    def remote(self, **options):
        return lambda work: SimpleNamespace(options=options)

    def shutdown(self):
        self.ended = True


def test_a_family_that_fits_on_no_machine_of_a_cluster_is_refused(monkeypatch):
    monkeypatch.setattr(cluster, "_import", lambda: ray)
    ray = FakeRay(2.0, 4.0, 64.0)
    assert cluster.Ray(threads=4).remote.options["num_cpus"] == 4 and not ray.ended
    with pytest.raises(ValueError, match="threads must be at most 4, .*got 5"):
        cluster.Ray(threads=5)
    assert ray.ended


class Elsewhere:
    """An engine whose one task ends at once, on a machine whose files are seen late."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, Failure | None]] = []

    def free(self):
        return not self.ended

    def start(self, name, task):
        self.ended = [(name, None)]

    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended

    def close(self):
        pass


def test_a_row_that_is_not_yet_to_be_seen_ends_nothing(tmp_path, corpus):
    study, lines = Study.read(write(tmp_path)), []
    first = tmp_path / sweep.run_id(study.configs()[0], corpus.digest)
    first.mkdir()
    (first / "row.json").write_text(json.dumps({"mlm_loss": 1.23456, "unigram_entropy": 5.0}))
    rows = sweep.run(study, tmp_path, engine=Elsewhere(), load=lambda: corpus, show=lines.append)
    assert lines == ["1x32 seed 0 done: [1.235]"] and len(rows) == 1


def test_shipped_settings_stay_within_the_bounds():
    """The smallest runs of the book and of the tests."""
    config = pretrain.PretrainConfig(models.Size(2, 64), tokens=2048, decay_share=1.0, warmup_tokens=0)
    assert replace(config, weight_decay=0.0, unique_blocks=16).training().decay == 1
