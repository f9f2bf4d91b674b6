"""The law L = E + A/N^alpha + B/D^beta with given constants, fitted here or printed in a paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import common
from .common import Array


class Optimum(NamedTuple):
    """Compute-optimal allocation: budget C (FLOPs), model size N (parameters), data D (tokens), loss L."""

    C: Array
    N: Array
    D: Array
    L: Array


@dataclass(frozen=True)
class Law:
    """L = E + A/N^alpha + B/D^beta; E in nats, A in nats parameters^alpha, B in nats tokens^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def row(self) -> Array:
        """The constants (5,) in the order E, A, alpha, B, beta that `loss` and `best_split` take."""
        return np.array([self.E, self.A, self.alpha, self.B, self.beta])

    @property
    def exponent_N(self) -> float:
        """a in N*(C) proportional to C^a, equal to beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def exponent_D(self) -> float:
        """b in D*(C) proportional to C^b, equal to alpha / (alpha + beta) = 1 - exponent_N."""
        return self.alpha / (self.alpha + self.beta)

    def predict(self, N: ArrayLike, D: ArrayLike) -> Array:
        """Loss (nats) at N parameters and D tokens; shapes broadcast."""
        return loss(self.row, N, D)

    def optimal(self, C: ArrayLike, flops_per_param_token: float = 6) -> Optimum:
        """The N and D of lowest loss with flops_per_param_token * N * D = C (Hoffmann et al. 2022, eq. 4)."""
        (budget,) = common.positive(C=C)
        common.check_choice(flops_per_param_token=flops_per_param_token)
        N, D = best_split(self.row, budget, flops_per_param_token)
        shaped = [np.reshape(v, np.shape(C)) for v in (budget, N, D, self.predict(N, D))]
        return Optimum(*shaped)


def loss(row: Array, N: ArrayLike, D: ArrayLike) -> Array:
    """E + A/N^alpha + B/D^beta for one row (5,) or for rows (5, ...) that broadcast with N and D."""
    E, A, alpha, B, beta = row
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(E + A / np.asarray(N, float) ** alpha + B / np.asarray(D, float) ** beta)


def best_split(row: Array, C: Array, k: float) -> tuple[Array, Array]:
    """N* = G (C/k)^(beta/(alpha+beta)), G = (alpha A / (beta B))^(1/(alpha+beta)), and D* = C / (k N*)."""
    _, A, alpha, B, beta = row
    with np.errstate(over="ignore", under="ignore"):
        G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        N = G * (C / k) ** (beta / (alpha + beta))
        return N, C / (k * N)
