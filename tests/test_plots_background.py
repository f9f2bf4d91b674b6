"""Figures of chapter 1: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest

from helpers.plots import background


def test_attention_map_names_both_axes_and_wants_a_word_each():
    ax = background.attention_map(np.eye(3), ["a", "b", "c"], title="t")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert "looked at" in ax.get_xlabel() and ax.collections[0].get_array().tolist() == np.eye(3).tolist()
    with pytest.raises(ValueError, match=r"2 words need weights \(2, 2\), got \(3, 3\)"):
        background.attention_map(np.eye(3), ["a", "b"], title="t")


def test_image_grid_keeps_images_in_their_cells():
    pixels = np.zeros((2, 3, 4, 4))
    pixels[1, 2] = 1.0
    ax = background.image_grid(pixels, rows=["r0", "r1"], columns=["c0", "c1", "c2"], title="t")
    drawn = ax.images[0].get_array()
    assert drawn.shape == (12, 18) and drawn[:6].sum() == 0 and drawn[7:11, 13:17].sum() == 16
    column, row = ax.get_xticks()[2], ax.get_yticks()[1]
    assert drawn[round(row), round(column)] == 1
    with pytest.raises(ValueError, match="2 rows and 2 columns of images, got"):
        background.image_grid(pixels, rows=["r0", "r1"], columns=["c0", "c1"], title="t")


def test_against_baseline_draws_both_levels_of_each_task():
    table = pd.DataFrame(
        {
            "task": ["one", "two"],
            "baseline": [0.5, 0.25],
            "measured": [0.5, 0.9],
            "low": [0.4, 0.8],
            "high": 1.0,
        }
    )
    ax = background.against_baseline(table, title="t", xlabel="share")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]
    lines = {tuple(line.get_xdata()) for line in ax.lines}
    assert {(0.5, 0.25), (0.5, 0.9)} <= lines and ax.get_xlim() == (0, 1)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["baseline", "trained model"]


def test_lines_carry_names_levels_and_ticks():
    table = pd.DataFrame({"n": [1e6, 2e6] * 2, "loss": [3.0, 2.0, 2.5, 1.5], "size": ["a", "a", "b", "b"]})
    ax = background.lines(
        table,
        x="n",
        y="loss",
        by="size",
        title="t",
        xlabel="x",
        ylabel="y",
        levels={"floor": 1.0},
        ticks=[1e6, 2e6],
    )
    assert {"a", "b", "floor"} <= {text.get_text() for text in ax.texts}
    assert ax.get_xscale() == "log" and ax.get_yscale() == "linear" and list(ax.get_xticks()) == [1e6, 2e6]
