"""Parity with the published refit of Chinchilla (Besiroglu et al. 2024), on the points they digitised.

The file is not ours to redistribute. It is looked for in the folder named by HELPERS_DATA, then in
../shared/data.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.laws import NotIdentified, fit_multiplicative, fit_parametric

NAME = "epoch_chinchilla/svg_extracted_data.csv"
PUBLISHED_SE = {
    "E": 0.02566,
    "A": 124.522,
    "B": 1293.284,
    "alpha": 0.01540,
    "beta": 0.02060,
    "exponent_N": 0.020,
}


@pytest.fixture(scope="module")
def points():
    """All 245 digitised runs: N, D, L and C, highest losses last."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folders = [Path(os.environ["HELPERS_DATA"])] if "HELPERS_DATA" in os.environ else []
    found = next((folder / NAME for folder in [*folders, beside] if (folder / NAME).exists()), None)
    if found is None:
        pytest.skip(f"no {NAME}: set HELPERS_DATA to a folder that holds it")
    table = pd.read_csv(found).sort_values("loss")
    N, C, L = (table[name].to_numpy() for name in ("Model Size", "Training FLOP", "loss"))
    return N, C / (6 * N), L, C


def test_refit_of_240_points(points):
    """Within a tenth of a standard error of the optimum; the printed values stopped a little short of it."""
    N, D, L, _ = (column[:-5] for column in points)
    fit = fit_parametric(N, D, L)
    optimum = {"E": 1.8172, "A": 477.8, "B": 2143.5, "alpha": 0.3473, "beta": 0.3672, "exponent_N": 0.5139}
    printed = {"E": 1.817, "A": 482.0, "B": 2085.4, "alpha": 0.348, "beta": 0.366, "exponent_N": 0.513}
    for name, error in PUBLISHED_SE.items():
        assert getattr(fit, name) == pytest.approx(optimum[name], abs=0.01 * error), name
        assert getattr(fit, name) == pytest.approx(printed[name], abs=0.1 * error), name
    assert fit.objective == pytest.approx(0.00101827, rel=1e-5)


def test_all_245_points_change_the_answer(points):
    N, D, L, _ = points
    fit = fit_parametric(N, D, L)
    assert (fit.E, fit.alpha, fit.beta, fit.exponent_N) == pytest.approx(
        (1.8913, 0.3493, 0.4530, 0.565), abs=5e-4
    )
    assert (fit.A, fit.B) == pytest.approx((495.7, 12846), rel=1e-3)
    assert fit.optimal(5.88e23).N == pytest.approx(120e9, rel=0.02)


def test_bootstrap_interval_agrees_with_the_published_one(points):
    N, D, L, _ = (column[:-5] for column in points)
    found = fit_parametric(N, D, L, n_boot=300).interval(0.95)
    published = {"E": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
    for name, (low, high) in published.items():
        assert found[name] == pytest.approx((low, high), abs=0.35 * PUBLISHED_SE[name]), name


def test_profile_of_the_floor_is_narrow_here(points):
    N, D, L, _ = (column[:-5] for column in points)
    low, high = fit_parametric(N, D, L).profile().interval
    assert 1.76 < low < 1.8172 < high < 1.88


def test_their_compute_is_exactly_6nd(points):
    N, D, L, C = points
    with pytest.raises(NotIdentified):
        fit_multiplicative(L, N, D, C)
    assert np.allclose(C, 6 * N * D)
