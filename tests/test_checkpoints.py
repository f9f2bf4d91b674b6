"""Checkpoints are whole or refused, belong to one run, and come back bit for bit."""

import errno
import hashlib
import json
import os
import pickle
import resource
import tempfile

import pytest
import torch
from torch import nn

from helpers import checkpoints
from helpers.checkpoints import CheckpointWarning, State
from helpers.optimizers import Muon

RUN = {"lr": 0.02, "size": "1x32", "seed": 0}


def make(seed: int = 0) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    optimizers = [torch.optim.AdamW(model[1].parameters(), fused=True), Muon(model[0].parameters())]
    model(torch.randn(8, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    return model, optimizers


def write(folder, *steps: int, seed: int = 0, fingerprint=RUN):
    model, optimizers = make(seed)
    for step in steps:
        checkpoints.save(folder, model, optimizers, State(step, [{"loss": 0.1 + step}], 1.5, fingerprint))
    return model, optimizers


def flip_a_byte(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_weights_optimizers_and_state_come_back(tmp_path, same_weights):
    model, optimizers = write(tmp_path, 7)
    other, others = make(seed=1)
    assert not same_weights(model, other)
    state = checkpoints.restore(tmp_path / "step-00000007", other, others)
    assert state == State(7, [{"loss": 7.1}], 1.5, RUN)
    assert same_weights(model, other)
    for ours, theirs in zip(optimizers, others, strict=True):
        for one, two in zip(ours.state.values(), theirs.state.values(), strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_newest_is_found_and_old_ones_are_pruned(tmp_path):
    write(tmp_path, 5, 10, 9, 100)
    assert checkpoints.newest_whole(tmp_path, RUN) == tmp_path / "step-00000100"
    (tmp_path / ".writing-half").mkdir()
    checkpoints.prune(tmp_path, keep=1, permanent=frozenset({5}))
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000100", "step-00000005"}


def test_a_checkpoint_can_be_read_by_whoever_may_read_its_folder(tmp_path, monkeypatch):
    calls, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(handle) or fsync(handle))
    write(tmp_path, 5)
    (plain := tmp_path / "plain").mkdir()
    assert (tmp_path / "step-00000005").stat().st_mode == plain.stat().st_mode
    assert len(calls) == 3  # weights, optimizers and state


def test_what_is_called_otherwise_is_no_checkpoint_and_stays(tmp_path):
    write(tmp_path, 5, 10)
    (tmp_path / "step-00000010").rename(tmp_path / "step-old")
    write(tmp_path, 7)
    checkpoints.prune(tmp_path, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000007", "step-old"}
    assert checkpoints.newest_whole(tmp_path, RUN) == tmp_path / "step-00000007"
    assert [checkpoints.step_of(path) for path in sorted(tmp_path.iterdir())] == [7, 10]


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert checkpoints.newest_whole(tmp_path, RUN) is None
    assert checkpoints.newest_whole(tmp_path / "nowhere", RUN) is None


def test_damaged_checkpoints_do_not_push_out_a_whole_one(tmp_path):
    """A run that fell back behind two of them saves at an earlier step."""
    for step in (450, 475, 490, 500):
        (tmp_path / f"step-{step:08d}").mkdir()
    checkpoints.prune(tmp_path, keep=2, permanent=frozenset({500}), newest=475)
    assert [checkpoints.step_of(path) for path in checkpoints.available(tmp_path)] == [475, 450]


def remove(path) -> None:
    path.unlink()


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", [flip_a_byte, truncate, remove])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(name, damage, tmp_path):
    if name == "state.json" and damage is flip_a_byte:
        pytest.skip("one bit of a number can still be a number")
    write(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010" / name)
    with pytest.warns(CheckpointWarning, match="step-00000010 is not a whole checkpoint.*falling back"):
        assert checkpoints.newest_whole(tmp_path, RUN) == tmp_path / "step-00000005"


@pytest.mark.parametrize("content", ["null", "[]", "3", "{}", '{"sha256": {}}', '{"sha256": []}'])
def test_a_state_that_is_no_state_is_refused(content, tmp_path):
    write(tmp_path, 5)
    (tmp_path / "step-00000005" / "state.json").write_text(content)
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        checkpoints.read_state(tmp_path / "step-00000005")


def test_a_damaged_checkpoint_is_written_again(tmp_path):
    write(tmp_path, 5)
    flip_a_byte(tmp_path / "step-00000005" / "model.safetensors")
    write(tmp_path, 5)
    assert checkpoints.read_state(tmp_path / "step-00000005").step == 5


def test_a_whole_checkpoint_is_never_written_over(tmp_path, same_weights):
    model, _ = write(tmp_path, 5)
    write(tmp_path, 5, seed=1)
    again, optimizers = make(seed=2)
    checkpoints.restore(tmp_path / "step-00000005", again, optimizers)
    assert same_weights(again, model)


def test_a_write_that_fails_leaves_the_earlier_ones(tmp_path, monkeypatch):
    write(tmp_path, 5)

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="checkpoint of step 10 in .*No space left.*earlier ones are whole"):
        write(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert checkpoints.read_state(tmp_path / "step-00000005").step == 5


@pytest.mark.parametrize("room", [50, 300, 2000])
def test_a_disk_that_is_full_leaves_the_earlier_ones(room, tmp_path):
    """The system itself refuses to write more than ``room`` bytes to a file."""
    write(tmp_path, 5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write the checkpoint of step 10"):
            write(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert checkpoints.read_state(tmp_path / "step-00000005").step == 5
    write(tmp_path, 10)  # and once there is room, it works again


def test_a_read_only_folder_keeps_what_it_holds(tmp_path, monkeypatch):
    write(tmp_path, 5)

    def refuse(*arguments, **options):  # what the system answers; the tests' user may be allowed everything
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(OSError, match="Read-only file system; earlier ones are whole"):
        write(tmp_path, 10)
    assert checkpoints.newest_whole(tmp_path, RUN) == tmp_path / "step-00000005"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 2)),
            r"0.weight is \(4, 4\) there and \(4, 5\)",
        ),
        (nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3)), r"is \(2,?.*\) there and \(3"),
        (nn.Linear(4, 4), "0.weight is .* there and absent here"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "0.bias"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_with_both_values(other, message, tmp_path):
    write(tmp_path, 5)
    before = [p.detach().clone() for p in other.parameters()]
    with pytest.raises(ValueError, match=f"(?s)is of another model: .*{message}"):
        checkpoints.load_weights(tmp_path / "step-00000005", other)
    if "0.bias" not in message:
        assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))


def test_states_without_a_machine_are_read(tmp_path):
    write(tmp_path, 5)
    path = tmp_path / "step-00000005" / "state.json"
    record = json.loads(path.read_text())
    del record["machine"]
    path.write_text(json.dumps(record))
    assert checkpoints.read_state(tmp_path / "step-00000005").machine == {}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (RUN | {"lr": 0.04}, "belongs to another run: lr is 0.02 there and 0.04 here"),
        (RUN | {"size": "2x32", "seed": 1}, "seed is 0 there and 1 here"),
        (RUN | {"arch": "bert"}, "arch is None there and 'bert' here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_both_values(other, message, tmp_path):
    write(tmp_path, 5)
    with pytest.raises(ValueError, match=message):
        checkpoints.newest_whole(tmp_path, other)


class Attack:
    """What a pickle can do when it is loaded without care."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_foreign_pickle_is_refused_even_with_a_right_digest(tmp_path):
    write(tmp_path, 5)
    checkpoint, victim = tmp_path / "step-00000005", tmp_path / "attacked"
    torch.save([Attack(str(victim))] * 2, checkpoint / "optimizer.pt")
    record = json.loads((checkpoint / "state.json").read_text())
    record["sha256"]["optimizer.pt"] = hashlib.sha256((checkpoint / "optimizer.pt").read_bytes()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(record))
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        checkpoints.restore(checkpoint, *make())
    assert not victim.exists()


def test_another_number_of_optimizers_is_refused(tmp_path):
    model, optimizers = write(tmp_path, 5)
    with pytest.raises(ValueError, match="written by 2 optimizers, this run has 1"):
        checkpoints.restore(tmp_path / "step-00000005", model, optimizers[:1])
