"""Power laws of one variable: y = E + A / x^alpha, with or without the floor E.

Kaplan et al. 2020 (equations 1.1 to 1.3) fit the loss as (x_c/x)^alpha, a straight line on log-log axes: that
is E = 0 and A = x_c^alpha. Henighan et al. 2020 (equation 1.1) add the floor, which bends the line.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from . import common, likelihood
from .common import Array, NotIdentifiedWarning
from .solver import ALPHA_MAX, ALPHA_MIN, make_problem, solve


@dataclass(frozen=True)
class PowerFit:
    """A fitted y = E + A / x^alpha, E in the units of y. Without a floor alpha may be negative (y grows).

    `objective` is the sum of Huber losses of log residuals; `draws` (n_boot, 3) the bootstrap rows (E, A,
    alpha); `residuals` (n,) are log measured - log predicted.
    """

    E: float
    A: float
    alpha: float
    objective: float
    with_floor: bool
    residuals: Array = field(repr=False)
    draws: Array | None = field(repr=False)
    not_identified: tuple[str, ...]

    def predict(self, x: ArrayLike) -> Array:
        """y at x, the same shape."""
        return np.asarray(self.E + self.A * np.asarray(x, float) ** -self.alpha)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Central bootstrap interval of each parameter."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        return {
            name: common.percentile_interval(draws[:, i], level) for i, name in enumerate(("E", "A", "alpha"))
        }

    def predict_interval(
        self, x: ArrayLike, level: float = 0.95, *, noise: bool = True, seed: int = 0
    ) -> tuple[Array, Array]:
        """Interval for y at x: bootstrapped parameters, plus the residual of a single point if `noise`."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        x = np.asarray(x, float)
        E, A, alpha = draws.T.reshape(3, -1, *[1] * x.ndim)
        fitted = 2 + int(self.with_floor)
        return common.prediction_interval(
            E + A * x**-alpha, self.residuals if noise else None, fitted, level, seed
        )

    def summary(self, level: float = 0.95) -> str:
        """The parameters as a text table, with bootstrap intervals where there are any."""
        spans = {} if self.draws is None else self.interval(level)
        names = ("E", "A", "alpha") if self.with_floor else ("A", "alpha")
        rms = float(np.sqrt(np.mean(self.residuals**2)))
        notes = [f"{self.residuals.size} points, rms error of log y {rms:.2g}"]
        notes += [f"not identified: {', '.join(self.not_identified)}"] * bool(self.not_identified)
        rows = [(name, getattr(self, name), spans.get(name)) for name in names]
        return common.table("y = E + A/x^alpha" if self.with_floor else "y = A/x^alpha", rows, notes)

    def __str__(self) -> str:
        return self.summary()


def fit_power(
    x: ArrayLike,
    y: ArrayLike,
    *,
    with_floor: bool,
    delta: float = float("inf"),
    n_boot: int = 0,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> PowerFit:
    """Fits y = A/x^alpha, or y = E + A/x^alpha `with_floor`, to positive x and y (n,), on log residuals.

    With `delta` infinite and no floor this is the least-squares line through (log x, log y). Raises
    ValueError for values that are not finite and positive, unequal lengths or too few different x; warns
    NotIdentifiedWarning when the data do not fix a parameter.
    """
    size, value = common.positive(x=x, y=y)
    common.check_choice(delta=delta)
    common.check_count(0, n_boot=n_boot)
    needed = 2 + int(with_floor)
    common.enough(len(np.unique(size)), needed, "the power law, counting different x,")
    group = common.group_index(groups, size.size)
    problem = make_problem([size], value, delta, floor=with_floor, signed=not with_floor)
    theta, objective = solve(problem, np.ones((1, size.size)))
    E, A, alpha = (float(v) for v in problem.to_units(theta)[0])
    lost: tuple[str, ...] = ()
    if with_floor and not ALPHA_MIN * 1.001 < alpha < ALPHA_MAX * 0.999:
        lost = ("E", "A", "alpha")
    elif with_floor and (E <= 0 or likelihood.floor_is_optional(problem, float(objective[0]))):
        lost = ("E",)
    if lost:
        message = f"the data do not identify {', '.join(lost)}: E is {E:.3g}, and E = 0 fits about as well"
        warnings.warn(message, NotIdentifiedWarning, stacklevel=2)
    draws = None
    if n_boot:
        weight = common.bootstrap_weights(group, n_boot, seed, [(size, needed)])
        draws = problem.to_units(solve(problem, weight, warm=theta[0])[0])
    residuals = np.log(value) - np.log(E + A * size**-alpha)
    return PowerFit(E, A, alpha, float(objective[0]), with_floor, residuals, draws, lost)
