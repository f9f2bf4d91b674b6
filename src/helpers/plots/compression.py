"""Figures of compression: quality against what a model costs, and against the share of weights left."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from .canvas import BLACK, arms, colours, label_ends, lines_by, log_axes, new_axes, plateaus


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
    at, value = table[x].astype(float), table[y].astype(float)
    if {"low", "high"} <= set(table):
        error = arms(value, table["low"], table["high"])
        ax.errorbar(at, value, yerr=error, fmt="none", ecolor=BLACK, capsize=3, linewidth=1)
    for i, colour in enumerate(colours(len(table))):
        ax.plot(at.iloc[i], value.iloc[i], "o", color=colour, zorder=3)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    log_axes(ax, "x", _apart(at))
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
    ends = lines_by(ax, table, x="density", y=y, by=by)
    plateaus(ax, levels)
    ax.set(title=title, xlabel="share of weights left", ylabel=ylabel)
    ax.set_xscale("log")
    if log_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ticks = _apart(table["density"].round(3))
    ax.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    ax.minorticks_off()
    label_ends(ax, ends)
    return ax


def _apart(values: pd.Series) -> list[float]:
    """The values, without those so near to a smaller one (on a log scale) that their labels would overlap."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value > 1.4 * kept[-1]:
            kept.append(float(value))
    return kept
