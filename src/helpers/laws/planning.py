"""From a budget to a model size and a data size, with the uncertainty of the law carried through to the plan.

A run of N parameters on D tokens costs 6 N D FLOPs, and each token that the model later serves 2 N (Kaplan et
al. 2020, section 2.1). So a model that will serve much should be smaller and trained longer (Sardana et al.
2024, "Beyond Chinchilla-optimal"). Text that runs out is repeated, at the worth that `repeats` gives it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import common
from .common import Array, NotIdentifiedWarning
from .law import Law
from .parametric import ParametricFit
from .repeats import DataConstrainedFit, effective

TRAIN, SERVE = 6.0, 2.0  # FLOPs per parameter and token, forward and backward; forward alone
_SIZES = np.geomspace(1e2, 1e16, 281)


class Bill(NamedTuple):
    """What a number of FLOPs costs on a machine: hours on the clock, kWh, kg of CO2 equivalent, money."""

    hours: float
    kwh: float
    carbon: float
    money: float


@dataclass(frozen=True)
class Hardware:
    """A machine to plan for; every figure is yours to give, none has a default that flatters.

    `flops_per_second` is what one device does at its best, `utilisation` the share of it that training
    reaches (measure it: chapter 2), `watts` the power of one device under load, `price` money per device
    hour, `carbon` kg of CO2 equivalent per kWh of your grid, `overhead` the power usage effectiveness of the
    building.
    """

    flops_per_second: float
    utilisation: float
    devices: int = 1
    watts: float = 0.0
    price: float = 0.0
    carbon: float = 0.0
    overhead: float = 1.0

    def __post_init__(self) -> None:
        common.check_choice(
            flops_per_second=self.flops_per_second, devices=self.devices, overhead=self.overhead
        )
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation must lie between 0 and 1, not {self.utilisation}")
        for name in ("watts", "price", "carbon"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")

    @property
    def speed(self) -> float:
        """FLOPs per second that all devices together deliver."""
        return self.flops_per_second * self.utilisation * self.devices

    def flops(self, hours: float) -> float:
        """The FLOPs that fit before a deadline."""
        common.check_choice(hours=hours)
        return self.speed * hours * 3600

    def bill(self, flops: float) -> Bill:
        """Hours, energy, carbon and money of a number of FLOPs."""
        if not 0 <= flops < float("inf"):
            raise ValueError(f"flops must be finite and not negative, but is {flops}")
        hours = float(flops) / self.speed / 3600
        kwh = hours * self.devices * self.watts / 1000 * self.overhead
        return Bill(hours, kwh, kwh * self.carbon, hours * self.devices * self.price)


@dataclass(frozen=True)
class Plan:
    """The size N (parameters), tokens D and loss L (nats) of the best run, and what it costs.

    `training` and `inference` are FLOPs; `epochs` says how often the text is read; `draws` (n_boot, 3) are
    rows (N, D, L), one plan for each resample of the fit; `outside` says how far the plan leaves the fitted
    runs.
    """

    N: float
    D: float
    L: float
    training: float
    inference: float
    epochs: float
    draws: Array | None = field(repr=False)
    outside: tuple[str, ...]
    question: Question = field(repr=False)

    def predict(self, N: ArrayLike) -> Array:
        """Loss (nats) if you take N parameters instead and spend what is left of the budget on tokens.

        NaN where the budget cannot even serve such a model. For a plan to a given loss it is that loss.
        """
        size = np.asarray(N, float)
        tokens, _ = self.question.solve(self.question.row, size)
        value = self.question.loss(self.question.row, size, tokens)
        return np.where(np.isfinite(tokens) & (tokens > 0), value, np.nan)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of the best N, D and L."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        return {name: common.percentile_interval(draws[:, i], level) for i, name in enumerate("NDL")}

    def within(self, nats: float) -> tuple[float, float]:
        """Smallest and largest N whose predicted loss is at most `nats` above the plan's."""
        common.check_choice(nats=nats)
        if self.question.target is not None:
            raise ValueError(
                "a plan to a given loss has the same loss at every size: compare its FLOPs instead"
            )
        grid = self.N * np.geomspace(1e-4, 1e4, 4001)
        near = self.predict(grid) <= self.L + nats
        return float(grid[near].min()), float(grid[near].max())

    def summary(self, level: float = 0.95) -> str:
        """The plan as a text table, with intervals where the fit has draws."""
        spans = {} if self.draws is None else self.interval(level)
        rows: list[tuple[str, float, tuple[float, float] | None]]
        rows = [(name, getattr(self, name), spans.get(name)) for name in "NDL"]
        rows += [("tokens per N", self.D / self.N, None), ("epochs", self.epochs, None)]
        rows += [("training", self.training, None), ("inference", self.inference, None)]
        return common.table("plan (N parameters, D tokens, L nats, FLOPs)", rows, self.outside)

    def __str__(self) -> str:
        return self.summary()


