"""The multiplicative law of blog posts: Performance = k N^a D^b C^g, a straight line in logs, by statsmodels.

It looks general and is not. Training compute is very nearly C = 6 N D, so log C = log 6 + log N + log D: four
columns (1, log N, log D, log C) of rank three. Adding any number t to a and b and taking it from g (and t log
6 in log k) changes no prediction. Only a + g and b + g have an answer.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import statsmodels.api as sm
from numpy.typing import ArrayLike

from . import common
from .common import Array, NotIdentified, NotIdentifiedWarning

LETTERS = {"N": "a", "D": "b", "C": "g"}
VIF_LIMIT = 100.0


@dataclass(frozen=True)
class MultiplicativeFit:
    """A fitted P = k N^a D^b C^g; `exponents` maps the fitted of a, b, g to estimates; `k` has P's units.

    `rank` and `condition_number` describe the design (n, q) of an intercept and centred, scaled logs; `vif`
    maps each exponent to its variance inflation factor: how many times collinearity multiplies the variance
    of its estimate.
    """

    k: float
    exponents: dict[str, float]
    rank: int
    condition_number: float
    vif: dict[str, float]
    r_squared: float
    residuals: Array = field(repr=False)
    model: Any = field(repr=False)

    def predict(self, N: ArrayLike, D: ArrayLike, C: ArrayLike | None = None) -> Array:
        """P at N, D (and C, if the fit used it); shapes broadcast."""
        given = {"a": N, "b": D, "g": C}
        if ("g" in self.exponents) != (C is not None):
            raise ValueError(
                "this fit used C: pass it" if C is None else "this fit did not use C: leave it out"
            )
        logs = [power * np.log(np.asarray(given[letter], float)) for letter, power in self.exponents.items()]
        return np.asarray(self.k * np.exp(sum(logs)))

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Student interval of k and of each exponent (normal if the covariance is by groups)."""
        common.check_level(level)
        rows = np.asarray(self.model.conf_int(1 - level))
        spans = {"k": (float(np.exp(rows[0, 0])), float(np.exp(rows[0, 1])))}
        return spans | {
            name: (float(lo), float(hi)) for name, (lo, hi) in zip(self.exponents, rows[1:], strict=True)
        }

    def summary(self, level: float = 0.95) -> str:
        """Estimates, intervals, and how collinear the design is."""
        spans = self.interval(level)
        rows = [(name, value, spans[name]) for name, value in ({"k": self.k} | self.exponents).items()]
        inflation = ", ".join(f"{name} {value:.3g}" for name, value in self.vif.items())
        notes = [f"R2 {self.r_squared:.3g}, rank {self.rank}, condition number {self.condition_number:.3g}"]
        notes.append(f"variance inflation {inflation}")
        law = " ".join(
            f"{variable}^{letter}" for variable, letter in LETTERS.items() if letter in self.exponents
        )
        return common.table(f"P = k {law}", rows, notes)

    def __str__(self) -> str:
        return self.summary()


