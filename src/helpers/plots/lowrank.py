"""Figures of low rank: singular values by number, and anything against the rank of a product."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .canvas import GREY, colours, label_ends, lines_by, new_axes, plateaus


def spectra(
    values: Mapping[str, ArrayLike],
    *,
    title: str,
    expected: ArrayLike | None = None,
    edge: float | None = None,
    ylabel: str = "singular value",
    ax: Axes | None = None,
) -> Axes:
    """Singular values against their number, one line a matrix, named by the keys of ``values``.

    ``expected`` are those of a random matrix, drawn dashed; ``edge`` is the largest of them, a dotted line.
    """
    ax = new_axes(ax)
    for (name, line), colour in zip(values.items(), colours(len(values)), strict=True):
        line = np.asarray(line, float)
        ax.plot(np.arange(1, len(line) + 1), line, ".-", color=colour, label=name)
    if expected is not None:
        line = np.asarray(expected, float)
        ax.plot(np.arange(1, len(line) + 1), line, "--", color=GREY, label="random, in theory")
    if edge is not None:
        ax.axhline(edge, color=GREY, linestyle=":", linewidth=1.2)
        ax.annotate(
            "random edge", (1, edge), (-2, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=GREY, fontsize=9, ha="right", va="bottom",
        )  # fmt: skip
    ax.set(title=title, xlabel="number of the singular value", ylabel=ylabel)
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper right")
    return ax


def against_rank(
    table: pd.DataFrame,
    *,
    y: str,
    title: str,
    ylabel: str,
    x: str = "rank",
    xlabel: str = "rank",
    by: str = "method",
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    log_y: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """`y` against the rank, one line for each value of `by`, with its name at its end.

    `table` may have `low` and `high`, drawn as intervals. `levels` are values to compare with, by name, drawn
    as dashed lines; `marks` are ranks by name, drawn as dotted upright lines.
    """
    ax = new_axes(ax)
    ends = lines_by(ax, table, x=x, y=y, by=by)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.margins(y=0.1)  # room for the names of levels and marks
    if log_y:
        ax.set_yscale("log")
    plateaus(ax, levels)
    for name, rank in (marks or {}).items():
        ax.axvline(rank, color=GREY, linestyle=":", linewidth=1.2)
        ax.annotate(
            name, (rank, 1), (3, -3), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=GREY, fontsize=9, va="top",
        )  # fmt: skip
    label_ends(ax, ends)
    return ax
