"""What a sweep refuses before it works, and what it survives: study files, options, engines, late files."""

import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import models, sweep
from helpers.sweep import Study, cli, cluster
from helpers.sweep.family import Failure, Task

AFTER = "[pretrain]"  # what is put before it ends the table [study]
SHORT = '[study]\nname = "small"\nsizes = ["1x32"]\ntokens = [1024]\nseeds = [0]\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # what is no study file
        (None, "", r": \[study\] lacks name, seeds, sizes, tokens"),
        ("seeds = [0]", "seeds = [0", r": .*\(at line 7, column"),
        ("\n[study]", "study = 3\n", r", line 1: study must be a table \[study\], got 3"),
        ("\n[study]", "vocab_size = 4096\n[study]", r", line 1: vocab_size must stand in one of .*got 4096"),
        ("\n[study]", 'title = "a(b"\n[study]', ", line 1: title must stand in one of"),
        ("[pretrain]", "[training]", r", line 7: unknown table \[training\]"),
        ("\n[study]", "\n[[study]]", r", line 2: study must be a table \[study\], got \["),
        ("[pretrain]", "[pretrain.more]", r", line 7: unknown key 'more' in \[pretrain\]"),
        (
            "[pretrain]\nseq_len = 16\nbatch = 8",
            '["pretrain"]\nbatch = 2',
            ", line 8: batch must hold at least",
        ),
        (None, "pretrain.batch = 2\n" + SHORT, ", line 1: batch must hold at least 4"),
        (None, "pretrain = {batch = 2}\n" + SHORT, ", line 1: batch must hold at least 4"),
        (None, SHORT.replace("1024", "[1024"), r": .*\(at line 5, column"),
        # keys
        ("seeds = [0]", "", r", line 2: \[study\] lacks seeds"),
        ('name = "small"', 'name = "small"\nsize = 1', r", line 4: unknown key 'size' in \[study\]"),
        ("seq_len = 16", "seqlen = 16", r", line 8: unknown key 'seqlen' in \[pretrain\]"),
        ("seq_len = 16", "tokens = 16", r", line 8: unknown key 'tokens' in \[pretrain\]"),
        ("batch = 8", 'batch = 8\n"a(" = 8', r", line 10: unknown key 'a\(' in \[pretrain\]"),
        # types
        ('"small"', "3", ", line 3: name must be a str, got 3"),
        ('"1x32"', "32", ", line 4: sizes must be a list of str"),
        ("1024,", "1e6,", ", line 5: tokens must be a list of int"),
        ("seeds = [0]", "seeds = 3", ", line 6: seeds must be a list of int, got 3"),
        ("seeds = [0]", "seeds = []", ", line 6: seeds must list at least one value"),
        ("batch = 8", 'batch = "8"', ", line 9: batch must be of type int, got '8'"),
        ("batch = 8", "batch = true", ", line 9: batch must be of type int, got True"),
        ("[0]", f"[0, {10**309}]", ", line 6: seeds has an integer of more than 64 bits"),
        ("batch = 8", f"lr = {10**309}", ", line 9: lr has an integer of more than 64 bits"),
        # settings that no run can use: which they are is tested with PretrainConfig
        ('"1x32"', '"32"', ", line 4: cannot read the size '32'"),
        ('"1x32"', '"1x33"', ", line 4: .*multiple of 32"),
        ("1024,", "100,", ", line 5: tokens must cover at least one step of 128, got 100"),
        ("[0]", "[0, -1]", ", line 6: seed must lie in .*got -1"),
        ("seq_len = 16", "seq_len = -16", ", line 8: seq_len must be at least 8, .*got -16"),
        ("batch = 8", "batch = 2", ", line 9: batch must hold at least 4 sequences"),
        (
            "warmup_tokens = 256",
            "warmup_tokens = -5",
            ", line 10: warmup_tokens must not be neg.*got -5",
        ),
        ("batch = 8", "batch = 8\nlr = nan", ", line 10: lr, lr_adam and clip must be .*finite, got nan"),
        ("batch = 8", "batch = 8\nlr_adam = inf", ", line 10: lr, lr_adam and clip must be .*finite"),
        ("batch = 8", "batch = 8\nweight_decay = -1", ", line 10: weight_decay must be .*negative, got -1"),
        ("batch = 8", "batch = 8\nunique_blocks = -3", ", line 10: unique_blocks asks for -3 .*batch of 8"),
        ("batch = 8", "batch = 8\nmask_rate = 1", r", line 10: mask_rate must lie in \(0, 1\), got 1"),
        ("batch = 8", 'batch = 8\narch = "gpt"', ", line 10: unknown arch 'gpt': expected one of bert"),
        ("batch = 8", 'batch = 8\ninit = "zz"', ", line 10: unknown init 'zz': expected one of neigh"),
        ("batch = 8", 'batch = 8\noptimizer = "sgd"', ", line 10: unknown optimizer 'sgd': expected one of"),
        ("batch = 8", "batch = 8\ndecay_share = 0.96", ", line 10: decay_share 0.96 leaves no step of 8 to"),
        # lists that say something twice
        ("1024,", "2048,", ", line 5: tokens lists 2048 twice"),
        ("1024, 2048", "1024, 1030", r", line 5: tokens \[1024, 1030\] are all 8 times 128"),
        ("seeds = [0]", "seeds = [0, 1, 0]", ", line 6: seeds lists 0 twice"),
        # factors and repeated text
        (AFTER, f"lr_scales = [1, 0]\n{AFTER}", ", line 7: lr_scales must be positive and finite, got 0"),
        (AFTER, f"lr_scales = [nan]\n{AFTER}", ", line 7: lr_scales must be positive and finite, got nan"),
        (AFTER, f"unique_tokens = [4096]\n{AFTER}", ", line 7: no budget repeats 4096 tokens"),
        (AFTER, f"unique_tokens = [10]\n{AFTER}", ", line 7: unique_tokens must fill a batch of 128, got 10"),
        (AFTER, f"unique_tokens = [513, 514]\n{AFTER}", r", line 7: .*\[513, 514\] are all 32 times 16"),
        (
            AFTER,
            f"unique_tokens = [1024]\n{AFTER}\nunique_blocks = 8",
            ", line 7: .*unique_blocks say the",
        ),
        (AFTER, f'[rates]\n"2x32" = 0.5\n{AFTER}', r", line 8: \[rates\] names 2x32, which is not"),
        (AFTER, f'[rates]\n"1x32" = 1\n"01x32" = 2\n{AFTER}', r", line 9: \[rates\] names 1x32 twice"),
        (AFTER, f'[rates]\n"a(" = 8.0\n{AFTER}', ", line 8: cannot read the size 'a"),
        (AFTER, f'[rates]\n"1x32" = "a"\n{AFTER}', ", line 8: the factor of 1x32 must be a number"),
        (AFTER, f'[rates]\n"1x32" = inf\n{AFTER}', ", line 8: the factor of 1x32 must be .*finite, got inf"),
        (AFTER, f'[corpus]\nsource = "x"\n{AFTER}', ", line 8: unknown source 'x'"),
        (AFTER, f"[corpus]\nvocab_size = -5\n{AFTER}", ", line 8: vocab_size must be at least 100, got -5"),
    ],
)
def test_a_study_that_cannot_run_is_refused_with_its_line(old, new, message, write_study):
    path = write_study((old, new)) if old else write_study()
    if old is None:
        path.write_text(new)
    with pytest.raises(ValueError, match=f"^study.toml{message}"):
        Study.read(path)


