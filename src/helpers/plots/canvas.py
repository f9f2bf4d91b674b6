"""What the book's figures share: style, colours, labels at the ends of lines, and the way onto the page.

Colours are Okabe and Ito's (2008), which readers with any colour vision can tell apart. Ordered things
(sizes, budgets) run from light to dark instead. Lines carry their names at their ends, so that nobody has
to match a legend.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
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
    from IPython.display import display  # a notebook has it; figures are drawn without

    display({"image/png": png(whole)}, raw=True, metadata={"image/png": {"alt": alt}})
    plt.close(whole)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes in 256 colours: a third of the size, since notebooks are kept in git.

    They are chosen to cover all colours; by the usual median cut the rare ones, those of points, would merge.
    """
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    with Image.open(raw) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(small, format="png", optimize=True, dpi=(DPI, DPI))
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
        textcoords="offset points", color=GREY, fontsize=9, va="bottom", path_effects=_halo(),
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


def _halo() -> list[withStroke]:
    """White around the letters of a name, which hides less of a line or a point than a box does."""
    return [withStroke(linewidth=2.5, foreground="white")]


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, float, object]]) -> None:
    """Names at the right ends of lines, (name, x, y, colour), over lines that go on.

    Names that share a column of the picture are pushed apart, and all are kept between the axes' bottom and
    top. Call it when the scales and limits of the axes stand.
    """
    if not ends:
        return
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    labels = [
        ax.annotate(
            name, (x, y), (5, 0), textcoords="offset points", color=darker(colour), va="center",
            fontsize=9.5, annotation_clip=False, path_effects=_halo(),
        )
        for name, x, y, colour in ends
    ]  # fmt: skip
    left, right = np.array([label.get_window_extent().intervalx for label in labels]).T
    beside = (left[:, None] < right) & (left < right[:, None])
    need = 13.0 * figure.dpi / 72  # a line of text, in pixels
    places = ax.transData.transform([(x, y) for _, x, y, _ in ends])[:, 1]
    rank = np.argsort(np.argsort(places, kind="stable"))
    above = np.sign(rank[:, None] - rank)
    low, high = ax.bbox.y0 + need / 2, ax.bbox.y1 - need / 2
    at = places.clip(low, high)
    for _ in range(300):
        short = np.where(beside, need - above * (at[:, None] - at), 0.0).clip(min=0.0)
        np.fill_diagonal(short, 0.0)
        if short.max() <= 0.5:
            break
        at = (at + 0.25 * (short * above).sum(axis=1)).clip(low, high)
    for label, moved in zip(labels, at - places, strict=True):
        label.xyann = (5, moved * 72 / figure.dpi)


def label_points(
    ax: Axes, points: Sequence[tuple[str, float, float]], ink: Sequence[object] | None = None
) -> None:
    """Names beside points, (name, x, y), each at the first place around its point where it hides nothing; a
    thin line leads to a name that stands further off. Call it when the scales and limits of the axes stand.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale, frame = figure.dpi / 72, ax.get_window_extent()
    places = ax.transData.transform([(x, y) for _, x, y in points])
    dots = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    around = [
        (side, up)
        for up in (0, *(sign * 11 * k for k in range(1, 6) for sign in (1, -1)))
        for side in (1, -1)
    ]
    taken: list[Bbox] = []
    for i in sorted(range(len(points)), key=lambda i: -places[i][1]):
        name, x, y = points[i]
        probe = ax.annotate(name, (x, y), fontsize=9)
        size = probe.get_window_extent()
        probe.remove()

        def box(side: int, up: int, at: NDArray[np.float64] = places[i], size: Bbox = size) -> Bbox:
            left = at[0] + 6 * scale if side > 0 else at[0] - 6 * scale - size.width
            return Bbox.from_bounds(left, at[1] + up * scale - size.height / 2, size.width, size.height)

        def cost(place: tuple[int, int], i: int = i, box: Callable[..., Bbox] = box) -> float:
            here = box(*place)
            hidden = sum(_shared(here, other) for other in (*taken, *dots[:i], *dots[i + 1 :]))
            outside = max(0.0, here.x1 - frame.x1) + max(0.0, frame.x0 - here.x0)
            return hidden + 20 * outside + 0.02 * abs(place[1])

        side, up = min(around, key=cost)
        taken.append(box(side, up))
        ax.annotate(
            name, (x, y), (6 * side, up), textcoords="offset points", fontsize=9, va="center",
            ha="left" if side > 0 else "right", color=BLACK if ink is None else darker(ink[i]),
            annotation_clip=False, path_effects=_halo(),
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5} if abs(up) > 11 else None,
        )  # fmt: skip


def _shared(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share, in pixels."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)
