"""Figures of compression: quality against what a model costs, and against the share of weights left."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from .canvas import BLACK, arms, colours, label_ends, label_points, lines_by, log_axes, new_axes, plateaus


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

    `table` has the columns `name`, `x`, `y`, and may have `low` and `high`, drawn as intervals, and `kind`, a
    colour with a name.
    """
    ax = new_axes(ax)
    at, value = table[x].astype(float), table[y].astype(float)
    if {"low", "high"} <= set(table):
        error = arms(value, table["low"], table["high"])
        ax.errorbar(at, value, yerr=error, fmt="none", ecolor=BLACK, capsize=3, linewidth=1)
    kinds = table["kind"] if "kind" in table else pd.Series("", index=table.index)
    colour_of = dict(zip(dict.fromkeys(kinds), colours(kinds.nunique()), strict=True))
    for kind, colour in colour_of.items():
        ax.plot(at[kinds == kind], value[kinds == kind], "o", color=colour, zorder=3, label=kind)
    if len(colour_of) > 1:
        ax.legend(loc="best")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    log_axes(ax, "x", _apart(at))
    ax.margins(x=0.2, y=0.15)
    points = list(zip(map(str, table["name"]), at, value, strict=True))
    label_points(ax, points, [colour_of[kind] for kind in kinds])
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
        if not kept or value > 1.7 * kept[-1]:
            kept.append(float(value))
    return kept
