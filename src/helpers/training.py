"""The one training loop: pre-training, fine-tuning and distillation all pass through :func:`train`.

The loop knows nothing of text. It asks for batch number ``step`` (a pure function of the step, so a run that
was killed goes on with the very batches it would have seen), asks for its loss, and steps the optimizers. On
a CPU a resumed run ends with bit-identical weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm.std import tqdm

from helpers import checkpoints, runtime
from helpers.optimizers import make_optimizers, wsd

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[nn.Module, Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]]
# Below this many steps the half minute of compilation on a CPU costs more than it returns.
STEPS_THAT_REPAY_COMPILING = 1500


@dataclass(frozen=True)
class TrainConfig:
    """How to train. ``lr`` is Muon's rate for encoder matrices, ``lr_adam`` AdamW's for everything else (or
    for all, with ``optimizer="adamw"``). ``warmup`` and ``decay`` are in steps. ``compile=None`` compiles
    when that pays, ``precision=None`` takes the machine's best."""

    steps: int
    lr: float = 0.02
    lr_adam: float = 2e-3
    optimizer: str = "muon"
    weight_decay: float = 0.1
    warmup: int = 50
    decay: int = 0
    clip: float = 1.0
    seed: int = 0
    log_every: int = 20
    eval_every: int = 0
    precision: str | None = None
    compile: bool | None = None
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.lr <= 0 or self.lr_adam <= 0 or self.clip <= 0:
            raise ValueError(
                f"lr, lr_adam and clip must be positive, got {self.lr}, {self.lr_adam} and {self.clip}"
            )
        if self.warmup < 0 or self.decay < 0 or self.decay > self.steps:
            raise ValueError(
                f"need 0 <= warmup and 0 <= decay <= steps, got warmup {self.warmup}, decay {self.decay}, "
                f"steps {self.steps}"
            )
        if self.log_every < 1 or self.eval_every < 0 or self.checkpoint_seconds < 0:
            raise ValueError("log_every must be at least 1, eval_every and checkpoint_seconds at least 0")
        if self.precision is not None and self.precision not in runtime.PRECISIONS:
            raise ValueError(
                f"unknown precision {self.precision!r}: expected one of {', '.join(runtime.PRECISIONS)}"
            )

    def rate(self, step: int) -> float:
        """The factor on both learning rates at a step."""
        return wsd(step, steps=self.steps, warmup=self.warmup, decay=self.decay)


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

    @property
    def final(self) -> dict[str, float]:
        """The last evaluation, by name without its prefix; empty when nothing was evaluated."""
        evaluations = self.log.filter(like="eval_").dropna(how="all")
        return {} if evaluations.empty else {str(k)[5:]: float(v) for k, v in evaluations.iloc[-1].items()}


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient became NaN or infinite; the weights are those before the step named in the
    message.
    """


def train(
    model: nn.Module,
    batch_of: Callable[[int], Batch],
    loss_of: LossFunction,
    config: TrainConfig,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    folder: Path | None = None,
    branch_from: Path | None = None,
    keep_steps: frozenset[int] = frozenset(),
    fingerprint: dict[str, Any] | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place for ``config.steps`` steps and return its history.

    ``batch_of(step)`` gives the tensors of a step, ``input_ids`` among them; ``loss_of(model, batch)`` a
    scalar loss and named parts to log; ``evaluate(model)`` named numbers, every ``eval_every`` steps and at
    the end.

    With a ``folder``, checkpoints are written there every ``checkpoint_seconds``, and a run that finds some
    goes on from the newest whole one; those of ``keep_steps`` stay, for branches. ``branch_from`` is another
    run's checkpoint to begin at: schedules share their beginning, so the result equals a run of this length
    from its start. ``fingerprint`` describes model and data; a checkpoint that differs in it is refused with
    ``ValueError``. Raises ``NonFiniteLoss`` before a bad step touches the weights.
    """
    run = _Run(model, loss_of, config, (fingerprint or {}) | _identity(config))
    start = run.begin(folder, branch_from)
    rows, seconds = list(start.rows), start.seconds
    parts: list[dict[str, float]] = []
    tokens, last_save = 0, time.monotonic()
    with _bar(config.steps, start.step, progress) as bar:
        for step in range(start.step, config.steps):
            with runtime.timer() as clock:
                batch = batch_of(step)
                parts.append(run.step(batch, step))
            seconds += clock.seconds
            tokens += batch["input_ids"].numel()
            done = step + 1
            bar.update()
            evaluated = done == config.steps or (config.eval_every and done % config.eval_every == 0)
            if done % config.log_every == 0 or evaluated or done in keep_steps:
                row = {"step": done, "seconds": seconds, "rate": config.rate(step)} | _means(parts)
                rows.append(row | run.evaluate(evaluate) if evaluated and evaluate else row)
                parts = []
                bar.set_postfix_str(
                    f"loss {row['loss']:.3f}, {tokens / (seconds - start.seconds):,.0f} tokens/s"
                )
                due = time.monotonic() - last_save >= config.checkpoint_seconds
                if folder and (due or done in keep_steps or done == config.steps):
                    run.save(folder, checkpoints.State(done, rows, seconds, run.fingerprint), keep_steps)
                    last_save = time.monotonic()
    if evaluate and rows and not any(name.startswith("eval_") for name in rows[-1]):
        rows[-1] |= run.evaluate(evaluate)  # the branch began where this run ends: nothing was left to train
    model.eval()
    speed = tokens / (seconds - start.seconds) if tokens else float("nan")
    return History(pd.DataFrame(rows), config.steps, seconds, speed, run.precision, run.compiled)


