"""The runs behind book/results/adaptation.csv and overfitting.csv: what to train, how fast, how long.

    python studies/adaptation.py book/results/checkpoints/4x96 --runs RUNS --output book/results

Ways: every way of `helpers.adaptation` trains the shipped encoder on IMDB with the same labels, steps and
batches; "scratch" trains all weights from fresh ones. Each setting (way and number of labels) tries four
learning rates with the first seed, a factor of four apart; the best validation accuracy chooses, and the
chosen rate runs with the other seeds. Within a run the step with the lowest validation loss is kept.

Overfitting: all weights on 100 labels for many steps, plain, with dropout and with weight decay, all at one
rate; overfitting.csv has the course of each run, and the test scores at its last and at its kept step.

A text is read through its head and its tail. Finished runs are kept in RUNS, and skipped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd

from helpers import adaptation, data, models, stopping
from helpers import finetune as ft
from helpers.adaptation import Way

SEQ_LEN, WINDOWS, BATCH, STEPS, EVERY = 64, 2, 32, 60, 30
HELD_OUT = {"validation": 500, "test": 1000}
LABELS, SEEDS = (1600, 400), (0, 1, 2)
# The fewer numbers a way trains, the further each must go: small ways try rates that wreck a whole model.
SLOW = (5e-4, 2e-3, 8e-3, 3.2e-2)
FAST = (2e-3, 8e-3, 3.2e-2, 0.128)
WAYS = {
    "full": SLOW, "frozen": FAST, "scratch": SLOW, "lora-4": FAST,
    "last-1": SLOW, "prefix-8": FAST, "prompt-8": FAST,
}  # fmt: skip
FEW, LONG, OFTEN, RATE = 100, 240, 24, 2e-3
ARMS = {"plain": (0.0, 0.0), "dropout": (0.1, 0.0), "weight decay": (0.0, 1.0)}  # dropout, weight decay


@dataclass(frozen=True)
class Task:
    """One run: what is trained, from which labels, and how."""

    way: str
    labels: int
    rate: float
    seed: int
    steps: int = STEPS
    every: int = EVERY
    batch: int = BATCH
    dropout: float = 0.0
    weight_decay: float = 0.05

    @property
    def config(self) -> ft.FinetuneConfig:
        return ft.FinetuneConfig(
            epochs=0, min_steps=self.steps, batch=self.batch, lr_adam=self.rate,
            weight_decay=self.weight_decay, seed=self.seed,
        )  # fmt: skip


cut = partial(common.cut, seq_len=SEQ_LEN, windows=WINDOWS)


@cache
def held_out(folder: Path, split: str) -> tuple[ft.Windows, np.ndarray]:
    """The first texts of a split: a random sample, since they are ordered by hash."""
    texts, labels = common.reviews().labelled(split)
    return cut(folder, texts[: HELD_OUT[split]]), labels[: HELD_OUT[split]]


def prepared(folder: Path, task: Task) -> ft.Classifier:
    """The classifier of a run before its training."""
    base: Any = models.load(folder).float()
    if task.way == "scratch":
        base = models.build(models.size_of(base), vocab_size=base.config.vocab_size, seed=100 + task.seed)
    way = Way.parse("full" if task.way == "scratch" else task.way)
    return adaptation.adapt(base.bert, way, dropout=task.dropout, seed=task.seed)


def run(folder: Path, task: Task) -> tuple[common.Row, pd.DataFrame]:
    """One run's row and course."""
    texts, labels = data.take_labelled(common.reviews(), task.labels, seed=task.seed)
    model = prepared(folder, task)
    validation, (test, truth) = held_out(folder, "validation"), held_out(folder, "test")
    result = stopping.tune(
        model, cut(folder, texts), labels, task.config, validation, every=task.every, progress=False
    )
    with tempfile.TemporaryDirectory() as place:
        stored = adaptation.save_trained(model, Path(place) / "task.safetensors")
    course = result.course
    at = course.set_index("step").loc[result.step]
    row = {"way": task.way, "labels": task.labels, "rate": task.rate, "seed": task.seed}
    row |= {
        "trained": adaptation.count(model),
        "bytes": stored,
        "steps": task.steps,
        "kept_step": result.step,
    }
    row |= {"train_loss": float(course["loss"].iloc[-1]), "val_loss": at["val_loss"]}
    row |= {"val_accuracy": at["val_accuracy"]}
    guesses = ft.predict(model, test)
    row |= ft.scores(truth, guesses) | {"test_loss": stopping.judge(guesses, truth)["loss"]}
    if result.step != task.steps and task.steps == LONG:
        guesses = ft.predict(result.use(result.last), test)
    last = stopping.judge(guesses, truth)
    row |= {"last_accuracy": last["accuracy"], "last_loss": last["loss"]} if task.steps == LONG else {}
    return row | {"seconds": round(result.history.seconds, 1)}, course


