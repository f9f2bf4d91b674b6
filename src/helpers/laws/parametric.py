"""The parametric law L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, section 3.3, equation 2).

E is the loss that no model and no data remove, A/N^alpha what a finite model adds, B/D^beta what finite data
add. The fit minimises the sum of Huber(log predicted - log measured), as Besiroglu et al. 2024 do; their
replication traces the published error to averaging that loss instead of summing it. We depart from both in
the minimiser: variable projection and damped Newton steps (`solver`) instead of thousands of quasi-Newton
starts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import common, likelihood
from .common import Array, NotIdentifiedWarning
from .law import Law, best_split, loss
from .solver import ALPHA_MAX, ALPHA_MIN, Problem, make_problem, solve

NAMES = ("E", "A", "alpha", "B", "beta")


class Profile(NamedTuple):
    """Profile likelihood of one parameter: a grid of its `values` (G,), and the deviance (G,) of the best fit
    with each held.

    Deviance is twice the loss of log likelihood; `interval` holds the values whose deviance is below the
    chi-squared bound.
    """

    values: Array
    deviance: Array
    interval: tuple[float, float]
    threshold: float


@dataclass(frozen=True)
class ParametricFit(Law):
    """A fitted L = E + A/N^alpha + B/D^beta; E in nats, A in nats parameters^alpha, B in nats tokens^beta.

    `objective` is the minimised sum of Huber losses; `draws` (n_boot, 5) the bootstrap rows (E, A, alpha, B,
    beta); `not_identified` names what the data do not fix; `residuals` (n,) are log measured - log predicted.
    """

    objective: float
    residuals: Array = field(repr=False)
    draws: Array | None = field(repr=False)
    not_identified: tuple[str, ...]
    problem: Problem = field(repr=False)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Central bootstrap interval of each parameter and of `exponent_N`."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        columns = dict(zip(NAMES, draws.T, strict=True)) | {
            "exponent_N": draws[:, 4] / (draws[:, 2] + draws[:, 4])
        }
        return {name: common.percentile_interval(column, level) for name, column in columns.items()}

    def predict_interval(
        self, N: ArrayLike, D: ArrayLike, level: float = 0.95, *, noise: bool = True, seed: int = 0
    ) -> tuple[Array, Array]:
        """Interval for the loss of a run at (N, D): bootstrapped parameters, plus residuals if `noise`.

        It assumes that the law holds where you ask. It does not know how wrong the law is beyond the data.
        """
        draws = common.need_draws(self.draws)
        common.check_level(level)
        N, D = np.broadcast_arrays(np.asarray(N, float), np.asarray(D, float))
        values = loss(draws.T.reshape(5, -1, *[1] * N.ndim), N, D)  # (n_boot, ...)
        return common.prediction_interval(values, self.residuals if noise else None, len(NAMES), level, seed)

    def optimal_interval(
        self, C: ArrayLike, level: float = 0.95, flops_per_param_token: float = 6
    ) -> dict[str, tuple[Array, Array]]:
        """Bootstrap interval (low, high) of the optimal N, D and L at each C."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        (budget,) = common.positive(C=C)
        common.check_choice(flops_per_param_token=flops_per_param_token)
        rows = draws.T[:, :, None]  # (5, n_boot, 1)
        N, D = best_split(rows, budget, flops_per_param_token)
        ends = [(1 - level) / 2, (1 + level) / 2]
        found = {"N": N, "D": D, "L": loss(rows, N, D)}
        spans = {
            name: np.quantile(value, ends, axis=0).reshape(2, *np.shape(C)) for name, value in found.items()
        }
        return {name: (low, high) for name, (low, high) in spans.items()}

    def profile(self, E: ArrayLike | None = None, level: float = 0.95) -> Profile:
        """Profile likelihood of E: for each E held fixed the other four parameters are fitted again.

        Residuals are taken as independent. Points that share a run share their noise, so the interval is then
        too narrow. Raises ValueError when the grid misses the interval.
        """
        common.check_level(level)
        grid = self._floors(E)
        n = self.problem.y.size
        _, objective = solve(self.problem, np.ones((grid.size, n)), pin=grid)
        deviance = likelihood.deviance(objective, self.objective, n, self.problem.delta)
        bound = likelihood.threshold(level)
        return Profile(grid, deviance, profile_interval(grid, deviance, bound, self.E), bound)

    def held(self, E: float) -> Law:
        """The law of the best fit whose floor is held at E (nats); the profile's law at that E."""
        held = self._floors(E)
        theta, _ = solve(self.problem, np.ones((1, self.problem.y.size)), pin=held)
        _, A, alpha, B, beta = (float(v) for v in self.problem.to_units(theta)[0])
        return Law(float(held[0]), A, B, alpha, beta)

    def _floors(self, E: ArrayLike | None) -> Array:
        """Floors (nats) to hold, checked; by default a grid from 0 to just under the lowest loss."""
        lowest = self.problem.y_scale * float(np.exp(self.problem.y.min()))
        grid = np.linspace(0, 0.98 * lowest, 99) if E is None else np.atleast_1d(np.asarray(E, dtype=float))
        if not np.all(np.isfinite(grid) & (grid >= 0) & (grid < lowest)):
            raise ValueError(f"E must lie between 0 and the lowest measured loss {lowest:.4g}, not {grid}")
        return grid

    def summary(self, level: float = 0.95) -> str:
        """The parameters as a text table, with bootstrap intervals where there are any."""
        spans = {} if self.draws is None else self.interval(level)
        rows = [
            (name, getattr(self, name), spans.get(name))
            for name in ("E", "A", "B", "alpha", "beta", "exponent_N")
        ]
        rms = float(np.sqrt(np.mean(self.residuals**2)))
        notes = [f"{self.residuals.size} points, rms error of log loss {rms:.2g}"]
        notes += [f"not identified: {', '.join(self.not_identified)}"] * bool(self.not_identified)
        return common.table("L = E + A/N^alpha + B/D^beta", rows, notes)

    def __str__(self) -> str:
        return self.summary()


