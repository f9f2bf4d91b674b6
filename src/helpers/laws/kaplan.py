"""The joint law of Kaplan et al. 2020 (equation 1.5): L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D.

With endless data it is (N_c/N)^alpha_N, with an endless model (D_c/D)^alpha_D, and between the two the larger
of these sets the loss. It has no floor: it promises a loss of zero.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from . import common
from .common import Array, NotIdentifiedWarning
from .descent import descend

NAMES = ("alpha_N", "alpha_D", "N_c", "D_c")
EDGE = (0.003, 3.0)  # exponents outside are taken for "no such term"


@dataclass(frozen=True)
class KaplanFit:
    """A fitted L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D; N_c in parameters, D_c in tokens, L in nats.

    `objective` is the sum of squared log residuals; `draws` (n_boot, 4) the bootstrap rows (alpha_N, alpha_D,
    log N_c, log D_c); `residuals` (n,) are log measured - log predicted.
    """

    alpha_N: float
    alpha_D: float
    N_c: float
    D_c: float
    objective: float
    residuals: Array = field(repr=False)
    draws: Array | None = field(repr=False)
    not_identified: tuple[str, ...]

    @property
    def exponent_N(self) -> float:
        """a in N*(C) proportional to C^a at C = 6 N D, equal to alpha_D / (alpha_N + alpha_D).

        Not the .73 of the paper, which comes from its law in compute and steps (its equation 1.7).
        """
        return self.alpha_D / (self.alpha_N + self.alpha_D)

    def predict(self, N: ArrayLike, D: ArrayLike) -> Array:
        """Loss (nats) at N parameters and D tokens; shapes broadcast."""
        row = np.array([self.alpha_N, self.alpha_D, np.log(self.N_c), np.log(self.D_c)])
        return np.exp(_log_loss(row, np.log(np.asarray(N, float)), np.log(np.asarray(D, float))))

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Central bootstrap interval of each parameter and of `exponent_N`."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        columns = [draws[:, 0], draws[:, 1], np.exp(draws[:, 2]), np.exp(draws[:, 3])]
        named = dict(zip(NAMES, columns, strict=True))
        named["exponent_N"] = draws[:, 1] / (draws[:, 0] + draws[:, 1])
        return {name: common.percentile_interval(column, level) for name, column in named.items()}

    def predict_interval(
        self, N: ArrayLike, D: ArrayLike, level: float = 0.95, *, noise: bool = True, seed: int = 0
    ) -> tuple[Array, Array]:
        """Interval for the loss of a run at (N, D): bootstrapped parameters, plus residuals if `noise`."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        x, z = np.broadcast_arrays(np.log(np.asarray(N, float)), np.log(np.asarray(D, float)))
        values = np.exp(_log_loss(draws.T.reshape(4, -1, *[1] * x.ndim), x, z))
        return common.prediction_interval(values, self.residuals if noise else None, 4, level, seed)

    def summary(self, level: float = 0.95) -> str:
        """The parameters as a text table, with bootstrap intervals where there are any."""
        spans = {} if self.draws is None else self.interval(level)
        rows = [(name, getattr(self, name), spans.get(name)) for name in (*NAMES, "exponent_N")]
        rms = float(np.sqrt(np.mean(self.residuals**2)))
        notes = [f"{self.residuals.size} points, rms error of log loss {rms:.2g}"]
        notes += [f"not identified: {', '.join(self.not_identified)}"] * bool(self.not_identified)
        return common.table("L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D", rows, notes)

    def __str__(self) -> str:
        return self.summary()


def fit_kaplan(
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    n_boot: int = 0,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> KaplanFit:
    """Fits Kaplan's joint law to N parameters, D tokens and L nats, each (n,), by least squares on log L.

    Raises ValueError for values that are not finite and positive, unequal lengths, or fewer different (N, D)
    than 4; warns NotIdentifiedWarning when the data do not fix a parameter.
    """
    sizes, tokens, losses = common.positive(N=N, D=D, L=L)
    common.check_count(0, n_boot=n_boot)
    common.enough(
        len(set(zip(sizes, tokens, strict=True))), 4, "Kaplan's joint law, counting different (N, D),"
    )
    group = common.group_index(groups, sizes.size)
    logs = np.log(np.stack([sizes, tokens, losses]))
    mean = logs.mean(axis=1)
    x, z, y = logs - mean[:, None]  # centred, so that slopes and heights hardly depend on each other

    def model(theta: Array) -> tuple[Array, Array]:
        return _centred(theta, x, z)

    pairs = product((0.03, 0.1, 0.3), repeat=2)
    starts = np.array([[a, b, h, -h] for a, b in pairs for h in (-0.1, 0.1)])
    lower, upper = np.array([EDGE[0]] * 2 + [-20.0] * 2), np.array([EDGE[1]] * 2 + [20.0] * 2)
    theta, objective = descend(model, starts, y, np.ones((1, y.size)), lower, upper)
    lost = _not_identified(theta[0], sizes, tokens)
    if lost:
        message = (
            f"the data do not identify {', '.join(lost)}: too few different sizes or budgets, or no effect"
        )
        warnings.warn(message, NotIdentifiedWarning, stacklevel=2)
    draws = None
    if n_boot:
        spread = [(v, min(2, len(np.unique(v)))) for v in (sizes, tokens)]
        weight = common.bootstrap_weights(group, n_boot, seed, spread)
        found, _ = descend(model, np.stack([theta[0], starts[9]]), y, weight, lower, upper)
        draws = _to_units(found, mean)
    row = _to_units(theta, mean)[0]
    residuals = logs[2] - _log_loss(row, logs[0], logs[1])
    a, b, log_n, log_d = (float(v) for v in row)
    constants = (float(np.exp(log_n)), float(np.exp(log_d)))
    return KaplanFit(a, b, *constants, float(objective[0]), residuals, draws, lost)


def _log_loss(row: Array, x: Array, z: Array) -> Array:
    """log L for a row (4,) or rows (4, ...), at x = log N and z = log D: a soft maximum of two lines."""
    a, b, n, d = row
    return np.asarray(b * np.logaddexp(a / b * (n - x), d - z))


def _centred(theta: Array, x: Array, z: Array) -> tuple[Array, Array]:
    """Predictions (R, n), Jacobian (R, 4, n); rows are (alpha_N, alpha_D, heights of both lines at 0)."""
    a, b, p, q = (column[:, None] for column in theta.T)
    first, second = p - a * x, q - b * z
    prediction = b * np.logaddexp(first / b, second / b)
    share = np.exp((first - prediction) / b)  # of the first line in the soft maximum
    rest = np.maximum(1 - share, 1e-300)
    entropy = -(share * np.log(np.maximum(share, 1e-300)) + rest * np.log(rest))
    return prediction, np.stack([-share * x, entropy - rest * z, share, rest], axis=1)


def _to_units(theta: Array, mean: Array) -> Array:
    """Centred rows (R, 4) to (alpha_N, alpha_D, log N_c, log D_c)."""
    a, b, p, q = theta.T
    return np.stack([a, b, (p + mean[2]) / a + mean[0], (q + mean[2]) / b + mean[1]], axis=1)


def _not_identified(theta: Array, N: Array, D: Array) -> tuple[str, ...]:
    """Names of the parameters that the data leave open."""
    lost: list[str] = []
    for values, exponent, names in ((N, theta[0], ("alpha_N", "N_c")), (D, theta[1], ("alpha_D", "D_c"))):
        if len(np.unique(values)) < 2 or not EDGE[0] * 1.001 < exponent < EDGE[1] * 0.999:
            lost += names
    return tuple(lost)
