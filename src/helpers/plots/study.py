"""Figures of a study in the making: rates to tune, slices of equal compute, live runs on a shipped curve."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from .canvas import BLACK, GREY, RED, SKY, count, darker, label_ends, log_axes, new_axes, shades

LOSS = "MLM loss (nats per masked token)"


def tuning(table: pd.DataFrame, *, title: str, x: str = "lr_muon", ax: Axes | None = None) -> Axes:
    """Loss (nats) against the learning rate, one line a size, its lowest point ringed.

    `table` has the columns `size`, `x` and `mlm_loss`; sizes keep the order in which they stand.
    """
    ax = new_axes(ax)
    names, ends = list(dict.fromkeys(table["size"])), []
    for name, colour in zip(names, shades(len(names)), strict=True):
        part = table[table["size"] == name].sort_values(x)
        rate, loss = part[x].to_numpy(float), part["mlm_loss"].to_numpy(float)
        ax.plot(rate, loss, "o-", color=colour)
        best = int(loss.argmin())
        ax.plot(rate[best], loss[best], "o", color=RED, markersize=12, markerfacecolor="none", zorder=4)
        ends.append((str(name), float(rate[-1]), float(loss[-1]), colour))
    ax.set(title=title, xlabel="learning rate of the matrices (others in proportion)", ylabel=LOSS)
    log_axes(ax, "x", sorted(set(table[x])))
    label_ends(ax, ends)
    return ax


def isoflop(
    C: ArrayLike,
    N: ArrayLike,
    L: ArrayLike,
    *,
    title: str,
    xlabel: str = "parameters (non-embedding)",
    ax: Axes | None = None,
) -> Axes:
    """Loss (nats) against size at equal compute, arrays (n,), one line a budget, its lowest point ringed.

    Several points of one size and budget are averaged; a budget with one size has no line and is left out.
    """
    ax = new_axes(ax)
    points = pd.DataFrame({"C": np.asarray(C, float), "N": np.asarray(N, float), "L": np.asarray(L, float)})
    means = points.groupby(["C", "N"])["L"].mean()
    budgets = [at for at in means.index.unique("C") if len(means[at]) > 1]
    ends = []
    for at, colour in zip(budgets, shades(len(budgets)), strict=True):
        line = means[at]
        ax.plot(line.index, line, "o-", color=colour)
        ax.plot(line.idxmin(), line.min(), "o", color=RED, markersize=12, markerfacecolor="none", zorder=4)
        ends.append((f"{at:.1e} FLOPs", float(line.index[-1]), float(line.iloc[-1]), colour))
    ax.set(title=title, xlabel=xlabel, ylabel=LOSS)
    log_axes(ax, "xy", sorted(set(means.index.get_level_values("N"))))
    label_ends(ax, ends)
    return ax


def live(
    shipped: pd.DataFrame, now: pd.DataFrame, noise: float, *, title: str, ax: Axes | None = None
) -> Axes:
    """Loss (nats) against tokens: shipped runs of one size with a band of `noise` (nats), and live ones.

    Both tables have the columns `tokens` and `mlm_loss`.
    """
    ax = new_axes(ax)
    curve = shipped.groupby("tokens")["mlm_loss"].mean()
    x, y = curve.index.to_numpy(float), curve.to_numpy(float)
    ax.fill_between(x, y - noise, y + noise, color=SKY, alpha=0.4, linewidth=0)
    ax.plot(x, y, "o-", color=BLACK)
    ax.plot(now["tokens"], now["mlm_loss"], "D", color=RED, zorder=4)
    last = now.sort_values("tokens").iloc[-1]
    ax.set(title=title, xlabel="tokens read", ylabel=LOSS)
    log_axes(ax, "x", sorted(x))  # a live run may stand too near to a shipped one for a name of its own
    label_ends(
        ax,
        [
            ("shipped", float(x[-1]), float(y[-1]), BLACK),
            ("live", float(last["tokens"]), float(last["mlm_loss"]), RED),
        ],
    )
    return ax


def repeats(runs: pd.DataFrame, fresh: pd.DataFrame, *, title: str, ax: Axes | None = None) -> Axes:
    """Loss (nats) against tokens read, a line for each amount of different text and one for new text alone.

    `runs` has the columns `tokens`, `unique_tokens` and `mlm_loss`; `fresh` may lack `unique_tokens`.
    """
    ax = new_axes(ax)
    # Amounts that differ by less than a batch have one name, and one line.
    amounts, ends = runs.sort_values("unique_tokens")["unique_tokens"].map(count), []
    curves = [(name, runs.loc[part.index]) for name, part in amounts.groupby(amounts, sort=False)]
    curves.append(("all new", fresh))
    for (name, part), colour in zip(curves, [*shades(len(curves) - 1), BLACK], strict=True):
        line = part.groupby("tokens")["mlm_loss"].mean()
        ax.plot(line.index, line, "o-" if name != "all new" else "s--", color=colour)
        ends.append((name, float(line.index[-1]), float(line.iloc[-1]), colour))
    ax.set(title=title, xlabel="tokens read", ylabel=LOSS)
    log_axes(ax, "x", sorted(set(runs["tokens"])))
    label_ends(ax, ends)
    return ax


def schedules(
    steps: NDArray[np.int_], rates: dict[str, NDArray[np.float64]], *, title: str, ax: Axes | None = None
) -> Axes:
    """Learning-rate factors (between 0 and 1) against steps, one line a schedule; the first is the trunk."""
    ax = new_axes(ax)
    colours = [GREY, *shades(len(rates) - 1)]
    for (name, rate), colour in zip(rates.items(), colours, strict=True):
        shown = np.flatnonzero(np.isfinite(rate))
        ax.plot(steps[shown], rate[shown], color=colour, linewidth=3 if name == "trunk" else 1.8)
        end = (float(steps[shown[-1]]), float(rate[shown[-1]]))
        ax.annotate(name, end, (5, 5), textcoords="offset points", color=darker(colour), fontsize=9.5)
    ax.set(title=title, xlabel="optimizer steps", ylabel="factor on the learning rates", ylim=(-0.02, 1.12))
    return ax
