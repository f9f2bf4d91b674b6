"""The figures of compression: every point drawn where its numbers say, names and levels present."""

import pandas as pd

from helpers.plots import compression


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_cost_and_quality_draws_and_names_every_model():
    table = pd.DataFrame(
        {"name": ["a", "b", "c"], "N": [1e5, 1e5, 9e5], "loss": [5.0, 5.2, 4.0], "low": 3.9, "high": 5.3}
    )
    ax = compression.cost_and_quality(table, x="N", y="loss", title="T", xlabel="parameters", ylabel="nats")
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [tuple(point) for line in dots for point in line.get_xydata()] == [
        (1e5, 5.0),
        (1e5, 5.2),
        (9e5, 4.0),
    ]
    assert set(texts(ax)) == {"a", "b", "c"} and ax.get_xscale() == "log"
    assert list(ax.get_xticks()) == [1e5, 9e5] and len(dots) == 1 and ax.get_legend() is None
    table["kind"] = ["few", "many", "few"]
    ax = compression.cost_and_quality(table, x="N", y="loss", title="T", xlabel="parameters", ylabel="nats")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["few", "many"]


def test_against_density_draws_a_line_a_method_and_its_levels():
    table = pd.DataFrame(
        {
            "method": ["m", "m", "s"],
            "density": [0.5, 0.1, 0.5],
            "rise": [0.1, 1.0, 0.2],
            "low": 0.0,
            "high": 2.0,
        }
    )
    ax = compression.against_density(table, y="rise", title="T", ylabel="nats", levels={"limit": 1.5})
    lines = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert lines[0] == [[0.1, 1.0], [0.5, 0.1]] and lines[1] == [[0.5, 0.2]]
    assert set(texts(ax)) == {"m", "s", "limit"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10 %", "50 %"]
