"""The work itself: the runs of one family, each trained once, whoever else is at work in the same folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from helpers import checkpoints, data, pretrain, runtime
from helpers.pretrain import Corpus, PretrainConfig
from helpers.sweep.rows import row, run_id, trunk_folder, trunk_of

try:
    import fcntl
except ImportError:  # Windows: start one driver at a time
    fcntl = None  # type: ignore[assignment]

_LOCK = "lock"
# Errors that say the same at every attempt: a setting, missing data, a loss that is not finite.
_LASTING = (ValueError, TypeError, ArithmeticError, data.DataUnavailable)


@dataclass(frozen=True)
class Task:
    """A family and all that a process needs to run it. ``environment`` is set in that process first."""

    family: Sequence[PretrainConfig]
    folder: Path
    load: Callable[[], Corpus]
    threads: int = 1
    checkpoint_seconds: float = 120.0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended; one that is ``lasting`` would end every attempt."""

    reason: str
    lasting: bool = False


def work(task: Task) -> Failure | None:
    """Run a family in this process, and say why if that fails."""
    os.environ.update(task.environment)
    torch.set_num_threads(task.threads)
    try:
        run_family(task.family, task.load(), task.folder, checkpoint_seconds=task.checkpoint_seconds)
    except Exception as error:  # whatever it is, the driver reports it and goes on with the other families
        return Failure(f"{type(error).__name__}: {error}", isinstance(error, _LASTING))
    return None


def run_family(
    family: Sequence[PretrainConfig],
    corpus: Corpus,
    folder: Path,
    *,
    progress: bool = False,
    checkpoint_seconds: float = 120.0,
) -> list[dict[str, Any]]:
    """Run what is missing of a family and return all of its rows. May be killed at any moment and called
    again, and by several processes at once: one works, the others wait for its rows.
    """
    ids = [run_id(config, corpus.digest) for config in family]
    if not all((folder / name / "row.json").exists() for name in ids):
        trunk, branches = trunk_of(family)
        home = trunk_folder(folder, trunk, corpus.digest)
        how: dict[str, Any] = {
            "log_every": 50,
            "progress": progress,
            "checkpoint_seconds": checkpoint_seconds,
        }
        with alone(home.parent):
            missing = [name for name in ids if not (folder / name / "row.json").exists()]
            begin = _latest(home.parent, trunk.steps) if missing else None
            if missing and (begin is None or int(begin.name[5:]) < trunk.steps):
                pretrain.pretrain(corpus, trunk, folder=home, branch_from=begin, keep_steps=branches, **how)
            for config, name in zip(family, ids, strict=True):
                _run(config, corpus, folder / name, home.parent, how)
    return [json.loads((folder / name / "row.json").read_text()) for name in ids]


def _latest(trunks: Path, step: int) -> Path | None:
    """The newest whole checkpoint, at ``step`` at the latest, of all trunks in a folder. A budget added to a
    finished study has none where it branches off: it goes on from an earlier one.
    """
    for path in sorted(trunks.glob("trunk-*/step-*"), key=lambda path: path.name, reverse=True):
        if int(path.name[5:]) <= step:
            with contextlib.suppress(ValueError):  # not whole
                checkpoints.read_state(path)
                return path
    return None


def _run(config: PretrainConfig, corpus: Corpus, folder: Path, trunks: Path, how: dict[str, Any]) -> None:
    # Families of two studies can share a run. A run of one step is named as its trunks, and locked already.
    with contextlib.nullcontext() if folder == trunks else alone(folder):
        if (folder / "row.json").exists():
            return
        start = _latest(trunks, config.steps - config.decay_steps)
        result = pretrain.pretrain(corpus, config, folder=folder, branch_from=start, **how)
        result.save(folder / "model", corpus.tokenizer)
        with runtime.write_atomically(folder / "log.csv") as temporary:
            result.history.log.to_csv(temporary, index=False)
        # Last: its presence means that the run is done.
        with runtime.write_atomically(folder / "row.json") as temporary:
            temporary.write_text(json.dumps(row(result, corpus)))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for who has it. The system frees the lock of a process that dies, on
    every machine that shares the storage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # storage without locks: start one driver at a time there
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def at_work(folder: Path) -> bool:
    """Whether a living process holds the folder's lock."""
    if fcntl is None or not (folder / _LOCK).exists():
        return False
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
