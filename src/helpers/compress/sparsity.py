"""Weights set to zero one by one, by size or by movement, at once or on a schedule; masks that last.

A pruned model keeps its shapes: zeros save disk space (:mod:`helpers.compress.storage` packs them), and save
time only where a kernel skips them. Heads and neurons, whose removal shrinks tensors, are in
:mod:`helpers.compress.structured`.

While masks are trained, a weight is ``W * mask`` (a parametrization of torch): hidden weights keep their
value and get no gradient, so they can come back when the mask is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from helpers.compress import storage
from helpers.training import Batch, LossFunction

KINDS = ("magnitude", "movement")
SCOPES = ("layer", "global")
Pattern = tuple[int, int]


@dataclass(frozen=True)
class Schedule:
    """Sparsity that rises from ``initial`` to ``final`` between two steps, fast at first and then slowly:
    ``final + (initial - final) (1 - progress)^3`` (Zhu and Gupta 2017, equation 1).
    """

    final: float
    begin: int
    end: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(f"need 0 <= initial <= final < 1, got {self.initial} and {self.final}")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"need 0 <= begin < end, got {self.begin} and {self.end}")

    def __call__(self, step: int) -> float:
        """The share of zeros wanted at a step."""
        progress = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.final + (self.initial - self.final) * (1 - progress) ** 3


def targets(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that are pruned, by name: the linear layers inside a BERT's encoder; of any other model,
    every linear and convolutional one. A shared layer comes once.
    """
    try:
        inside = {id(module) for module in storage.layers_of(model).modules()}
    except ValueError:
        inside = {id(module) for module in model.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and id(module) in inside
    }


def largest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Mask of the same shape that is true at all but the ``round(sparsity * numel)`` smallest scores."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().argsort(stable=True)[: round(sparsity * scores.numel())]] = False
    return mask.view_as(scores)


