"""The moving parts of one training run: what a step does, and what a checkpoint brings back.

:func:`helpers.training.train` is the loop around it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers import checkpoints, runtime
from helpers.distribution import Ranks, whole
from helpers.optimizers import KINDS, make_optimizers, wsd

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[nn.Module, Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]]
Split = Callable[[Batch, int], list[Batch]]
# Below this many steps the half minute of compilation on a CPU costs more than it returns.
STEPS_THAT_REPAY_COMPILING = 1500


@dataclass(frozen=True)
class TrainConfig:
    """How to train. ``lr`` is Muon's rate for encoder matrices, ``lr_adam`` AdamW's for everything else (or
    for all, with ``optimizer="adamw"``). ``warmup`` and ``decay`` are in steps. ``compile=None`` compiles
    when that pays, ``precision=None`` takes the machine's best. ``accumulate`` computes a step's batch in
    that many parts, one after the other, for batches that do not fit in memory."""

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
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise ValueError(
                f"steps and accumulate must be at least 1, got {self.steps} and {self.accumulate}"
            )
        if not all(0 < value < math.inf for value in (self.lr, self.lr_adam, self.clip)):
            raise ValueError(
                "lr, lr_adam and clip must be positive and finite, "
                f"got {self.lr}, {self.lr_adam} and {self.clip}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2^63), got {self.seed}")
        if self.optimizer not in KINDS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}: expected one of {', '.join(KINDS)}")
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


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient became NaN or infinite; the weights are those before the step named in the
    message.
    """


