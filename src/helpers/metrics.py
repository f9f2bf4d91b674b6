"""What a classifier is worth: accuracy, F1, area under the curve, and intervals over texts and over seeds.

Legend: ``n`` texts, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.metrics import f1_score, roc_auc_score

from helpers.laws.common import check_count, check_level

LOG_T = 4.0  # temperatures are looked for between exp(-4) and exp(4)


def check_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """The labels as int64; raises ``ValueError`` naming the first outside ``[0, classes)``."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be a vector of integers, got shape {labels.shape} of {labels.dtype}")
    if (bad := labels[(labels < 0) | (labels >= classes)]).size:
        raise ValueError(f"label {bad[0]} lies outside the {classes} classes 0 to {classes - 1}")
    return labels.astype(np.int64)


def check_probabilities(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels (n,) as int64 and the class probabilities (n, C) that stand beside them.

    Raises ``ValueError`` when there is no text, for another shape, and naming the first text whose numbers
    are no probabilities: not finite, outside [0, 1], or not adding up to 1 within a hundredth.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities must have shape (texts, classes), got {probabilities.shape}")
    labels = check_labels(labels, probabilities.shape[1])
    if len(labels) != len(probabilities) or len(labels) == 0:
        raise ValueError(
            f"need a label for each text, and at least one: {len(labels)} labels, {len(probabilities)} texts"
        )
    inside = ((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all(1)  # false for NaN
    if (bad := np.flatnonzero(~(inside & (np.abs(probabilities.sum(1) - 1) < 0.01)))).size:
        raise ValueError(f"text {bad[0]} has {probabilities[bad[0]]}, which are no probabilities")
    return labels, probabilities


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 and area under the ROC curve of two-class probabilities (n, 2), class 1 being positive.

    Raises ``ValueError`` when only one class is present, since the AUC is then undefined, and as
    :func:`check_probabilities`.
    """
    labels, probabilities = check_probabilities(labels, probabilities)
    if probabilities.shape[1] != 2:
        raise ValueError(f"F1 and AUC need two classes, got {probabilities.shape[1]}")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"every label is {labels[0]}: F1 and AUC need both classes")
    guess = probabilities[:, 1] > 0.5
    return {
        "accuracy": float((guess == labels).mean()),
        "f1": float(f1_score(labels, guess)),
        "auc": float(roc_auc_score(labels, probabilities[:, 1])),
    }


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) of class probabilities (n, C).

    Texts are grouped into ``bins`` of equal width by the probability of the class that was chosen; the error
    is the mean distance between that probability and the share of right answers, weighted by the group.
    Errors as in :func:`check_probabilities`.
    """
    labels, probabilities = check_probabilities(labels, probabilities)
    check_count(bins=bins)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    group = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(group, right - confidence, minlength=bins)  # summed over each group's texts
    return float(np.abs(gaps).sum() / len(labels))


def temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The T for which ``softmax(log(p) / T)`` has the smallest log-loss (Guo et al. 2017, section 4.2).

    Above 1 the classifier was too sure of itself, below 1 not sure enough. Fit it on validation texts. Raises
    ``ValueError`` when the log-loss has no smallest value, as where every answer is right, and as
    :func:`check_probabilities`.
    """
    labels, probabilities = check_probabilities(labels, probabilities)
    logits = np.log(np.clip(probabilities, 1e-12, None))

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))

    found = minimize_scalar(loss, bounds=(-LOG_T, LOG_T), method="bounded")
    if found.fun >= min(loss(-LOG_T), loss(LOG_T)):
        raise ValueError(
            f"no temperature from {math.exp(-LOG_T):.2g} to {math.exp(LOG_T):.2g} is best: is every answer "
            "right, or are they no better than guesses?"
        )
    return float(np.exp(found.x))


def soften(probabilities: np.ndarray, t: float) -> np.ndarray:
    """Class probabilities (n, C) at the temperature ``t``; the order of the classes does not change."""
    if not (math.isfinite(t) and t > 0):
        raise ValueError(f"a temperature must be positive, got {t}")
    return np.asarray(softmax(np.log(np.clip(probabilities, 1e-12, None)) / t, axis=1))


def bootstrap(
    labels: np.ndarray, probabilities: np.ndarray, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of :func:`scores` over resampled test texts: what another test set of this size
    would give. Errors as in :func:`scores`.
    """
    check_level(level)
    check_count(draws=draws)
    rng = np.random.default_rng(seed)
    labels, probabilities = check_probabilities(labels, probabilities)
    scores(labels, probabilities)  # where a class is missing the draws below would never end
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

    Raises ``ValueError`` for fewer than two values, and for a ``level`` outside (0, 1).
    """
    check_level(level)
    runs = np.asarray(values, float)
    if runs.size < 2:
        raise ValueError(f"an interval over runs needs at least two, got {runs.size}")
    half = scipy.stats.t.ppf(0.5 + level / 2, runs.size - 1) * runs.std(ddof=1) / math.sqrt(runs.size)
    return float(runs.mean()), float(runs.mean() - half), float(runs.mean() + half)


def clustered_mean(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` and its standard error when values of one cluster depend on each other.

    Tokens of one review share its words, so the error is taken over sequences (the sandwich estimator of the
    mean). The error of a single cluster is NaN: nothing tells how another one would differ.
    """
    mean = float(values.mean())
    residuals = np.bincount(clusters, values - mean)
    groups = len(np.unique(clusters))
    if groups < 2:
        return mean, math.nan
    return mean, float(math.sqrt((residuals**2).sum() * groups / (groups - 1)) / len(values))
