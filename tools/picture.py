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
    runs = runs[runs["seed"] == runs["seed"].min()].assign(fitted=lambda rows: rows["past_plateau"])
    corpus = pretrain.load_corpus()
    plots.style()
    plots.ladder(
        runs,
        title="Loss falls with data at every size",
        levels={"unigram entropy": corpus.unigram_entropy, "own input only": corpus.own_input_entropy},
    )
    plt.savefig(ROOT / "book" / "images" / "ladder.png", dpi=100)


if __name__ == "__main__":
    main()
