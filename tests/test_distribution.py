"""Parts of a batch add up to the whole, and two processes do what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_model

from helpers import distribution, masking, models, pretrain, runtime, training

SIZE = models.Size(2, 32)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))


def fresh(corpus, arch: str = "megatron-bert"):
    return models.build(SIZE, arch=arch, vocab_size=corpus.vocab_size, max_positions=16)


@pytest.mark.parametrize("loss_of", [pretrain.losses, pretrain.mlm_only])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_batch(count, loss_of, corpus, tiny):
    batch = pretrain.batches(corpus, tiny())(0)
    whole, cut = fresh(corpus), fresh(corpus)
    loss, named = loss_of(whole, batch)
    loss.backward()
    parts = pretrain.split(batch, count)
    assert [len(part["input_ids"]) for part in parts] == [len(r) for r in torch.arange(8).tensor_split(count)]
    assert len({len(part["labels"]) for part in parts}) > 1  # parts hold different numbers of masks
    found = [loss_of(cut, part) for part in parts]
    for value, _ in found:
        value.backward()
    torch.testing.assert_close(sum(value for value, _ in found), loss)
    for name, value in named.items():
        torch.testing.assert_close(sum(part[name] for _, part in found), value)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_part_without_masks_weighs_nothing(corpus, tiny):
    batch = pretrain.batches(corpus, tiny())(0)
    first_row = batch["positions"] < 16
    batch |= {name: batch[name][~first_row] for name in ("positions", "labels")}
    empty = pretrain.split(batch, 8)[0]
    loss, _ = pretrain.mlm_only(fresh(corpus), empty)
    assert len(empty["labels"]) == 0 and loss.item() == 0.0


def test_a_batch_of_fewer_rows_than_parts_is_refused(corpus, tiny):
    with pytest.raises(ValueError, match="batch of 8 sequences cannot be cut into 9 parts"):
        pretrain.split(pretrain.batches(corpus, tiny())(0), 9)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_accumulated_steps_equal_whole_ones(optimizer, corpus, tiny):
    config = tiny(12, optimizer=optimizer, decay_share=0.5)
    whole, parts = (pretrain.pretrain(corpus, config, accumulate=n, progress=False) for n in (1, 3))
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole.history.log["loss"], parts.history.log["loss"], rtol=1e-4)


def test_what_cannot_be_shared_is_refused(corpus, tiny):
    batch_of = pretrain.batches(corpus, tiny())
    config = training.TrainConfig(steps=2, precision="fp32", accumulate=2)
    with pytest.raises(ValueError, match="1 processes and accumulate 2 need a way to cut a batch"):
        training.train(fresh(corpus), batch_of, pretrain.losses, config, progress=False)
    with pytest.raises(ValueError, match="spreads weights over processes, and there is one"):
        pretrain.pretrain(corpus, tiny(), shard=True, progress=False)


def test_a_launcher_can_ask_for_sharding(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` does
    with pytest.raises(ValueError, match="shard=True spreads weights over processes, and there is one"):
        distribution.Ranks()


def test_one_process_agrees_with_itself():
    ranks = distribution.Ranks()
    assert (ranks.count, ranks.rank, ranks.main) == (1, 0, True)
    assert ranks.agree(lambda: 3) == 3 and ranks.total({"loss": 0.1}) == {"loss": 0.1}
    with pytest.raises(KeyError):
        ranks.agree(lambda: {}["absent"])


SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_model
from helpers import checkpoints, corpus, distribution, masking, models, pretrain, training

torch.set_num_threads(1)
write, written = checkpoints.write, []
checkpoints.write = lambda *arguments: written.append(1) or write(*arguments)
folder = Path(sys.argv[1])
setup = json.loads((folder / "setup.json").read_text())
ids = torch.from_numpy(np.load(folder / "ids.npy"))
blocks = masking.Blocks(ids, torch.arange(len(ids)), 0)

class Text:
    train = validation = blocks
    vocab_size = setup["vocab_size"]
    digest = "text"

class Stop(Exception):
    pass

def settings(**changes):
    size = models.Size(2, 32)
    return pretrain.PretrainConfig(size, **(setup["config"] | changes))

def attempt(function):
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def poisoned(model, batch):
    loss, named = pretrain.losses(model, batch)
    bad = distribution.Ranks().rank == 1
    return loss * (float("nan") if bad else 1.0), named

def stopping(batch_of, at):
    def batches(step):
        if step == at:
            raise Stop
        return batch_of(step)
    return batches

def model():
    return models.build(models.Size(2, 32), vocab_size=Text.vocab_size, max_positions=16)

main = distribution.Ranks().main
report = {}
for name, changes, options in setup["runs"]:
    run = pretrain.pretrain(Text, settings(**changes), progress=False, **options)
    report[name] = run.history.log["loss"].tolist() + [run.history.final["mlm_loss"], run.history.processes]
    if main:
        save_model(run.model, str(folder / f"{name}.safetensors"))

config = settings().training(log_every=1, checkpoint_seconds=0)
batch_of = pretrain.batches(Text, settings())
report["nan"] = attempt(
    lambda: training.train(model(), batch_of, poisoned, config, split=pretrain.split, progress=False)
)
for name, changes, shard in (("cut", {}, False), ("cut_sharded", {"optimizer": "adamw"}, True)):
    for at in (3, 8, None):
        again = model()
        batches = pretrain.batches(Text, settings(**changes))
        how = {"split": pretrain.split, "shard": shard, "folder": folder / name, "progress": False}
        config = settings(**changes).training(log_every=1, checkpoint_seconds=0)
        attempt(lambda: training.train(again, stopping(batches, at), pretrain.losses, config, **how))
    if main:
        save_model(again, str(folder / f"{name}.safetensors"))
report["refused"] = attempt(lambda: pretrain.pretrain(Text, settings(), shard=True, progress=False))
report["other"] = attempt(
    lambda: pretrain.pretrain(Text, settings(), folder=folder / "cut", progress=False)
)
report["few"] = attempt(
    lambda: training.train(model(), batch_of, pretrain.losses, config, progress=False)
)
report["checkpoints written"] = len(written)
(folder / f"report-{distribution.Ranks().rank}.json").write_text(json.dumps(report))
distribution.close()
"""
RUNS = [
    ("muon", {}, {}),
    ("adamw", {"optimizer": "adamw"}, {}),
    ("uneven", {"batch": 5}, {}),
    ("unused", {"next_sentence": False}, {"accumulate": 2}),
    ("sharded", {"optimizer": "adamw"}, {"shard": True}),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Text:
    """A corpus of the first blocks alone."""

    digest = "text"

    def __init__(self, corpus) -> None:
        ids = corpus.train.ids[:64]
        self.train = self.validation = masking.Blocks(ids, torch.arange(64), 0)
        self.vocab_size = corpus.vocab_size


@pytest.fixture(scope="module")
def pair(corpus, tmp_path_factory):
    """Two gloo processes did all of ``RUNS``; the folder holds their weights and reports."""
    folder = tmp_path_factory.mktemp("pair")
    np.save(folder / "ids.npy", corpus.train.ids[:64].numpy())
    config = {"tokens": 12 * 8 * 16, "seq_len": 16, "batch": 8, "warmup_tokens": 256, "precision": "fp32"}
    setup = {"vocab_size": corpus.vocab_size, "config": config | {"compile": False}, "runs": RUNS}
    (folder / "setup.json").write_text(json.dumps(setup))
    (folder / "script.py").write_text(SCRIPT)
    common = os.environ | {
        "PYTHONPATH": str(Path(training.__file__).parents[1]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(folder / "script.py"), str(folder)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    reports = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]
    return folder, reports, setup


def alone(corpus, setup, changes):
    config = pretrain.PretrainConfig(SIZE, **(setup["config"] | changes))
    return pretrain.pretrain(Text(corpus), config, progress=False)


def weights(folder, name, corpus):
    model = fresh(corpus)
    load_model(model, str(folder / f"{name}.safetensors"))
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes", "options"), RUNS)
def test_two_processes_end_with_the_weights_of_one(name, changes, options, pair, corpus):
    folder, (first, second), setup = pair
    single = alone(corpus, setup, changes)
    expected = single.history.log["loss"].tolist() + [single.history.final["mlm_loss"], 2]
    np.testing.assert_allclose(first[name], expected, rtol=2e-4)
    assert first[name] == second[name] or name == "sharded"
    for key, value in weights(folder, name, corpus).items():
        torch.testing.assert_close(value, single.model.state_dict()[key], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "whole"), [("cut", "muon"), ("cut_sharded", "sharded")])
def test_two_processes_that_are_stopped_resume_to_the_same_bits(name, whole, pair, corpus):
    folder, _, _ = pair
    resumed, straight = weights(folder, name, corpus), weights(folder, whole, corpus)
    assert all(torch.equal(value, straight[key]) for key, value in resumed.items())
    assert not list((folder / name).glob(".writing-*"))


@pytest.mark.slow
def test_one_process_goes_on_where_two_sharded_ones_stopped(pair, corpus):
    folder, _, setup = pair
    config = pretrain.PretrainConfig(SIZE, **(setup["config"] | {"optimizer": "adamw"}))
    model = fresh(corpus)
    history = training.train(
        model,
        pretrain.batches(Text(corpus), config),
        pretrain.losses,
        config.training(),
        folder=folder / "cut_sharded",
        progress=False,
    )
    assert history.log["step"].tolist() == list(range(1, 13))
    straight = weights(folder, "sharded", corpus)
    assert all(torch.equal(value, straight[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_errors_reach_every_process(pair):
    _, reports, _ = pair
    for report in reports:
        assert report["nan"].startswith("NonFiniteLoss: loss is nan at step 0 of 12")
        assert "Muon orthogonalises whole matrices" in report["refused"]
        assert "adamw" in report["refused"]
        assert "2 processes and accumulate 1 need a way to cut a batch" in report["few"]
    assert reports[0]["other"].startswith("ValueError") and "belongs to another run" in reports[0]["other"]
    assert reports[1]["other"].startswith("RankError: rank 0 stopped with ValueError")


@pytest.mark.slow
def test_the_first_process_alone_writes(pair):
    _, reports, _ = pair
    assert [report["checkpoints written"] > 0 for report in reports] == [True, False]


COMMON = "--size 1x32 --tokens 4096 --seq-len 16 --batch 8 --source rotten_tomatoes --vocab-size 300 "
COMMON += "--precision fp32 --log-every 8"
LAUNCHERS = {
    "python": (),
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2", "--master-port"),
    # With --cpu it would start one process: it leaves several to mpirun.
    "accelerate": (
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
    ),
}


def launcher(name: str) -> list[str]:
    """How to start the module or script whose name follows."""
    port = [str(free_port())] if LAUNCHERS[name] else []
    return [sys.executable, *(["-m"] if port else []), *LAUNCHERS[name], *port]


def start(command: list[str], **variables: str) -> subprocess.Popen:
    own = {"PYTHONPATH": str(Path(training.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | own | variables, **pipes)


@pytest.mark.slow
def test_the_same_command_runs_under_every_launcher(tmp_path):
    def run(name: str) -> subprocess.Popen:
        module = [*launcher(name), "-m", "helpers.pretrain_cli", *COMMON.split()]
        return start([*module, "--folder", str(tmp_path / name)], HELPERS_CACHE=str(tmp_path / "cache"))

    final = {}
    for names in (["python"], ["torchrun", "accelerate"]):  # the first fills the cache
        for name, process in {name: run(name) for name in names}.items():
            out, err = process.communicate(timeout=600)
            assert process.returncode == 0, err
            table = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
            assert table["steps"] == "32" and table["processes"] == ("1" if name == "python" else "2")
            assert out.count("mlm_loss_se") == 1  # one process alone prints
            final[name] = float(table["mlm_loss"])
            assert (tmp_path / name / "model" / "model.safetensors").is_file()
    assert final["torchrun"] == pytest.approx(final["python"], rel=1e-3)
    assert final["accelerate"] == pytest.approx(final["python"], rel=1e-3)


DYING = """
import os, signal, sys
import torch
from torch.distributed.elastic.multiprocessing.errors import record
from helpers import distribution, training

rank = distribution.Ranks().rank

def batch_of(step):
    if rank == 1 and step == 3:
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the disk of rank 1 is gone")
    return {"input_ids": torch.ones(4, 8)}

def split(batch, count):
    return [{"input_ids": rows} for rows in batch["input_ids"].tensor_split(count)]

@record
def main():
    config = training.TrainConfig(steps=10, optimizer="adamw", precision="fp32", compile=False)
    loss_of = lambda model, batch: (model(batch["input_ids"]).square().sum(), {})
    training.train(torch.nn.Linear(8, 1), batch_of, loss_of, config, split=split, progress=False)

main()
"""


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_with_its_reason(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    reasons = {"failed": "the disk of rank 1 is gone", "killed": "Signal 9 (SIGKILL) received by PID"}
    processes = {how: start([*launcher("torchrun"), str(tmp_path / "dying.py"), how]) for how in reasons}
    for how, process in processes.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode != 0 and reasons[how] in err
