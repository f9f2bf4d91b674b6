"""The one training loop: pre-training, fine-tuning and distillation all pass through :func:`train`.

The loop knows nothing of text. It asks for batch number ``step`` (a pure function of the step, so a run that
was killed goes on with the very batches it would have seen), asks for its loss, and steps the optimizers. On
a CPU a resumed run ends with bit-identical weights. Several processes share each step's batch
(:mod:`helpers.distribution`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from helpers import reporting, runtime
from helpers.distribution import Ranks
from helpers.engine import Batch, LossFunction, NonFiniteLoss, Run, Split, TrainConfig, identity

__all__ = ["Batch", "History", "LossFunction", "NonFiniteLoss", "Split", "TrainConfig", "train"]


@dataclass(frozen=True)
class History:
    """A finished run: ``log`` has one row each ``log_every`` steps (losses are means over those steps;
    columns starting with ``eval_`` are evaluations), ``seconds`` of training without evaluation, and how it
    ran."""

    log: pd.DataFrame
    steps: int
    seconds: float
    tokens_per_second: float
    precision: str
    compiled: bool
    processes: int = 1
    device: str = "cpu"

    @property
    def final(self) -> dict[str, float]:
        """The last evaluation, by name without its prefix; empty when nothing was evaluated."""
        evaluations = self.log.filter(like="eval_").dropna(how="all")
        return {} if evaluations.empty else {str(k)[5:]: float(v) for k, v in evaluations.iloc[-1].items()}

    def summary(self) -> str:
        """The run as a table: how long, how fast, how computed, and the last evaluation."""
        how: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "tokens/s": self.tokens_per_second,
        }
        how |= {"precision": self.precision, "compiled": self.compiled}
        how |= {"processes": self.processes, "device": self.device}
        return reporting.summary(how | {"loss": float(self.log["loss"].iloc[-1])} | self.final)


def train(
    model: nn.Module,
    batch_of: Callable[[int], Batch],
    loss_of: LossFunction,
    config: TrainConfig,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    split: Split | None = None,
    shard: bool = False,
    folder: Path | None = None,
    branch_from: Path | None = None,
    keep_steps: frozenset[int] = frozenset(),
    fingerprint: dict[str, Any] | None = None,
    trackers: Sequence[str] = (),
    progress: bool = True,
) -> History:
    """Train ``model`` in place for ``config.steps`` steps and return its history.

    ``batch_of(step)`` gives the tensors of a step, ``input_ids`` among them; ``loss_of(model, batch)`` a
    scalar loss and named parts to log; ``evaluate(model)`` named numbers, every ``eval_every`` steps and at
    the end.

    ``split(batch, n)`` cuts a batch into n parts whose losses add up to the loss of the whole; several
    processes and ``accumulate`` need it. ``shard`` spreads the weights over the processes (FSDP2) instead of
    copying them. ``trackers`` ("tensorboard", "wandb") log to ``folder``.

    With a ``folder``, checkpoints are written there every ``checkpoint_seconds`` (at the next row of the
    log), and a run that finds some goes on from the newest whole one; those of ``keep_steps`` stay, for
    branches. ``branch_from`` is another run's checkpoint to begin at: schedules share their beginning, so the
    result equals a run of this length from its start. ``fingerprint`` describes model and data; a checkpoint
    that differs in it is refused with ``ValueError``. Raises ``NonFiniteLoss`` before a bad step touches the
    weights.
    """
    reporting.check_trackers(trackers)
    if trackers and folder is None:
        raise ValueError(f"the trackers {', '.join(trackers)} need a folder to log to")
    if keep_steps and folder is None:
        raise ValueError(f"keep_steps {sorted(keep_steps)} need a folder to keep checkpoints in")
    if outside := sorted(step for step in keep_steps if not 1 <= step <= config.steps):
        raise ValueError(f"keep_steps must lie in 1 to {config.steps}, the steps of this run, got {outside}")
    ranks = Ranks(shard=shard, trackers=trackers, folder=folder)
    run = Run(model, loss_of, config, (fingerprint or {}) | identity(config), split=split, ranks=ranks)
    start = run.begin(folder, branch_from, batch_of)
    if trackers:
        ranks.start_trackers(_plain(run.fingerprint), folder)
    rows, seconds = list(start.rows), start.seconds
    losses: list[dict[str, float]] = []  # of the steps since the last row
    tokens, last_save = 0, time.monotonic()
    with reporting.Progress(config.steps, start.step, progress and ranks.main) as bar:
        for step in range(start.step, config.steps):
            with runtime.timer() as clock:
                batch = batch_of(step)
                losses.append(run.step(batch, step))
            seconds += clock.seconds
            tokens += batch["input_ids"].numel()
            done = step + 1
            evaluated = done == config.steps or (config.eval_every and done % config.eval_every == 0)
            if done % config.log_every == 0 or evaluated or done in keep_steps:
                row = {"step": done, "seconds": seconds, "rate": config.rate(step)} | _means(losses)
                rows.append(row | run.evaluate(evaluate) if evaluated and evaluate else row)
                losses = []
                bar.say(f"loss {row['loss']:.3f}, {tokens / (seconds - start.seconds):,.0f} tokens/s")
                if trackers:
                    ranks.accelerator.log(rows[-1], step=done)
                # Only here, where no loss waits for its row: a checkpoint holds rows, not parts of one.
                due = time.monotonic() - last_save >= config.checkpoint_seconds
                if folder and (done in keep_steps or done == config.steps or ranks.first(due)):
                    run.save(folder, done, rows, seconds, keep_steps)
                    last_save = time.monotonic()
            bar.update()
    if evaluate and rows and not any(name.startswith("eval_") for name in rows[-1]):
        rows[-1] |= run.evaluate(evaluate)  # it began at another run's last step: nothing was left to train
    if trackers:
        ranks.stop_trackers()
    ranks.collect(run.model, into=model)
    model.eval()
    speed = tokens / (seconds - start.seconds) if tokens else float("nan")
    return History(
        pd.DataFrame(rows),
        config.steps,
        seconds,
        speed,
        precision=run.computed_in,
        compiled=run.compiled,
        processes=ranks.count,
        device=str(ranks.device),
    )


def _means(losses: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each named loss over steps."""
    return {name: sum(step[name] for step in losses) / len(losses) for name in losses[0]}


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """What every tracker can store: numbers and strings."""
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in record.items()}