def fit_parametric(
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    delta: float = 1e-3,
    n_boot: int = 0,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> ParametricFit:
    """Fits L = E + A/N^alpha + B/D^beta to N parameters, D tokens and L nats, each (n,).

    `delta` is the residual of log loss beyond which Huber's loss grows linearly; infinity gives least
    squares. With `n_boot`, whole `groups` are resampled (runs cut from one stable run are one group). Raises
    ValueError for values that are not finite and positive, unequal lengths, or fewer different (N, D) than 5;
    warns NotIdentifiedWarning when the data do not fix a parameter.
    """
    sizes, tokens, losses = common.positive(N=N, D=D, L=L)
    common.check_choice(delta=delta)
    common.check_count(0, n_boot=n_boot)
    common.enough(
        len(set(zip(sizes, tokens, strict=True))),
        5,
        "L = E + A/N^alpha + B/D^beta, counting different (N, D),",
    )
    group = common.group_index(groups, sizes.size)
    problem = make_problem([sizes, tokens], losses, delta, floor=True)
    theta, objective = solve(problem, np.ones((1, sizes.size)))
    row = problem.to_units(theta)[0]
    lost = _not_identified(row, sizes, tokens, likelihood.floor_is_optional(problem, float(objective[0])))
    if lost:
        warnings.warn(_explain(lost, row), NotIdentifiedWarning, stacklevel=2)
    draws = None
    if n_boot:
        spread = [(v, min(3, len(np.unique(v)))) for v in (sizes, tokens)]
        weight = common.bootstrap_weights(group, n_boot, seed, spread)
        draws = problem.to_units(solve(problem, weight, warm=theta[0])[0])
    E, A, alpha, B, beta = (float(v) for v in row)
    residuals = np.log(losses) - np.log(loss(row, sizes, tokens))
    return ParametricFit(E, A, B, alpha, beta, float(objective[0]), residuals, draws, tuple(lost), problem)


def _not_identified(row: Array, N: Array, D: Array, floor_is_optional: bool) -> list[str]:
    """Names of the parameters that the data leave open."""
    E, A, alpha, B, beta = row
    lost = ["E"] if E <= 0 or floor_is_optional else []
    for values, constant, exponent, names in ((N, A, alpha, ("A", "alpha")), (D, B, beta, ("B", "beta"))):
        at_edge = not ALPHA_MIN * 1.001 < exponent < ALPHA_MAX * 0.999
        nothing = constant * values.min() ** -exponent < 1e-6 * (E + 1e-12)
        if len(np.unique(values)) < 3:
            lost += ["E", *names]
        elif at_edge or nothing:
            lost += names
    return list(dict.fromkeys(lost))


def _explain(lost: list[str], row: Array) -> str:
    """The sentence of the warning."""
    why = "too few different sizes or budgets, or an exponent at the edge of its range"
    if lost == ["E"]:
        why = "E lies on its bound 0" if row[0] <= 0 else f"E is {row[0]:.3g}, and E = 0 fits about as well"
    advice = f"quote intervals and predictions inside the data, not {lost[0]}"
    return f"the data do not identify {', '.join(lost)} ({why}); {advice}"


def profile_interval(grid: Array, deviance: Array, bound: float, best: float) -> tuple[float, float]:
    """Ends of the stretch of the grid around `best` with deviance at most `bound`, interpolated linearly.

    ValueError if no value of the grid is so good.
    """
    inside = deviance <= bound
    if not inside.any():
        raise ValueError(
            f"no value of the grid has a deviance below {bound:.3g}, so the interval has no ends: the grid "
            f"is too coarse, or misses the estimate {best:.4g}"
        )
    start = int(np.flatnonzero(inside)[np.argmin(np.abs(grid[inside] - best))])
    low = high = start
    while low > 0 and inside[low - 1]:
        low -= 1
    while high < grid.size - 1 and inside[high + 1]:
        high += 1

    def cross(a: int, b: int) -> float:
        if not 0 <= b < grid.size:
            return float(grid[a])
        return float(grid[a] + (grid[b] - grid[a]) * (bound - deviance[a]) / (deviance[b] - deviance[a]))

    return cross(low, low - 1), cross(high, high + 1)
