"""Figures of what models cost: measured growth, shares of a total, the roofline, memory over a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy
from numpy.typing import ArrayLike

from .canvas import BLUE, GREY, RED, colours, count, label_ends, label_points, new_axes

if TYPE_CHECKING:  # the figures need numbers alone, neither torch nor models
    from helpers.complexity import Machine


def growth(
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    slopes: Mapping[str, float] | None = None,
    log: str = "xy",
    ax: Axes | None = None,
) -> Axes:
    """Measured values against a size, one colour a series; ``slopes`` draws a power of x through each series.

    A series of ``slopes`` is named as in ``series``, its number is the exponent of the dashed line. Where a
    series is NaN nothing was measured.
    """
    ax, x = new_axes(ax), np.asarray(x, float)
    ends = []
    for (name, values), colour in zip(series.items(), colours(len(series)), strict=True):
        given = np.isfinite(np.asarray(values, float))
        at, y = x[given], np.asarray(values, float)[given]
        slope = (slopes or {}).get(name)
        ax.plot(at, y, "o-" if slope is None else "o", color=colour)
        if slope is not None:
            level = np.exp(np.mean(np.log(y) - slope * np.log(at)))
            ax.plot(at, level * at**slope, "--", color=colour, linewidth=1.2)
        ends.append((name, at[-1], y[-1], colour))
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    _scales(ax, log, list(dict.fromkeys(x.tolist())))
    label_ends(ax, ends)
    return ax


def shares(
    x: Sequence[object],
    parts: Mapping[str, ArrayLike],
    *,
    title: str,
    xlabel: str,
    ylabel: str = "share (%)",
    ax: Axes | None = None,
) -> Axes:
    """Stacked bars of the shares of each part, in per cent, one bar for each ``x``."""
    ax = new_axes(ax)
    values = np.array([np.asarray(part, float) for part in parts.values()])
    percent = 100 * values / values.sum(axis=0)
    base = np.zeros(percent.shape[1])
    for (name, row), colour in zip(zip(parts, percent, strict=True), colours(len(parts)), strict=True):
        ax.bar([str(v) for v in x], row, bottom=base, color=colour, label=name, width=0.7)
        base += row
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(0, 100))
    ax.grid(visible=False, axis="x")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def roofline(
    machine: Machine, points: Mapping[str, tuple[float, float]], *, title: str, ax: Axes | None = None
) -> Axes:
    """The machine's two ceilings, and measured work as named points (FLOPs a byte, FLOP/s)."""
    ax = new_axes(ax)
    places = np.array(list(points.values()))
    low = min(places[:, 0].min(), machine.balance) / 3
    high = max(places[:, 0].max(), machine.balance) * 6
    x = np.geomspace(low, high, 200)
    ax.plot(x, [machine.attainable(i) / 1e9 for i in x], color=GREY)
    for intensity, rate in points.values():
        ax.plot(intensity, rate / 1e9, "o", color=BLUE)
    _along(ax, "what memory delivers", machine.balance / 1.2, machine.attainable(machine.balance / 1.2) / 1e9)
    ax.annotate(
        "what the multipliers do", (machine.balance, machine.flops_per_second / 1e9), (4, 8),
        textcoords="offset points", color=GREY, fontsize=9,
    )  # fmt: skip
    ax.set(title=title, xlabel="FLOPs for each byte moved", ylabel="speed (GFLOP/s)")
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
    own = len(ax.texts)
    label_points(
        ax, [(name, x, rate / 1e9) for name, (x, rate) in sorted(points.items(), key=lambda p: p[1])]
    )
    for name in ax.texts[own:]:  # a name may lie on a ceiling, which shall not strike it through
        name.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    return ax


def moments(names: Sequence[str], held: ArrayLike, *, title: str, ax: Axes | None = None) -> Axes:
    """Memory (MB) held at each moment of a training step, in order; the largest is marked."""
    ax, held = new_axes(ax), np.asarray(held, float) / 1e6
    top = int(held.argmax())
    ax.bar(range(len(held)), held, color=[RED if i == top else BLUE for i in range(len(held))])
    ax.set_xticks(range(len(held)), names, rotation=40, ha="right", fontsize=8.5)
    ax.set(title=title, ylabel="held beyond weights and state (MB)")
    ax.grid(visible=False, axis="x")
    return ax


def _along(ax: Axes, text: str, x: float, y: float) -> None:
    """Grey words above a line through the origin, ending at (x, y) and turned as the line is drawn there."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    ax.text(
        x, y, text, ha="right", va="bottom", rotation=np.degrees(np.arctan2(y, x)), rotation_mode="anchor",
        transform_rotates_text=True, transform=offset_copy(ax.transData, figure, -2, 2, units="points"),
        color=GREY, fontsize=9,
    )  # fmt: skip


def _scales(ax: Axes, log: str, ticks: Sequence[float]) -> None:
    if "x" in log:
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{v:,.0f}" if 1 <= v < 10_000 else count(v) for v in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    if "y" in log:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high < 30 * low:  # a single power of ten would be the only label
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
