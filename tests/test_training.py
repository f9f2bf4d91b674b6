"""The loop: resumed and branched runs end bit-identical, and bad steps never reach the weights."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import checkpoints, engine, models, pretrain, reporting, runtime, training
from helpers.checkpoints import CheckpointWarning, available
from helpers.optimizers import is_encoder_matrix
from helpers.training import NonFiniteLoss, TrainConfig, train

STEPS = 12


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bits repeat on a CPU; a GPU promises only values."""
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))


@pytest.fixture
def parts(corpus, tiny):
    """A fresh model (with dropout, that must resume too) and a source of batches."""
    config = tiny(STEPS)

    def fresh(seed: int = 0, arch: str = "megatron-bert"):
        model = models.build(
            config.size, arch=arch, vocab_size=corpus.vocab_size, max_positions=16, seed=seed, dropout=0.1
        )
        return model, pretrain.batches(corpus, config)

    return fresh


def settings(**overrides) -> TrainConfig:
    common = {"steps": STEPS, "warmup": 2, "decay": 4, "precision": "fp32", "compile": False, "log_every": 1}
    return TrainConfig(**common | {"checkpoint_seconds": 0.0} | overrides)


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


def killed_at(batch_of, step: int):
    def batches(number: int):
        if number == step:
            raise Killed
        return batch_of(number)

    return batches


def run(fresh, config: TrainConfig, **options):
    model, batch_of = fresh()
    return model, train(model, batch_of, pretrain.losses, config, progress=False, **options)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
def test_a_run_that_is_killed_again_and_again_ends_bit_identical(
    arch, optimizer, parts, tmp_path, same_weights
):
    config = settings(optimizer=optimizer)
    whole, batch_of = parts(arch=arch)
    history = train(whole, batch_of, pretrain.losses, config, progress=False)
    for step in (0, 1, 5, 6, 9, 11):
        model, batch_of = parts(arch=arch)
        with pytest.raises(Killed):
            train(model, killed_at(batch_of, step), pretrain.losses, config, folder=tmp_path, progress=False)
    model, batch_of = parts(arch=arch)
    torch.manual_seed(99)  # the global stream must not matter
    again = train(model, batch_of, pretrain.losses, config, folder=tmp_path, progress=False)
    assert same_weights(whole, model)
    assert again.log.drop(columns="seconds").equals(history.log.drop(columns="seconds"))
    assert len(checkpoints.available(tmp_path)) == 2


def test_a_finished_run_is_not_run_again(parts, tmp_path, same_weights):
    first, history = run(parts, settings(), folder=tmp_path)
    second, again = run(parts, settings(), folder=tmp_path)
    assert same_weights(first, second) and again.log.equals(history.log)


def test_a_damaged_checkpoint_costs_time_and_no_bit(parts, tmp_path, same_weights):
    whole, _ = run(parts, settings(), folder=tmp_path)
    newest = checkpoints.available(tmp_path)[0]
    (newest / "model.safetensors").write_bytes(b"")
    with pytest.warns(CheckpointWarning, match=newest.name):
        again, _ = run(parts, settings(), folder=tmp_path)
    assert same_weights(whole, again)
    run(parts, settings(), folder=tmp_path)  # the damaged one has been replaced: no warning any more


def test_a_disk_that_fills_up_during_a_run_costs_time_and_no_bit(parts, tmp_path, same_weights):
    whole, _ = run(parts, settings())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model, batch_of = parts()

    def filling(step: int):
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return batch_of(step)

    try:
        with pytest.raises(OSError, match="cannot write the checkpoint of step 7 .*earlier ones are whole"):
            train(model, filling, pretrain.losses, settings(), folder=tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name[-1] for path in available(tmp_path)] == ["6", "5"]
    again, _ = run(parts, settings(), folder=tmp_path)
    assert same_weights(whole, again)