@dataclass(frozen=True)
class Question:
    """One question; rows are (E, A, alpha, B, beta, R_D, R_N), with R_D = 0 where text is never repeated."""

    row: Array
    compute: float | None
    target: float | None
    served: float
    unique: float
    train: float

    def loss(self, row: Array, N: Array, D: Array) -> Array:
        """Predicted loss; repeated text counts by its worth."""
        E, A, alpha, B, beta, R_D, R_N = row
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            if np.isfinite(self.unique):
                fed = (alpha * A / (beta * B)) ** (1 / alpha) * self.unique ** (beta / alpha)
                N = effective(np.minimum(fed, N), N, R_N)
                D = effective(self.unique, D, R_D)
            return np.asarray(E + A / N**alpha + B / D**beta)

    def solve(self, row: Array, N: Array) -> tuple[Array, Array]:
        """Tokens that the budget, or the target loss, leaves to N parameters, and the FLOPs of both."""
        if self.target is None:
            assert self.compute is not None
            tokens = (self.compute - SERVE * N * self.served) / (self.train * N)
            tokens = np.where(tokens > 0, tokens, np.nan)
            if np.isfinite(self.unique) and not np.any(row[5] > 0):
                tokens = np.minimum(tokens, self.unique)
            return tokens, self.train * N * tokens + SERVE * N * self.served
        E, A, alpha, B, beta, R_D, R_N = row
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            size = N
            if np.isfinite(self.unique):
                fed = (alpha * A / (beta * B)) ** (1 / alpha) * self.unique ** (beta / alpha)
                size = effective(np.minimum(fed, N), N, R_N)
            rest = self.target - E - A / size**alpha
            worth = np.where(rest > 0, (B / np.maximum(rest, 1e-300)) ** (1 / beta), np.nan)
            tokens = worth if not np.isfinite(self.unique) else _repeated(worth, self.unique, R_D)
        return tokens, N * (self.train * tokens + SERVE * self.served)


def allocate(
    fit: Law,
    compute: float | None = None,
    *,
    loss: float | None = None,
    inference_tokens: float = 0.0,
    unique_tokens: float = float("inf"),
    repeats: DataConstrainedFit | tuple[float, float] | None = None,
    flops_per_param_token: float = TRAIN,
) -> Plan:
    """The best N and D for a budget of `compute` FLOPs, or the cheapest ones that reach a `loss` (give one).

    `inference_tokens` are served over the model's life and paid from the same budget. `unique_tokens` is all
    the text there is: without `repeats` it is read once at most, with `repeats`, a fit or its (R_D, R_N), as
    often as it pays. If `fit` is a ParametricFit with a bootstrap, every resample makes its own plan, so
    `Plan.interval` holds the uncertainty of the law (and of `repeats`, if that has draws). For a deadline
    pass `Hardware.flops(hours)`.

    Raises TypeError for a fit of another law, ValueError for numbers that are not positive, both or none of
    compute and loss, or a loss that no model reaches; warns NotIdentifiedWarning when the plan lies outside
    the runs that were fitted.
    """
    if not isinstance(fit, Law):
        raise TypeError(
            f"a plan needs L = E + A/N^alpha + B/D^beta, a Law or a ParametricFit, not a {type(fit).__name__}"
        )
    if (compute is None) == (loss is None):
        raise ValueError(f"give compute or loss, one of them: compute is {compute}, loss is {loss}")
    goal = {"compute": compute} if loss is None else {"loss": loss}
    common.positive(**{name: value for name, value in goal.items() if value is not None})
    common.check_choice(unique_tokens=unique_tokens, flops_per_param_token=flops_per_param_token)
    if not 0 <= inference_tokens < float("inf"):
        raise ValueError(f"inference_tokens must be finite and not negative, but is {inference_tokens}")
    decay = _decay(repeats)
    row = np.concatenate([fit.row, decay])
    question = Question(row, compute, loss, inference_tokens, unique_tokens, flops_per_param_token)
    best = _search(question, row[:, None, None])[0]
    if not np.isfinite(best).all():
        raise ValueError(
            f"no model reaches the loss {loss:.4g}"
            if loss is not None
            else f"nothing fits {compute:.4g} FLOPs"
        )
    N, D, L = (float(v) for v in best)
    draws = _draw(fit, repeats, decay, question)
    outside = _outside(fit, N, D)
    if outside:
        warnings.warn(f"an extrapolation: {'; '.join(outside)}", NotIdentifiedWarning, stacklevel=2)
    served = SERVE * N * inference_tokens
    spent = flops_per_param_token * N * D
    epochs = max(1.0, D / unique_tokens)
    return Plan(N, D, L, spent, served, epochs, draws, outside, question)


