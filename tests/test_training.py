"""The loop: resumed and branched runs end bit-identical, and bad steps never reach the weights."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import checkpoints, engine, models, pretrain, runtime, training
from helpers.checkpoints import CheckpointWarning
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


def test_a_branch_that_is_killed_resumes_from_its_own_folder(parts, tmp_path, same_weights):
    run(parts, settings(steps=8, decay=0), folder=tmp_path / "trunk", keep_steps=frozenset({8}))
    direct, _ = run(parts, settings())
    options = {"branch_from": tmp_path / "trunk" / "step-00000008", "folder": tmp_path / "branch"}
    model, batch_of = parts()
    with pytest.raises(Killed):
        train(model, killed_at(batch_of, 10), pretrain.losses, settings(), progress=False, **options)
    branch, _ = run(parts, settings(), **options)
    assert same_weights(direct, branch)


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


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
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
    ],
)
def test_settings_that_are_none_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        settings(**bad)


def test_an_unknown_optimizer_is_refused(parts):
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        run(parts, settings(optimizer="sgd"))


SCRIPT = """
import sys
from pathlib import Path
import numpy as np, torch
from helpers import masking, models, pretrain, runtime, training

torch.set_num_threads(int(sys.argv[3]))
ids = torch.from_numpy(np.load(sys.argv[1]))
blocks = masking.Blocks(ids, torch.arange(len(ids)), 0)

def batch_of(step):
    rows = torch.arange(8) + 8 * (step % (len(ids) // 8))
    return pretrain.make_batch(blocks, rows, runtime.generator(0, step), vocab_size=200, rate=0.3)

model = models.build(models.Size(1, 32), vocab_size=200, max_positions=16)
how = {"precision": "fp32", "compile": False, "log_every": 1, "checkpoint_seconds": 0}
settings = training.TrainConfig(steps=150, decay=50, warmup=5, **how)
training.train(model, batch_of, pretrain.losses, settings, folder=Path(sys.argv[2]), progress=False)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_to_the_same_bits(corpus, tmp_path, monkeypatch):
    ids, script = tmp_path / "ids.npy", tmp_path / "script.py"
    np.save(ids, corpus.train.ids[:64].numpy())
    script.write_text(SCRIPT)
    arguments = {
        name: [str(script), str(ids), str(tmp_path / name), str(torch.get_num_threads())]
        for name in ("cut", "whole")
    }
    source = str(Path(training.__file__).parents[1])
    cut = subprocess.Popen([sys.executable, *arguments["cut"]], env=os.environ | {"PYTHONPATH": source})
    while cut.poll() is None and len(checkpoints.available(tmp_path / "cut")) < 2:
        time.sleep(0.02)
    cut.send_signal(signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL
    models_of = {}
    for name, argv in arguments.items():  # the same script, here: the killed run goes on, the other starts
        monkeypatch.setattr(sys, "argv", argv)
        models_of[name] = runpy.run_path(str(script))["model"].state_dict()
    assert all(torch.equal(models_of["cut"][name], value) for name, value in models_of["whole"].items())
