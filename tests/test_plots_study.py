"""The figures of a study in the making: what they draw stands where the numbers say."""

import numpy as np
import pandas as pd
import pytest

from helpers.plots import study


def texts(ax):
    return [text.get_text() for text in ax.texts]


def rings(ax):
    return [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_markersize() == 12]


def test_tuning_rings_the_best_rate_of_each_size():
    table = pd.DataFrame(
        {"size": ["a", "a", "b", "b"], "lr_muon": [2.0, 1.0, 1.0, 2.0], "mlm_loss": [5.0, 6.0, 4.0, 4.5]}
    )
    ax = study.tuning(table, title="T")
    assert rings(ax) == [(2.0, 5.0), (1.0, 4.0)] and sorted(texts(ax)) == ["a", "b"]


def test_isoflop_averages_seeds_and_leaves_lonely_sizes_out():
    ax = study.isoflop([1, 1, 1, 1, 2], [10, 10, 20, 30, 10], [5, 6, 4, 7, 3], title="T")
    assert ax.lines[0].get_xydata().tolist() == [[10, 5.5], [20, 4], [30, 7]]
    assert rings(ax) == [(20, 4)] and texts(ax) == ["1.0e+00 FLOPs"]


def test_live_runs_stand_on_a_band_of_the_shipped_curve():
    shipped = pd.DataFrame({"tokens": [10, 20, 20], "mlm_loss": [5.0, 4.0, 4.2]})
    ax = study.live(shipped, pd.DataFrame({"tokens": [10], "mlm_loss": [5.05]}), 0.1, title="T")
    assert ax.lines[0].get_xydata().tolist() == [[10, 5.0], [20, 4.1]]
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(4.0) and band[:, 1].max() == pytest.approx(5.1)
    assert sorted(texts(ax)) == ["live", "shipped"]


def test_repeats_draw_a_line_for_each_amount_of_text_and_one_for_new_text():
    runs = pd.DataFrame({"tokens": [4, 8, 8], "unique_tokens": [2, 2, 4], "mlm_loss": [3.0, 2.5, 2.0]})
    ax = study.repeats(runs, pd.DataFrame({"tokens": [4, 8], "mlm_loss": [2.5, 1.5]}), title="T")
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1, 2]
    assert sorted(texts(ax)) == ["2", "4", "all new"]


def test_schedules_leave_gaps_where_a_branch_is_not():
    rates = {"trunk": np.array([1.0, 1.0, np.nan]), "2": np.array([np.nan, 1.0, 0.5])}
    ax = study.schedules(np.arange(3), rates, title="T")
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 1], [1, 2]]
    assert sorted(texts(ax)) == ["2", "trunk"]
