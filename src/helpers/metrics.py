"""What a classifier is worth: accuracy, F1 area under the curve, and intervals over texts and over seeds.

Legend: ``n`` texts, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from sklearn.metrics import f1_score, roc_auc_score


def check_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """The labels as int64; raises ``ValueError`` naming the first outside ``[0, classes)``."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be a vector of integers, got shape {labels.shape} of {labels.dtype}")
    if (bad := labels[(labels < 0) | (labels >= classes)]).size:
        raise ValueError(f"label {bad[0]} lies outside the {classes} classes 0 to {classes - 1}")
    return labels.astype(np.int64)


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 and area under the ROC curve of two-class probabilities (n, 2), class 1 being positive.

    Raises ``ValueError`` when only one class is present, since the AUC is then undefined.
    """
    labels = check_labels(labels, 2)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"every label is {labels[0]}: F1 and AUC need both classes")
    guess = probabilities[:, 1] > 0.5
    return {
        "accuracy": float((guess == labels).mean()),
        "f1": float(f1_score(labels, guess)),
        "auc": float(roc_auc_score(labels, probabilities[:, 1])),
    }


def bootstrap(
    labels: np.ndarray, probabilities: np.ndarray, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of :func:`scores` over resampled test texts: what another test set of this size
    would give.
    """
    rng = np.random.default_rng(seed)
    scores(
        labels, probabilities
    )  # raises when one class is missing, before draws are repeated for that reason
    samples: list[dict[str, float]] = []
    while len(samples) < draws:
        rows = rng.integers(0, len(labels), len(labels))
        if len(np.unique(labels[rows])) == 2:  # few texts can all be of one class, where the AUC is undefined
            samples.append(scores(labels[rows], probabilities[rows]))
    tail = (1 - level) / 2
    ends = {name: np.quantile([s[name] for s in samples], [tail, 1 - tail]) for name in samples[0]}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean, lower and upper end of Student's t interval over independent runs (seeds).

    Raises ``ValueError`` for fewer than two values.
    """
    runs = np.asarray(values, float)
    if runs.size < 2:
        raise ValueError(f"an interval over runs needs at least two, got {runs.size}")
    half = scipy.stats.t.ppf(0.5 + level / 2, runs.size - 1) * runs.std(ddof=1) / math.sqrt(runs.size)
    return float(runs.mean()), float(runs.mean() - half), float(runs.mean() + half)


def clustered_mean(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` and its standard error when values of one cluster depend on each other.

    Tokens of one review share its words, so the error is taken over sequences (the sandwich estimator of the
    mean).
    """
    mean = float(values.mean())
    residuals = np.bincount(clusters, values - mean)
    groups = len(np.unique(clusters))
    return mean, float(math.sqrt((residuals**2).sum() * groups / max(groups - 1, 1)) / len(values))