def one(folder: Path, runs: Path, task: Task, name: str) -> common.Row:
    """A run's row, with its course as a list of rows; read from ``runs`` when it is there."""

    def make() -> common.Row:
        row, course = run(folder, task)
        print(name, *(f"{row[key]:.3g}" for key in ("val_accuracy", "accuracy", "seconds")), flush=True)
        return row | common.provenance() | {"course": course.to_dict("records")}

    return common.kept(runs / f"{name}.json", make)


def setting(folder: Path, runs: Path, way: str, labels: int) -> list[common.Row]:
    """The runs of a way with a number of labels: the rates with the first seed, the chosen one with all."""

    def at(rate: float, seed: int) -> common.Row:
        return one(folder, runs, Task(way, labels, rate, seed), f"{way}-{labels}-{rate:g}-{seed}")

    grid = [at(rate, SEEDS[0]) for rate in WAYS[way]]
    best = max(grid, key=lambda row: row["val_accuracy"])["rate"]
    rows = grid + [at(best, seed) for seed in SEEDS[1:]]
    return [row | {"chosen": row["rate"] == best} for row in rows]


def overfitted(folder: Path, runs: Path, arm: str, seed: int) -> list[common.Row]:
    """The course of a long run on few labels, one row an evaluation."""
    dropout, decay = ARMS[arm]
    task = Task("full", FEW, RATE, seed, LONG, OFTEN, 16, dropout, decay)
    row = one(folder, runs, task, f"over-{arm.replace(' ', '')}-{seed}")
    row |= {"arm": arm, "dropout": dropout, "weight_decay": decay}
    first = ["arm", "dropout", "weight_decay", "labels", "seed", "rate"]
    ends = ["kept_step", "accuracy", "test_loss", "last_accuracy", "last_loss"]
    about = ["seconds", "device", "precision", "torch", "commit"]
    known = {key: row[key] for key in first}, {key: row[key] for key in ends + about}
    return [known[0] | point | known[1] for point in row["course"]]


def call(part: Callable[..., list[common.Row]], *arguments: Any) -> list[common.Row]:
    """``part(*arguments)``: the two parts of the study share their processes."""
    return part(*arguments)


def main() -> None:
    parser = common.parser(__doc__, model=True, workers=True)
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS)
    options = parser.parse_args()
    common.same_model(options.runs, options.model)
    where = (options.model, options.runs)
    settings = [(setting, *where, way, count) for count in options.labels for way in WAYS]
    long = [(overfitted, *where, arm, seed) for seed in SEEDS for arm in ARMS]
    # The longest runs in the middle, so that no process ends with one of them alone.
    jobs = settings[: len(WAYS)] + long + settings[len(WAYS) :]
    made = list(zip(jobs, common.in_processes(call, jobs, options.workers), strict=True))
    courses = [row for job, rows in made if job[0] is overfitted for row in rows]
    common.write(courses, options.output / "overfitting.csv", by=["arm", "seed", "step"])
    grid = [row for job, rows in made if job[0] is setting for row in rows]
    rows = pd.DataFrame(grid).drop(columns="course")
    common.write(rows, options.output / "adaptation.csv", by=["labels", "way", "rate", "seed"])


if __name__ == "__main__":
    main()
