"""Muon for the matrices of the encoder, AdamW for the rest, and the warm-up, stable, decay schedule.

Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest orthogonal matrix, so that every
singular direction moves by the same step. ``torch.optim.Muon`` does one matrix after another, in bfloat16;
here matrices of equal shape are orthogonalised as one batch, in the precision the machine multiplies fastest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

KINDS = ("muon", "adamw")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0 while staying near 1


def orthogonalize(matrices: torch.Tensor, steps: int = 5, eps: float = 1e-7) -> torch.Tensor:
    """Approximately ``U V^T`` of each matrix ``U S V^T`` in a batch (n, rows, columns), by Newton-Schulz
    iteration.

    Singular values end between about 0.7 and 1.2, near enough for an optimizer.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.mT  # the Gram matrix is cheapest on the short side
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` (``adjust_lr_fn="original"``, Nesterov momentum, decoupled weight decay), batched
    by shape.

    Takes 2-D parameters only. Equal to torch's up to the rounding of its bfloat16 iteration (tested).
    """

    def __init__(
        self,
        params,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"expected lr >= 0, weight_decay >= 0 and 0 <= momentum < 1, got {lr}, {weight_decay}, "
                f"{momentum}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(
                    f"Muon takes 2-D parameters, got one of shape {tuple(p.shape)}: give it to AdamW"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon does not evaluate closures")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                self._step_together(params, shape, group)

    def _step_together(self, params: list[torch.Tensor], shape: torch.Size, group: dict) -> None:
        momentum, lr = group["momentum"], group["lr"]
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        update = torch.stack(torch._foreach_lerp(grads, buffers, momentum)).to(self.dtype)
        update = orthogonalize(update).to(params[0].dtype)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(
            params, list(update.unbind()), alpha=-lr * math.sqrt(max(1.0, shape[0] / shape[1]))
        )


def is_encoder_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a named parameter is a weight matrix inside an encoder layer: what Muon is for."""
    return parameter.ndim == 2 and ".layer." in f".{name}"


def make_optimizers(
    model: nn.Module,
    *,
    kind: str,
    lr: float,
    lr_adam: float,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model: ``kind="muon"`` gives Muon (encoder matrices, at ``lr``) and AdamW (the
    rest, at ``lr_adam``); ``"adamw"`` gives AdamW alone, at ``lr_adam``.

    Under Muon, embeddings and heads are not decayed: rows of rare tokens see few gradients, and would shrink
    to nothing. Vectors (biases, norms) are never decayed. Every trainable parameter is in exactly one group.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown optimizer {kind!r}: expected {' or '.join(KINDS)}")
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trainable if is_encoder_matrix(name, p)]
    tables = [p for name, p in trainable if p.ndim >= 2 and not is_encoder_matrix(name, p)]
    vectors = [p for _, p in trainable if p.ndim < 2]
    muon = kind == "muon" and bool(matrices)
    groups = [
        {"params": tables if muon else matrices + tables, "weight_decay": 0.0 if muon else weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr_adam, betas=(0.9, 0.98), eps=1e-8, fused=True
    )
    return [adam, Muon(matrices, lr=lr, weight_decay=weight_decay, dtype=dtype)] if muon else [adam]


def wsd(step: int, *, steps: int, warmup: int, decay: int) -> float:
    """The learning-rate factor of step ``step`` (from 0): linear warm-up, constant, then ``1 - sqrt`` decay
    to 0.

    Until the decay begins it does not depend on ``steps``: runs of several lengths share their beginning, and
    can branch from one (Hu et al. 2024; Haegele et al. 2024).
    """
    rise = (step + 1) / warmup if step < warmup else 1.0
    into = step - (steps - decay)
    return min(rise, 1 - math.sqrt((into + 1) / (decay + 1))) if into >= 0 else rise