class _Run:
    """The moving parts of one training run: model, optimizers, precision and the compiled loss."""

    def __init__(
        self, model: nn.Module, loss_of: LossFunction, config: TrainConfig, fingerprint: dict[str, Any]
    ) -> None:
        self.model, self.config, self.fingerprint = model, config, fingerprint
        self.where = runtime.device()
        model.to(self.where).train()
        self.precision = config.precision or runtime.precision(self.where)
        self.optimizers = make_optimizers(
            model,
            kind=config.optimizer,
            lr=config.lr,
            lr_adam=config.lr_adam,
            weight_decay=config.weight_decay,
            dtype=torch.bfloat16 if self.precision == "bf16" else torch.float32,
        )
        self.base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.scaler = torch.amp.GradScaler(
            self.where.type, enabled=self.precision == "fp16"
        )  # fp16 path: not run on a GPU yet
        self.loss_of, self.compiled = loss_of, False

    def begin(self, folder: Path | None, branch_from: Path | None) -> checkpoints.State:
        """Restore the newest checkpoint of ``folder``, else ``branch_from``, else start at step 0; then
        compile if it pays.
        """
        state = checkpoints.State(0, [], 0.0, self.fingerprint)
        if folder and (newest := checkpoints.newest_whole(folder, self.fingerprint)):
            state = checkpoints.restore(newest, self.model, self.optimizers)
        elif branch_from:
            shared = {"steps", "decay"}  # what runs with a common beginning may differ in
            saved = checkpoints.read_state(branch_from)
            checkpoints.check_fingerprint(
                branch_from, _without(saved.fingerprint, shared), _without(self.fingerprint, shared)
            )
            if saved.step > self.config.steps - self.config.decay:
                raise ValueError(f"{branch_from} is at step {saved.step}, after the decay of this run begins")
            if saved.step > saved.fingerprint["steps"] - saved.fingerprint["decay"]:
                raise ValueError(f"{branch_from} is at step {saved.step}, in the decay of its own run")
            state = checkpoints.restore(branch_from, self.model, self.optimizers)
        # Not by the steps that are left: a run that was killed must go on as it began, to end with the same
        # bits.
        if self._compiles(self.config.steps - (int(branch_from.name[5:]) if branch_from else 0)):
            self.loss_of, self.compiled = torch.compile(self.loss_of, dynamic=False), True
        return state

    def _compiles(self, steps: int) -> bool:
        if self.config.compile is not None:
            return self.config.compile
        # In fp32 a CPU spends its time in matrix products, which compiling does not touch.
        gains = self.where.type == "cuda" or self.precision != "fp32"
        return gains and steps >= STEPS_THAT_REPAY_COMPILING and runtime.can_compile(self.where)

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step; returns the loss and its parts."""
        # Dropout draws from the global generator: seeded by the step, it needs no place in a checkpoint.
        torch.manual_seed(runtime.generator(self.config.seed, step, 7).initial_seed())
        batch = {name: value.to(self.where, non_blocking=True) for name, value in batch.items()}
        with runtime.autocast(self.precision, self.where):
            loss, parts = self.loss_of(self.model, batch)
        if not math.isfinite(value := loss.item()):
            raise NonFiniteLoss(
                f"loss is {value} at step {step} of {self.config.steps}: lower lr ({self.config.lr}) or "
                f"lr_adam ({self.config.lr_adam})"
            )
        self.scaler.scale(loss).backward()
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            self.scaler.unscale_(optimizer)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.config.rate(step)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        # A finite loss can have infinite gradients. With fp16 they are expected, and the scaler skips the
        # step.
        if not self.scaler.is_enabled() and not math.isfinite(norm.item()):
            raise NonFiniteLoss(f"the gradient's norm is {norm.item()} at step {step} of {self.config.steps}")
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return {"loss": value} | {name: part.item() for name, part in parts.items()}

    def evaluate(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """``evaluate`` in evaluation mode, without gradients; names get the prefix ``eval_``."""
        self.model.eval()
        with torch.no_grad(), runtime.autocast(self.precision, self.where):
            result = {f"eval_{name}": value for name, value in evaluate(self.model).items()}
        self.model.train()
        return result

    def save(self, folder: Path, state: checkpoints.State, keep_steps: frozenset[int]) -> None:
        """Write a checkpoint, then drop the ones it makes superfluous."""
        checkpoints.save(folder, self.model, self.optimizers, state)
        checkpoints.prune(folder, keep=2, permanent=keep_steps)


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the weights: what a checkpoint must agree in."""
    how_often = {"log_every", "eval_every", "checkpoint_seconds", "compile"}
    return _without(asdict(config), how_often)


def _without(record: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def _bar(total: int, initial: int, progress: bool) -> tqdm:
    return tqdm(
        total=total, initial=initial, disable=not progress, unit="step", mininterval=1.0, dynamic_ncols=True
    )
