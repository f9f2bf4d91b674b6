"""The runs behind book/results/many_labels.csv: fine-tuning for sentiment with thousands of labels.

    python studies/many_labels.py book/results/checkpoints --runs RUNS --output book/results/many_labels.csv

The first argument is the folder of the shipped encoders. All weights of the 4x96, or of one with fresh
weights, are trained for ten times the steps of finetune.csv, which read twenty thousand reviews about once;
both starts get the same tuning budget as there. Logistic regression on counted words, which needs no encoder,
is tuned in the same way. The other encoders are trained on all of these labels, at the learning rate that the
validation split chose for the 4x96. Windows and held-out texts are those of finetune.py; counted words are
those of whole reviews. Finished runs are kept in RUNS, and skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
from finetune import HELD_OUT, RATES, Setting, reviews_of, tune
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from helpers import data, runtime
from helpers import finetune as ft

TASK, STEPS, SEEDS = "imdb", 600, range(3)
LABELS = (20_000, 1_600)
BASE = "4x96"  # the encoder that is tuned
OTHERS = ("2x64", "4x128")
WORDS = "word counts"
# By start, what is tuned: AdamW's rate for embeddings and head, or the inverse strength of regularisation.
KNOBS = {"pre-trained": RATES, "scratch": RATES, WORDS: (1.0, 10.0, 100.0)}


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
    models: Path, encoder: str, start: str, labels: int, knob: float, seed: int, runs: Path
) -> common.Row:
    """The row of one run; read from ``runs`` when it is there."""
    name = f"{encoder}-{start}-{labels}-{knob:g}-{seed}.json"
    return common.kept(runs / name, lambda: run(models / encoder, start, labels, knob, seed))


def run(model: Path, start: str, labels: int, knob: float, seed: int) -> common.Row:
    """Train one classifier and judge it on both held-out splits."""
    if start == WORDS:
        guesses, how = count_words(labels, knob, seed)
    else:
        guesses, how = tune(model, Setting(TASK, labels, STEPS, start), knob, seed)
    steps = 0 if start == WORDS else STEPS
    row = {
        "encoder": model.name,
        "start": start,
        "labels": labels,
        "steps": steps,
        "knob": knob,
        "seed": seed,
    }
    for split, prefix in (("validation", "val_"), ("test", "")):
        truth = reviews_of(TASK).labelled(split)[1][: HELD_OUT[split]]
        measured = ft.scores(truth, guesses[split])
        row |= {prefix + key: value for key, value in measured.items() if not prefix or key == "accuracy"}
    return row | how | common.provenance("fp64" if start == WORDS else None)


def best_knob(rows: list[common.Row], start: str, labels: int) -> float:
    """The knob with the highest validation accuracy in the runs of the first seed."""
    tried = [row for row in rows if (row["start"], row["labels"]) == (start, labels)]
    return float(max(tried, key=lambda row: row["val_accuracy"])["knob"])


def main() -> None:
    parser = common.parser(__doc__, workers=True)
    parser.add_argument("models", type=Path, help="the folder of the shipped encoders")
    options = parser.parse_args()
    for encoder in (BASE, *OTHERS):
        common.weights(options.models / encoder)
    common.same_model(options.runs, options.models / BASE)

    def made(settings: list[tuple[str, str, int, float, int]]) -> list[common.Row]:
        jobs = [(options.models, *setting, options.runs) for setting in settings]
        return common.in_processes(one, jobs, options.workers)

    # The grid with the first seed; then what it chose, for the other seeds and the other encoders.
    encoders = {start: "none" if start == WORDS else BASE for start in KNOBS}
    cells = [(start, labels) for labels in LABELS for start in KNOBS]
    grid = made([(encoders[cell[0]], *cell, knob, SEEDS[0]) for cell in cells for knob in KNOBS[cell[0]]])
    chosen = {cell: best_knob(grid, *cell) for cell in cells}
    rest = [(encoders[cell[0]], *cell, chosen[cell], seed) for cell in cells for seed in SEEDS[1:]]
    most = ("pre-trained", max(LABELS))
    others = [(encoder, *most, chosen[most], seed) for encoder in OTHERS for seed in SEEDS]
    rows = [
        row | {"chosen": row["knob"] == chosen[row["start"], row["labels"]]}
        for row in grid + made(others + rest)
    ]
    common.write(rows, options.output, by=["encoder", "start", "labels", "knob", "seed"])


if __name__ == "__main__":
    main()
