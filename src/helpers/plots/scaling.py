"""Figures of scaling studies: losses against size and data, laws beyond their data, predictions, profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from helpers.laws import Profile

from .canvas import (
    BLACK,
    BLUE,
    RED,
    SKY,
    arms,
    colours,
    count,
    label_ends,
    log_axes,
    new_axes,
    plateau,
    plateaus,
    shades,
)


class Law(Protocol):
    """What draws a curve: any fit of `helpers.laws` in N and D."""

    def predict(self, N: ArrayLike, D: ArrayLike) -> NDArray[np.float64]: ...


def ladder(
    runs: pd.DataFrame,
    *,
    title: str,
    fit: Law | None = None,
    N: str = "params_non_embedding",
    levels: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Loss (nats) against tokens, one colour a size; curves are the fitted law, open points were not fitted.

    `runs` has the columns `tokens`, `mlm_loss`, `N`, and may have `fitted` (bool). `fit.predict(N, D)` draws
    the curves. `levels` are losses to compare with, by name, drawn as dashed lines.
    """
    ends = _family(new := new_axes(ax), runs, x="tokens", by=N, fit=fit, size_first=False)
    plateaus(new, levels)
    new.set(title=title, xlabel="tokens read", ylabel="MLM loss (nats per masked token)")
    log_axes(new, "xy")
    label_ends(new, ends)
    return new


def loss_by_size(
    runs: pd.DataFrame,
    *,
    title: str,
    fit: Law | None = None,
    N: str = "params_non_embedding",
    ax: Axes | None = None,
) -> Axes:
    """Loss (nats) against parameters, one colour a token budget; the rest as in `ladder`."""
    ends = _family(new := new_axes(ax), runs, x=N, by="tokens", fit=fit, size_first=True)
    new.set(
        title=title,
        xlabel=f"parameters ({N.removeprefix('params_').replace('_', '-')})",
        ylabel="MLM loss (nats per masked token)",
    )
    log_axes(new, "xy")
    label_ends(new, ends)
    return new


