"""One process or many: who computes which part of a step, and how the parts become one.

The same loop runs under ``python``, ``torchrun`` and ``accelerate launch``; ``accelerate`` reads what they
set, opens the process group (gloo on CPUs, NCCL on GPUs) and wraps the model in DistributedDataParallel. A
step's batch is cut into ``processes x accumulate`` parts, so the data do not depend on the number of
processes. GPU paths (NCCL, sharding on GPUs) have not been run; gloo on CPUs is tested.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from helpers import runtime

T = TypeVar("T")


class RankError(RuntimeError):
    """Rank 0 failed at what it does for all ranks; the message holds its reason."""


class Call(nn.Module):
    """A model whose forward pass is any function of it: what a wrapper needs to see all of a loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function(model, *arguments)``."""
        return function(self.model, *arguments)


class Ranks:
    """The processes of a run, seen from one of them: ``rank`` of ``count``, on ``device``.

    ``shard`` spreads weights, gradients and optimizer states over the ranks (FSDP2) instead of copying them;
    ``accelerate launch --use_fsdp`` asks for the same. ``trackers`` and ``folder`` as in
    :class:`accelerate.Accelerator`.
    """

    def __init__(
        self, *, shard: bool = False, trackers: Sequence[str] = (), folder: Path | None = None
    ) -> None:
        state()
        self.accelerator = Accelerator(
            device_placement=False, log_with=list(trackers) or None, project_dir=folder
        )
        self.count, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.main = self.rank == 0
        self.device = runtime.device() if self.count == 1 else self.accelerator.device
        self.sharded = shard or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if self.sharded and self.count == 1:
            raise ValueError("shard=True spreads weights over processes, and there is one: use torchrun")

    def place(self, model: nn.Module) -> nn.Module:
        """The model to train here: itself on this rank's device or, sharded, a copy cut into parts."""
        if not self.sharded:
            return model.to(self.device)
        model = copy.deepcopy(model).to(self.device)
        for block in [b for m in model.modules() if isinstance(m, nn.ModuleList) for b in m]:
            fully_shard(block)
        self._call = Call(model)
        fully_shard(self._call)  # before optimizers are made: it exchanges the parameters
        return model

    def wrap(self, model: nn.Module, unused: Callable[[], bool]) -> nn.Module:
        """``Call(model)`` whose backward pass averages gradients over ranks.

        ``unused()`` tells whether some parameters get no gradient, for which DistributedDataParallel must
        look at every step.
        """
        if self.sharded:
            return self._call
        call = Call(model)
        if self.count == 1:
            return call
        handler = DistributedDataParallelKwargs(find_unused_parameters=unused(), gradient_as_bucket_view=True)
        self.accelerator.ddp_handler = handler
        return self.accelerator.prepare_model(call)

    @contextlib.contextmanager
    def accumulating(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """A block whose gradients are summed here, and exchanged only if it is the ``last`` of its step."""
        if isinstance(wrapped, nn.parallel.DistributedDataParallel) and not last:
            with wrapped.no_sync():
                yield
        else:
            yield

    def share(self, parts: Sequence[T]) -> list[tuple[int, T]]:
        """This rank's consecutive parts of a step, with their numbers."""
        each = len(parts) // self.count
        return [(i, parts[i]) for i in range(self.rank * each, (self.rank + 1) * each)]

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over ranks of named numbers, the same on every rank."""
        if self.count == 1:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        summed = self.accelerator.reduce(tensor, "sum").tolist()
        return dict(zip(values, summed, strict=True))

    def agree(self, function: Callable[[], T]) -> T:
        """What ``function()`` returns on rank 0, on every rank; if it raises there, every rank raises."""
        if self.count == 1:
            return function()
        answer: list[Any] = [None, None]
        error: Exception | None = None
        if self.main:
            try:
                answer[0] = function()
            except Exception as failure:
                error, answer[1] = failure, f"{type(failure).__name__}: {failure}"
        broadcast_object_list(answer, from_process=0)
        if error is not None:
            raise error
        if answer[1] is not None:
            raise RankError(f"rank 0 stopped with {answer[1]}")
        return answer[0]

    def first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return self.agree(lambda: value)

    def start_trackers(self, settings: dict[str, Any], folder: Path | None) -> None:
        """Open the trackers with the run's settings; all of them write under ``folder``."""
        if folder and self.main:
            folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.init_trackers("training", settings, {"wandb": {"dir": str(folder)}})

    def stop_trackers(self) -> None:
        """Close them; unlike ``end_training`` it leaves the process group open for another run."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    @torch.no_grad()
    def collect(self, trained: nn.Module, into: nn.Module) -> None:
        """Copy the whole weights of a sharded model into the plain one it was made from (every rank)."""
        if trained is not into:
            target = into.state_dict()
            for name, value in trained.state_dict().items():
                target[name].copy_(whole(value))

    @torch.no_grad()
    def spread(self, source: nn.Module, into: nn.Module) -> None:
        """Copy the weights of a plain model into the sharded one (every rank its part)."""
        if source is not into:
            target = into.state_dict()
            for name, value in source.state_dict().items():
                target[name].copy_(part_of(value.to(self.device), target[name]))


def whole(value: Any) -> Any:
    """A sharded tensor put together from all ranks; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that is to be sharded as ``like`` is."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def state() -> PartialState:
    """This process among those of its job; joins them if it has not."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # otherwise torchrun's CPU processes stay strangers
        return PartialState(cpu=True)
    return PartialState()


def close() -> None:
    """Leave the process group at the end of a script; nothing to do in a single process."""
    state().destroy_process_group()