def test_a_study_that_is_no_text_is_refused_by_its_name(tmp_path):
    (tmp_path / "study.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^study\.toml: .*can't decode byte"):
        Study.read(tmp_path / "study.toml")


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
def test_numbers_that_mean_nothing_are_refused_at_the_command_line(words, message, write_study, capsys):
    command, *options = words.split()
    with pytest.raises(SystemExit, match="2"):
        sweep.main([command, str(write_study()), *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"workers": 0}, {"threads": 0}, {"threads": -1}])
def test_a_study_is_not_begun_without_workers_or_threads(options, tmp_path, write_study, corpus):
    study = Study.read(write_study())
    with pytest.raises(ValueError, match="workers and threads must be at least 1, got"):
        sweep.run(study, tmp_path / "runs", load=lambda: corpus, **options)
    assert not (tmp_path / "runs").exists()


def test_a_study_that_fails_does_not_stop_the_next(tmp_path, write_study, corpus, monkeypatch, capsys, here):
    seeds = {"a": 1, "b": 2, "c": 3}
    paths = [
        write_study(('"small"', f'"{name}"'), ("[0]", f"[{seed}]"), name=f"{name}.toml")
        for name, seed in seeds.items()
    ]
    begun = []

    def work(task):
        begun.append(seed := task.family[0].seed)
        return None if seed == 2 else Failure("it died", lasting=True)

    monkeypatch.setattr(Study, "load_corpus", lambda study: corpus)
    monkeypatch.setattr(cli, "make_engine", lambda name, **options: here(work))
    with pytest.raises(SystemExit, match="1"):
        sweep.main(["run", *map(str, paths), "--folder", str(tmp_path)])
    assert begun == [1, 2, 3]
    assert "a: 1x32 seed 1: it died; c: 1x32 seed 3: it died" in capsys.readouterr().err


