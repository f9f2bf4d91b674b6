"""Figures of compression: quality against what a model costs, and against the share of weights left."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from .canvas import BLACK, arms, colours, darker, label_ends, log_axes, new_axes, plateau


def cost_and_quality(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """One point a model: quality `y` against cost `x` (log scale), with the model's name beside it.

    `table` has the columns `name`, `x`, `y`, and may have `low` and `high`, drawn as intervals.
    """
    ax = new_axes(ax)
    at, value = table[x].to_numpy(float), table[y].to_numpy(float)
    if {"low", "high"} <= set(table):
        error = arms(value, table["low"], table["high"])
        ax.errorbar(at, value, yerr=error, fmt="none", ecolor=BLACK, capsize=3, linewidth=1)
    for i, colour in enumerate(colours(len(table))):
        ax.plot(at[i], value[i], "o", color=colour, zorder=3)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ticks = [float(min(at))]
    for place in sorted(set(at)):
        if place > 1.4 * ticks[-1]:  # closer labels would overlap
            ticks.append(place)
    log_axes(ax, "x", ticks)
    ax.margins(x=0.2, y=0.15)
    label_ends(ax, list(zip(map(str, table["name"]), at, value, colours(len(table)), strict=True)))
    return ax


def against_density(
    table: pd.DataFrame,
    *,
    y: str,
    title: str,
    ylabel: str,
    by: str = "method",
    levels: dict[str, float] | None = None,
    log_y: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """`y` against the share of weights left (`density`, log scale), one line for each value of `by`.

    `table` may have `low` and `high`. `levels` are values to compare with, by name, drawn as dashed lines.
    """
    ax = new_axes(ax)
    names = list(dict.fromkeys(table[by]))
    for name, colour in zip(names, colours(len(names)), strict=True):
        part = table[table[by] == name].sort_values("density")
        ax.plot(part["density"], part[y], "o-", color=colour)
        if {"low", "high"} <= set(part):
            error = arms(part[y], part["low"], part["high"])
            ax.errorbar(part["density"], part[y], yerr=error, fmt="none", ecolor=colour, capsize=3)
        first = part.iloc[0]  # lines fan out where few weights are left
        ax.annotate(
            str(name), (first["density"], first[y]), (-5, 0), textcoords="offset points", va="center",
            ha="right", color=darker(colour), fontsize=9.5, annotation_clip=False,
        )  # fmt: skip
    for name, level in (levels or {}).items():
        plateau(ax, level, name)
    ax.set(title=title, xlabel="share of weights left", ylabel=ylabel)
    log_axes(ax, "y" if log_y else "")
    ax.set_xscale("log")
    ticks = sorted(set(table["density"].round(3)))
    ax.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(left=min(ticks) / 3)
    return ax
