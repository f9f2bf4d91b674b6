"""Checkpoints that survive: written under a temporary name and renamed, verified when read, never unpickled.

A checkpoint is a folder ``step-00001234`` with ``model.safetensors``, ``optimizer.pt`` (tensors only) and
``state.json``, which holds the step, the history so far, the fingerprint of the run, and the SHA-256 of the
two others.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from helpers import runtime
from helpers.distribution import part_of, whole

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointWarning(UserWarning):
    """A checkpoint could not be read and an older one is used."""


@dataclass(frozen=True)
class State:
    """What a checkpoint says besides tensors: steps done, the log rows so far, seconds spent, and what run it
    belongs to; ``machine`` holds how it was computed (precision, state of the loss scaler).
    """

    step: int
    rows: list[dict[str, float]]
    seconds: float
    fingerprint: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=dict)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def records_of(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """The states of optimizers, those of sharded parameters put together (every rank must call it)."""
    return [_map(whole, optimizer.state_dict()) for optimizer in optimizers]


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(function, item) for key, item in value.items()}
    return function(value)


def save(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: State) -> Path:
    """Write a checkpoint; until it is written whole the folder's earlier checkpoints are untouched."""
    return write(folder, model, records_of(optimizers), state)


def write(folder: Path, model: nn.Module, records: list[dict[str, Any]], state: State) -> Path:
    """:func:`save`, given the optimizers' states. Raises ``OSError`` with the reason when it cannot."""
    try:
        return _write(folder, model, records, state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise OSError(
            f"cannot write the checkpoint of step {state.step} in {folder}: {error}; earlier ones are whole"
        ) from error


def _write(folder: Path, model: nn.Module, records: list[dict[str, Any]], state: State) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:08d}"
    if target.exists():
        try:
            read_state(target)
            return target
        except ValueError:  # left by a crash or damaged since: it must not keep its place
            shutil.rmtree(target)
    work = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        save_model(model, str(work / "model.safetensors"))
        torch.save(records, work / "optimizer.pt")
        digests = {name: _digest(work / name) for name in ("model.safetensors", "optimizer.pt")}
        text = json.dumps(asdict(state) | {"sha256": digests})
        (work / "state.json").write_text(text, encoding="utf-8")
        runtime.settle(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return target


def available(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; what is called otherwise is nobody's to take or remove."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint: its name says it, or its state where it was renamed. Raises ``ValueError``
    when neither does.
    """
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else read_state(checkpoint).step


def prune(
    folder: Path, *, keep: int, permanent: frozenset[int] = frozenset(), newest: int | None = None
) -> None:
    """Remove all but the newest ``keep`` checkpoints and those of the ``permanent`` steps, and what a kill
    left half-written. Those after the step ``newest`` go first: a run that is there again has found them
    damaged, and they must not push out whole ones.
    """
    damaged = [path for path in available(folder) if newest is not None and step_of(path) > newest]
    temporary = [path for path in available(folder) if step_of(path) not in permanent and path not in damaged]
    for path in [*damaged, *temporary[keep:], *folder.glob(".writing-*")]:
        shutil.rmtree(path, ignore_errors=True)


def read_state(checkpoint: Path) -> State:
    """Verify a checkpoint's files against their digests and return its state; raises ``ValueError`` when it
    is not whole.
    """
    try:
        record = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        for name, digest in record["sha256"].items():
            if _digest(checkpoint / name) != digest:
                raise ValueError(f"{name} does not match its digest")
        return State(
            record["step"],
            record["rows"],
            record["seconds"],
            record["fingerprint"],
            record.get("machine", {}),  # checkpoints of version 0.1 have none
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{checkpoint} is not a whole checkpoint: {error}") from error


def restore(checkpoint: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> State:
    """Load one checkpoint into a model and its optimizers, in place."""
    state = load_weights(checkpoint, model)
    load_optimizers(checkpoint, optimizers)
    return state


def load_weights(checkpoint: Path, model: nn.Module) -> State:
    """Load the weights of one checkpoint; raises ``ValueError`` when it is of a model of other shapes."""
    state = read_state(checkpoint)
    path = checkpoint / "model.safetensors"
    here = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    with safe_open(path, "pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    for name, shape in there.items():
        if here.get(name) != shape:
            raise ValueError(
                f"{checkpoint} is of another model: {name} is {shape} there and "
                f"{here.get(name, 'absent')} here"
            )
    try:
        load_model(model, path)
    except RuntimeError as error:  # a weight that the file lacks
        raise ValueError(f"{checkpoint} is of another model: {error}") from error
    return state


def load_optimizers(checkpoint: Path, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load the optimizers' states of one checkpoint, each rank its part where parameters are sharded."""
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
    if len(saved) != len(optimizers):
        raise ValueError(
            f"{checkpoint} was written by {len(saved)} optimizers, this run has {len(optimizers)}"
        )
    for optimizer, record in zip(optimizers, saved, strict=True):
        optimizer.load_state_dict(record)
        for parameter, values in optimizer.state.items():
            values |= {name: part_of(value, parameter) for name, value in values.items()}


def newest_whole(folder: Path, fingerprint: dict[str, Any]) -> Path | None:
    """The newest checkpoint that can be read, or ``None``; warns about each that cannot.

    Raises ``ValueError`` when a whole checkpoint belongs to another run: the first setting that differs is
    named with both values.
    """
    for path in available(folder):
        try:
            state = read_state(path)
        except ValueError as error:
            warnings.warn(f"{error}; falling back to the one before", CheckpointWarning, stacklevel=4)
            continue
        check_fingerprint(path, state.fingerprint, fingerprint)
        return path
    return None


def check_fingerprint(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ``ValueError`` naming the first setting in which a checkpoint's run differs from this one. In
    what precision it was computed is the machine's business; checkpoints of version 0.1 have it here.
    """
    for key in sorted((wanted.keys() | saved.keys()) - {"precision"}):
        if saved.get(key) != wanted.get(key):
            raise ValueError(
                f"{path} belongs to another run: {key} is {saved.get(key)!r} there and {wanted.get(key)!r} "
                "here"
            )
