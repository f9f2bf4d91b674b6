"""The runs behind book/results/finetune.csv: what pre-training buys, by task, labels and steps.

    python studies/finetune.py MODEL_FOLDER --runs RUNS --output book/results/finetune.csv

A setting is a task, a number of labels, and what may change: nothing but a linear layer on the frozen encoder
(0 steps), or all weights for a number of optimizer steps. In every setting both starts get the same tuning
budget: three values of the one knob that matters (the strength of regularisation, or the learning rate) with
the first seed; the best validation accuracy chooses, and the chosen value runs with the remaining seeds. Test
scores are written for every run, so that a reader can see what choosing on the test split would have claimed.
Finished runs are kept in RUNS, and skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import common
import numpy as np

from helpers import data, models, runtime
from helpers import finetune as ft
from helpers import tokenizer as tk

SHAPES = {"imdb": (128, 2), "rotten_tomatoes": (64, 1)}  # tokens in a window, windows in a text
STARTS = ("pre-trained", "scratch")
SEEDS = {"imdb": range(6), "rotten_tomatoes": range(4)}
HELD_OUT = {"validation": 500, "test": 1000}  # texts, or as many as the split has
RATES = (3e-3, 1e-2, 3e-2)  # AdamW's, for embeddings and head; Muon's, for the encoder's matrices, is fixed
MUON_RATE = 2e-3
STRENGTHS = (0.01, 0.1, 1.0)  # inverse regularisation of the logistic regression on frozen features


@dataclass(frozen=True)
class Setting:
    """What is compared: one task, number of labels and number of steps, from one start."""

    task: str
    labels: int
    steps: int
    start: str

    @property
    def knobs(self) -> tuple[float, ...]:
        return RATES if self.steps else STRENGTHS


# A step on a sentence costs a seventh of one on a review, so only sentences get the long budget.
PLAN = [("imdb", n, 60) for n in (1600, 400, 100)] + [("rotten_tomatoes", n, 200) for n in (1600, 400, 100)]
PLAN += [(task, n, 0) for task in SHAPES for n in (1600, 400, 100)]


@cache
def reviews_of(task: str) -> data.Reviews:
    """The texts and labels of a task."""
    return data.reviews(task)


def encoder_of(folder: Path, start: str, seed: int) -> Any:
    """The pre-trained encoder, or one of its size with the fresh weights of a seed."""
    pretrained = models.load(folder).float()
    if start == "pre-trained":
        return pretrained.bert
    shape = models.size_of(pretrained)
    return models.build(shape, vocab_size=pretrained.config.vocab_size, seed=100 + seed).bert


def cut(folder: Path, task: str, texts: list[str]) -> ft.Windows:
    """Texts as windows of the task's shape."""
    seq_len, windows = SHAPES[task]
    return ft.cut_windows(tk.encode(tk.load(folder), texts), seq_len=seq_len, windows=windows)


def features(folder: Path, task: str, start: str, seed: int, texts: list[str]) -> np.ndarray:
    """The frozen encoder's vector of each text, (n, H)."""
    return common.features(encoder_of(folder, start, seed), cut(folder, task, texts))


@cache
def held_out_features(folder: Path, task: str, start: str, seed: int, split: str) -> np.ndarray:
    """Features of the texts that judge; every number of labels asks for the same."""
    return features(folder, task, start, seed, reviews_of(task).labelled(split)[0][: HELD_OUT[split]])


def probe(
    folder: Path, setting: Setting, knob: float, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Probabilities of the held-out splits by logistic regression on frozen features."""
    texts, targets = data.take_labelled(reviews_of(setting.task), setting.labels, seed=seed)
    model = common.probe(knob)
    with runtime.timer() as clock:
        model.fit(features(folder, setting.task, setting.start, seed, texts), targets)
    key = (folder, setting.task, setting.start, seed if setting.start == "scratch" else 0)
    return {split: model.predict_proba(held_out_features(*key, split)) for split in HELD_OUT}, {
        "optimizer": "none",
        "seconds": round(clock.seconds, 1),
    }


def tune(
    folder: Path, setting: Setting, knob: float, seed: int, *, muon: float = MUON_RATE
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Probabilities of the held-out splits by the encoder after fine-tuning all of its weights."""
    config = ft.FinetuneConfig(
        epochs=0,
        min_steps=setting.steps,
        optimizer="muon",
        lr=muon,
        lr_adam=knob,
        seed=seed,
    )
    reviews = reviews_of(setting.task)
    texts, targets = data.take_labelled(reviews, setting.labels, seed=seed)
    encoder = encoder_of(folder, setting.start, seed)
    result = ft.finetune(encoder, cut(folder, setting.task, texts), targets, config, progress=False)
    held = {split: reviews.labelled(split)[0][:count] for split, count in HELD_OUT.items()}
    return {s: ft.predict(result.model, cut(folder, setting.task, texts)) for s, texts in held.items()}, {
        "optimizer": "muon",
        "seconds": round(result.history.seconds, 1),
    }


def one(folder: Path, runs: Path, setting: Setting, knob: float, seed: int) -> common.Row:
    """One run's row; read from ``runs`` when it is there."""
    name = f"{setting.task}-{setting.start}-{setting.labels}-{setting.steps}-{knob:g}-{seed}.json"
    return common.kept(runs / name, lambda: run(folder, setting, knob, seed))


def run(folder: Path, setting: Setting, knob: float, seed: int) -> common.Row:
    """Train one classifier and judge it on both held-out splits."""
    guesses, how = (tune if setting.steps else probe)(folder, setting, knob, seed)
    row = {
        "task": setting.task,
        "start": setting.start,
        "labels": setting.labels,
        "steps": setting.steps,
        "knob": knob,
        "seed": seed,
    }
    for split, prefix in (("validation", "val_"), ("test", "")):
        truth = reviews_of(setting.task).labelled(split)[1][: HELD_OUT[split]]
        measured = ft.scores(truth, guesses[split])
        row |= {prefix + name: value for name, value in measured.items() if not prefix or name == "accuracy"}
    return row | how


def family(folder: Path, runs: Path, setting: Setting) -> list[common.Row]:
    """The runs of one setting: the grid with the first seed, then the chosen value with the others."""
    seeds = SEEDS[setting.task]
    grid = [one(folder, runs, setting, knob, seeds[0]) for knob in setting.knobs]
    best = max(grid, key=lambda row: row["val_accuracy"])["knob"]
    rows = grid + [one(folder, runs, setting, best, seed) for seed in seeds[1:]]
    return [row | {"chosen": row["knob"] == best} for row in rows]


def main() -> None:
    options = common.parser(__doc__, model=True, workers=True).parse_args()
    common.same_model(options.runs, options.model)
    settings = [Setting(*entry, start) for entry in PLAN for start in STARTS]
    jobs = [(options.model, options.runs, setting) for setting in settings]
    rows = [row for made in common.in_processes(family, jobs, options.workers) for row in made]
    common.write(rows, options.output, by=["task", "start", "labels", "steps", "knob", "seed"])


if __name__ == "__main__":
    main()