class Run:
    """The moving parts of one training run: model, optimizers, precision and the compiled loss."""

    def __init__(
        self,
        model: nn.Module,
        loss_of: LossFunction,
        config: TrainConfig,
        fingerprint: dict[str, Any],
        *,
        split: Split | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks = ranks or Ranks()
        self.config, self.fingerprint, self.split = config, fingerprint, split
        self.parts = ranks.count * config.accumulate
        if self.parts > 1 and split is None:
            raise ValueError(
                f"{ranks.count} processes and accumulate {config.accumulate} need a way to cut a batch: "
                "pass split=, or train in one process without accumulation"
            )
        if ranks.sharded and config.optimizer == "muon":
            raise ValueError(
                "Muon orthogonalises whole matrices, and shard=True leaves each process a part of them: use "
                "optimizer='adamw', or several processes without shard"
            )
        self.where = ranks.device
        # The caller's model, and the one that learns: the same, or a copy that is cut into the ranks' parts.
        self.plain, self.model = model, ranks.place(model.train())
        self.precision = config.precision or runtime.precision(self.where)
        self.computed_in = self.precision  # with those of a run that this one goes on from
        if ranks.sharded and (self.precision == "fp16" or config.compile):
            raise ValueError("shard=True works in bf16 and fp32, without compile=True")
        self.optimizers = make_optimizers(
            self.model,
            kind=config.optimizer,
            lr=config.lr,
            lr_adam=config.lr_adam,
            weight_decay=config.weight_decay,
            dtype=torch.bfloat16 if self.precision == "bf16" else torch.float32,
        )
        self.base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        # Gradients of fp16 are scaled so that small ones do not vanish. Run on CPUs; not run on a GPU.
        self.scaler = torch.amp.GradScaler(self.where.type, enabled=self.precision == "fp16")
        self.loss_of, self.compiled = loss_of, False

    def begin(
        self, folder: Path | None, branch_from: Path | None, batch_of: Callable[[int], Batch]
    ) -> checkpoints.State:
        """Restore the newest checkpoint of ``folder`` and ``branch_from``, else start at step 0; then compile
        if it pays, and connect the ranks.
        """
        state = checkpoints.State(0, [], 0.0, self.fingerprint)
        newest = (
            self.ranks.agree(lambda: checkpoints.newest_whole(folder, self.fingerprint)) if folder else None
        )
        began_at = checkpoints.step_of(branch_from) if branch_from else 0
        if newest and checkpoints.step_of(newest) < began_at:
            newest = None  # a run that began alike got further
        if newest:
            state = self.restore(newest)
        elif branch_from:
            self._check_branch(branch_from)
            state = self.restore(branch_from)
        # Not by the steps that are left: a run that was killed must go on as it began, to end with the same
        # bits.
        began = state.machine.get("compiled") if newest and self.config.compile is None else None
        if began is None:
            began = self._compiles(self.config.steps - began_at)
        if began and (self.config.compile or runtime.can_compile(self.where)):
            # A part of a batch has its own number of masked positions, a whole batch always the same.
            self.loss_of = torch.compile(self.loss_of, dynamic=None if self.parts > 1 else False)
            self.compiled = True
        # Every loss is computed through this wrapper: it is what exchanges gradients.
        self.call = self.ranks.wrap(self.model, lambda: self._some_get_no_gradient(batch_of(state.step)))
        return state

    def _check_branch(self, path: Path) -> None:
        """Refuse a checkpoint from which this run would not end as it does from its own start."""
        shared = {"steps", "decay"}  # what runs with a common beginning may differ in
        saved = checkpoints.read_state(path)
        checkpoints.check_fingerprint(
            path, _without(saved.fingerprint, shared), _without(self.fingerprint, shared)
        )
        if saved.step > self.config.steps - self.config.decay:
            raise ValueError(f"{path} is at step {saved.step}, after the decay of this run begins")
        if saved.step > saved.fingerprint["steps"] - saved.fingerprint["decay"]:
            raise ValueError(f"{path} is at step {saved.step}, in the decay of its own run")

    def restore(self, path: Path) -> checkpoints.State:
        """Load weights, optimizers and the loss scaler from a checkpoint."""
        state = checkpoints.load_weights(path, self.plain)
        self.ranks.spread(self.plain, into=self.model)
        checkpoints.load_optimizers(path, self.optimizers)
        if state.machine.get("scaler"):
            self.scaler.load_state_dict(state.machine["scaler"])
        *before, began = state.machine.get("precision", self.precision).split(", ")
        self.computed_in = ", ".join(dict.fromkeys([*before, began, self.precision]))
        if began != self.precision:
            warnings.warn(
                f"{path} was computed in {began} and goes on in {self.precision}: the result will differ in "
                f"its last digits (set precision={began!r} to avoid it)",
                checkpoints.CheckpointWarning,
                stacklevel=4,
            )
        return state

    def _compiles(self, steps: int) -> bool:
        """Whether a run of so many steps is compiled: as asked, else where it pays."""
        if self.config.compile is not None:
            return self.config.compile
        # In fp32 a CPU spends its time in matrix products, which compiling does not touch.
        gains = (self.where.type == "cuda" or self.precision != "fp32") and not self.ranks.sharded
        return gains and steps >= STEPS_THAT_REPAY_COMPILING and runtime.can_compile(self.where)

    def _some_get_no_gradient(self, batch: Batch) -> bool:
        """Whether a backward pass leaves a weight without a gradient, as that of a head nobody asks."""
        with runtime.autocast(self.precision, self.where):
            self.loss_of(self.model, self._parts(batch)[0][1])[0].backward()
        unused = any(p.grad is None for p in self.model.parameters() if p.requires_grad)
        self.model.zero_grad(set_to_none=True)
        return unused

    def _parts(self, batch: Batch) -> list[tuple[int, Batch]]:
        """This rank's parts of a batch, on its device, with their numbers."""
        parts = [batch] if self.split is None or self.parts == 1 else self.split(batch, self.parts)
        return [
            (number, {name: value.to(self.where, non_blocking=True) for name, value in part.items()})
            for number, part in self.ranks.share(parts)
        ]

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step; returns the loss and its parts, of the whole batch."""
        sums: dict[str, float] = {}
        mine = self._parts(batch)
        for number, part in mine:
            # Dropout draws from the global generator: seeded by the step (and the part), it needs no place
            # in a checkpoint.
            key = (self.config.seed, step, 7) + ((number,) if number else ())
            torch.manual_seed(runtime.generator(*key).initial_seed())
            with self.ranks.accumulating(self.call, last=number == mine[-1][0]):
                with runtime.autocast(self.precision, self.where):
                    loss, named = self.call(self.loss_of, part)
                # Ranks average gradients, and losses of parts add up.
                self.scaler.scale(loss * self.ranks.count if self.ranks.count > 1 else loss).backward()
            for name, value in ({"loss": loss} | named).items():
                sums[name] = sums.get(name, 0.0) + value.item()
        sums = self.ranks.total(sums)
        if not math.isfinite(sums["loss"]):
            self.model.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"loss is {sums['loss']} at step {step} of {self.config.steps}: lower lr ({self.config.lr}) "
                f"or lr_adam ({self.config.lr_adam})"
            )
        self._update(step)
        return sums

    def _update(self, step: int) -> None:
        """Set the rates of this step, clip the gradient of all weights as one, and step."""
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            self.scaler.unscale_(optimizer)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.config.rate(step)
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)).item()
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        elif self.scaler.get_scale() <= 1:  # always 1 but for fp16
            raise NonFiniteLoss(f"the gradient's norm is {norm} at step {step} of {self.config.steps}")
        # Else the scale was too large for fp16: no optimizer steps, and the scale is halved.
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)

    def evaluate(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """``evaluate`` in evaluation mode, without gradients; names get the prefix ``eval_``."""
        self.model.eval()
        with torch.no_grad(), runtime.autocast(self.precision, self.where):
            # A sharded model is put together for calls that pass through its wrapper.
            found = self.call(evaluate) if self.ranks.sharded else evaluate(self.model)
        self.model.train()
        return {f"eval_{name}": value for name, value in found.items()}

    def save(
        self, folder: Path, step: int, rows: list[dict[str, float]], seconds: float, keep: frozenset[int]
    ) -> None:
        """Write a checkpoint (rank 0 alone), then drop the ones it makes superfluous."""
        machine = {
            "precision": self.computed_in,
            "compiled": self.compiled,
            "scaler": self.scaler.state_dict(),
        }
        state = checkpoints.State(step, rows, seconds, self.fingerprint, machine)
        self.ranks.collect(self.model, into=self.plain)
        records = checkpoints.records_of(self.optimizers)

        def write() -> None:
            checkpoints.write(folder, self.plain, records, state)
            checkpoints.prune(folder, keep=2, permanent=keep, newest=step)

        self.ranks.agree(write)


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the weights: what a checkpoint must agree in."""
    others = {"log_every", "eval_every", "checkpoint_seconds", "compile", "precision", "accumulate"}
    return _without(asdict(config), others)


def _without(record: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}
