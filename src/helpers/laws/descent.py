"""Least squares of small nonlinear laws, for many weighted resamples at once (Levenberg and Marquardt).

Legend: R resamples (rows), n points, P parameters. `solver` does the same for the parametric law and knows
its shape; this one takes any function that returns predictions and their Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .common import Array

Model = Callable[[Array], tuple[Array, Array]]  # (R, P) -> predictions (R, n), Jacobian (R, P, n)


def descend(
    model: Model,
    starts: Array,
    target: Array,
    weight: Array,
    lower: Array,
    upper: Array,
    iterations: int = 200,
) -> tuple[Array, Array]:
    """The best of all `starts` (S, P) for each row of `weight` (R, n): parameters (R, P), objectives (R,).

    Minimises sum_i weight_i (prediction_i - target_i)^2 within the bounds (P,).
    """
    rows, count = len(weight), len(starts)
    together = np.repeat(starts, rows, axis=0)  # every start of every resample is a row of one batch
    theta, error = _polish(model, together, target, np.tile(weight, (count, 1)), lower, upper, iterations)
    best = error.reshape(count, rows).argmin(axis=0)
    return theta.reshape(count, rows, -1)[best, np.arange(rows)], error.reshape(count, rows).min(axis=0)


def _polish(
    model: Model, theta: Array, target: Array, weight: Array, lower: Array, upper: Array, iterations: int
) -> tuple[Array, Array]:
    """Damped Gauss-Newton steps from `theta` (R, P); a row leaves when it gains nothing more."""
    theta = np.clip(theta, lower, upper)
    prediction, jacobian = model(theta)
    residual = prediction - target
    value = (weight * residual**2).sum(axis=1)
    damping, stale = np.full(len(theta), 1e-2), np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    eye = np.eye(theta.shape[1])
    for _ in range(iterations):
        i = active
        pulled = jacobian[i] * weight[i][:, None]
        normal = pulled @ jacobian[i].transpose(0, 2, 1)
        gradient = (pulled @ residual[i][..., None])[..., 0]
        held = ((theta[i] <= lower) & (gradient > 0)) | ((theta[i] >= upper) & (gradient < 0))
        scale = np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-300
        # Marquardt's scaling: each parameter is damped in its own unit.
        matrix = normal + damping[i][:, None, None] * eye * normal + 1e-12 * scale * eye
        matrix = np.where(held[:, :, None] | held[:, None, :], scale * eye, matrix)
        step = np.linalg.solve(matrix, np.where(held, 0.0, -gradient)[..., None])[..., 0]
        trial = np.clip(theta[i] + step, lower, upper)
        new_prediction, new_jacobian = model(trial)
        new_residual = new_prediction - target
        error = (weight[i] * new_residual**2).sum(axis=1)
        better = error < value[i]
        gain = np.where(better, value[i] - error, 0)
        j = i[better]
        theta[j], residual[j], jacobian[j] = trial[better], new_residual[better], new_jacobian[better]
        value[j] = error[better]
        damping[i] = np.clip(np.where(better, damping[i] / 4, damping[i] * 4), 1e-12, 1e12)
        stale[i] = np.where(gain > 1e-10 * value[i] + 1e-24, 0, stale[i] + 1)
        active = i[(stale[i] < 8) & (damping[i] < 1e10)]
        if not active.size:
            break
    return theta, value
