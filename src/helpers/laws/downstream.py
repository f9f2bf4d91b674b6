"""From loss to accuracy: accuracy = chance + (top - chance) * sigmoid(k (midpoint - loss)).

The sigmoid link from loss to task accuracy is that of Grattafiori et al. 2024 (section 3.2.1) and Gadre et
al. 2024 (who take an exponential). `chance` is what guessing earns, so it is given; `top` is fitted unless
given.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from . import common
from .common import Array, NotIdentifiedWarning
from .descent import descend

NAMES = ("midpoint", "k", "top")


@dataclass(frozen=True)
class DownstreamFit:
    """accuracy = chance + (top - chance) * sigmoid(k (midpoint - loss)); midpoint in nats, k per nat.

    `draws` (n_boot, 3) are bootstrap rows (midpoint, k, top); `residuals` (n,) measured - predicted accuracy;
    `losses` the smallest and largest loss that was fitted.
    """

    midpoint: float
    k: float
    top: float
    chance: float
    losses: tuple[float, float]
    residuals: Array = field(repr=False)
    draws: Array | None = field(repr=False)
    not_identified: tuple[str, ...]

    def predict(self, loss: ArrayLike) -> Array:
        """Accuracy (a fraction) of a model with this pre-training loss, the same shape."""
        return _curve(np.array([self.midpoint, self.k, self.top]), np.asarray(loss, float), self.chance)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Central bootstrap interval of each parameter."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        return {name: common.percentile_interval(draws[:, i], level) for i, name in enumerate(NAMES)}

    def predict_interval(
        self, loss: ArrayLike, level: float = 0.95, *, noise: bool = True, seed: int = 0
    ) -> tuple[Array, Array]:
        """Interval for the accuracy at a loss: bootstrapped parameters, plus a run's residual if `noise`."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        loss = np.asarray(loss, float)
        values = _curve(draws.T.reshape(3, -1, *[1] * loss.ndim), loss, self.chance)
        if noise:
            n = self.residuals.size
            spread = self.residuals * np.sqrt(n / max(n - 3, 1))
            values = values + np.random.default_rng(seed).choice(spread, size=values.shape)
        return common.prediction_interval(np.clip(values, 0, 1), None, 3, level, seed)

    def summary(self, level: float = 0.95) -> str:
        """The parameters as a text table, with bootstrap intervals where there are any."""
        spans = {} if self.draws is None else self.interval(level)
        rows = [(name, getattr(self, name), spans.get(name)) for name in NAMES]
        notes = [f"{self.residuals.size} points, losses {self.losses[0]:.3g} to {self.losses[1]:.3g} nats"]
        notes += [
            f"rms error of accuracy {np.sqrt(np.mean(self.residuals**2)):.2g}, chance {self.chance:.3g}"
        ]
        notes += [f"not identified: {', '.join(self.not_identified)}"] * bool(self.not_identified)
        return common.table("accuracy = chance + (top - chance) sigmoid(k (midpoint - loss))", rows, notes)

    def __str__(self) -> str:
        return self.summary()


def fit_downstream(
    loss: ArrayLike,
    accuracy: ArrayLike,
    *,
    chance: float = 0.0,
    top: float | None = None,
    n_boot: int = 0,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> DownstreamFit:
    """Fits accuracy (n,), fractions, against pre-training loss (n,), nats, by least squares.

    `top` (at most 1) is the accuracy of a perfect model; without it it is fitted. Raises ValueError for
    values that are not finite and positive, an accuracy above 1, or too few different losses; warns
    NotIdentifiedWarning when the accuracies do not bend enough to show where they level off, or do not rise.
    """
    x, y = common.positive(loss=loss, accuracy=accuracy)
    common.check_count(0, n_boot=n_boot)
    if y.max() > 1:
        raise ValueError(f"accuracy must be a fraction of at most 1, not {y.max()}: divide per cent by 100")
    if not 0 <= chance < (1 if top is None else top) <= 1:
        raise ValueError(f"expected 0 <= chance < top <= 1, not chance {chance} and top {top}")
    common.enough(len(np.unique(x)), 2 + (top is None), "the sigmoid, counting different losses,")
    group = common.group_index(groups, x.size)
    width = float(np.ptp(x))
    tops = [1.0] if top is None else [top]
    tops += [min(1.0, float(y.max()) + 0.02)] * (top is None)
    middles = np.quantile(x, [0.1, 0.5, 0.9])
    starts = np.array([[m, k / width, t] for m in middles for k in (1.0, 4.0) for t in tops])
    lower = np.array([x.min() - 20 * width, 1e-3 / width, chance + 1e-3 if top is None else top])
    upper = np.array([x.max() + 20 * width, 200 / width, 1.0 if top is None else top])

    def model(theta: Array) -> tuple[Array, Array]:
        return _centred(theta, x, chance)

    theta, _ = descend(model, starts, y, np.ones((1, x.size)), lower, upper)
    lost = _not_identified(theta[0], x, lower, upper, top is None)
    if lost:
        message = (
            f"the data do not identify {', '.join(lost)}: the accuracies hardly bend; stay inside the losses"
        )
        warnings.warn(message, NotIdentifiedWarning, stacklevel=2)
    draws = None
    if n_boot:
        weight = common.bootstrap_weights(group, n_boot, seed, [(x, min(3, len(np.unique(x))))])
        draws, _ = descend(model, np.stack([theta[0], starts[0]]), y, weight, lower, upper)
    midpoint, k, fitted_top = (float(v) for v in theta[0])
    residuals = y - _curve(theta[0], x, chance)
    ends = (float(x.min()), float(x.max()))
    return DownstreamFit(midpoint, k, fitted_top, chance, ends, residuals, draws, lost)


def _curve(row: Array, x: Array, chance: float) -> Array:
    """The accuracy of a row (3,) or of rows (3, ...) that broadcast with x."""
    midpoint, k, top = row
    return np.asarray(chance + (top - chance) * expit(k * (midpoint - x)))


def _centred(theta: Array, x: Array, chance: float) -> tuple[Array, Array]:
    """Predictions (R, n) and Jacobian (R, 3, n)."""
    midpoint, k, top = (column[:, None] for column in theta.T)
    s = expit(k * (midpoint - x))
    bend = (top - chance) * s * (1 - s)
    return chance + (top - chance) * s, np.stack([bend * k, bend * (midpoint - x), s], axis=1)


def _not_identified(theta: Array, x: Array, lower: Array, upper: Array, free_top: bool) -> tuple[str, ...]:
    """Names of the parameters that the data leave open."""
    midpoint, k, top = theta
    lost = [] if x.min() <= midpoint <= x.max() else ["midpoint"]
    if k <= lower[1] * 1.01 or k >= upper[1] * 0.99:
        lost = ["midpoint", "k"]
    if free_top and (top >= 1 - 1e-6 or lost):
        lost.append("top")
    return tuple(lost)
