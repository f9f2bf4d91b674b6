"""Fits y = E + sum_k A_k / X_k^alpha_k to many weighted resamples at once.

Legend: R resamples (rows), n points, K power terms (1 or 2), P = 1 + 2K parameters. A row of parameters is
(E, p_1, alpha_1, ..., p_K, alpha_K), where term k is exp(p_k - alpha_k x_k), x_k is log X_k minus its mean,
and y is measured in units of its median. Centring is what makes the problem well conditioned: in (log A,
alpha) the same valley is 1e5 times longer than wide, and quasi-Newton methods stop half-way along it.

The objective is the *sum* over points of weight * Huber_delta(log prediction - log y). With delta far below
the noise it is nearly a sum of absolute values, whose kinks stall ordinary minimisers, so delta is lowered in
stages. Start values come from variable projection: on a grid of exponents the rest of the law is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from .common import Array

ALPHA_MIN, ALPHA_MAX = 0.005, 5.0
_GRID = np.geomspace(0.03, 2.5, 17)
_CHUNK = 60_000  # resamples x points worked on at once, so that the Jacobian stays in the processor's cache


@dataclass(frozen=True)
class Problem:
    """Centred data: `x` (K, n) logs, `y` (n,) logs, and what takes parameters back to the reader's units."""

    x: Array
    y: Array
    x_mean: Array
    y_scale: float
    delta: float
    lower: Array
    upper: Array

    def to_units(self, theta: Array) -> Array:
        """(R, P) internal rows to (R, P) rows (E, A_1, alpha_1, ...), in the units of the data."""
        out = theta.copy()
        out[:, 0] *= self.y_scale
        with np.errstate(over="ignore"):
            out[:, 1::2] = self.y_scale * np.exp(theta[:, 1::2] + theta[:, 2::2] * self.x_mean)
        return out


def make_problem(
    predictors: list[Array], target: Array, delta: float, floor: bool, signed: bool = False
) -> Problem:
    """The centred problem. Without `floor` E stays 0; `signed` lets exponents be negative."""
    logs = np.log(np.stack(predictors))
    scale = float(np.median(target))
    terms = len(predictors)
    low = -ALPHA_MAX if signed else ALPHA_MIN
    lower = np.array([0.0] + [-30.0, low] * terms)
    upper = np.array([np.inf if floor else 0.0] + [30.0, ALPHA_MAX] * terms)
    mean = logs.mean(axis=1)
    return Problem(logs - mean[:, None], np.log(target / scale), mean, scale, delta, lower, upper)


