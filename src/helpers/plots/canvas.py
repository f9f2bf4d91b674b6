"""What the book's figures share: style, colours, labels at the ends of lines, and the way onto the page.

Colours are Okabe and Ito's (2008), which readers with any colour vision can tell apart. Ordered things
(sizes, budgets) run from light to dark instead. Lines carry their names at their ends, so that nobody has
to match a legend.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray
from PIL import Image

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)
GREY = "#767676"  # 4.5:1 on white
DPI = 100
STYLE = {
    "figure.figsize": (6.8, 4.2),
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}


def style() -> None:
    """Apply the book's look to the figures made from here on."""
    plt.rcParams.update(STYLE)


def new_axes(ax: Axes | None = None) -> Axes:
    """`ax` itself, or the axes of a new figure in the book's style."""
    if ax is not None:
        return ax
    style()
    return plt.subplots(layout="constrained")[1]


def show(figure: Figure | Axes, alt: str) -> None:
    """Display a figure as PNG with its alt text, then close it.

    The text goes into the metadata of the output; `tools/notebooks.py execute` copies it to where the build
    of the book reads it. `alt` says in one sentence what is seen, for readers who do not see it.
    """
    if len(alt.split()) < 4:
        raise ValueError(f"alt text must describe the figure in a sentence, not {alt!r}")
    whole = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    assert isinstance(whole, Figure)
    display({"image/png": png(whole)}, raw=True, metadata={"image/png": {"alt": alt}})
    plt.close(whole)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes in 128 colours: a quarter of the size, since notebooks are kept in git."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    with Image.open(raw) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
            small, format="png", optimize=True, dpi=(DPI, DPI)
        )
    return small.getvalue()


def count(value: float) -> str:
    """A count in words as short as an axis wants them: 25k, 2.7M, 1.5G."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def shades(n: int) -> list[tuple[float, ...]]:
    """`n` colours from light to dark, for ordered things."""
    return [tuple(colour) for colour in plt.get_cmap("viridis_r")(np.linspace(0.2, 1.0, n))]


def colours(n: int) -> list[str]:
    """The first `n` of the categorical colours, from the beginning again after the last."""
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def darker(colour: Any) -> tuple[float, float, float]:
    """The colour mixed with black until it is read easily as text on white."""
    rgb = np.array(to_rgb(colour))
    while 1.05 / (0.05 + (0.2126, 0.7152, 0.0722) @ rgb**2.2) < 4.5:  # the WCAG contrast ratio
        rgb = 0.9 * rgb
    return float(rgb[0]), float(rgb[1]), float(rgb[2])


def arms(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """Lengths (2, n) of error bars; never negative, as a percentile interval need not hold the estimate."""
    value, low, high = (np.asarray(v, float) for v in (value, low, high))
    return np.maximum(np.stack([value - low, high - value]), 0)


def plateaus(ax: Axes, levels: Mapping[str, float] | None) -> None:
    """Values to compare with, by name."""
    for name, level in (levels or {}).items():
        plateau(ax, level, name)


def plateau(ax: Axes, level: float, name: str = "unigram entropy") -> None:
    """A loss to compare with; by default guessing by frequency, where models stay until they read context."""
    ax.axhline(level, color=GREY, linestyle="--", linewidth=1.2)
    ax.annotate(
        name, (0, level), (2, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", color=GREY, fontsize=9, va="bottom",
    )  # fmt: skip


def lines_by(
    ax: Axes, table: pd.DataFrame, *, x: str, y: str, by: str, shift: float = 1.0
) -> list[tuple[str, float, float, str]]:
    """One line for each value of `by`, with intervals where the table has `low` and `high`; returns what
    `label_ends` wants. `shift` is a factor on x from line to line, so that intervals do not hide each other.
    """
    names, ends = list(dict.fromkeys(table[by])), []
    for i, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True)):
        part = table[table[by] == name].sort_values(x)
        at = part[x].to_numpy(float) * shift ** (i - (len(names) - 1) / 2)
        value = part[y].to_numpy(float)
        ax.plot(at, value, "o-", color=colour)
        if {"low", "high"} <= set(part):
            error = arms(value, part["low"], part["high"])
            ax.errorbar(at, value, yerr=error, fmt="none", ecolor=colour, capsize=3)
        ends.append((str(name), float(at[-1]), float(value[-1]), colour))
    return ends


def log_axes(ax: Axes, which: str, ticks: Sequence[float] = ()) -> None:
    """Log scales whose ticks read as counts (x) or plain numbers (y)."""
    if "x" in which:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
        if ticks:
            ax.set_xticks(ticks)
            ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
    if "y" in which:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, float, object]]) -> None:
    """Names at the right ends of lines, pushed apart until none overlaps another, above lines that go on."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    need = 13.0 * figure.dpi / 72  # a line of text, in pixels
    order = sorted(range(len(ends)), key=lambda i: ends[i][2])
    at = np.array([ax.transData.transform((1.0, ends[i][2]))[1] for i in order])
    for _ in range(200):
        gaps = np.diff(at)
        if not len(gaps) or (short := need - gaps).max() <= 0.5:
            break
        push = np.maximum(short, 0) / 2
        at[:-1] -= push
        at[1:] += push
    for place, i in zip(at, order, strict=True):
        name, x, y, colour = ends[i]
        shift = (place - ax.transData.transform((1.0, y))[1]) * 72 / figure.dpi
        ax.annotate(
            name, (x, y), (5, shift), textcoords="offset points", color=darker(colour), va="center",
            fontsize=9.5, annotation_clip=False,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip


def label_points(ax: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points, each on the first side where it hides no other name and no other point.

    Call it when the scales and limits of the axes stand.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    places = ax.transData.transform([(x, y) for _, x, y in points])
    sides = [(7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -15, "center")]
    sides += [(7, 9, "left"), (-7, 9, "right"), (7, -15, "left"), (-7, -15, "right")]
    taken: list[Bbox] = []
    for i, (name, x, y) in enumerate(points):
        best = None
        for dx, dy, align in sides:
            text = ax.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", fontsize=9, ha=align,
                annotation_clip=False,
            )  # fmt: skip
            box = text.get_window_extent().padded(1)
            hits = sum(box.overlaps(other) for other in taken)
            hits += sum(box.padded(6).contains(*place) for j, place in enumerate(places) if j != i)
            if best is not None and hits >= best[0]:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (hits, text, box)
            if not hits:
                break
        assert best is not None
        taken.append(best[2])