def fit_multiplicative(
    P: ArrayLike, N: ArrayLike, D: ArrayLike, C: ArrayLike | None = None, *, groups: ArrayLike | None = None
) -> MultiplicativeFit:
    """Fits log P = log k + a log N + b log D (+ g log C) by ordinary least squares; all (n,) and positive.

    With `groups` the covariance is clustered. Raises NotIdentified when the logs are collinear (as with C = 6
    N D), naming the sums of exponents that are identified and their estimates, and ValueError for bad input;
    warns NotIdentifiedWarning when a variance inflation factor passes 100, where estimates hang on the noise.
    """
    names = ["N", "D"] if C is None else ["N", "D", "C"]
    columns = common.positive(P=P, N=N, D=D) if C is None else common.positive(P=P, N=N, D=D, C=C)
    logs = np.log(np.stack(columns[1:], axis=1))  # (n, 2 or 3)
    common.enough(len(logs), len(names) + 1, "P = k " + " ".join(f"{v}^{LETTERS[v]}" for v in names))
    rank, condition = _design(logs)
    if rank < len(names) + 1:
        raise _collinear(columns, names, groups)
    model = _ols(np.log(columns[0]), logs, groups)
    vif = {LETTERS[name]: _vif(logs, i) for i, name in enumerate(names)}
    worst = max(vif, key=lambda letter: vif[letter])
    if vif[worst] > VIF_LIMIT:
        message = (
            f"nearly collinear: the variance of {worst} is inflated {vif[worst]:.3g} times; trust only sums"
        )
        warnings.warn(message, NotIdentifiedWarning, stacklevel=2)
    log_k, *slopes = (float(v) for v in model.params)
    exponents = dict(zip((LETTERS[name] for name in names), slopes, strict=True))
    return MultiplicativeFit(
        float(np.exp(log_k)),
        exponents,
        rank,
        condition,
        vif,
        float(model.rsquared),
        np.asarray(model.resid),
        model,
    )


def _design(logs: Array) -> tuple[int, float]:
    """Rank and condition number of an intercept beside centred logs scaled to unit length."""
    centred = logs - logs.mean(axis=0)
    size = np.linalg.norm(centred, axis=0)
    unit = (
        centred / np.where(size > 1e-9 * np.abs(logs).max(), size, 1.0) * (size > 1e-9 * np.abs(logs).max())
    )
    values = np.linalg.svd(unit, compute_uv=False)
    rank = 1 + int((values > 1e-8 * values.max(initial=1e-300)).sum())
    return rank, float(values[0] / values[-1]) if values[-1] > 0 else float("inf")


def _vif(logs: Array, i: int) -> float:
    """1 / (1 - R2) of column i explained by the others."""
    others = sm.add_constant(np.delete(logs, i, axis=1))
    return float(1 / max(1 - sm.OLS(logs[:, i], others).fit().rsquared, 1e-300))


def _ols(y: Array, logs: Array, groups: ArrayLike | None) -> Any:
    """The statsmodels fit of y (n,) on an intercept and logs (n, q)."""
    model = sm.OLS(y, sm.add_constant(logs, has_constant="add"))
    if groups is None:
        return model.fit()
    return model.fit(cov_type="cluster", cov_kwds={"groups": common.group_index(groups, len(y))})


def _collinear(columns: list[Array], names: list[str], groups: ArrayLike | None) -> NotIdentified:
    """The error that says which variables move together and which sums of exponents survive."""
    logs = np.log(np.stack(columns[1:], axis=1))
    for name, column in zip(names, logs.T, strict=True):
        if np.ptp(column) <= 1e-9 * np.abs(column).max():
            return NotIdentified(
                f"{name} never varies (always {np.exp(column[0]):.4g}): {LETTERS[name]} has no answer", {}
            )
    if len(names) < 3 or _design(logs[:, :2])[0] < 3:
        return NotIdentified(
            "N and D move in step: only one combination of a and b is identified; vary them apart", {}
        )
    slopes = (
        sm.OLS(logs[:, 2], sm.add_constant(logs[:, :2])).fit().params
    )  # log C = const + u log N + v log D
    reduced = fit_multiplicative(*columns[:3], groups=groups)
    u, v = (float(slope) for slope in slopes[1:])
    sums = [f"{letter} + {'' if abs(w - 1) < 1e-6 else f'{w:.4g} '}g" for letter, w in (("a", u), ("b", v))]
    found = dict(zip(sums, reduced.exponents.values(), strict=True))
    said = " and ".join(f"{name} = {value:.3g}" for name, value in found.items())
    message = (
        f"C follows from N and D (C = {np.exp(slopes[0]):.3g} N^{u:.3g} D^{v:.3g}), so a, b and g have no "
        f"single answer; identified are {said}. Leave C out, or use FLOPs that are not a product of N and D"
    )
    return NotIdentified(message, found, reduced)