def solve(
    problem: Problem, weight: Array, warm: Array | None = None, pin: Array | None = None
) -> tuple[Array, Array]:
    """Best parameters (R, P) and objective (R,) for each row of `weight` (R, n).

    Each row starts from its own best grid points, and from `warm` (P,) as well if given. `pin` (R,) holds E,
    in units of the data, fixed row by row: that is what a likelihood profile needs.
    """
    size = max(1, _CHUNK // problem.y.size)
    parts = []
    for first in range(0, len(weight), size):
        rows = slice(first, first + size)
        fixed = None if pin is None else pin[rows] / problem.y_scale
        parts.append(_solve_chunk(problem, weight[rows], warm, fixed))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _solve_chunk(
    problem: Problem, weight: Array, warm: Array | None, pin: Array | None
) -> tuple[Array, Array]:
    """`solve` for as many rows as fit the cache: polishes every start and keeps the best of each row."""
    keep = 6 if warm is None else 1
    starts = _grid_starts(problem, weight, keep, pin)
    if warm is not None:
        starts.append(np.tile(warm, (len(weight), 1)))
    together = max(1, _CHUNK // weight.size)  # a few rows alone would spend their time in calls of numpy
    best, value = np.empty((len(weight), problem.lower.size)), np.full(len(weight), np.inf)
    for first in range(0, len(starts), together):
        some = starts[first : first + together]
        pins = None if pin is None else np.tile(pin, len(some))
        theta, objective = _polish(problem, np.tile(weight, (len(some), 1)), np.concatenate(some), pins)
        for rows in np.split(np.arange(len(theta)), len(some)):
            better = objective[rows] < value
            best[better], value[better] = theta[rows][better], objective[rows][better]
    return best, value


def _grid_starts(problem: Problem, weight: Array, keep: int, pin: Array | None) -> list[Array]:
    """`keep` starts (R, P), good to poor: each row's exponent pairs by least squares on relative errors."""
    terms = len(problem.x)
    cells = np.array(list(product(_GRID if keep > 1 else _GRID[::2], repeat=terms)))
    scaled = np.exp(-problem.y)
    power = np.exp(-cells[:, :, None] * problem.x) * scaled  # (cells, K, n), relative to the measured value
    value = np.full((len(weight), len(cells)), np.inf)
    theta = np.zeros((len(weight), len(cells), problem.lower.size))
    theta[:, :, 2::2] = cells
    floors = [True, False] if problem.upper[0] > 0 and pin is None else [False]
    for with_floor in floors:
        columns = [np.broadcast_to(scaled, power[:, 0].shape)] * with_floor + [
            power[:, k] for k in range(terms)
        ]
        target = np.ones_like(weight) if pin is None else 1 - pin[:, None] * scaled
        solution, error = _least_squares(np.stack(columns, axis=-1), target, weight)
        ok = (solution > 1e-9).all(axis=-1) & (error < value)
        value[ok] = error[ok]
        theta[ok, 0] = solution[ok, 0] if with_floor else 0.0
        theta[ok, 1::2] = np.log(solution[ok, int(with_floor) :])
    lost = ~np.isfinite(value)
    theta[lost, 1::2] = -np.log(
        terms
    )  # no non-negative solution here: equal shares, and let the polish decide
    if pin is not None:
        theta[:, :, 0] = pin[:, None]
    order = np.argsort(np.where(lost, 1e300, value), axis=1, kind="stable")
    picks = [
        order[:, 0],
        *(order[:, i] for i in np.unique(np.geomspace(1, len(cells) - 1, keep).astype(int))[: keep - 1]),
    ]
    return [theta[np.arange(len(weight)), pick] for pick in picks]


def _least_squares(design: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted least squares of each row on each grid cell: coefficients (R, cells, q), errors (R, cells)."""
    cells, n, q = design.shape
    squares = (design[..., :, None] * design[..., None, :]).transpose(1, 0, 2, 3).reshape(n, -1)
    gram = (weight @ squares).reshape(-1, cells, q, q)
    right = ((weight * target) @ design.transpose(1, 0, 2).reshape(n, -1)).reshape(-1, cells, q)
    ridge = 1e-12 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] * np.eye(q)
    solution = np.linalg.solve(gram + ridge, right[..., None])[..., 0]
    error = (weight * target**2).sum(axis=1)[:, None] - (solution * right).sum(axis=-1)
    return solution, error


def _polish(problem: Problem, weight: Array, theta: Array, pin: Array | None) -> tuple[Array, Array]:
    """Damped Newton from `theta` (R, P), lowering delta from the size of the residuals to its final value."""
    lower, upper = (np.tile(bound, (len(theta), 1)) for bound in (problem.lower, problem.upper))
    if pin is not None:
        lower[:, 0] = upper[:, 0] = pin
    theta = np.clip(theta, lower, upper)
    final = np.full(len(theta), problem.delta)
    if np.isfinite(problem.delta):
        residual = np.abs(_residual(problem, theta))
        delta = np.maximum(np.quantile(residual, 0.9, axis=1), problem.delta)
        while (delta > problem.delta).any():
            theta, _ = _newton(problem, weight, theta, delta, lower, upper, iterations=6)
            delta = np.maximum(delta / 5, problem.delta)
    return _newton(problem, weight, theta, final, lower, upper, iterations=200)


def _newton(
    problem: Problem, weight: Array, theta: Array, delta: Array, lower: Array, upper: Array, iterations: int
) -> tuple[Array, Array]:
    """Newton steps damped towards reweighted least squares; a row leaves when it no longer gains."""
    theta = theta.copy()
    value, gradient, hessian, majoriser = _evaluate(problem, theta, weight, delta)
    damping = np.full(len(theta), 0.1)
    stale = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    for _ in range(iterations):
        i = active
        step = _step(theta[i], gradient[i], hessian[i], majoriser[i], damping[i], lower[i], upper[i])
        trial = np.clip(theta[i] + step, lower[i], upper[i])
        promised = np.abs((gradient[i] * (trial - theta[i])).sum(axis=1))
        new = _evaluate(problem, trial, weight[i], delta[i])
        gain = value[i] - new[0]
        better = gain > 0
        j = i[better]
        theta[j] = trial[better]
        value[j], gradient[j], hessian[j], majoriser[j] = (part[better] for part in new)
        damping[i] = np.clip(np.where(better, damping[i] / 6, damping[i] * 5), 1e-9, 1e12)
        stale[i] = np.where(gain > 1e-10 * value[i] + 1e-18, 0, stale[i] + 1)
        active = i[(stale[i] < 12) & (damping[i] < 1e10) & (promised > 1e-12 * value[i])]
        if not active.size:
            break
    return theta, value


def _step(
    theta: Array,
    gradient: Array,
    hessian: Array,
    majoriser: Array,
    damping: Array,
    lower: Array,
    upper: Array,
) -> Array:
    """Solves (H + damping G) step = -gradient, leaving out parameters that lean on a bound."""
    held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)) | (lower == upper)
    eye = np.eye(theta.shape[1])
    size = np.trace(majoriser, axis1=1, axis2=2)[:, None, None] + 1e-300
    matrix = hessian + damping[:, None, None] * (majoriser + 1e-9 * size * eye)
    matrix = np.where(held[:, :, None] | held[:, None, :], size * eye, matrix)
    try:
        step = np.linalg.solve(matrix, np.where(held, 0.0, -gradient)[..., None])[..., 0]
    except np.linalg.LinAlgError:  # one exactly singular row spoils the batch: nudge them all
        step = np.linalg.solve(matrix + 1e-9 * size * eye, np.where(held, 0.0, -gradient)[..., None])[..., 0]
    longest = np.abs(step).max(axis=1, keepdims=True)
    return np.asarray(step * np.minimum(1.0, 1.0 / np.maximum(longest, 1e-300)))


def _residual(problem: Problem, theta: Array) -> Array:
    """log prediction - log y, (R, n)."""
    terms = np.exp(theta[:, 1::2, None] - theta[:, 2::2, None] * problem.x)  # (R, K, n)
    return np.log(np.maximum(theta[:, 0, None] + terms.sum(axis=1), 1e-300)) - problem.y


def _evaluate(
    problem: Problem, theta: Array, weight: Array, delta: Array
) -> tuple[Array, Array, Array, Array]:
    """Objective (R,), gradient (R, P), Hessian (R, P, P), majoriser of reweighted least squares (R, P, P)."""
    rows, terms = len(theta), len(problem.x)
    power = np.exp(theta[:, 1::2, None] - theta[:, 2::2, None] * problem.x)  # (R, K, n)
    total = np.maximum(theta[:, 0, None] + power.sum(axis=1), 1e-300)
    residual = np.log(total) - problem.y
    clipped = np.clip(residual, -delta[:, None], delta[:, None])
    value = (weight * clipped * (residual - clipped / 2)).sum(axis=1)

    jacobian = np.empty((rows, 1 + 2 * terms, problem.y.size))  # of the log prediction
    jacobian[:, 0] = 1 / total
    share = power / total[:, None]
    jacobian[:, 1::2] = share
    jacobian[:, 2::2] = -share * problem.x
    pull = weight * clipped
    gradient = np.einsum("rpn,rn->rp", jacobian, pull)
    reweighted = weight * np.minimum(1.0, np.abs(clipped) / np.maximum(np.abs(residual), 1e-300))
    reweighted = np.where(residual == 0, weight, reweighted)
    inside = weight * (clipped == residual) - pull
    transposed = jacobian.transpose(0, 2, 1)
    hessian = (jacobian * inside[:, None]) @ transposed
    majoriser = (jacobian * reweighted[:, None]) @ transposed
    for k in range(terms):  # curvature of the prediction itself
        p, a = 1 + 2 * k, 2 + 2 * k
        weighted = pull * share[:, k]
        cross = -(weighted @ problem.x[k])
        hessian[:, p, p] += weighted.sum(axis=1)
        hessian[:, p, a] += cross
        hessian[:, a, p] += cross
        hessian[:, a, a] += weighted @ problem.x[k] ** 2
    return value, gradient, hessian, majoriser
