"""Training curves, read at equal budgets: what approaches 1 and 2 start from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import common
from .common import Array


class Slices(NamedTuple):
    """Points of equal budget: compute C (FLOPs), size N (parameters), loss L (nats), and the run of each."""

    C: Array
    N: Array
    L: Array
    run: Array


def slices(
    C: ArrayLike, N: ArrayLike, L: ArrayLike, budgets: ArrayLike, *, runs: ArrayLike | None = None
) -> Slices:
    """Losses at equal `budgets` (m,), read off the curve of each run by straight lines on log-log axes.

    Points (n,) with the same label in `runs` (by default the same N) are one curve; nothing is read outside
    it.
    """
    compute, size, loss = common.positive(C=C, N=N, L=L)
    (wanted,) = common.positive(budgets=budgets)
    run = common.group_index(size if runs is None else runs, size.size)
    parts: list[tuple[Array, Array, Array, Array]] = []
    for label in range(int(run.max()) + 1):
        mine = run == label
        if len(np.unique(size[mine])) > 1:
            raise ValueError(f"one run has one size, but a run has N = {np.unique(size[mine])}")
        values = read(compute[mine], loss[mine], wanted)
        inside = np.isfinite(values)
        at = wanted[inside]
        parts.append((at, np.full(at.size, size[mine][0]), values[inside], np.full(at.size, float(label))))
    return Slices(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def read(C: Array, L: Array, at: Array) -> Array:
    """Loss at the budgets `at` on the curve through (C, L); NaN outside it."""
    order = np.argsort(C)
    value = np.interp(np.log(at), np.log(C[order]), np.log(L[order]))
    inside = (at >= C.min() * (1 - 1e-9)) & (at <= C.max() * (1 + 1e-9))
    return np.where(inside, np.exp(value), np.nan)
