"""The runs behind book/results/finetune.csv: what pre-training buys, by task and number of labels.

    python studies/finetune.py MODEL_FOLDER --runs RUNS --output book/results/finetune.csv

Both starts get the same tuning budget: every learning rate of the grid once (seed 0); the best validation
accuracy chooses, and the chosen rate runs with the remaining seeds. Test scores are written for every run, so
that a reader can see what choosing on the test split would have claimed. Finished runs are kept in RUNS, and
skipped.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from helpers import data, models, runtime
from helpers import finetune as ft
from helpers import tokenizer as tk

TASKS = {"imdb": (64, 2), "rotten_tomatoes": (64, 1)}  # tokens in a window, windows in a text
STARTS = ("pre-trained", "scratch")
LABELS = (100, 400, 1600)
RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2, 3)
CONFIG = {"epochs": 3.0, "min_steps": 60, "optimizer": "adamw", "batch": 32}


def one(
    folder: Path, runs: Path, task: str, start: str, labels: int, rate: float, seed: int
) -> dict[str, Any]:
    """One run's row; read from ``runs`` when it is there."""
    path = runs / f"{task}-{start}-{labels}-{rate:g}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    seq_len, windows = TASKS[task]
    tokenizer, reviews = tk.load(folder), data.reviews(task)
    pretrained = models.load(folder).float()
    fresh = models.build(models.size_of(pretrained), vocab_size=pretrained.config.vocab_size, seed=100 + seed)
    encoder = (pretrained if start == "pre-trained" else fresh).bert
    config = ft.FinetuneConfig(lr_adam=rate, seed=seed, seq_len=seq_len, windows=windows, **CONFIG)

    def cut(texts: list[str]) -> ft.Windows:
        return ft.cut_windows(tk.encode(tokenizer, texts), seq_len=seq_len, windows=windows)

    texts, targets = data.take_labelled(reviews, labels, seed=seed)
    result = ft.finetune(encoder, cut(texts), targets, config, progress=False)
    row = {
        "task": task,
        "start": start,
        "labels": labels,
        "seed": seed,
        "lr": rate,
        "optimizer": config.optimizer,
    }
    for split, prefix in (("validation", "val_"), ("test", "")):
        held, truth = reviews.labelled(split)
        measured = ft.scores(truth, ft.predict(result.model, cut(held)))
        row |= {prefix + name: value for name, value in measured.items() if not prefix or name == "accuracy"}
    row |= {
        "epochs": config.epochs,
        "steps": result.history.steps,
        "seconds": round(result.history.seconds, 1),
    }
    with runtime.write_atomically(path) as temporary:
        temporary.write_text(json.dumps(row))
    return row


def family(folder: Path, runs: Path, task: str, start: str, labels: int) -> list[dict[str, Any]]:
    """The runs of one setting: the grid with the first seed, then the chosen rate with the others."""
    torch.set_num_threads(1)
    grid = [one(folder, runs, task, start, labels, rate, SEEDS[0]) for rate in RATES]
    best = max(grid, key=lambda row: row["val_accuracy"])["lr"]
    rows = grid + [one(folder, runs, task, start, labels, best, seed) for seed in SEEDS[1:]]
    return [row | {"chosen": row["lr"] == best} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    settings = [(task, start, labels) for task in TASKS for labels in reversed(LABELS) for start in STARTS]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(family, options.model, options.runs, *setting) for setting in settings]
        rows = [row for job in jobs for row in job.result()]
    table = pd.DataFrame(rows).sort_values(["task", "start", "labels", "lr", "seed"])
    with runtime.write_atomically(options.output) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