def test_rows_that_went_to_another_folder_are_not_called_done(
    tmp_path, write_study, corpus, monkeypatch, capsys, here
):
    monkeypatch.setattr(Study, "load_corpus", lambda study: corpus)
    monkeypatch.setattr(cli, "make_engine", lambda name, **options: here(lambda task: None))
    monkeypatch.setattr(cli, "_GRACE_SECONDS", 0)
    with pytest.raises(SystemExit, match="1"):
        sweep.main(["run", str(write_study()), "--folder", str(tmp_path)])
    words = f"2 of 2 runs ended, and their rows are not in {tmp_path}: all machines must see one folder"
    assert words in capsys.readouterr().err


def test_other_processes_are_given_a_folder_that_is_theirs_too(
    tmp_path, write_study, corpus, monkeypatch, here
):
    monkeypatch.chdir(tmp_path)
    given = []
    engine = here(lambda task: given.append(task.folder))
    sweep.run(Study.read(write_study()), Path("runs"), engine=engine, load=lambda: corpus, show=given.append)
    assert given[0] == tmp_path.resolve() / "runs"


@pytest.mark.parametrize(
    "more", ["unique_tokens = [1_000_000]\n[pretrain]", "[pretrain]\nunique_blocks = 62_500"]
)
def test_text_that_is_not_there_is_refused_before_anything_starts(more, tmp_path, write_study, corpus):
    study = Study.read(write_study(("[1024, 2048]", "[1024, 2_000_000]"), ("[pretrain]", more)))
    with pytest.raises(ValueError, match="the text of small has .* and 62,500 different ones are asked for"):
        sweep.run(study, tmp_path / "runs", load=lambda: corpus)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
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


def test_a_row_that_is_not_yet_to_be_seen_ends_nothing(tmp_path, write_study, corpus, here):
    """Storage between machines may show a file some seconds after it was written."""
    study, lines = Study.read(write_study()), []
    name = sweep.run_id(study.configs()[0], corpus.digest)
    (tmp_path / name).mkdir()
    row = {"run_id": name, "mlm_loss": 1.23456, "unigram_entropy": 5.0}
    (tmp_path / name / "row.json").write_text(json.dumps(row))
    engine = here(lambda task: None)
    rows = sweep.run(study, tmp_path, engine=engine, load=lambda: corpus, show=lines.append)
    assert lines == ["1x32 seed 0 done: [1.235]"] and len(rows) == 1
