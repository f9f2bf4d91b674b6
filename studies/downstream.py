"""The runs behind book/results/downstream.csv: what fine-tuning makes of the encoders of the ladder.

    python studies/downstream.py NAMES --models RUNS --runs FOLDER --output book/results/downstream.csv

NAMES are sizes with their tokens, as 2x64-15998976; RUNS is the folder of the sweep, where each run has its
model; the ladder's table says which of them is meant (seed 0). All weights of an encoder are trained on
labelled reviews in the setting of finetune.py for IMDB: the same steps, windows and held-out texts. The
learning rates are those that the validation split chose there for the 4x96; no other encoder was tuned.
Finished runs are kept in FOLDER, and skipped.
"""

from __future__ import annotations

from pathlib import Path

import common
import pandas as pd
from finetune import HELD_OUT, Setting, tune

from helpers import data
from helpers import finetune as ft

TASK, STEPS = "imdb", 60
RATES = {100: 3e-3, 400: 1e-2, 1600: 3e-2}  # by labels; AdamW's, for embeddings and head
SEEDS = range(3)
COPIED = ("layers", "hidden", "params_non_embedding", "tokens", "mlm_loss")


def encoders(names: list[str], ladder: pd.DataFrame, runs: Path) -> list[tuple[str, Path, common.Row]]:
    """Name, model folder and columns to copy of the runs of these names; raises ``ValueError`` for others."""
    ladder = ladder[ladder["seed"] == 0]
    found = {f"{row['layers']}x{row['hidden']}-{row['tokens']}": row for row in ladder.to_dict("records")}
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"no run of seed 0 is called {unknown[0]!r}: expected some of {', '.join(found)}")
    chosen = {name: found[name] for name in names}
    return [
        (name, runs / row["run_id"] / "model", {column: row[column] for column in COPIED})
        for name, row in chosen.items()
    ]


def one(name: str, model: Path, about: common.Row, labels: int, seed: int, runs: Path) -> common.Row:
    """The row of one run; read from ``runs`` when it is there, made from these very weights."""
    path = runs / f"{name}-{labels}-{seed}-{common.digest_of(model)[:12]}.json"
    return common.kept(path, lambda: run(name, model, labels, seed)) | about


def run(name: str, model: Path, labels: int, seed: int) -> common.Row:
    """Fine-tune one encoder and judge it on both held-out splits."""
    guesses, how = tune(model, Setting(TASK, labels, STEPS, "pre-trained"), RATES[labels], seed)
    row = {"encoder": name, "labels": labels, "seed": seed, "rate": RATES[labels]}
    for split, prefix in (("validation", "val_"), ("test", "")):
        truth = data.reviews(TASK).labelled(split)[1][: HELD_OUT[split]]
        measured = ft.scores(truth, guesses[split])
        row |= {prefix + key: value for key, value in measured.items() if not prefix or key == "accuracy"}
    return row | how | common.provenance()


def main() -> None:
    parser = common.parser(__doc__, workers=True)
    parser.add_argument("names", nargs="+", help="sizes with tokens, as 2x64-15998976")
    parser.add_argument("--models", type=Path, required=True, help="the folder of the sweep")
    parser.add_argument("--ladder", type=Path, default=Path("book/results/ladder.csv"))
    options = parser.parse_args()
    chosen = encoders(options.names, pd.read_csv(options.ladder), options.models)
    for _, model, _ in chosen:
        common.weights(model)
    jobs = [(*entry, labels, seed, options.runs) for entry in chosen for labels in RATES for seed in SEEDS]
    rows = common.in_processes(one, jobs, options.workers)
    common.write(rows, options.output, by=["params_non_embedding", "tokens", "labels", "seed"])


if __name__ == "__main__":
    main()