def test_checkpoints_are_as_far_apart_as_asked(parts, tmp_path):
    run(parts, settings(checkpoint_seconds=3600.0), folder=tmp_path, keep_steps=frozenset({3, 5}))
    assert [path.name[-2:] for path in checkpoints.available(tmp_path)] == ["12", "05", "03"]


def test_a_branch_equals_a_run_from_the_start(parts, tmp_path, same_weights):
    trunk = settings(steps=10, decay=0)
    run(parts, trunk, folder=tmp_path / "trunk", keep_steps=frozenset({4, 8, 10}))
    for steps, decay, start in ((6, 2, 4), (12, 4, 8), (14, 4, 10), (8, 0, 8)):
        config = settings(steps=steps, decay=decay)
        direct, _ = run(parts, config)
        branch, _ = run(parts, config, branch_from=tmp_path / "trunk" / f"step-{start:08d}")
        assert same_weights(direct, branch)


@pytest.mark.parametrize("name", ["best", "step-old", "step-00000008.kept"])
def test_a_checkpoint_that_was_renamed_can_be_branched_from(name, parts, tmp_path, same_weights):
    run(parts, settings(steps=8, decay=0), folder=tmp_path, keep_steps=frozenset({8}))
    (tmp_path / "step-00000008").rename(tmp_path / name)
    model, batch_of = parts()
    steps = []
    how = {"folder": tmp_path / "branch", "branch_from": tmp_path / name, "progress": False}
    train(model, lambda step: steps.append(step) or batch_of(step), pretrain.losses, settings(), **how)
    assert steps == [8, 9, 10, 11] and same_weights(model, run(parts, settings())[0])


def test_steps_to_keep_must_be_steps_of_the_run_and_have_a_folder(parts, tmp_path):
    with pytest.raises(ValueError, match=r"keep_steps \[3, 5\] need a folder"):
        run(parts, settings(), keep_steps=frozenset({5, 3}))
    with pytest.raises(ValueError, match=r"keep_steps must lie in 1 to 12, .* got \[0, 13\]"):
        run(parts, settings(), folder=tmp_path, keep_steps=frozenset({13, 0, 5}))


def test_a_branch_that_is_killed_resumes_from_its_own_folder(parts, tmp_path, same_weights):
    run(parts, settings(steps=8, decay=0), folder=tmp_path / "trunk", keep_steps=frozenset({8}))
    direct, _ = run(parts, settings())
    options = {"branch_from": tmp_path / "trunk" / "step-00000008", "folder": tmp_path / "branch"}
    model, batch_of = parts()
    with pytest.raises(Killed):
        train(model, killed_at(batch_of, 10), pretrain.losses, settings(), progress=False, **options)
    branch, _ = run(parts, settings(), **options)
    assert same_weights(direct, branch)


def test_a_run_goes_on_from_whoever_got_further(parts, tmp_path, same_weights):
    run(parts, settings(steps=8, decay=0), folder=tmp_path / "other")
    model, batch_of = parts()
    with pytest.raises(Killed):
        train(
            model,
            killed_at(batch_of, 5),
            pretrain.losses,
            settings(),
            folder=tmp_path / "own",
            progress=False,
        )
    model, batch_of = parts()
    steps = []
    train(
        model,
        lambda step: steps.append(step) or batch_of(step),
        pretrain.losses,
        settings(),
        folder=tmp_path / "own",
        branch_from=tmp_path / "other" / "step-00000008",
        progress=False,
    )
    assert steps == [8, 9, 10, 11]
    assert same_weights(model, run(parts, settings())[0])


