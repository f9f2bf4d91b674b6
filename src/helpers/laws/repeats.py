"""What a repeated token is worth: the data-constrained law of Muennighoff et al. 2023 (section 3).

D tokens of which U are new are worth D' = U + U R_D (1 - exp(-R/R_D)) new ones, where R = D/U - 1 counts the
repetitions. A small number of repetitions is nearly as good as new text; beyond R_D little is gained.
Parameters beyond those that U tokens can feed decay in the same way, with R_N. The constants of L = E +
A/N'^alpha + B/D'^beta come from runs without repeats and are held fixed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import huber

from . import common, likelihood
from .common import Array, NotIdentifiedWarning
from .law import Law
from .parametric import Profile, profile_interval

Points = tuple[Law, Array, Array, Array, Array]  # base, N, U, D, L
LOW, HIGH = 0.02, 2000.0  # range of R_D and R_N that is searched; at the top a repeat is as good as new
_STEPS = 41


@dataclass(frozen=True)
class DataConstrainedFit:
    """R_D and R_N of a law with fixed `base`; both in repetitions, `inf` where decay was switched off.

    `objective` is the sum of Huber losses of log residuals, `r_squared` the share of the variance of the loss
    that is explained; `draws` (n_boot, 2) are bootstrap rows (R_D, R_N); `residuals` (n,) log measured - log
    predicted.
    """

    R_D: float
    R_N: float
    base: Law
    objective: float
    r_squared: float
    residuals: Array = field(repr=False)
    draws: Array | None = field(repr=False)
    not_identified: tuple[str, ...]
    data: tuple[Array, Array, Array, Array] = field(repr=False)
    delta: float
    held: tuple[float | None, float | None]

    def effective(self, U: ArrayLike, D: ArrayLike) -> Array:
        """D': the number of new tokens that D tokens with U different ones are worth."""
        return effective(np.asarray(U, float), np.asarray(D, float), self.R_D)

    def predict(self, N: ArrayLike, U: ArrayLike, D: ArrayLike) -> Array:
        """Loss (nats) of N parameters trained on D tokens of which U are different; shapes broadcast."""
        return _loss(self.base, N, U, D, self.R_D, self.R_N)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Central bootstrap interval of R_D and R_N."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        return {name: common.percentile_interval(draws[:, i], level) for i, name in enumerate(("R_D", "R_N"))}

    def predict_interval(
        self,
        N: ArrayLike,
        U: ArrayLike,
        D: ArrayLike,
        level: float = 0.95,
        *,
        noise: bool = True,
        seed: int = 0,
    ) -> tuple[Array, Array]:
        """Interval for the loss of a run: bootstrapped R_D and R_N, plus run residuals if `noise`."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        N, U, D = np.broadcast_arrays(*(np.asarray(v, float) for v in (N, U, D)))
        R_D, R_N = draws.T.reshape(2, -1, *[1] * N.ndim)
        values = _loss(self.base, N, U, D, R_D, R_N)
        return common.prediction_interval(values, self.residuals if noise else None, 2, level, seed)

    def profile(self, name: str = "R_D", values: ArrayLike | None = None, level: float = 0.95) -> Profile:
        """Profile likelihood of R_D (or R_N): the other is fitted again for each value held fixed.

        Raises ValueError when the grid misses the interval.
        """
        common.check_level(level)
        if name not in ("R_D", "R_N"):
            raise ValueError(f"name must be R_D or R_N, not {name!r}")
        (grid,) = common.positive(values=np.geomspace(1, 200, 60) if values is None else values)
        other = (
            np.geomspace(LOW, HIGH, 400) if self.held[name == "R_D"] is None else [self.held[name == "R_D"]]
        )
        N, U, D, L = self.data
        cells = np.array([(v, w) if name == "R_D" else (w, v) for v in grid for w in other])
        errors = _objectives(self.base, N, U, D, L, cells, self.delta).sum(axis=1)
        objective = errors.reshape(grid.size, -1).min(axis=1)
        best = min(self.objective, float(objective.min()))
        deviance = likelihood.deviance(objective, best, L.size, self.delta)
        bound = likelihood.threshold(level)
        return Profile(grid, deviance, profile_interval(grid, deviance, bound, getattr(self, name)), bound)

    def summary(self, level: float = 0.95) -> str:
        """R_D and R_N as a text table, with bootstrap intervals where there are any."""
        spans = {} if self.draws is None else self.interval(level)
        rows = [(name, getattr(self, name), spans.get(name)) for name in ("R_D", "R_N")]
        notes = [f"{self.residuals.size} points, R2 of the loss {self.r_squared:.3g}"]
        notes += [f"not identified: {', '.join(self.not_identified)}"] * bool(self.not_identified)
        return common.table("D' = U + U R_D (1 - exp(-R/R_D))", rows, notes)

    def __str__(self) -> str:
        return self.summary()


def effective(unique: ArrayLike, total: ArrayLike, R: ArrayLike) -> Array:
    """unique + unique R (1 - exp(-(total/unique - 1)/R)); for R = inf it is `total`, for R = 0 `unique`."""
    unique, total, R = np.broadcast_arrays(*(np.asarray(v, float) for v in (unique, total, R)))
    repeats = np.maximum(total / unique - 1, 0)
    finite = np.where(np.isfinite(R), np.maximum(R, 1e-12), 1.0)
    worth = np.where(np.isfinite(R), -finite * np.expm1(-repeats / finite), repeats)
    return np.asarray(np.minimum(unique, total) + unique * worth)


def fit_data_constrained(
    N: ArrayLike,
    U: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    base: Law,
    *,
    delta: float = 1e-3,
    hold_D: float | None = None,
    hold_N: float | None = None,
    n_boot: int = 0,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> DataConstrainedFit:
    """Fits R_D and R_N to N parameters, U different tokens, D tokens in all and L nats, each (n,).

    `base` gives E, A, B, alpha and beta. `hold_D` or `hold_N` fixes a constant instead of fitting it:
    infinity switches its decay off. Raises ValueError for values that are not finite and positive, unequal
    lengths, U above D, or no repeats at all; warns NotIdentifiedWarning when a constant lies at the edge of
    its range.
    """
    sizes, unique, tokens, losses = common.positive(N=N, U=U, D=D, L=L)
    common.check_choice(delta=delta)
    common.check_count(0, n_boot=n_boot)
    held = (hold_D, hold_N)
    common.check_choice(**{k: v for k, v in zip(("hold_D", "hold_N"), held, strict=True) if v is not None})
    if (bad := np.flatnonzero(unique > tokens * (1 + 1e-9))).size:
        raise ValueError(f"U cannot exceed D, but U[{bad[0]}] is {unique[bad[0]]} and D {tokens[bad[0]]}")
    if not (tokens > unique * 1.01).any():
        raise ValueError("no run repeats its data (D equals U everywhere), so R_D has no answer")
    free = [i for i in (0, 1) if held[i] is None]
    runs = set(zip(sizes, unique, tokens, strict=True))
    common.enough(len(runs), max(len(free), 1), "the data-constrained law, counting different (N, U, D),")
    points: Points = (base, sizes, unique, tokens, losses)
    grids = [np.geomspace(LOW, HIGH, _STEPS) if v is None else np.array([v]) for v in held]
    cells = np.array(list(product(*grids)))
    errors = _objectives(*points, cells, delta)  # (cells, n)
    row = _polish(points, cells[np.argsort(errors.sum(axis=1))[:5]], free, delta)
    lost = _not_identified(row, free, points, delta)
    if lost:
        message = (
            f"the data do not identify {', '.join(lost)}: at the edge of {LOW:g} to {HIGH:g} repetitions"
        )
        warnings.warn(message, NotIdentifiedWarning, stacklevel=2)
    draws = None
    if n_boot:
        group = common.group_index(groups, sizes.size)
        weight = common.bootstrap_weights(group, n_boot, seed)
        draws = _zoom(points, cells[(weight @ errors.T).argmin(axis=1)], weight, free, delta)
    predicted = _loss(base, sizes, unique, tokens, *row)
    residuals = np.log(losses) - np.log(predicted)
    r_squared = 1 - float(((losses - predicted) ** 2).sum() / ((losses - losses.mean()) ** 2).sum())
    objective = (
        float(huber(delta, residuals).sum()) if np.isfinite(delta) else float((residuals**2).sum() / 2)
    )
    return DataConstrainedFit(
        float(row[0]), float(row[1]), base, objective, r_squared, residuals, draws, lost,
        (sizes, unique, tokens, losses), delta, held,
    )  # fmt: skip


def _loss(base: Law, N: ArrayLike, U: ArrayLike, D: ArrayLike, R_D: ArrayLike, R_N: ArrayLike) -> Array:
    """E + A/N'^alpha + B/D'^beta; the size that U tokens feed is the optimum of the base law at D = U."""
    N, U = np.asarray(N, float), np.asarray(U, float)
    if np.isinf(R_N).all():  # no decay of size: then `base` needs no size term (A may be 0)
        return base.predict(N, effective(U, D, R_D))
    fed = (base.alpha * base.A / (base.beta * base.B)) ** (1 / base.alpha) * U ** (base.beta / base.alpha)
    return base.predict(effective(np.minimum(fed, N), N, R_N), effective(U, D, R_D))


def _objectives(base: Law, N: Array, U: Array, D: Array, L: Array, cells: Array, delta: float) -> Array:
    """Huber loss of log residuals at each (R_D, R_N) of `cells` (..., 2): (..., n)."""
    residual = np.log(_loss(base, N, U, D, cells[..., :1], cells[..., 1:])) - np.log(L)
    clipped = np.clip(residual, -delta, delta)
    return np.asarray(clipped * (residual - clipped / 2))


def _polish(points: Points, starts: Array, free: list[int], delta: float) -> Array:
    """The best (R_D, R_N) found by simplex steps in logarithms from each start."""

    def at(log_free: Array, row: Array) -> Array:
        full = row.copy()
        full[free] = np.exp(np.clip(log_free, np.log(LOW), np.log(HIGH)))
        return full

    best, value = starts[0], np.inf
    for row in starts:
        if not free:
            return row
        found = minimize(
            lambda p, row=row: _objectives(*points, at(p, row)[None], delta).sum(),
            np.log(row[free]), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-14, "maxiter": 1000},
        )  # fmt: skip
        if found.fun < value:
            best, value = at(found.x, row), found.fun
    return best


def _zoom(points: Points, centre: Array, weight: Array, free: list[int], delta: float) -> Array:
    """Refines each resample's cell (R, 2) on finer and finer grids around it."""
    width = np.log(HIGH / LOW) / (_STEPS - 1)
    offsets = [np.linspace(-1, 1, 7) if i in free else np.zeros(1) for i in (0, 1)]
    steps = np.array(list(product(*offsets)))
    for _ in range(4):
        parts = []
        for first in range(0, len(centre), 100):  # in slices, to keep the arrays small
            rows = slice(first, first + 100)
            cells = centre[rows, None] * np.exp(width * steps)
            cells[..., free] = np.clip(cells[..., free], LOW, HIGH)
            errors = (_objectives(*points, cells, delta) * weight[rows, None]).sum(axis=-1)
            parts.append(cells[np.arange(len(cells)), errors.argmin(axis=1)])
        centre, width = np.concatenate(parts), width / 2.5
    return centre


def _not_identified(row: Array, free: list[int], points: Points, delta: float) -> tuple[str, ...]:
    """R_D or R_N at the edge of the range, or without any effect on the objective."""
    lost = []
    for i, name in enumerate(("R_D", "R_N")):
        if i not in free:
            continue
        ends = np.tile(row, (2, 1))
        ends[:, i] = LOW, HIGH
        errors = _objectives(*points, np.vstack([row, ends]), delta).sum(axis=1)
        if not LOW * 1.01 < row[i] < HIGH * 0.99 or np.ptp(errors) <= 1e-9 * errors[0]:
            lost.append(name)
    return tuple(lost)
