"""Figures: titles, units and labels stand; show leaves a PNG with alt text and no open figure."""

import io
import itertools
import runpy
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers import laws, plots
from helpers.plots import canvas


@pytest.fixture
def runs():
    N, D = (grid.ravel() for grid in np.meshgrid([25e3, 150e3, 450e3, 2.7e6], [1e6, 2e6, 4e6, 8e6]))
    noise = 0.01 * np.random.default_rng(0).normal(size=N.size)
    loss = (2 + 8 / N**0.2 + 300 / D**0.4) * np.exp(noise)
    table = pd.DataFrame({"params_non_embedding": N, "tokens": D, "mlm_loss": loss})
    return table.assign(fitted=table["tokens"] < 8e6)


@pytest.fixture
def fit(runs):
    return laws.fit_parametric(runs["params_non_embedding"], runs["tokens"], runs["mlm_loss"])


def texts(ax):
    return {text.get_text() for text in ax.texts}


def test_ladder_labels_each_size_and_leaves_unfitted_points_open(runs, fit):
    ax = plots.ladder(runs, title="Loss falls", fit=fit, levels={"unigram entropy": 6.5})
    assert ax.get_title(loc="left") == "Loss falls" and "nats" in ax.get_ylabel()
    assert {"25k", "150k", "450k", "2.7M", "unigram entropy"} <= texts(ax)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    assert faces.count("white") == 4
    curves = [line for line in ax.lines if line.get_marker() != "o" and len(line.get_xdata()) == 60]
    assert curves[0].get_ydata()[0] == pytest.approx(fit.predict(25e3, 1e6))


def test_loss_by_size_labels_each_budget(runs):
    ax = plots.loss_by_size(runs, title="t")
    assert {"1M", "2M", "4M", "8M"} <= texts(ax) and "non-embedding" in ax.get_xlabel()


def test_loss_curves_draw_the_plateau():
    log = pd.DataFrame({"step": [10, 20], "mlm": [6.5, 5.0], "eval_mlm_loss": [np.nan, 5.1]})
    ax = plots.loss_curves({"4x128": log}, unigram_entropy=6.4, batch_tokens=4096, title="t")
    assert {"4x128", "unigram entropy"} <= texts(ax)
    assert ax.lines[0].get_xdata()[-1] == pytest.approx(20 * 4096 / 1e6)
    assert [line for line in ax.lines if line.get_linestyle() == "--"][0].get_ydata()[0] == 6.4


def test_loss_curves_draw_further_levels():
    log = pd.DataFrame({"step": [10, 20], "mlm": [6.5, 5.0]})
    ax = plots.loss_curves(
        {"a": log}, unigram_entropy=6.4, levels={"own input only": 6.0}, batch_tokens=1, title="t"
    )
    assert {"unigram entropy", "own input only"} <= texts(ax)
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == [6.4, 6.0]


def test_the_other_figures_draw_what_they_are_given(fit):
    ax = plots.predictions(list("abcd"), [5, 5, 4, 4], ([4] * 4, [6] * 4), [5, 5, 4, 7], title="t")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list("abcd")
    ax = plots.profile(fit.profile(np.linspace(0, 2.5, 9)), title="t")
    assert ax.get_ylim()[1] > 3.8 and "E" in ax.get_xlabel()
    ax = plots.bars(
        ["Adam", "Muon"], [2.0, 1.0], low=[1.5, 0.5], high=[2.5, 1.5], reference=1.0, title="t", xlabel="nats"
    )
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["Adam", "Muon"]
    x = np.geomspace(1e6, 1e7, 5)
    assert plots.band(x, x, (x / 2, x * 2), title="t", xlabel="FLOPs", ylabel="N").get_xscale() == "log"
    curves = {"line": (x, np.linspace(6, 5, 5)), "gone": (x, np.linspace(6, -50, 5))}
    ax = plots.extrapolations(x, x * 0 + 5, x < 5e6, curves, title="t", xlabel="tokens", ylim=(4, 7))
    assert ax.get_ylim() == (4, 7) and "gone" in texts(ax)


def test_quality_by_loss_has_a_line_a_size_and_the_level():
    table = pd.DataFrame(
        {
            "encoder": ["2x32-5", "2x32-9", "4x96-5", "4x96-9"],
            "tokens": [5, 9, 5, 9],
            "mlm_loss": [6.3, 6.1, 5.6, 4.5],
            "mean": [0.55, 0.56, 0.6, 0.66],
            "sd": [0.01] * 4,
        }
    )
    ax = plots.quality_by_loss(table, level=0.8, level_name="MiniLM", title="t")
    assert {"2x32", "4x96", "MiniLM"} <= {text.get_text() for text in ax.texts}
    assert ax.xaxis_inverted() and len(ax.containers) == 2
    drawn = table.assign(labels=[100, 1600] * 2, median=table["mean"], low=0.4, high=0.7)
    ax = plots.tuned_by_loss(drawn, title="t")
    assert texts(ax) == {"100 labels", "1,600 labels"} and ax.xaxis_inverted() and len(ax.containers) == 2
    bars = np.concatenate([np.array(box[2][0].get_segments())[..., 1] for box in ax.containers])
    assert (bars == [0.4, 0.7]).all()