def extrapolations(
    x: ArrayLike,
    y: ArrayLike,
    fitted: ArrayLike,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str = "MLM loss (nats per masked token)",
    ylim: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Measured points, filled where `fitted`, open where held out, and the curves (x, y) of several laws."""
    ax = new_axes(ax)
    x, y, fitted = np.asarray(x, float), np.asarray(y, float), np.asarray(fitted, bool)
    ends = []
    for (name, (at, value)), colour in zip(curves.items(), colours(len(curves)), strict=True):
        at, value = np.asarray(at, float), np.asarray(value, float)
        ax.plot(at, value, color=colour)
        seen = np.flatnonzero((value >= ylim[0]) & (value <= ylim[1])) if ylim else np.arange(at.size)
        last = seen[-1] if seen.size else -1
        ends.append((name, at[last], value[last], colour))
    ax.plot(x[fitted], y[fitted], "o", color=BLACK, zorder=4)
    ax.plot(x[~fitted], y[~fitted], "o", color=BLACK, markerfacecolor="white", zorder=4)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if ylim:
        ax.set_ylim(*ylim)
    log_axes(ax, "x")
    label_ends(ax, ends)
    return ax


def predictions(
    names: Sequence[str],
    predicted: ArrayLike,
    interval: tuple[ArrayLike, ArrayLike],
    measured: ArrayLike,
    *,
    title: str,
    xlabel: str = "MLM loss (nats per masked token)",
    ax: Axes | None = None,
) -> Axes:
    """One row a held-out run, first on top: the predicted interval, its centre, and what was measured."""
    ax = new_axes(ax)
    predicted, rows = np.asarray(predicted, float), np.arange(len(names))
    error = arms(predicted, *interval)
    ax.errorbar(predicted, rows, xerr=error, fmt="|", color=BLUE, ecolor=SKY, elinewidth=5, label="predicted")
    ax.plot(np.asarray(measured, float), rows, "o", color=RED, label="measured")
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(title=title, xlabel=xlabel)
    ax.legend(loc="best")
    return ax


def profile(
    curve: Profile, *, title: str, name: str = "E", unit: str = "nats", ax: Axes | None = None
) -> Axes:
    """A likelihood profile: deviance against the value held fixed, the bound, and the interval below it."""
    ax = new_axes(ax)
    values, deviance, (low, high), bound = curve
    ax.plot(values, deviance, color=BLUE)
    ax.axhline(bound, color=RED, linewidth=1.2)
    ax.text(values[-1], bound, "bound of the interval ", color=RED, ha="right", va="bottom", fontsize=9)
    ax.axvspan(low, high, color=SKY, alpha=0.25, linewidth=0)
    ax.set(
        title=title,
        xlabel=f"{name} held fixed ({unit})",
        ylabel="deviance from the best fit",
        ylim=(0, max(3 * bound, 1.0)),
    )
    return ax


def band(
    x: ArrayLike,
    y: ArrayLike,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log: str = "xy",
    ax: Axes | None = None,
) -> Axes:
    """A line with its interval as a band, on axes that are logarithmic where `log` names them."""
    ax = new_axes(ax)
    low, high = (np.asarray(end, float) for end in interval)
    ax.fill_between(np.asarray(x, float), low, high, color=SKY, alpha=0.35, linewidth=0)
    ax.plot(x, y, color=BLUE)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    for axis in log:
        getattr(ax, f"set_{axis}scale")("log")
    return ax


def curves(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log: str = "",
    level: tuple[float, str] | None = None,
    ylim: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Named lines (x, y), names at their ends; `level` is a height to compare with, and its name."""
    ax = new_axes(ax)
    ends = []
    for (name, (x, y)), colour in zip(lines.items(), colours(len(lines)), strict=True):
        x, y = np.asarray(x, float), np.asarray(y, float)
        ax.plot(x, y, color=colour)
        seen = np.flatnonzero((y >= ylim[0]) & (y <= ylim[1])) if ylim else np.arange(x.size)
        last = seen[-1] if seen.size else -1
        ends.append((name, float(x[last]), float(y[last]), colour))
    if level is not None:
        plateau(ax, *level)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if ylim:
        ax.set_ylim(*ylim)
    for axis in log:
        getattr(ax, f"set_{axis}scale")("log")
    label_ends(ax, ends)
    return ax


def forest(
    names: Sequence[str],
    value: ArrayLike,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    title: str,
    xlabel: str,
    published: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One row an estimate, first on top: value, interval, and what was published (NaN: nothing)."""
    ax = new_axes(ax)
    value, rows = np.asarray(value, float), np.arange(len(names))
    ax.errorbar(value, rows, xerr=arms(value, *interval), fmt="o", color=BLUE, ecolor=SKY, elinewidth=4)
    if published is not None:
        ax.plot(np.asarray(published, float), rows, "D", color=RED, markerfacecolor="none", label="published")
        ax.legend(loc="best", frameon=True)  # else its mark reads as one more estimate
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(title=title, xlabel=xlabel)
    return ax


def _family(
    ax: Axes, runs: pd.DataFrame, *, x: str, by: str, fit: Law | None, size_first: bool
) -> list[tuple[str, float, float, tuple[float, ...]]]:
    """Points and fitted curves of one colour per value of `by`; returns the labels of the curves' ends."""
    fitted = runs["fitted"] if "fitted" in runs else pd.Series(True, index=runs.index)
    groups = sorted(runs[by].unique())
    ends = []
    for value, colour in zip(groups, shades(len(groups)), strict=True):
        part = runs[runs[by] == value].sort_values(x)
        means = part.groupby(x)["mlm_loss"].mean()
        at, line = means.index.to_numpy(float), means.to_numpy(float)
        if fit is not None:
            at = np.geomspace(at[0], at[-1], 60)
            given = (at, value) if size_first else (value, at)
            line = fit.predict(*given)
        ax.plot(at, line, color=colour)
        ends.append((count(value), float(at[-1]), float(line[-1]), colour))
        for use, face in ((fitted, colour), (~fitted, "white")):
            chosen = part[use.loc[part.index]]
            ax.plot(chosen[x], chosen["mlm_loss"], "o", color=colour, markerfacecolor=face, zorder=3)
    return ends
