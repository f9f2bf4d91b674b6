"""The figures of distillation: the frontier by definition, and every method drawn and named."""

import numpy as np
import pandas as pd
import pytest

from helpers import plots


def test_the_frontier_is_what_none_beats():
    rng = np.random.default_rng(0)
    cost, quality = rng.integers(0, 8, 40), rng.integers(0, 8, 40)

    def beaten(i):
        return any(
            cost[j] <= cost[i] and quality[j] >= quality[i] and (cost[j], quality[j]) != (cost[i], quality[i])
            for j in range(40)
        )

    found = plots.frontier(cost, quality)
    expected = {(cost[i], quality[i]) for i in range(40) if not beaten(i)}
    assert {(cost[i], quality[i]) for i in found} == expected and len(found) == len(expected)
    assert list(cost[found]) == sorted(cost[found])
    with pytest.raises(ValueError, match="finite"):
        plots.frontier([1.0, np.nan], [1.0, 2.0])


def test_pareto_names_every_method_in_every_panel():
    table = pd.DataFrame(
        {
            "name": ["a", "b", "c"], "family": ["x", "y", "y"], "mb": [1.0, 2.0, 4.0], "ms": [3.0, 1.0, 2.0],
            "accuracy": [0.7, 0.8, 0.75], "low": 0.6, "high": 0.9,
        }
    )  # fmt: skip
    figure = plots.pareto(table, x={"mb": "MB", "ms": "ms"}, y="accuracy", title="T", ylabel="accuracy")
    for ax, filled in zip(figure.axes, (2, 1), strict=True):
        assert {text.get_text() for text in ax.texts} == {"a", "b", "c"} and ax.get_xscale() == "log"
        dots = [line for line in ax.lines if line.get_marker() == "o"]
        assert len(dots) == 3
        assert sum(line.get_markerfacecolor() != "white" for line in dots) == filled
    figure = plots.pareto(
        table, x={"mb": "MB"}, y="accuracy", title="T", ylabel="accuracy", by="name", ylim=(0.72, 0.9)
    )
    assert "a: 1" in {text.get_text() for text in figure.axes[0].texts}


def test_temperature_curve_draws_lines_and_levels():
    table = pd.DataFrame(
        {"arm": ["s", "s", "h"], "temperature": [1, 4, 1], "y": [0.1, 0.3, 0.2], "low": 0.0, "high": 0.4}
    )
    ax = plots.temperature_curve(table, y="y", title="T", ylabel="share", levels={"alone": 0.05})
    assert {text.get_text() for text in ax.texts} == {"s", "h", "alone"}
    assert list(ax.get_xticks()) == [1, 4]
