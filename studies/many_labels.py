"""The runs behind book/results/many_labels.csv: fine-tuning for sentiment with thousands of labels.

    python studies/many_labels.py book/results/checkpoints --runs RUNS --output book/results/many_labels.csv

The first argument is the folder of the shipped encoders. All weights of the 4x96, or of one with fresh
weights, are trained for ten times the steps of finetune.csv, which read twenty thousand reviews about once;
both starts get the same tuning budget as there. The other encoders are trained on all of these labels, at the
learning rate that the validation split chose for the 4x96. Windows and held-out texts are those of
finetune.py. Finished runs are kept in RUNS, and skipped.
"""

from __future__ import annotations

from pathlib import Path

import common
from finetune import HELD_OUT, RATES, STARTS, Setting, reviews_of, tune

from helpers import finetune as ft

TASK, STEPS, SEEDS = "imdb", 600, range(3)
LABELS = (20_000, 6_400, 1_600)
BASE = "4x96"  # the encoder that is tuned
OTHERS = ("2x64", "4x128", "6x192")


def one(
    models: Path, encoder: str, start: str, labels: int, rate: float, seed: int, runs: Path
) -> common.Row:
    """The row of one run; read from ``runs`` when it is there."""
    name = f"{encoder}-{start}-{labels}-{rate:g}-{seed}.json"
    return common.kept(runs / name, lambda: run(models / encoder, start, labels, rate, seed))


def run(model: Path, start: str, labels: int, rate: float, seed: int) -> common.Row:
    """Fine-tune one encoder and judge it on both held-out splits."""
    guesses, how = tune(model, Setting(TASK, labels, STEPS, start), rate, seed)
    row = {
        "encoder": model.name,
        "start": start,
        "labels": labels,
        "steps": STEPS,
        "rate": rate,
        "seed": seed,
    }
    for split, prefix in (("validation", "val_"), ("test", "")):
        truth = reviews_of(TASK).labelled(split)[1][: HELD_OUT[split]]
        measured = ft.scores(truth, guesses[split])
        row |= {prefix + key: value for key, value in measured.items() if not prefix or key == "accuracy"}
    return row | how | common.provenance()


def best_rate(rows: list[common.Row], start: str, labels: int) -> float:
    """The learning rate with the highest validation accuracy in the runs of the first seed."""
    tried = [r for r in rows if (r["start"], r["labels"], r["seed"]) == (start, labels, SEEDS[0])]
    return float(max(tried, key=lambda row: row["val_accuracy"])["rate"])


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

    # The grid with the first seed; then the chosen rate, for the other seeds and the other encoders.
    cells = [(start, labels) for labels in LABELS for start in STARTS]
    grid = made([(BASE, *cell, rate, SEEDS[0]) for cell in cells for rate in RATES])
    chosen = {cell: best_rate(grid, *cell) for cell in cells}
    rest = [(BASE, *cell, chosen[cell], seed) for cell in cells for seed in SEEDS[1:]]
    most = ("pre-trained", max(LABELS))
    others = [(encoder, *most, chosen[most], seed) for encoder in OTHERS for seed in SEEDS]
    rows = [
        row | {"chosen": row["rate"] == chosen[row["start"], row["labels"]]}
        for row in grid + made(others + rest)
    ]
    common.write(rows, options.output, by=["encoder", "start", "labels", "rate", "seed"])


if __name__ == "__main__":
    main()
