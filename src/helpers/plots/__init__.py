"""The book's figures: one function a figure, data in, `Axes` out; `show` puts one on the page with alt text.

Every title states the finding and comes from the caller; every axis names its unit.
"""

from .canvas import COLOURS, count, new_axes, png, show, style
from .distillation import frontier, pareto, temperature_curve
from .learning import bars, courses, label_curve, loss_curves, quality_by_loss, rate_sweep, tuned_by_loss
from .lowrank import against_rank, spectra
from .scaling import (
    band,
    curves,
    extrapolations,
    forest,
    ladder,
    loss_by_size,
    predictions,
    profile,
)

__all__ = [
    "COLOURS",
    "against_rank",
    "band",
    "bars",
    "count",
    "courses",
    "curves",
    "extrapolations",
    "forest",
    "frontier",
    "label_curve",
    "ladder",
    "loss_by_size",
    "loss_curves",
    "new_axes",
    "pareto",
    "png",
    "predictions",
    "profile",
    "quality_by_loss",
    "rate_sweep",
    "show",
    "spectra",
    "style",
    "temperature_curve",
    "tuned_by_loss",
]
