"""What every fit promises alike: bad input is named, poor input is said, results predict and print."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import laws
from helpers.laws import NotIdentifiedWarning

LAW = laws.Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
ROOT = Path(__file__).resolve().parent.parent


def runs() -> dict[str, np.ndarray]:
    """Twenty runs of five sizes on four amounts of text, with noise, and what else a fit may ask for."""
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 3e11, 4)))
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=N.size))
    C = np.repeat(np.geomspace(1e18, 1e21, 4), 5)  # and twenty runs around the best size of four budgets
    M = LAW.optimal(C).N * np.tile(np.geomspace(0.25, 4, 5), 4)
    U = D / np.tile([1, 3, 10, 30, 100], 4)
    worth = LAW.predict(N, laws.effective(U, D, 15.0)) * noise
    loss = np.linspace(1, 5, 20)
    accuracy = 0.5 + 0.4 / (1 + np.exp(-2 * (3 - loss))) + 0.01 * np.random.default_rng(1).normal(size=20)
    every = {"N": N, "D": D, "L": LAW.predict(N, D) * noise, "C": 6 * N * D, "U": U, "worth": worth}
    return every | {
        "C0": C,
        "M": M,
        "P": LAW.predict(M, C / 6 / M) * noise,
        "loss": loss,
        "accuracy": accuracy,
    }


DATA = runs()
repeats = partial(laws.fit_data_constrained, base=LAW, hold_N=np.inf)
FITS = {
    "parametric": (laws.fit_parametric, "N D L"),
    "isoflop": (laws.fit_isoflop, "C0 M P"),
    "envelope": (laws.fit_envelope, "C N L"),
    "line": (partial(laws.fit_power, with_floor=False), "N L"),
    "power": (partial(laws.fit_power, with_floor=True), "loss accuracy"),
    "kaplan": (laws.fit_kaplan, "N D L"),
    "multiplicative": (laws.fit_multiplicative, "L N D"),
    "repeats": (repeats, "N U D worth"),
    "downstream": (partial(laws.fit_downstream, chance=0.5), "loss accuracy"),
}


def columns(name: str) -> list[np.ndarray]:
    return [DATA[column] for column in FITS[name][1].split()]


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", FITS)
def test_a_value_that_is_not_finite_and_positive_is_named(name, bad):
    fit = FITS[name][0]
    for place in range(len(columns(name))):
        wrong = [column.copy() for column in columns(name)]
        wrong[place][3] = bad
        with pytest.raises(ValueError, match=rf"finite and positive, but \w+\[3\] is {bad}"):
            fit(*wrong)


@pytest.mark.parametrize("name", FITS)
def test_columns_must_be_as_long_as_each_other_and_not_empty(name):
    fit, (first, *rest) = FITS[name][0], columns(name)
    with pytest.raises(ValueError, match="lengths differ: .*19.*20"):
        fit(first[:-1], *rest)
    with pytest.raises(ValueError, match="is empty"):
        fit(*(column[:0] for column in columns(name)))
    with pytest.raises(ValueError, match="one dimension"):
        fit(first.reshape(4, 5), *rest)


@pytest.mark.parametrize("n_boot", [-5, 2.5, True])
@pytest.mark.parametrize("name", [name for name in FITS if name != "multiplicative"])
def test_the_number_of_resamples_is_a_count(name, n_boot):
    with pytest.raises(ValueError, match=f"n_boot must be an integer of at least 0, not {n_boot}"):
        FITS[name][0](*columns(name), n_boot=n_boot)


def test_the_number_of_budgets_is_a_count():
    with pytest.raises(ValueError, match="n_budgets must be an integer of at least 2, not 0"):
        laws.fit_envelope(*columns("envelope"), n_budgets=0)


@pytest.mark.filterwarnings("ignore:budgets left out")
@pytest.mark.parametrize("name", [name for name in FITS if name != "repeats"])
def test_one_run_measured_again_and_again_is_no_study(name):
    with pytest.raises(ValueError, match="not [01]:?|never varies|only 0 of 1 sizes"):
        FITS[name][0](*(np.full(8, column[2]) for column in columns(name)))


def test_one_run_with_repeats_cannot_fix_two_constants():
    same = [np.full(8, column[2]) for column in columns("repeats")]
    with pytest.raises(ValueError, match=r"different \(N, U, D\), has 2 parameters .* not 1"):
        laws.fit_data_constrained(*same, LAW)


SAID = {
    ("two sizes", "parametric"): "do not identify E, A, alpha",
    ("one budget", "parametric"): "do not identify E, B, beta",
    ("one budget", "kaplan"): "do not identify alpha_D, D_c",
}
REFUSED = {
    ("two sizes", "isoflop"): "needs 2 budgets with a lowest point inside, not 0",
    ("two sizes", "envelope"): "only 0 of 2 sizes wins a budget",
    ("one budget", "isoflop"): "needs 2 budgets with a lowest point inside, not 1",
    ("one budget", "envelope"): "only 0 of 5 sizes wins a budget",
    ("one budget", "multiplicative"): "D never varies",
}


def poor(what: str, name: str) -> list[np.ndarray]:
    """The columns of a fit, from two sizes or from one budget alone."""
    tokens = DATA["C0"] if name == "isoflop" else DATA["D"]
    keep = np.tile([True, True, False, False, False], 4) if what == "two sizes" else tokens == tokens[0]
    return [column[keep] for column in columns(name)]


@pytest.mark.parametrize(("what", "name"), SAID)
def test_two_sizes_or_one_budget_fix_fewer_parameters_and_this_is_said(what, name):
    with pytest.warns(NotIdentifiedWarning, match=SAID[what, name]):
        assert FITS[name][0](*poor(what, name)).not_identified


@pytest.mark.filterwarnings("ignore:budgets left out")
@pytest.mark.parametrize(("what", "name"), REFUSED)
def test_two_sizes_or_one_budget_have_no_frontier(what, name):
    with pytest.raises(ValueError, match=REFUSED[what, name]):
        FITS[name][0](*poor(what, name))


@pytest.mark.filterwarnings("ignore::helpers.laws.NotIdentifiedWarning")
@pytest.mark.parametrize("name", FITS)
def test_results_are_frozen_predict_have_intervals_and_print(name):
    more = {} if name == "multiplicative" else {"n_boot": 20}
    fit = FITS[name][0](*columns(name), **more)
    spans = fit.interval(0.9)
    assert spans and all(low <= high for low, high in spans.values())
    for parameter, (low, high) in fit.interval(0.5).items():
        assert spans[parameter][0] <= low <= high <= spans[parameter][1]
    assert str(fit) == fit.summary() and all(parameter in str(fit) for parameter in spans if parameter != "E")
    with pytest.raises(ValueError, match="level must lie between 0 and 1, not 95"):
        fit.interval(95)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.residuals = None


def test_stored_coverage_is_that_of_honest_intervals():
    """Of 200 sweeps of each kind; noise that trunks share leaves too few independent runs, and is apart."""
    stored = pd.read_csv(ROOT / "book/results/coverage.csv")
    assert len(stored) >= 7 and (stored["replications"] == 200).all()
    parameters = ["E", "A", "alpha", "B", "beta", "exponent_N"]
    alone, shared = (stored[(stored["trunk_noise"] > 0) == flag] for flag in (False, True))
    assert (
        alone[["sizes", "budgets", "seeds"]].drop_duplicates().shape[0] >= 3 and alone["noise"].nunique() >= 3
    )
    assert alone[parameters].stack().between(90, 99).all()
    assert shared[parameters].stack().between(85, 99).all()
