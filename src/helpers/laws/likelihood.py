"""How much worse a fit is, in units of likelihood: what profiles and "not identified" are decided by."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import erf
from scipy.stats import chi2

from .common import Array
from .solver import Problem, solve


def threshold(level: float) -> float:
    """The deviance that a true value exceeds with probability 1 - `level` (Wilks, one parameter)."""
    return float(chi2.ppf(level, 1))


def deviance(objective: Array, best: float, n: int, delta: float) -> Array:
    """Twice the loss of log likelihood (G,) of fits with `objective` (G,) against the best, on n points.

    Residuals are independent with density exp(-Huber_delta(r)/s)/Z(s), each fit at its own best scale s, as
    in Besiroglu et al. 2024. Points that share a run share their noise; deviances are then too large.
    """
    scores = np.array([_negative_log_likelihood(float(value), n, delta) for value in objective])
    return np.maximum(2 * (scores - _negative_log_likelihood(best, n, delta)), 0)


def floor_is_optional(problem: Problem, objective: float, level: float = 0.95) -> bool:
    """Whether the law without a floor (E = 0) fits so well that the data cannot rule it out."""
    n = problem.y.size
    _, without = solve(problem, np.ones((1, n)), pin=np.zeros(1))
    return bool(deviance(without, objective, n, problem.delta)[0] <= threshold(level))


def _negative_log_likelihood(objective: float, n: int, delta: float) -> float:
    """-log likelihood of n residuals whose Huber losses add up to `objective`, at the best scale."""

    def at(log_s: float) -> float:
        s = np.exp(log_s)
        inner = np.sqrt(2 * np.pi * s)
        outer = 0.0
        if np.isfinite(delta):
            inner = inner * erf(delta / np.sqrt(2 * s))
            outer = 2 * s / delta * np.exp(-(delta**2) / (2 * s))
        return float(n * np.log(inner + outer) + objective / s)

    middle = np.log(max(objective, 1e-300) / n)
    return float(
        minimize_scalar(at, bounds=(middle - 5, middle + 5), method="bounded", options={"xatol": 1e-6}).fun
    )