def _search(question: Question, rows: Array) -> Array:
    """Best (N, D, L), (R, 3), of each of the rows (7, R, 1), NaN where there is none; on ever finer grids."""
    count = rows.shape[1]
    centre, width = np.full((count, 1), 1.0), _SIZES
    for _ in range(7):
        sizes = centre * width  # (R, sizes)
        tokens, total = question.solve(rows, sizes)
        value = total if question.target is not None else question.loss(rows, sizes, tokens)
        value = np.where(np.isfinite(value) & (tokens > 0), value, np.inf)
        # The loss of capped text is flat in D: of equal losses the cheapest, hence the smallest size, wins.
        pick = value.argmin(axis=1)
        take = (np.arange(count), pick)
        step = width[1] / width[0]
        centre = sizes[take][:, None]
        width = np.geomspace(1 / step, step, 21)
    found = np.stack([sizes[take], tokens[take], question.loss(rows, sizes, tokens)[take]], axis=1)
    found[~np.isfinite(value[take])] = np.nan
    return found


def _decay(repeats: DataConstrainedFit | tuple[float, float] | None) -> Array:
    """(R_D, R_N); R_D = 0 stands for text that is never read twice."""
    if repeats is None:
        return np.array([0.0, np.inf])
    R_D, R_N = (repeats.R_D, repeats.R_N) if isinstance(repeats, DataConstrainedFit) else repeats
    common.check_choice(R_D=R_D, R_N=R_N)
    return np.array([R_D, R_N], dtype=float)


def _draw(
    fit: Law, repeats: DataConstrainedFit | tuple[float, float] | None, decay: Array, question: Question
) -> Array | None:
    """One plan for each bootstrap row of the fit, (n_boot, 3); None without a bootstrap."""
    draws = getattr(fit, "draws", None)
    if draws is None:
        return None
    extra = np.tile(decay, (len(draws), 1))
    if isinstance(repeats, DataConstrainedFit) and repeats.draws is not None:
        extra = np.resize(repeats.draws, (len(draws), 2))  # independent fits: pair their draws one to one
    plans = _search(question, np.concatenate([draws, extra], axis=1).T[:, :, None])
    reached = np.isfinite(plans).all(axis=1)
    if not reached.all():
        message = f"{(~reached).sum()} of {len(plans)} resamples say that it cannot be reached; left out"
        warnings.warn(message, NotIdentifiedWarning, stacklevel=3)
    return plans[reached]


def _outside(fit: Law, N: float, D: float) -> tuple[str, ...]:
    """How far N and D lie outside the fitted runs, in words; nothing for a law of given constants."""
    if not isinstance(fit, ParametricFit):
        return ()
    found = []
    logs = fit.problem.x + fit.problem.x_mean[:, None]
    for name, value, seen in (("N", N, np.exp(logs[0])), ("D", D, np.exp(logs[1]))):
        if value > seen.max() * 1.01:
            found.append(f"{name} is {value / seen.max():.3g} times the largest fitted")
        elif value < seen.min() * 0.99:
            found.append(f"{name} is {seen.min() / value:.3g} times below the smallest fitted")
    return tuple(found)


def _repeated(worth: Array, unique: float, R: Array) -> Array:
    """Tokens to read to have the worth of `worth` new ones; NaN where repeating `unique` cannot do it."""
    needed = worth / unique - 1
    R = np.asarray(R, float)
    left = 1 - needed / np.where(R > 0, R, np.nan)
    repeats = np.where(np.isfinite(R), -R * np.log(np.where(left > 0, left, np.nan)), needed)
    return np.where(needed <= 0, worth, unique * (1 + repeats))