def test_a_run_that_was_killed_is_compiled_or_not_as_it_began(parts, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(engine.Run, "_compiles", lambda run, steps: asked.append(steps))  # None: not compiled
    config = settings(compile=None)
    model, batch_of = parts()
    with pytest.raises(Killed):
        train(model, killed_at(batch_of, 6), pretrain.losses, config, folder=tmp_path, progress=False)
    run(parts, config, folder=tmp_path, branch_from=checkpoints.available(tmp_path)[0])
    assert asked == [STEPS]


def test_branches_that_would_not_equal_a_direct_run_are_refused(parts, tmp_path):
    run(parts, settings(), folder=tmp_path, keep_steps=frozenset({6, 10}))
    at = {step: tmp_path / f"step-{step:08d}" for step in (6, 10)}
    with pytest.raises(ValueError, match="step 10, in the decay of its own run"):
        run(parts, settings(steps=20), branch_from=at[10])
    with pytest.raises(ValueError, match="step 6, after the decay of this run begins"):
        run(parts, settings(steps=8), branch_from=at[6])
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        run(parts, settings(seed=1), branch_from=at[6])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        run(parts, settings(), branch_from=tmp_path / "step-00000007")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"weight_decay": 0.7}, "weight_decay is .* there and 0.7 here"),
        ({"optimizer": "adamw"}, "optimizer is 'muon' there and 'adamw' here"),
        ({"steps": 20}, "steps is 12 there and 20 here"),
    ],
)
def test_a_folder_of_another_run_is_refused(overrides, message, parts, tmp_path):
    run(parts, settings(optimizer="muon"), folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        run(parts, settings(**{"optimizer": "muon"} | overrides), folder=tmp_path)


def test_the_model_and_data_belong_to_the_run(parts, tmp_path):
    run(parts, settings(), folder=tmp_path, fingerprint={"corpus": "abc"})
    with pytest.raises(ValueError, match="corpus is 'abc' there and 'xyz' here"):
        run(parts, settings(), folder=tmp_path, fingerprint={"corpus": "xyz"})


def test_how_often_to_look_changes_nothing(parts, same_weights):
    quiet, _ = run(parts, settings(log_every=100))
    model, batch_of = parts()
    looks = []
    history = train(
        model,
        batch_of,
        pretrain.losses,
        settings(log_every=3, eval_every=5),
        evaluate=lambda m: looks.append(m.training) or {"answer": float(len(looks))},
        progress=False,
    )
    assert same_weights(quiet, model) and not model.training
    assert looks == [False] * 3
    assert history.log["step"].tolist() == [3, 5, 6, 9, 10, 12]
    assert history.log["eval_answer"].dropna().tolist() == [1, 2, 3] and history.final == {"answer": 3.0}
    assert run(parts, settings())[1].final == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_spares_the_weights(
    value, parts, tmp_path, same_weights
):
    def poisoned(model, batch):
        loss, named = pretrain.losses(model, batch)
        poisoned.step += 1
        return (loss * value if poisoned.step == 6 else loss), named

    poisoned.step = 0
    model, batch_of = parts()
    with pytest.raises(NonFiniteLoss, match="at step 5 of 12: lower lr"):
        train(model, batch_of, poisoned, settings(), folder=tmp_path, progress=False)
    assert all(p.isfinite().all() for p in model.parameters())
    saved, _ = parts()
    checkpoints.restore(
        tmp_path / "step-00000005", saved, engine.Run(saved, poisoned, settings(), {}).optimizers
    )
    assert same_weights(saved, model)


def test_a_finite_loss_with_an_infinite_gradient_spares_the_weights(parts):
    def steep(model, batch):
        loss, named = pretrain.losses(model, batch)
        zero = (loss - loss.detach()).abs()
        return loss + zero.sqrt(), named  # the root's slope at zero is infinite

    model, batch_of = parts()
    with pytest.raises(NonFiniteLoss, match="gradient's norm is (nan|inf) at step 0 of 12"):
        train(model, batch_of, steep, settings(), progress=False)
    assert all(p.isfinite().all() for p in model.parameters())


def overflowing(after: int):
    """A loss whose gradient is not a number in one matrix alone, from a step on."""
    steps = []

    def loss_of(model, batch):
        loss, named = pretrain.losses(model, batch)
        steps.append(loss)
        if len(steps) > after:
            weight = next(p for name, p in model.named_parameters() if is_encoder_matrix(name, p))
            loss = loss + (weight - weight.detach()).abs().sum().sqrt()
        return loss, named

    return loss_of


def test_with_fp16_an_overflow_in_one_matrix_moves_no_weight_at_all(parts, tmp_path, same_weights):
    """Two optimizers share a gradient norm: one must not step on what the other skips."""
    config = settings(precision="fp16")
    model, batch_of = parts()
    keep = {"folder": tmp_path, "keep_steps": frozenset({6})}
    train(model, batch_of, overflowing(after=6), config, progress=False, **keep)
    saved, _ = parts()
    checkpoints.load_weights(tmp_path / "step-00000006", saved)
    assert same_weights(saved, model)
    scales = [checkpoints.read_state(path).machine["scaler"]["scale"] for path in available(tmp_path)]
    assert scales == [2.0**10, 2.0**11, 2.0**16]  # halved at steps 7 to 12, so kept at 12, 11 and 6


def test_with_fp16_an_overflow_that_no_scale_cures_is_an_error(parts):
    model, batch_of = parts()
    with pytest.raises(NonFiniteLoss, match="gradient's norm is nan at step 18 of 30"):
        train(model, batch_of, overflowing(after=2), settings(precision="fp16", steps=30), progress=False)


def test_fp16_finds_its_scale_and_resumes_with_it(parts, tmp_path, same_weights):
    def large(model, batch):
        loss, named = pretrain.losses(model, batch)
        return 3e4 * loss, named

    how = {"progress": False}
    whole, batch_of = parts()
    train(whole, batch_of, large, settings(precision="fp16"), folder=tmp_path / "whole", **how)
    for step in (1, 4, 9, None):
        model, batch_of = parts()
        batches = batch_of if step is None else killed_at(batch_of, step)
        with pytest.raises(Killed) if step else contextlib.nullcontext():
            train(model, batches, large, settings(precision="fp16"), folder=tmp_path / "cut", **how)
    assert same_weights(whole, model)
    ends = [checkpoints.read_state(available(tmp_path / name)[0]).machine for name in ("whole", "cut")]
    assert ends[0] == ends[1] and 1 < ends[0]["scaler"]["scale"] < 2.0**16


def test_gradients_are_clipped(parts):
    def huge(model, batch):
        loss, named = pretrain.losses(model, batch)
        return 1e6 * loss, named

    model, batch_of = parts()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, batch_of, huge, settings(optimizer="adamw", lr_adam=1e-3), progress=False)
    moved = max((p.detach() - before[name]).abs().max() for name, p in model.named_parameters())
    assert 0 < moved < 0.05


