"""The picture of the README, drawn from the shipped ladder: `python tools/picture.py`."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from chapters import ROOT

from helpers import plots, pretrain


def main() -> None:
    runs = pd.read_csv(ROOT / "book" / "results" / "ladder.csv")
    size = "params_non_embedding"
    # A mean over seeds that left the plateau and seeds that did not would be the loss of no model.
    most = runs.groupby(size)["past_plateau"].transform("mean") > 0.5
    means = (
        runs[runs["past_plateau"] == most]
        .groupby([size, "tokens"], as_index=False)[["mlm_loss", "past_plateau"]]
        .mean()
    )
    corpus = pretrain.load_corpus()
    plots.style()
    ax = plots.ladder(
        means.assign(fitted=means["past_plateau"] > 0.5),
        title="Loss falls with data at every size",
        levels={"unigram entropy": corpus.unigram_entropy, "own input only": corpus.own_input_entropy},
    )
    ax.scatter(runs["tokens"], runs["mlm_loss"], s=12, color="0.5", linewidths=0, zorder=1)  # each seed
    plt.savefig(ROOT / "book" / "images" / "ladder.png", dpi=100)


if __name__ == "__main__":
    main()
