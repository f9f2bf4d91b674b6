"""Figures of training and fine-tuning: loss curves, accuracy against labels, bars of ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .canvas import (
    BLACK,
    RED,
    SKY,
    arms,
    colours,
    label_ends,
    lines_by,
    log_axes,
    new_axes,
    plateau,
    plateaus,
)


def loss_curves(
    histories: Mapping[str, pd.DataFrame],
    *,
    unigram_entropy: float,
    batch_tokens: int,
    title: str,
    column: str = "mlm",
    levels: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Training loss (nats) against tokens read (millions), one line a run, with the plateau line.

    A history has the columns `step` and `column`, and may have `eval_mlm_loss`, drawn as points. `levels` are
    further losses to compare with, by name, drawn like the plateau.
    """
    ax = new_axes(ax)
    ends = []
    for (name, log), colour in zip(histories.items(), colours(len(histories)), strict=True):
        tokens = log["step"] * batch_tokens / 1e6
        ax.plot(tokens, log[column], color=colour, alpha=0.9)
        ends.append((name, tokens.iloc[-1], log[column].iloc[-1], colour))
        if "eval_mlm_loss" in log:
            ax.plot(tokens, log["eval_mlm_loss"], "o", color=colour, markeredgecolor="white", zorder=3)
    plateau(ax, unigram_entropy)
    plateaus(ax, levels)
    ax.set(title=title, xlabel="tokens read (millions)", ylabel="MLM loss (nats per masked token)")
    label_ends(ax, ends)
    return ax


def label_curve(table: pd.DataFrame, *, title: str, metric: str = "accuracy", ax: Axes | None = None) -> Axes:
    """A metric against the number of labels, one line an arm, with intervals.

    `table` has the columns `labels`, `arm` (for example "pre-trained" and "from scratch"), `metric`, `low`,
    `high`. The name of a line stands to the right of the bars of all lines that end at as many labels.
    """
    ax = new_axes(ax)
    ends = lines_by(ax, table, x="labels", y=metric, by="arm", shift=1.03)
    ax.set(title=title, xlabel="labelled examples", ylabel=metric)
    log_axes(ax, "x", sorted(set(table["labels"])))
    counts = table.groupby("arm")["labels"].max()
    right = {count: max(x for name, x, *_ in ends if counts[name] == count) for count in set(counts)}
    label_ends(ax, [(name, right[counts[name]], y, colour) for name, _, y, colour in ends])
    return ax


def bars(
    names: Sequence[str],
    values: ArrayLike,
    *,
    title: str,
    xlabel: str,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Horizontal bars in the order given, first on top, with intervals and an optional line of reference."""
    ax = new_axes(ax)
    values = np.asarray(values, float)
    error = None if low is None or high is None else arms(values, low, high)
    ax.barh(np.arange(values.size), values, xerr=error, color=SKY, ecolor=BLACK, capsize=3, height=0.65)
    ax.set_yticks(np.arange(values.size), names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    if reference is not None:
        ax.axvline(reference, color=RED, linewidth=1.2)
    ax.set(title=title, xlabel=xlabel)
    return ax


def rate_sweep(table: pd.DataFrame, *, title: str, ax: Axes | None = None) -> Axes:
    """Validation accuracy against the learning rate, one line an arm, with a ring around each arm's best.

    `table` has the columns `arm`, `rate` and `val_accuracy`.
    """
    ax = new_axes(ax)
    ends = []
    arms_ = table.groupby("arm", sort=False, observed=True)
    for (name, rows), colour in zip(arms_, colours(arms_.ngroups), strict=True):
        rows = rows.sort_values("rate")
        ax.plot(rows["rate"], rows["val_accuracy"], "o-", color=colour)
        best = rows.loc[rows["val_accuracy"].idxmax()]
        ax.plot(best["rate"], best["val_accuracy"], "o", color=colour, markersize=12, fillstyle="none")
        ends.append((str(name), rows["rate"].iloc[-1], rows["val_accuracy"].iloc[-1], colour))
    ax.set(title=title, xlabel="learning rate", ylabel="validation accuracy")
    ax.set_xscale("log")
    label_ends(ax, ends)
    return ax


def courses(table: pd.DataFrame, *, title: str, ax: Axes | None = None) -> Axes:
    """Training loss (dotted) and validation loss (solid), nats a text, against the step, one colour an arm.

    `table` has the columns `arm`, `step`, `loss` and `val_loss`; a ring marks an arm's lowest validation
    loss.
    """
    ax = new_axes(ax)
    ends = []
    arms_ = table.groupby("arm", sort=False, observed=True)
    for (name, rows), colour in zip(arms_, colours(arms_.ngroups), strict=True):
        rows = rows.sort_values("step")
        ax.plot(rows["step"], rows["loss"], ":", color=colour)
        ax.plot(rows["step"], rows["val_loss"], "-", color=colour)
        best = rows.loc[rows["val_loss"].idxmin()]
        ax.plot(best["step"], best["val_loss"], "o", color=colour, markersize=10, fillstyle="none")
        ends.append((str(name), rows["step"].iloc[-1], rows["val_loss"].iloc[-1], colour))
    ax.set(
        title=title, xlabel="optimizer steps", ylabel="loss (nats a text): dotted training, solid validation"
    )
    label_ends(ax, ends)
    return ax


def quality_by_loss(
    table: pd.DataFrame, *, level: float, level_name: str, title: str, ax: Axes | None = None
) -> Axes:
    """Accuracy of frozen encoders against their pre-training loss (nats), one line a size.

    `table` has the columns `encoder` (size and tokens, as in "4x96-499712"), `tokens`, `mlm_loss`, and the
    `mean` and `sd` of the accuracy over draws of labels. `level` is an accuracy to compare with.
    """
    sizes = table.assign(size=table["encoder"].str.split("-").str[0]).groupby("size", sort=False)
    lines = {
        name: rows.assign(value=rows["mean"], low=rows["mean"] - rows["sd"], high=rows["mean"] + rows["sd"])
        for name, rows in sizes
    }
    ax = _by_loss(lines, title=title, ylabel="test accuracy, frozen", ax=ax)
    plateau(ax, level, level_name)
    return ax


def tuned_by_loss(table: pd.DataFrame, *, title: str, ax: Axes | None = None) -> Axes:
    """Accuracy of encoders after fine-tuning against their pre-training loss (nats), one line a number of
    labels.

    `table` has the columns `labels`, `mlm_loss`, and the `median`, `low` (lowest) and `high` (highest) of the
    accuracy over draws.
    """
    table = table.rename(columns={"median": "value"})
    lines = {f"{count:,} labels": rows for count, rows in table.groupby("labels")}
    return _by_loss(lines, title=title, ylabel="test accuracy, fine-tuned", ax=ax)


def _by_loss(lines: dict[str, pd.DataFrame], *, title: str, ylabel: str, ax: Axes | None) -> Axes:
    ax = new_axes(ax)
    ends = []
    for (name, rows), colour in zip(lines.items(), colours(len(lines)), strict=True):
        rows = rows.sort_values("mlm_loss", ascending=False)
        error = arms(rows["value"], rows["low"], rows["high"])
        ax.errorbar(rows["mlm_loss"], rows["value"], yerr=error, fmt="o-", color=colour, capsize=2)
        ends.append((name, rows["mlm_loss"].iloc[-1], rows["value"].iloc[-1], colour))
    ax.invert_xaxis()  # better models to the right, as in plots against tokens
    ax.set(title=title, xlabel="pre-training loss (nats per masked token), falling", ylabel=ylabel)
    label_ends(ax, ends)
    return ax
