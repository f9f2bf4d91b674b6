"""The best size for a budget, N* = k C^a, without a law for the loss (Hoffmann et al. 2022, section 3).

Approach 1 takes the lower envelope of training curves, approach 2 the lowest point of a parabola through the
losses of one budget. Both answer only what they are asked: the size, not the loss of a run off the frontier.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import common
from .common import Array, NotIdentified, NotIdentifiedWarning
from .curves import read

Index = NDArray[np.intp]


@dataclass(frozen=True)
class FrontierFit:
    """N* = k C^exponent_N through the best sizes `N_opt` (m,) of budgets `C` (m,), with losses `L_opt` (m,).

    `dropped` says which budgets gave no best size, and why; `draws` (n_boot, 2) are bootstrap rows (log k,
    exponent_N), `size_draws` (n_boot, m) the best sizes of each resample.
    """

    method: str
    exponent_N: float
    k: float
    C: Array
    N_opt: Array
    L_opt: Array
    dropped: tuple[str, ...]
    draws: Array | None = field(repr=False)
    size_draws: Array | None = field(repr=False)

    @property
    def exponent_D(self) -> float:
        """b in D*(C) proportional to C^b, equal to 1 - exponent_N because C = 6 N D."""
        return 1 - self.exponent_N

    def predict(self, C: ArrayLike) -> Array:
        """The best number of parameters at C FLOPs, the same shape."""
        return np.asarray(self.k * np.asarray(C, float) ** self.exponent_N)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Central bootstrap interval of both exponents and of k."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        columns = {"exponent_N": draws[:, 1], "exponent_D": 1 - draws[:, 1], "k": np.exp(draws[:, 0])}
        return {name: common.percentile_interval(column, level) for name, column in columns.items()}

    def predict_interval(self, C: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
        """Bootstrap interval (low, high) of the best size at C."""
        draws = common.need_draws(self.draws)
        common.check_level(level)
        C = np.asarray(C, float)
        log_k, slope = draws.T.reshape(2, -1, *[1] * C.ndim)
        return common.prediction_interval(np.exp(log_k + slope * np.log(C)), None, 2, level, 0)

    def summary(self, level: float = 0.95) -> str:
        """Exponents and coefficient as a text table, and which budgets were of no use."""
        spans = {} if self.draws is None else self.interval(level)
        rows = [(name, getattr(self, name), spans.get(name)) for name in ("exponent_N", "exponent_D", "k")]
        notes = [f"{self.C.size} budgets from {self.C.min():.3g} to {self.C.max():.3g} FLOPs"]
        notes += [f"left out: {reason}" for reason in self.dropped]
        return common.table(f"N* = k C^exponent_N, {self.method}", rows, notes)

    def __str__(self) -> str:
        return self.summary()


def fit_isoflop(
    C: ArrayLike,
    N: ArrayLike,
    L: ArrayLike,
    *,
    n_boot: int = 0,
    groups: ArrayLike | None = None,
    seed: int = 0,
    rtol: float = 0.05,
) -> FrontierFit:
    """Approach 2: a parabola of log L in log N for each budget, and the line through their lowest points.

    Arrays are (n,); budgets within a factor 1 + `rtol` count as one. The bootstrap redraws the residuals of
    the parabolas; with `groups` (runs that share their luck across budgets) it flips their signs group by
    group. A budget is left out, with NotIdentifiedWarning, if it has fewer than 3 sizes, if its parabola
    opens downwards, or if its lowest point lies outside its sizes. ValueError if fewer than 2 budgets are
    left, or for values that are not finite and positive. The parabola is an approximation: where alpha and
    beta of the parametric law differ, wide slices bias the coefficient k.
    """
    compute, size, loss = common.positive(C=C, N=N, L=L)
    common.check_choice(rtol=rtol)
    common.check_count(0, n_boot=n_boot)
    group = common.group_index(groups, size.size)
    budget = _clusters(np.log(compute), np.log1p(rtol))
    kept: list[tuple[float, Array, Array, Index]] = []  # log C, log N, inverse of the design, points
    best: list[tuple[float, float]] = []
    dropped: list[str] = []
    fitted, residual, leverage = np.zeros((3, size.size))
    for number in range(int(budget.max()) + 1):
        index = np.flatnonzero(budget == number)
        name = f"C = {np.exp(np.log(compute[index]).mean()):.3g}"
        x = np.log(size[index])
        if len(np.unique(x)) < 3:
            dropped.append(f"{name} has {len(np.unique(x))} sizes, a parabola needs 3")
            continue
        design = np.vander(x - x.mean(), 3)
        inverse = np.linalg.pinv(design)
        curve = inverse @ np.log(loss[index])
        where = _lowest(curve, x)
        if not np.isfinite(where):
            dropped.append(f"{name} has no lowest point inside its sizes")
            continue
        fitted[index] = design @ curve
        leverage[index] = np.minimum((design * inverse.T).sum(axis=1), 1)
        residual[index] = np.log(loss[index]) - fitted[index]
        best.append((where, float(np.polyval(curve, where - x.mean()))))
        kept.append((float(np.log(compute[index]).mean()), x, inverse, index))
    _say_dropped(dropped)
    if len(kept) < 2:
        raise ValueError(
            f"an exponent needs 2 budgets with a lowest point inside, not {len(kept)}: {dropped}"
        )
    log_c = np.array([part[0] for part in kept])
    log_n = np.array([where for where, _ in best])
    slope, height = np.polyfit(log_c, log_n, 1)
    draws = sizes = None
    if n_boot:
        used = np.concatenate([part[3] for part in kept])
        flip = None if groups is None else group
        noise = _redraw(residual, leverage, used, 3 * len(kept), n_boot, flip, seed)
        resampled = np.stack(
            [_lowest_clipped((fitted[i] + noise[:, i]) @ inverse.T, x) for _, x, inverse, i in kept], axis=1
        )
        draws, sizes = _lines(log_c, resampled), np.exp(resampled)
    found = np.exp(np.array([height_ for _, height_ in best]))
    return FrontierFit(
        "IsoFLOP parabolas", float(slope), float(np.exp(height)), np.exp(log_c), np.exp(log_n), found,
        tuple(dropped), draws, sizes,
    )  # fmt: skip


def fit_envelope(
    C: ArrayLike,
    N: ArrayLike,
    L: ArrayLike,
    *,
    runs: ArrayLike | None = None,
    n_budgets: int = 100,
    n_boot: int = 0,
    seed: int = 0,
) -> FrontierFit:
    """Approach 1: at each of `n_budgets` budgets the size of lowest loss, and the line through those sizes.

    Points (n,) with one label in `runs` (by default: of one size) are a training curve, read between its
    points by straight lines on log-log axes; curves of one size are averaged, since the luckiest of several
    seeds is not the best size. Budgets won by the smallest or largest size are left out: the best may lie
    beyond. The bootstrap redraws runs. Raises NotIdentified when fewer than two sizes ever win, ValueError
    for bad values.
    """
    compute, size, loss = common.positive(C=C, N=N, L=L)
    common.check_count(0, n_boot=n_boot)
    common.check_count(2, n_budgets=n_budgets)
    run = common.group_index(size if runs is None else runs, size.size)
    grid = np.geomspace(compute.min(), compute.max(), n_budgets)
    curves = np.stack([read(compute[run == r], loss[run == r], grid) for r in range(int(run.max()) + 1)])
    of_run = np.array([size[run == r][0] for r in range(len(curves))])
    sizes, index = np.unique(of_run, return_inverse=True)
    winner, lowest, inside = _winners(curves, index, len(sizes), np.ones((1, len(curves))))
    usable = inside[0]
    if len(np.unique(winner[0, usable])) < 2:
        raise NotIdentified(
            f"only {len(np.unique(winner[0, usable]))} of {len(sizes)} sizes wins a budget inside the "
            "ladder, so the exponent has no answer: train more sizes, or over a wider range of compute",
            {},
        )
    log_c, log_n = np.log(grid), np.log(sizes)
    slope, height = np.polyfit(log_c[usable], log_n[winner[0, usable]], 1)
    draws = None
    if n_boot:
        weight = common.bootstrap_weights(
            np.arange(len(curves)), n_boot, seed, [(of_run, min(3, len(sizes)))]
        )
        redrawn, _, inside = _winners(curves, index, len(sizes), weight)
        draws = _masked_lines(log_c, log_n[redrawn], inside)
        if len(draws) < n_boot:
            message = (
                f"{n_boot - len(draws)} of {n_boot} resamples had no exponent; the interval leaves them out"
            )
            warnings.warn(message, NotIdentifiedWarning, stacklevel=2)
    edge = int((~usable).sum())
    dropped = (f"{edge} of {n_budgets} budgets, won by the smallest or largest size",) if edge else ()
    return FrontierFit(
        "envelope of training curves", float(slope), float(np.exp(height)), grid[usable],
        sizes[winner[0, usable]], lowest[0, usable], dropped, draws, None,
    )  # fmt: skip


def _clusters(log_c: Array, gap: float) -> Index:
    """Number of the budget that each point belongs to, from low to high."""
    order = np.argsort(log_c)
    number: Index = np.empty(log_c.size, dtype=np.intp)
    number[order] = np.concatenate([[0], np.cumsum(np.diff(log_c[order]) > gap)])
    return number


def _lowest(curve: Array, x: Array) -> float:
    """log N at the vertex of the parabola (3,); NaN if it opens downwards or the vertex lies outside x."""
    bend, slope, _ = curve
    if bend <= 0:
        return float("nan")
    where = float(x.mean() - slope / (2 * bend))
    return where if x.min() <= where <= x.max() else float("nan")


def _lowest_clipped(curves: Array, x: Array) -> Array:
    """log N of the lowest point inside the sizes x, for parabolas (R, 3)."""
    bend, slope, _ = curves.T
    vertex = x.mean() - slope / (2 * np.where(bend > 0, bend, 1.0))
    ends = np.where(slope > 0, x.min(), x.max())  # opens downwards: the lower end
    return np.clip(np.where(bend > 0, vertex, ends), x.min(), x.max())


def _redraw(
    residual: Array, leverage: Array, used: Index, fitted: int, n_boot: int, flip: Index | None, seed: int
) -> Array:
    """Noise (n_boot, n): residuals of the `used` points redrawn, or their signs flipped group by group.

    A fit pulls itself towards its points and makes residuals small; both ways widen them for that.
    """
    rng = np.random.default_rng(seed)
    if used.size <= fitted:
        raise ValueError(f"{used.size} points leave no residuals to redraw after {fitted} coefficients")
    if flip is None:
        spread = residual * np.sqrt(used.size / (used.size - fitted))
        return rng.choice(spread[used], size=(n_boot, residual.size))
    signs = rng.choice([-1.0, 1.0], size=(n_boot, int(flip.max()) + 1))
    return np.asarray(residual / np.sqrt(np.maximum(1 - leverage, 0.05)) * signs[:, flip])


def _lines(x: Array, y: Array) -> Array:
    """Least-squares lines through (x, y) for rows of y (R, m): (height at 0, slope), (R, 2)."""
    return _masked_lines(x, y, np.ones_like(y, dtype=bool))


def _masked_lines(x: Array, y: Array, mask: NDArray[np.bool_]) -> Array:
    """The same with points left out by `mask` (R, m); rows without two different y among them are dropped."""
    w = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    mean_x, mean_y = (w * x).sum(axis=1, keepdims=True), (w * y).sum(axis=1, keepdims=True)
    square = (w * (x - mean_x) ** 2).sum(axis=1)
    slope = (w * (x - mean_x) * (y - mean_y)).sum(axis=1) / np.maximum(square, 1e-300)
    usable = (square > 0) & ((w * (y - mean_y) ** 2).sum(axis=1) > 0)
    return np.stack([mean_y[:, 0] - slope * mean_x[:, 0], slope], axis=1)[usable]


def _winners(
    curves: Array, index: Index, n_sizes: int, weight: Array
) -> tuple[Index, Array, NDArray[np.bool_]]:
    """Size number of lowest loss (R, m), that loss, and whether sizes on both sides of it reach the budget.

    The curves (runs, m) of each size are averaged first. A size that wins because its smaller or larger
    neighbours were never trained that far says nothing about the best one.
    """
    member = (index[None] == np.arange(n_sizes)[:, None]).astype(float)  # (sizes, runs)
    there = np.isfinite(curves)
    filled = np.where(there, np.log(np.where(there, curves, 1.0)), 0.0)
    mass = np.einsum("sr,br,rm->bsm", member, weight, there.astype(float))
    total = np.einsum("sr,br,rm->bsm", member, weight, filled)
    mean = np.where(mass > 0, total / np.maximum(mass, 1e-300), np.inf)
    winner, reached = mean.argmin(axis=1), np.isfinite(mean)
    below = np.cumsum(reached, axis=1) > 1  # counts the size itself
    above = np.cumsum(reached[:, ::-1], axis=1)[:, ::-1] > 1
    inside = np.take_along_axis(below & above, winner[:, None], axis=1)[:, 0]
    return winner, np.exp(mean.min(axis=1)), inside


def _say_dropped(dropped: list[str]) -> None:
    """Warn once about all the budgets that gave no best size."""
    if dropped:
        warnings.warn(f"budgets left out: {'; '.join(dropped)}", NotIdentifiedWarning, stacklevel=3)