def test_loss_falls(parts):
    _, history = run(parts, settings(steps=60, decay=20))
    assert history.log["mlm"].iloc[-5:].mean() < history.log["mlm"].iloc[:5].mean() - 0.3
    assert (history.log["loss"] - history.log["mlm"] - history.log["nsp"]).abs().max() < 1e-5
    assert history.seconds > 0 and history.tokens_per_second > 0 and history.precision == "fp32"


def test_whether_to_compile_does_not_depend_on_where_a_run_was_killed(parts, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    monkeypatch.setattr(runtime, "can_compile", lambda where: True)
    monkeypatch.setattr(engine, "STEPS_THAT_REPAY_COMPILING", 10)
    half = "bf16"  # in fp32 compiling never pays on a CPU
    model, batch_of = parts()
    with pytest.raises(Killed):
        train(
            model,
            killed_at(batch_of, 8),
            pretrain.losses,
            settings(compile=None, precision=half),
            folder=tmp_path,
            progress=False,
        )
    _, history = run(parts, settings(compile=None, precision=half), folder=tmp_path)
    assert len(compiled) == 2 and history.compiled
    assert not run(parts, settings(compile=None, precision=half, steps=9))[1].compiled
    assert not run(parts, settings(compile=None, precision="fp32"))[1].compiled
    assert not run(parts, settings(compile=False))[1].compiled


@pytest.mark.parametrize("precision", tuple(runtime.PRECISIONS))
def test_every_precision_trains_fp32_weights(precision, parts):
    model, history = run(parts, settings(precision=precision))
    assert history.precision == precision
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "at least 1, got 0 and 1"),
        ({"accumulate": 0}, "at least 1, got 12 and 0"),
        ({"lr": 0}, "must be positive"),
        ({"lr_adam": -1.0}, "must be positive"),
        ({"clip": 0}, "must be positive"),
        ({"warmup": -1}, "warmup -1"),
        ({"decay": 13}, "decay 13, steps 12"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds at least 0"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite and not negative, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and not negative, got -0.1"),
        ({"seed": -1}, "seed must lie in .*got -1"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd': expected one of muon, adamw"),
    ],
)
def test_settings_that_are_none_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        settings(**bad)


