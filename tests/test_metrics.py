"""Scores against their definitions, and intervals of known width."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from helpers import finetune, metrics


def fake_predictions(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    positive = 1 / (1 + np.exp(-(1.5 * (2 * labels - 1) + 2 * rng.normal(size=count))))
    return labels, np.stack([1 - positive, positive], axis=1)


def test_scores_equal_those_of_scikit_learn_and_the_definition():
    labels, probabilities = fake_predictions()
    got, guess = metrics.scores(labels, probabilities), probabilities.argmax(1)
    assert got["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, guess))
    assert got["f1"] == pytest.approx(sklearn.metrics.f1_score(labels, guess))
    pairs = probabilities[labels == 1, 1][:, None] > probabilities[labels == 0, 1]
    assert got["auc"] == pytest.approx(pairs.mean())


def test_scores_of_one_class_are_refused():
    with pytest.raises(ValueError, match="every label is 1"):
        metrics.scores(np.ones(4, int), np.full((4, 2), 0.5))
    with pytest.raises(ValueError, match="every label is 0"):
        metrics.bootstrap(np.zeros(4, int), np.full((4, 2), 0.5))


def test_bootstrap_intervals_hold_the_score_and_have_the_known_width():
    labels, probabilities = fake_predictions(1000)
    intervals, got = (
        metrics.bootstrap(labels, probabilities, draws=100),
        metrics.scores(labels, probabilities),
    )
    assert all(low < got[name] < high for name, (low, high) in intervals.items())
    accuracy, (low, high) = got["accuracy"], intervals["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 1000), rel=0.25)
    assert metrics.bootstrap(labels, probabilities, draws=100) == intervals


def test_bootstrap_of_few_texts_leaves_out_draws_of_one_class():
    labels, probabilities = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    intervals = metrics.bootstrap(labels, probabilities, draws=50)
    assert all(0 <= low <= high <= 1 for low, high in intervals.values())


def test_the_interval_over_runs_is_that_of_student():
    values = [0.81, 0.84, 0.79, 0.83, 0.82]
    mean, low, high = metrics.mean_interval(values)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(values), expected.low, expected.high))
    with pytest.raises(ValueError, match="at least two, got 1"):
        metrics.mean_interval([0.5])
    with pytest.raises(ValueError, match="level must lie between 0 and 1, not 95"):
        metrics.mean_interval(values, level=95)


def test_one_cluster_tells_nothing_of_the_error():
    mean, error = metrics.clustered_mean(np.array([1.0, 2.0]), np.zeros(2, int))
    assert mean == 1.5 and np.isnan(error)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.9, 0.1], [np.nan, np.nan]], r"text 1 has \[nan nan\], which are no probabilities"),
        ([0, 1], [[0.9, 0.1], [-3.0, 4.0]], "text 1 has"),
        ([0, 1], [[0.9, 0.4], [0.2, 0.8]], "text 0 has"),
        ([0, 1], [0.1, 0.8], r"shape \(texts, classes\), got \(2,\)"),
        ([0, 1, 1], [[0.9, 0.1], [0.2, 0.8]], "3 labels, 2 texts"),
        (np.zeros(0, int), np.zeros((0, 2)), "0 labels, 0 texts"),
    ],
)
@pytest.mark.parametrize("of", [metrics.scores, metrics.calibration_error, metrics.temperature])
def test_numbers_that_are_no_probabilities_are_refused(of, labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        of(labels, probabilities)


def test_scores_are_of_two_classes():
    with pytest.raises(ValueError, match="need two classes, got 3"):
        metrics.scores([0, 1], np.full((2, 3), 1 / 3))


def test_the_bootstrap_takes_lists_and_refuses_settings_that_are_none():
    labels, probabilities = fake_predictions(40)
    expected = metrics.bootstrap(labels, probabilities, draws=5)
    assert metrics.bootstrap(labels.tolist(), probabilities.tolist(), draws=5) == expected
    for wrong, message in (({"draws": 0}, "draws must be an integer"), ({"level": 95}, "level must lie")):
        with pytest.raises(ValueError, match=message):
            metrics.bootstrap(labels, probabilities, **wrong)


@pytest.mark.parametrize("sure", [0.51, 0.9, 1.0])
def test_no_temperature_is_best_where_every_answer_is_right(sure):
    labels = np.array([0, 1, 0, 1])
    right = np.where(labels[:, None] == np.arange(2), sure, 1 - sure)
    for probabilities in (right, 1 - right, np.full((4, 2), 0.5)):
        with pytest.raises(ValueError, match="no temperature from 0.018 to 55 is best"):
            metrics.temperature(labels, probabilities)


def test_fine_tuning_offers_the_same_functions():
    for name in ("scores", "bootstrap", "calibration_error", "mean_interval", "check_labels"):
        assert getattr(finetune, name) is getattr(metrics, name)


def test_calibration_error_by_hand():
    labels = np.array([1, 1, 0, 1])
    sure = np.array([[0.05, 0.95], [0.05, 0.95], [0.05, 0.95], [0.35, 0.65]])
    # three texts at 0.95 of which two are right, one at 0.65 that is right
    assert metrics.calibration_error(labels, sure) == pytest.approx(
        (3 * (0.95 - 2 / 3) + (1 - 0.65)) / 4, abs=1e-12
    )
    with pytest.raises(ValueError, match="bins must be an integer of at least 1, not 0"):
        metrics.calibration_error(labels, sure, bins=0)


def test_probabilities_that_keep_their_word_have_little_calibration_error():
    rng = np.random.default_rng(0)
    positive = rng.random(20_000)
    labels = (rng.random(20_000) < positive).astype(int)
    honest = np.stack([1 - positive, positive], axis=1)
    assert metrics.calibration_error(labels, honest) < 0.01
    assert metrics.temperature(labels, honest) == pytest.approx(1, abs=0.05)
    boasting = metrics.soften(honest, 0.4)
    assert metrics.calibration_error(labels, boasting) > 0.05
    assert metrics.temperature(labels, boasting) == pytest.approx(2.5, rel=0.05)


def test_softening_keeps_the_order_and_undoes_itself():
    _, probabilities = fake_predictions()
    soft = metrics.soften(probabilities, 3.0)
    assert (soft.argmax(1) == probabilities.argmax(1)).all() and soft.max() < probabilities.max()
    np.testing.assert_allclose(metrics.soften(soft, 1 / 3.0), probabilities, atol=1e-9)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        metrics.soften(probabilities, 0)
    with pytest.raises(ValueError, match="must be positive, got nan"):
        metrics.soften(probabilities, float("nan"))