def test_sweeps_and_courses_ring_the_best_of_each_arm():
    arms = ["full"] * 3 + ["lora"] * 3
    table = pd.DataFrame({"arm": arms, "rate": [1e-3, 1e-2, 1e-1] * 2, "step": [10, 20, 30] * 2})
    table = table.assign(
        val_accuracy=[0.6, 0.7, 0.5, 0.6, 0.61, 0.65],
        loss=[0.6, 0.4, 0.2, 0.6, 0.6, 0.5],
        val_loss=[0.6, 0.5, 0.9, 0.7, 0.6, 0.55],
    )
    for draw, expected in ((plots.rate_sweep, [1e-2, 1e-1]), (plots.courses, [20, 30])):
        ax = draw(table, title="t")
        rings = [line for line in ax.lines if line.get_fillstyle() == "none"]
        assert [line.get_xdata()[0] for line in rings] == expected
        assert {"full", "lora"} <= texts(ax)


def test_label_curve_shifts_the_arms_apart():
    table = pd.DataFrame(
        {
            "labels": [100, 1000] * 2,
            "arm": ["pre-trained"] * 2 + ["from scratch"] * 2,
            "accuracy": [0.7, 0.8, 0.6, 0.7],
        }
    ).assign(low=lambda t: t["accuracy"] - 0.02, high=lambda t: t["accuracy"] + 0.02)
    ax = plots.label_curve(table, title="t")
    assert {"pre-trained", "from scratch"} <= texts(ax) and ax.get_ylabel() == "accuracy"
    first, second = (line.get_xdata() for line in ax.lines if line.get_marker() == "o")
    assert first[0] != second[0]
    assert {text.xy[0] for text in ax.texts} == {max(first[-1], second[-1])}


def test_labels_do_not_overlap():
    ax = plots.new_axes()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    canvas.label_ends(ax, [(name, 1.0, 0.5, "k") for name in "abc"])
    heights = sorted(text.xyann[1] for text in ax.texts)
    assert np.diff(heights).min() > 11


def test_show_stores_png_and_alt_text_and_closes(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **settings: shown.append((data, settings)))
    plots.show(plots.new_axes(), alt="An empty pair of axes")
    ((data, settings),) = shown
    with Image.open(io.BytesIO(data["image/png"])) as image:
        assert image.format == "PNG" and image.info["dpi"][0] <= 100.5
        assert image.width < 800
    assert settings["metadata"] == {"image/png": {"alt": "An empty pair of axes"}} and settings["raw"]
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="alt text .* 'figure'"):
        plots.show(plots.new_axes(), alt="figure")


def test_figures_are_drawn_without_ipython(monkeypatch):
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    drawn = runpy.run_path(canvas.__file__)
    assert drawn["png"](drawn["new_axes"]().figure).startswith(b"\x89PNG")
    plt.close("all")


def test_points_keep_their_colours_on_the_page():
    ax = plots.new_axes()
    for i, colour in enumerate(canvas.COLOURS):
        ax.plot(i, i, "o", color=colour)
    with Image.open(io.BytesIO(canvas.png(ax.figure))) as image:
        drawn = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in canvas.COLOURS:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(drawn - wanted).max(axis=1).min() <= 8, colour


def test_labels_are_dark_enough_to_read():
    assert canvas.darker(canvas.BLACK) == (0, 0, 0)
    red, green, blue = canvas.darker(canvas.YELLOW)
    assert 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.184
    assert red > blue


def test_counts_read_as_words():
    assert [plots.count(v) for v in (7, 999, 1000, 24_960, 2_670_000, 1.5e9)] == [
        "7",
        "999",
        "1k",
        "25k",
        "2.67M",
        "1.5G",
    ]


def test_names_of_near_points_do_not_overlap():
    points = [("a long name", 1.0, 1.0), ("another name", 1.02, 1.01), ("a third name", 0.98, 1.02)]
    ax = plots.new_axes()
    ax.plot([p[1] for p in points], [p[2] for p in points], "o")
    ax.set(xlim=(0, 2), ylim=(0, 2))
    canvas.label_points(ax, points)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert {text.get_text() for text in ax.texts} == {name for name, _, _ in points}
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))
