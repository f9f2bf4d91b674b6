"""Figures of distillation, and the Pareto page: quality against what a model costs, for many methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .canvas import (
    GREY,
    arms,
    colours,
    label_ends,
    label_points,
    lines_by,
    log_axes,
    new_axes,
    plateaus,
    style,
)


def temperature_curve(
    table: pd.DataFrame,
    *,
    y: str,
    title: str,
    ylabel: str,
    by: str = "arm",
    levels: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """`y` against the `temperature` (log scale), one line for each value of `by`.

    `table` may have `low` and `high`, drawn as intervals. `levels` are values to compare with, by name.
    """
    ax = new_axes(ax)
    ends = lines_by(ax, table, x="temperature", y=y, by=by, shift=1.04)
    plateaus(ax, levels)
    ax.set(title=title, xlabel="temperature", ylabel=ylabel)
    log_axes(ax, "x", sorted(set(table["temperature"])))
    ax.margins(x=0.18)  # the names of levels stand at the left
    label_ends(ax, ends)
    return ax


def frontier(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Places of the models that no other beats: none costs as little or less and is better, or costs less
    and is as good. By rising cost. Raises ``ValueError`` for values that are not finite, or of two lengths.
    """
    at, value = np.asarray(cost, float), np.asarray(quality, float)
    if at.shape != value.shape or at.ndim != 1 or not np.isfinite(np.concatenate([at, value])).all():
        raise ValueError(f"need as many finite costs as qualities, got {at.shape} and {value.shape}")
    kept: list[int] = []
    for place in sorted(range(len(at)), key=lambda i: (at[i], -value[i])):
        if not kept or value[place] > value[kept[-1]]:
            kept.append(place)
    return kept


def pareto(
    table: pd.DataFrame,
    *,
    x: Mapping[str, str],
    y: str,
    title: str,
    ylabel: str,
    by: str = "family",
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Quality `y` against several costs, one above the other: `x` maps columns (log scale) to axis labels.

    `table` has a row a method: `name`, the columns of `x`, `y`, its `low` and `high`, and `by`, a colour. The
    line joins the methods that none beats (:func:`frontier`); they are filled and have their intervals, the
    others are open. A method below `ylim` stands at the bottom as a triangle, with its value.
    """
    style()
    figure, grid = plt.subplots(
        len(x), 1, figsize=(6.8, 4.6 * len(x)), sharey=True, squeeze=False, layout="constrained"
    )
    room = 0.12 * (table[y].max() - table[y].min())
    bottom, top = ylim or (table[y].min() - room, table[y].max() + room)
    under = table[y] < bottom
    height = table[y].where(~under, bottom + 0.02 * (top - bottom))
    names = [
        f"{row['name']}: {row[y]:.0f}" if out else row["name"]
        for (_, row), out in zip(table.iterrows(), under, strict=True)
    ]
    families = list(dict.fromkeys(table[by]))
    colour_of = dict(zip(families, colours(len(families)), strict=True))
    for ax, (column, label) in zip(grid[:, 0], x.items(), strict=True):
        best = frontier(table[column], table[y])
        line = table.iloc[best]
        ax.plot(line[column], line[y], color=GREY, linewidth=1.2, drawstyle="steps-post", zorder=1)
        for place, (_, row) in enumerate(table.iterrows()):
            colour = colour_of[row[by]]
            if place in best:
                error = arms([row[y]], [row["low"]], [row["high"]])
                ax.errorbar(row[column], row[y], yerr=error, fmt="none", ecolor=colour, alpha=0.5, zorder=2)
            face, marker = colour if place in best else "white", "v" if under.iloc[place] else "o"
            ax.plot(row[column], height.iloc[place], marker, color=colour, markerfacecolor=face, zorder=3)
        ax.set(xlabel=label, ylabel=ylabel, ylim=(bottom, top))
        log_axes(ax, "x", _round_ticks(table[column]))
        ax.margins(x=0.12)
    handles = [Line2D([], [], color=colour, marker="o", linestyle="none") for colour in colour_of.values()]
    grid[0, 0].set_title(title)
    figure.legend(
        handles, families, loc="outside lower left", ncols=len(families), handletextpad=0.1, columnspacing=1.2
    )
    for ax, column in zip(grid[:, 0], x, strict=True):
        points = list(zip(names, table[column], height, strict=True))
        label_points(ax, points, [colour_of[family] for family in table[by]])
    return figure


def _round_ticks(values: pd.Series) -> list[float]:
    """Few round numbers within the values, or their ends where none lies there."""
    low, high = float(values.min()), float(values.max())
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)
    inside = [m * 10.0**p for p in powers for m in steps if low / 1.15 <= m * 10.0**p <= high * 1.15]
    return inside or [low, high]
