"""The work itself: the runs of one family, each trained once, whoever else is at work in the same folder."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from helpers import checkpoints, data, pretrain, runtime
from helpers.pretrain import Corpus, PretrainConfig
from helpers.sweep.rows import checkpoints_until, read_row, row, run_id, trunk_folder, trunk_of

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
    again, and by several processes at once: one works, the others wait for its rows. So do families that
    begin alike, since they share a trunk.
    """
    runtime.commit()  # the rows name the code that is loaded now, whatever is committed meanwhile
    ids = [run_id(config, corpus.digest) for config in family]
    rows = {name: read_row(folder / name) for name in ids}
    if None in rows.values():
        trunks = trunk_folder(folder, family[0], corpus.digest)
        how: dict[str, Any] = {
            "log_every": 50,
            "progress": progress,
            "checkpoint_seconds": checkpoint_seconds,
        }
        with alone(trunks):
            rows = {name: read_row(folder / name) for name in ids}  # another process may have been faster
            missing = {name: config for name, config in zip(ids, family, strict=True) if not rows[name]}
            if missing:
                _grow_trunk(*trunk_of(list(missing.values())), corpus, trunks, how)
            rows |= {name: _run(c, corpus, folder / name, trunks, how) for name, c in missing.items()}
    return [made for name in ids if (made := rows[name])]


def _grow_trunk(
    trunk: PretrainConfig, branches: frozenset[int], corpus: Corpus, trunks: Path, how: dict[str, Any]
) -> None:
    """Train the trunk from branch to branch, each stretch from the nearest checkpoint before it. Every
    stretch has a folder of its own, so that no family prunes what another one branches off from.
    """
    for step in sorted(branches - {0}):
        begin = _latest(trunks, step)
        if begin is None or checkpoints.step_of(begin) < step:
            stretch = replace(trunk, tokens=step * trunk.batch_tokens)
            home = trunks / f"trunk-{step:08d}"
            pretrain.pretrain(corpus, stretch, folder=home, branch_from=begin, evaluate=False, **how)
            checkpoints.prune(home, keep=1)


def _latest(trunks: Path, step: int) -> Path | None:
    """The newest whole checkpoint of a trunk, at ``step`` at the latest."""
    for path in checkpoints_until(trunks, step):
        try:
            checkpoints.read_state(path)
            return path
        except ValueError as error:
            warnings.warn(f"{error}; going on from one before", checkpoints.CheckpointWarning, stacklevel=2)
    return None


def _run(
    config: PretrainConfig, corpus: Corpus, folder: Path, trunks: Path, how: dict[str, Any]
) -> dict[str, Any]:
    """Train one run from where it leaves its trunk, and return its row. Who else has this run has its trunk
    too, and waits.
    """
    start = _latest(trunks, config.steps - config.decay_steps)
    result = pretrain.pretrain(corpus, config, folder=folder, branch_from=start, **how)
    result.save(folder / "model", corpus.tokenizer)
    with runtime.write_atomically(folder / "log.csv") as temporary:
        result.history.log.to_csv(temporary, index=False)
    # Last: with its row the run is done.
    made = row(result, corpus)
    with runtime.write_atomically(folder / "row.json") as temporary:
        temporary.write_text(json.dumps(made))
    return made


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