def test_the_seed_decides_what_dropout_hides(parts, same_weights):
    (one, _), (two, _) = (run(parts, settings(seed=seed, steps=2, decay=0)) for seed in (0, 1))
    assert not same_weights(one, two)


def test_compiled_steps_equal_plain_ones(parts, monkeypatch):
    """Traced by torch's compiler and run without generated code, which alone would take a minute."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: plain(f, backend="eager", **options))
    short = {"steps": 3, "decay": 0}
    (_, one), (_, two) = (run(parts, settings(compile=flag, **short)) for flag in (False, True))
    assert two.compiled and not one.compiled
    np.testing.assert_allclose(two.log["loss"], one.log["loss"], rtol=1e-5)


def test_an_unknown_optimizer_is_refused(parts):
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        run(parts, settings(optimizer="sgd"))


SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from safetensors.torch import load_file, save_model
from helpers import masking, models, pretrain, runtime, training

torch.set_num_threads(1)
root = Path(sys.argv[1])
ids = torch.from_numpy(np.load(root / "ids.npy"))
blocks = masking.Blocks(ids, torch.arange(len(ids)), 0)

def batch_of(step):
    rows = torch.arange(8) + 8 * (step % (len(ids) // 8))
    return pretrain.make_batch(blocks, rows, runtime.generator(0, step), vocab_size=200, rate=0.3)

def run(folder):
    model = models.build(models.Size(1, 32), vocab_size=200, max_positions=16, dropout=0.1)
    how = {"precision": "fp32", "compile": False, "log_every": 1, "checkpoint_seconds": 0}
    settings = training.TrainConfig(steps=120, decay=40, warmup=5, **how)
    training.train(model, batch_of, pretrain.losses, settings, folder=folder, progress=False)
    save_model(model, str(root / f"{folder.name}.safetensors"))

def start(folder):
    child = os.fork()  # nothing has been computed yet: the child inherits the imports alone
    if child == 0:
        run(folder)
        os._exit(0)
    return child

begin = time.monotonic()
os.waitpid(start(root / "whole"), 0)
whole = time.monotonic() - begin
chance, kills, finished, halves = random.Random(0), 0, 0, 0
folder = root / "cut-0"
while kills < 12:
    child = start(folder)
    time.sleep(chance.uniform(0.02, 0.2) * whole)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
        halves += len(list(folder.glob(".writing-*"))) > 0
    else:
        finished += 1
        folder = root / f"cut-{finished}"
os.waitpid(start(folder), 0)
expected = load_file(root / "whole.safetensors")
same = [
    all(torch.equal(value, expected[name]) for name, value in load_file(path).items())
    for path in sorted(root.glob("cut-*.safetensors"))
]
print(json.dumps({"kills": kills, "runs": len(same), "same": all(same), "half-written": halves}))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_at_random_moments_ends_with_the_same_bits(corpus, tmp_path):
    np.save(tmp_path / "ids.npy", corpus.train.ids[:64].numpy())
    source = str(Path(training.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": source, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 12 and result["runs"] >= 1 and result["same"]
    assert not list(tmp_path.glob("cut-*/.writing-*"))  # what kills left half-written is gone


@pytest.mark.slow
def test_half_precision_follows_full_precision_for_500_steps(corpus, tiny):
    runs = {}
    for precision in runtime.PRECISIONS:
        config = tiny(500, precision=precision, decay_share=0.2, batch=4, tokens=500 * 4 * 16)
        runs[precision] = pretrain.pretrain(corpus, config, log_every=50, progress=False).history
    full = runs["fp32"]
    assert full.log["mlm"].iloc[0] - full.log["mlm"].iloc[-1] > 0.5  # there was something to learn
    # Two percent: bfloat16 keeps eight bits of a number, fp16 eleven, and errors of steps do not pile up.
    for precision, half in runs.items():
        assert half.precision == precision
        np.testing.assert_allclose(half.log["mlm"], full.log["mlm"], rtol=0.02)
        assert half.final["mlm_loss"] == pytest.approx(full.final["mlm_loss"], rel=0.02)


def test_a_run_that_goes_on_in_another_precision_says_so(parts, tmp_path):
    model, batch_of = parts()
    with pytest.raises(Killed):
        train(
            model,
            killed_at(batch_of, 6),
            pretrain.losses,
            settings(precision=None),
            folder=tmp_path,
            progress=False,
        )
    began = runtime.precision(torch.device("cpu"))
    other = {"fp32": "bf16", "bf16": "fp32"}[began]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELPERS_PRECISION", other)
        with pytest.warns(CheckpointWarning, match=f"computed in {began} and goes on in {other}"):
            _, history = run(parts, settings(precision=None), folder=tmp_path)
    assert history.precision == f"{began}, {other}"


def test_the_warning_about_precision_can_be_followed(parts, tmp_path, recwarn):
    run(parts, settings(steps=8, decay=0, precision="bf16"), folder=tmp_path)
    branch = tmp_path / "step-00000008"
    _, history = run(parts, settings(precision="bf16"), branch_from=branch)
    assert history.precision == "bf16" and not recwarn
    with pytest.warns(CheckpointWarning, match="set precision='bf16' to avoid it"):
        run(parts, settings(precision="fp32"), branch_from=branch)


@pytest.mark.parametrize("name", ["tensorboard", pytest.param("wandb", marks=pytest.mark.slow)])
def test_trackers_write_to_the_folder_when_asked(name, parts, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        run(parts, settings(), folder=tmp_path / "run", trackers=(name,))
    written = [path.name for path in (tmp_path / "run").rglob("*")]
    assert any("tfevents" in name or name.endswith(".wandb") for name in written)


def test_trackers_that_cannot_be_used_are_refused(parts, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown tracker 'mlflow': expected one of tensorboard, wandb"):
        run(parts, settings(), folder=tmp_path, trackers=("mlflow",))
    monkeypatch.setitem(reporting.TRACKERS, "wandb", "a_module_that_is_absent")
    with pytest.raises(ValueError, match="'wandb' is not installed: pip install"):
        run(parts, settings(), folder=tmp_path, trackers=("wandb",))
    monkeypatch.setitem(reporting.TRACKERS, "wandb", "json")
    with pytest.raises(ValueError, match="the trackers wandb need a folder"):
        run(parts, settings(), trackers=("wandb",))


def test_the_table_of_a_run_names_what_matters(parts):
    model, batch_of = parts()
    answer = {"evaluate": lambda m: {"answer": 1234.5678}, "progress": False}
    table = train(model, batch_of, pretrain.losses, settings(), **answer).summary()
    rows = dict(line.split(maxsplit=1) for line in table.splitlines())
    assert rows["steps"] == "12" and rows["precision"] == "fp32" and rows["answer"] == "1,234.6"
    assert float(rows["loss"]) > 0 and rows["processes"] == "1" and rows["compiled"] == "False"
