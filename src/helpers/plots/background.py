"""Figures of chapter 1: attention weights, images, tasks against their chance level, and measured pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import ArrayLike

from .canvas import BLACK, BLUE, GREY, arms, count, label_ends, lines_by, new_axes, plateaus


def attention_map(weights: ArrayLike, words: Sequence[str], *, title: str, ax: Axes | None = None) -> Axes:
    """The attention weights (T, T) of one head as a grid: a row is the word that looks, dark is much."""
    ax, grid = new_axes(ax), np.asarray(weights, float)
    if grid.shape != (len(words), len(words)):
        raise ValueError(f"{len(words)} words need weights ({len(words)}, {len(words)}), got {grid.shape}")
    seaborn.heatmap(
        grid, cmap="Blues", vmin=0, vmax=1, square=True, ax=ax,
        xticklabels=list(words), yticklabels=list(words), cbar_kws={"label": "weight", "shrink": 0.8},
    )  # fmt: skip
    ax.tick_params("x", rotation=60)
    ax.tick_params("y", rotation=0)
    ax.set(title=title, xlabel="word that is looked at", ylabel="word that looks")
    return ax


def image_grid(
    pixels: ArrayLike, *, rows: Sequence[str], columns: Sequence[str], title: str, ax: Axes | None = None
) -> Axes:
    """Grey images (R, C, S, S) in R rows and C columns, dark on white, with names of rows and columns."""
    ax, stack = new_axes(ax), np.asarray(pixels, float)
    if stack.shape[:2] != (len(rows), len(columns)):
        raise ValueError(f"{len(rows)} rows and {len(columns)} columns of images, got {stack.shape[:2]}")
    side = stack.shape[-1]
    framed = np.pad(stack, ((0, 0), (0, 0), (1, 1), (1, 1)))  # a margin, so that neighbours stay apart
    ax.imshow(framed.transpose(0, 2, 1, 3).reshape(len(rows) * (side + 2), -1), cmap="Greys")
    middle = np.arange(max(len(rows), len(columns))) * (side + 2) + (side + 1) / 2
    ax.set_xticks(middle[: len(columns)], columns)
    ax.set_yticks(middle[: len(rows)], rows)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return ax


def against_baseline(table: pd.DataFrame, *, title: str, xlabel: str, ax: Axes | None = None) -> Axes:
    """One line a task: what is right without having learned anything (bar), and the model (dot, interval).

    `table` has the columns `task`, `baseline`, `measured`, `low` and `high`, all shares of right answers.
    """
    ax, at = new_axes(ax), np.arange(len(table))
    baseline, value = table["baseline"].to_numpy(float), table["measured"].to_numpy(float)
    ax.hlines(at, baseline, value, color=GREY, linewidth=1.2)
    ax.plot(baseline, at, "|", color=BLACK, markersize=16, markeredgewidth=2.2, label="baseline")
    error = arms(value, table["low"], table["high"])
    ax.errorbar(value, at, xerr=error, fmt="o", color=BLUE, capsize=3, label="trained model")
    ax.set_yticks(at, table["task"])
    ax.invert_yaxis()
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    ax.set(title=title, xlabel=xlabel)
    ax.legend(loc="upper right")
    return ax


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str,
    title: str,
    xlabel: str,
    ylabel: str,
    log: str = "x",
    levels: Mapping[str, float] | None = None,
    ticks: Sequence[float] = (),
    ax: Axes | None = None,
) -> Axes:
    """`y` against `x`, one line for each value of `by` with its name at the end; `log` names the log axes.

    `levels` are values to compare with, by name, drawn as dashed lines; `ticks` are places to mark on x.
    """
    ax = new_axes(ax)
    ends = lines_by(ax, table, x=x, y=y, by=by)
    plateaus(ax, levels)
    for which, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        if which in log:
            ax.set(**{f"{which}scale": "log"})
            axis.set_major_formatter(FuncFormatter(lambda v, _: count(float(f"{v:.2g}"))))
            axis.set_minor_formatter(NullFormatter())
    if len(ticks):
        ax.set_xticks(ticks)
        ax.minorticks_off()
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    label_ends(ax, ends)
    return ax