def n_of_m(scores: torch.Tensor, pattern: Pattern = (2, 4)) -> torch.Tensor:
    """Mask that is true at the n largest of every m neighbours along the last axis (Mishra et al. 2021)."""
    n, m = pattern
    if not 0 < n <= m or scores.size(-1) % m:
        raise ValueError(f"need 0 < n <= m and rows divisible by m, got {n}:{m}, rows of {scores.size(-1)}")
    groups = scores.reshape(-1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(1, groups.topk(n, dim=1).indices, True).view_as(scores)


def masks(
    scores: Mapping[str, torch.Tensor],
    sparsity: float,
    *,
    scope: str = "layer",
    pattern: Pattern | None = None,
) -> dict[str, torch.Tensor]:
    """Masks by name. ``scope="layer"`` takes the same share from every tensor, ``"global"`` ranks all scores
    together; a ``pattern`` (n, m) decides by itself and leaves ``sparsity`` aside.
    """
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: expected one of {', '.join(SCOPES)}")
    if pattern is not None:
        return {name: n_of_m(score, pattern) for name, score in scores.items()}
    if scope == "layer":
        return {name: largest(score, sparsity) for name, score in scores.items()}
    flat = largest(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = flat.split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def prune(
    model: nn.Module, sparsity: float = 0.5, *, scope: str = "layer", pattern: Pattern | None = None
) -> nn.Module:
    """A copy of ``model`` without its smallest weights, in one shot (Han et al. 2015), or with an n:m
    ``pattern``; untuned. Of a factorised layer the two factors are pruned.

    Raises ``ValueError`` for a model with trainable masks, in int8, or without a layer to prune.
    """
    storage.check_changeable(model)
    pruned = storage.copied(model)
    layers = targets(pruned)
    chosen = masks(
        {name: layer.weight.detach().abs() for name, layer in layers.items()},
        sparsity,
        scope=scope,
        pattern=pattern,
    )
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.mul_(chosen[name])
    return _noted(pruned)


def density(model: nn.Module) -> float:
    """Share of non-zero weights among those that are pruned; hidden weights count as zero.

    Raises ``ValueError`` for a model without linear or convolutional layers, as one in int8 is.
    """
    weights = [layer.weight.detach() for layer in targets(model).values()]
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear or convolutional layer to prune")
    return sum(int(torch.count_nonzero(w)) for w in weights) / sum(w.numel() for w in weights)


class MaskedWeight(nn.Module):
    """The parametrization ``W -> W * mask``; with ``scores`` it also adds up how weights would move.

    The score of a weight is minus the sum over steps of ``W * dL/d(W * mask)``: it grows while training
    pushes the weight away from zero (Sanh et al. 2020, equation 4, hard version with plain descent).
    """

    mask: torch.Tensor
    scores: torch.Tensor | None

    def __init__(self, mask: torch.Tensor, *, movement: bool) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())
        self.register_buffer("scores", torch.zeros(mask.shape, device=mask.device) if movement else None)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The visible weights."""
        return _Masked.apply(weight, self.mask, self.scores)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, mask, scores):
        ctx.save_for_backward(weight, mask)
        ctx.scores = scores
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        if ctx.scores is not None:
            ctx.scores.sub_(gradient * weight)
        return gradient * mask, None, None


def attach(model: nn.Module, kind: str = "magnitude") -> nn.Module:
    """A copy of ``model`` that is trained with masks: zeros that pruning made stay zero, and a model that was
    not pruned starts with full masks. ``kind="movement"`` also keeps score.

    Raises ``ValueError`` for an unknown ``kind``, for a model that has masks or is int8, and for one without
    a layer to prune.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    storage.check_changeable(model)
    if not targets(model):
        raise ValueError(f"{type(model).__name__} has no linear or convolutional layer to prune")
    masked = storage.copied(model)
    # A fresh model may start with zeros that are to be learnt: only those of a recorded pruning are kept.
    pruned = any(step["method"] == "pruning" for step in storage.history(model))
    for layer in targets(masked).values():
        weight = layer.weight.detach()
        mask = weight != 0 if pruned else torch.ones_like(weight, dtype=torch.bool)
        parametrization = MaskedWeight(mask, movement=kind == "movement")
        parametrize.register_parametrization(layer, "weight", parametrization, unsafe=True)
    return masked


def finish(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with its masks made permanent: plain weights with zeros, ready to be saved.

    Raises ``ValueError`` for a model without masks: nothing was pruned that could be recorded.
    """
    plain = storage.copied(model)
    masked = [layer for _, layer, _ in _masked_layers(plain)]
    if not masked:
        raise ValueError("the model has no masks to make permanent: attach them first")
    for layer in masked:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return _noted(plain)


@torch.no_grad()
def update(
    model: nn.Module, sparsity: float, *, scope: str = "layer", pattern: Pattern | None = None
) -> None:
    """Draw the masks of an attached model again: from its scores where it keeps them, else from sizes."""
    scores, owners = {}, {}
    for name, layer, owner in _masked_layers(model):
        original = layer.parametrizations.weight.original
        scores[name] = original.abs() if owner.scores is None else owner.scores
        owners[name] = owner
    if not owners:
        raise ValueError("the model has no masks to draw: attach them first")
    for name, mask in masks(scores, sparsity, scope=scope, pattern=pattern).items():
        owners[name].mask.copy_(mask)


def gradually(
    batch_of: Callable[[int], Batch],
    loss_of: LossFunction,
    schedule: Schedule,
    *,
    every: int = 10,
    scope: str = "layer",
) -> tuple[Callable[[int], Batch], LossFunction]:
    """Batches and loss for :func:`helpers.training.train` that draw an attached model's masks on the way.

    The step travels in the batch, and masks and scores are buffers of the model, so that a run which was cut
    resumes as it was.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")

    def with_step(step: int) -> Batch:
        return batch_of(step) | {"step": torch.tensor(step)}

    def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        step = int(batch["step"])
        due = schedule.begin < step <= schedule.end and (step % every == 0 or step == schedule.end)
        if due and model.training:
            update(model, schedule(step), scope=scope)
        return loss_of(model, {name: value for name, value in batch.items() if name != "step"})

    return with_step, loss


@storage.rebuilds("pruning")
def _rebuild(model: nn.Module, options: storage.Options) -> nn.Module:
    """Zeros change no structure; the stored values hold them."""
    return model


def _noted(model: nn.Module) -> nn.Module:
    return storage.record(model, "pruning", {"density": density(model)})


def _masked_layers(model: nn.Module) -> Iterator[tuple[str, Any, MaskedWeight]]:
    for name, layer in targets(model).items():
        if parametrize.is_parametrized(layer, "weight"):
            owner: Any = layer.parametrizations.weight[0]  # type: ignore[union-attr,index]
            assert isinstance(owner, MaskedWeight)
            yield name, layer, owner
