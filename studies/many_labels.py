"""The runs behind book/results/many_labels.csv: fine-tuning for sentiment with more labels and more steps.

    python studies/many_labels.py book/results/checkpoints/4x96 --runs RUNS --output FILE

The argument is the folder of the 4x96 that the book ships. All of its weights, or of one with fresh weights,
are trained for ten times the steps of finetune.csv: on as many labels as the most there, which shows what
steps buy, and on twenty thousand, each read about once, which shows what labels add. Both starts get the same
tuning budget: four pairs of learning rates with the first seed, from which the best validation accuracy
chooses. Logistic regression on counted words, which needs no encoder, is tuned in the same way. Windows and
held-out texts are those of finetune.py; counted words are those of whole reviews. Finished runs are kept in
RUNS, and skipped.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import common
import numpy as np
from finetune import HELD_OUT, Setting, reviews_of, tune
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from helpers import data, runtime
from helpers import finetune as ft

TASK, STEPS, SEEDS = "imdb", 600, range(3)
LABELS = (1_600, 20_000)
WORDS = "word counts"
# AdamW's rate, for embeddings and head, with Muon's, for the matrices: over so many steps a rate that suits
# fresh matrices may wipe out what trained ones know.
PAIRS = tuple(product((3e-3, 1e-2), (2e-3, 5e-4)))
# By start, what is tuned: these rates, or the inverse strength of regularisation.
KNOBS = {
    "pre-trained": PAIRS,
    "scratch": PAIRS,
    WORDS: ((1.0, 0.0), (10.0, 0.0), (100.0, 0.0)),
}


def count_words(labels: int, strength: float, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Probabilities of the held-out splits by logistic regression on the TF-IDF of words and word pairs."""
    reviews = reviews_of(TASK)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=strength, max_iter=500))
    with runtime.timer() as clock:
        model.fit(*data.take_labelled(reviews, labels, seed=seed))
    held = {split: reviews.labelled(split)[0][:count] for split, count in HELD_OUT.items()}
    return {split: model.predict_proba(texts) for split, texts in held.items()}, {
        "optimizer": "none",
        "seconds": round(clock.seconds, 1),
    }


def one(
    model: Path, start: str, labels: int, knobs: tuple[float, float], seed: int, runs: Path
) -> common.Row:
    """The row of one run; read from ``runs`` when it is there."""
    name = f"{start}-{labels}-{knobs[0]:g}-{knobs[1]:g}-{seed}.json"
    return common.kept(runs / name, lambda: run(model, start, labels, knobs, seed))


def run(model: Path, start: str, labels: int, knobs: tuple[float, float], seed: int) -> common.Row:
    """Train one classifier and judge it on both held-out splits."""
    knob, muon = knobs
    if words := start == WORDS:
        guesses, how = count_words(labels, knob, seed)
    else:
        guesses, how = tune(model, Setting(TASK, labels, STEPS, start), knob, seed, muon=muon)
    row = {
        "start": start,
        "labels": labels,
        "steps": 0 if words else STEPS,
        "knob": knob,
        "muon": muon,
        "seed": seed,
    }
    for split, prefix in (("validation", "val_"), ("test", "")):
        truth = reviews_of(TASK).labelled(split)[1][: HELD_OUT[split]]
        measured = ft.scores(truth, guesses[split])
        row |= {prefix + key: value for key, value in measured.items() if not prefix or key == "accuracy"}
    return row | how | common.provenance("fp64" if words else None)


def best_knobs(rows: list[common.Row], start: str, labels: int) -> tuple[float, float]:
    """The knobs with the highest validation accuracy in the runs of the first seed."""
    tried = [row for row in rows if (row["start"], row["labels"]) == (start, labels)]
    best = max(tried, key=lambda row: row["val_accuracy"])
    return best["knob"], best["muon"]


def main() -> None:
    options = common.parser(__doc__, model=True, workers=True).parse_args()
    common.same_model(options.runs, options.model)

    def made(settings: list[tuple[str, int, tuple[float, float], int]]) -> list[common.Row]:
        jobs = [(options.model, *setting, options.runs) for setting in settings]
        return common.in_processes(one, jobs, options.workers)

    # The grid with the first seed, then what it chose with the others.
    cells = [(start, labels) for labels in LABELS for start in KNOBS]
    grid = made([(*cell, knobs, SEEDS[0]) for cell in cells for knobs in KNOBS[cell[0]]])
    chosen = {cell: best_knobs(grid, *cell) for cell in cells}
    rest = made([(*cell, chosen[cell], seed) for cell in cells for seed in SEEDS[1:]])
    rows = [
        row | {"chosen": (row["knob"], row["muon"]) == chosen[row["start"], row["labels"]]}
        for row in grid + rest
    ]
    common.write(rows, options.output, by=["start", "labels", "knob", "muon", "seed"])


if __name__ == "__main__":
    main()
