"""Figures of distillation, and the Pareto page: quality against what a model costs, for many methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .canvas import GREY, arms, colours, darker, label_ends, lines_by, log_axes, new_axes, plateaus, style


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
) -> Figure:
    """Quality `y` against several costs, side by side: `x` maps columns (log scale) to the labels of axes.

    `table` has a row a method: `name`, the columns of `x`, `y`, its `low` and `high`, and `by`, a colour. The
    line joins the methods that none beats (:func:`frontier`); they are filled, the others are open. Intervals
    that are much longer than the methods are apart run out of the panels.
    """
    style()
    figure, grid = plt.subplots(
        1, len(x), figsize=(6.4 * len(x) ** 0.55, 5.8), sharey=True, squeeze=False, layout="constrained"
    )
    families = list(dict.fromkeys(table[by]))
    colour_of = dict(zip(families, colours(len(families)), strict=True))
    for ax, (column, label) in zip(grid[0], x.items(), strict=True):
        best = frontier(table[column], table[y])
        line = table.iloc[best]
        ax.plot(line[column], line[y], color=GREY, linewidth=1.2, drawstyle="steps-post", zorder=1)
        for place, (_, row) in enumerate(table.iterrows()):
            colour = colour_of[row[by]]
            error = arms([row[y]], [row["low"]], [row["high"]])
            ax.errorbar(row[column], row[y], yerr=error, fmt="none", ecolor=colour, alpha=0.35, zorder=2)
            face = colour if place in best else "white"
            ax.plot(row[column], row[y], "o", color=colour, markerfacecolor=face, zorder=3)
        ax.set(xlabel=label)
        log_axes(ax, "x", _round_ticks(table[column]))
        ax.margins(x=0.12)
    room = 0.12 * (table[y].max() - table[y].min())
    grid[0, 0].set(ylabel=ylabel, ylim=(table[y].min() - room, table[y].max() + room))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)
    figure.draw_without_rendering()  # fixes the layout, so that places in pixels are known
    for ax, column in zip(grid[0], x, strict=True):
        _name_points(ax, table, column, y, [darker(colour_of[family]) for family in table[by]])
    return figure


def _round_ticks(values: pd.Series) -> list[float]:
    """Few round numbers within the values, or their ends where none lies there."""
    low, high = float(values.min()), float(values.max())
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)
    inside = [m * 10.0**p for p in powers for m in steps if low / 1.15 <= m * 10.0**p <= high * 1.15]
    return inside or [low, high]


def _name_points(ax: Axes, table: pd.DataFrame, x: str, y: str, ink: Sequence[object]) -> None:
    """Names beside points, each at the first place around its point where it hides nothing."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    per_point = figure.dpi / 72
    points = ax.transData.transform(table[[x, y]].to_numpy(float))
    dots = [(px - 5, py - 5, px + 5, py + 5) for px, py in points]
    taken: list[tuple[float, float, float, float]] = []
    around = [(side, up) for up in (0, 11, -11, 22, -22, 33, -33, 44, -44, 55, -55) for side in (1, -1)]
    for i in sorted(range(len(points)), key=lambda i: -points[i][1]):
        (px, py), name = points[i], str(table["name"].iloc[i])
        wide, high = 4.6 * len(name) * per_point, 10 * per_point

        def box(side: int, up: int, px=px, py=py, wide=wide, high=high) -> tuple[float, float, float, float]:
            left = px + 6 * per_point if side > 0 else px - 6 * per_point - wide
            middle = py + up * per_point
            return left, middle - high / 2, left + wide, middle + high / 2

        def cost(place: tuple[int, int], i=i, box=box) -> float:
            here = box(*place)
            hidden = sum(_overlap(here, other) for other in taken)
            hidden += sum(_overlap(here, dot) for j, dot in enumerate(dots) if j != i)
            frame = ax.get_window_extent()
            outside = max(0.0, here[2] - frame.x1) + max(0.0, frame.x0 - here[0])
            return hidden + 20 * outside + 0.02 * abs(place[1])

        side, up = min(around, key=cost)
        taken.append(box(side, up))
        ax.annotate(
            name, (table[x].iloc[i], table[y].iloc[i]), (6 * side, up), textcoords="offset points",
            ha="left" if side > 0 else "right", va="center", fontsize=8.5, color=ink[i],
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5} if abs(up) > 11 else None,
        )  # fmt: skip


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
