"""What every law shares: checked input, the two ways of saying "not identified", bootstrap draws, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class NotIdentifiedWarning(UserWarning):
    """The fit returned, but the data do not pin down at least one of its parameters."""


class NotIdentified(ValueError):
    """The question has no single answer: different parameters make exactly the same predictions.

    `identified` maps each combination of parameters that the data do fix to its estimate, and `reduced` is
    the fit that remains when the redundant variable is left out (or None).
    """

    def __init__(self, message: str, identified: Mapping[str, float], reduced: Any = None) -> None:
        super().__init__(message)
        self.identified = dict(identified)
        self.reduced = reduced


def positive(**arrays: ArrayLike) -> list[Array]:
    """The named arrays as float vectors of one length; ValueError names the first value not positive."""
    vectors: dict[str, Array] = {}
    for name, values in arrays.items():
        vector = np.atleast_1d(np.asarray(values, dtype=np.float64))
        if vector.ndim != 1:
            raise ValueError(f"{name} must have one dimension, not shape {vector.shape}")
        if not vector.size:
            raise ValueError(f"{name} is empty")
        bad = np.flatnonzero(~(np.isfinite(vector) & (vector > 0)))
        if bad.size:
            raise ValueError(f"{name} must be finite and positive, but {name}[{bad[0]}] is {vector[bad[0]]}")
        vectors[name] = vector
    lengths = {name: vector.size for name, vector in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths differ: {lengths}")
    return list(vectors.values())


def enough(points: int, parameters: int, what: str) -> None:
    """ValueError if there are fewer points than parameters."""
    if points < parameters:
        raise ValueError(
            f"{what} has {parameters} parameters and needs at least as many points, not {points}"
        )


def check_level(level: float) -> float:
    """`level` itself if it is a probability strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    return level


def check_count(least: int = 1, /, **numbers: int) -> None:
    """ValueError if a number of things is no integer, or is below `least`."""
    for name, value in numbers.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, not {value}")


def check_choice(**numbers: float) -> None:
    """ValueError if a tuning number is negative or not a number; infinity is allowed."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")


def group_index(groups: ArrayLike | None, points: int) -> NDArray[np.intp]:
    """Group number of each point, (n,); without `groups` every point is its own group."""
    if groups is None:
        return np.arange(points)
    labels = np.asarray(groups)
    if labels.shape != (points,):
        raise ValueError(f"groups has shape {labels.shape}, but there are {points} points")
    return np.unique(labels, return_inverse=True)[1]


def bootstrap_weights(
    group: NDArray[np.intp], n_boot: int, seed: int, spread: Sequence[tuple[Array, int]] = ()
) -> Array:
    """How often each point stands in each resample, (n_boot, n); whole groups are drawn with replacement.

    `spread` lists (values, k): a resample must hold at least k different values, or it is drawn again. A law
    cannot be fitted to a resample that lost its sizes, so intervals are conditional on resamples that can
    identify it.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(group.max()) + 1
    if n_groups < 4:
        raise ValueError(f"{n_groups} groups are too few to bootstrap: have at least 4 independent runs")
    kept: list[Array] = []
    missing, tries = n_boot, 0
    while missing and tries < 200:
        weight = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=2 * missing)[:, group]
        usable = np.ones(len(weight), dtype=bool)
        for values, at_least in spread:
            usable &= _distinct(weight, values) >= at_least
        kept.append(weight[usable][:missing].astype(np.float64))
        missing -= len(kept[-1])
        tries += 1
    if missing:
        raise ValueError(
            f"{n_groups} groups cannot be resampled without losing the sizes or budgets the law needs"
        )
    return np.concatenate(kept)


def _distinct(weight: NDArray[Any], values: Array) -> NDArray[np.intp]:
    """Number of different `values` present in each row of `weight`."""
    index = np.unique(values, return_inverse=True)[1]
    present = np.stack([(weight[:, index == i] > 0).any(axis=1) for i in range(index.max() + 1)])
    return np.asarray(present.sum(axis=0), dtype=np.intp)


def percentile_interval(draws: Array, level: float) -> tuple[float, float]:
    """Central `level` interval of bootstrap draws, (n_boot,)."""
    if (draws == draws[0]).all():  # a constant that was held, maybe at infinity
        return float(draws[0]), float(draws[0])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def prediction_interval(
    values: Array, residuals: Array | None, fitted: int, level: float, seed: int
) -> tuple[Array, Array]:
    """Interval (low, high) of predictions (n_boot, ...), scattered by log `residuals` of a point if given.

    Residuals are widened for the `fitted` parameters that made them small.
    """
    if residuals is not None:
        spread = residuals * np.sqrt(residuals.size / max(residuals.size - fitted, 1))
        values = values * np.exp(np.random.default_rng(seed).choice(spread, size=values.shape))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def need_draws(draws: Array | None) -> Array:
    """The bootstrap draws; ValueError says how to get them."""
    if draws is None or len(draws) == 0:
        raise ValueError("no bootstrap: pass n_boot (for example n_boot=400) to the fit to have intervals")
    return draws


def table(
    title: str, rows: Iterable[tuple[str, float, tuple[float, float] | None]], notes: Sequence[str] = ()
) -> str:
    """A plain text table: name, estimate, interval, all to 3 significant digits."""
    lines = [title]
    for name, value, interval in rows:
        span = "" if interval is None else f"   [{interval[0]:.3g}, {interval[1]:.3g}]"
        lines.append(f"  {name:<12} {value:>10.3g}{span}")
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])
