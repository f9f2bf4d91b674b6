"""The runs behind book/results/ner.csv: a tagger of named entities from pre-trained and from fresh weights.

    python studies/ner.py MODEL_FOLDER --runs RUNS --output book/results/ner.csv

A setting is a number of training sentences and of optimizer steps. Each start tries two learning rates with
the first seed; entity F1 on the validation part chooses, and the chosen rate runs with the other seeds.
Three rows need no training: the tag O everywhere, and the tag that each word, with its capitals or without,
had most often in all training sentences. CoNLL-2003 is fetched by `helpers.conll` and not shipped. Finished
runs are kept in RUNS, and skipped; `--only` makes one setting, to divide the work.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import common

from helpers import models, ner, runtime
from helpers import tokenizer as tk
from helpers.finetune import FinetuneConfig

SEQ_LEN, BATCH = 64, 32
PLAN = {"few": (1_000, 200), "all": (14_041, 450)}  # training sentences, steps: 450 read all of them once
RATES = (3e-3, 1e-2)  # AdamW's, for embeddings and head; Muon's, for the encoder's matrices, is fixed
MUON_RATE = 2e-3
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """What is compared: a number of sentences and steps, from one start."""

    plan: str
    start: str


SETTINGS = [Setting(plan, start) for plan in PLAN for start in ("pre-trained", "scratch")]


@cache
def corpus() -> dict[str, ner.Tagged]:
    """The corpus by split."""
    return ner.conll2003()


@cache
def rows_of(folder: Path, split: str, count: int | None = None) -> ner.Aligned:
    """Sentences of a split as rows of pieces; the first ``count`` of them."""
    sentences = corpus()[split]
    return ner.align(tk.load(folder), sentences.first(count or len(sentences)), seq_len=SEQ_LEN)


def measured(predicted: dict[str, list[list[str]]]) -> dict[str, float]:
    """Scores on the validation and the test part."""
    test, held = ([list(t) for t in corpus()[split].tags] for split in ("test", "validation"))
    whole = ner.score(test, predicted["test"])
    row = {"val_f1": ner.score(held, predicted["validation"]).f1}
    row |= {"f1": whole.f1, "precision": whole.precision, "recall": whole.recall}
    row |= {"token_accuracy": ner.token_accuracy(test, predicted["test"])}
    return row | {f"f1_{kind}": ner.score(test, predicted["test"], kind=kind).f1 for kind in ner.TYPES}


def most_frequent(spelling: Callable[[str], str]) -> Callable[[str], str]:
    """The rule that gives a word the tag that its spelling had most often in training; else ``O``."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in zip(corpus()["train"].words, corpus()["train"].tags, strict=True):
        for word, tag in zip(words, tags, strict=True):
            seen[spelling(word)][tag] += 1
    most = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    return lambda word: most.get(spelling(word), "O")


def baselines() -> list[common.Row]:
    """The rows of the rules that need no training."""
    rules = {
        "all O": lambda word: "O",
        "word's tag": most_frequent(str),
        "word's tag, lower case": most_frequent(str.lower),
    }
    rows = []
    for name, rule in rules.items():
        predicted = {s: [[rule(w) for w in words] for words in part.words] for s, part in corpus().items()}
        rows.append({"start": name, "sentences": len(corpus()["train"]), "steps": 0} | measured(predicted))
    return rows


def one(folder: Path, runs: Path, setting: Setting, rate: float, seed: int) -> common.Row:
    """One run's row; read from ``runs`` when it is there."""
    path = runs / f"{setting.plan}-{setting.start}-{rate:g}-{seed}.json"
    return common.kept(path, lambda: run(folder, setting, rate, seed, path.with_suffix(".tags.json")))


def run(folder: Path, setting: Setting, rate: float, seed: int, tags: Path) -> common.Row:
    """Train one tagger and judge it; the tags of the test part are written to ``tags``."""
    sentences, steps = PLAN[setting.plan]
    model = models.load(folder).float()
    if setting.start == "scratch":
        vocabulary = model.config.vocab_size
        model = models.build(models.size_of(model), vocab_size=vocabulary, seed=100 + seed)
    config = FinetuneConfig(
        epochs=0, min_steps=steps, batch=BATCH, optimizer="muon", lr=MUON_RATE, lr_adam=rate, seed=seed
    )
    trained = ner.finetune(model.bert, rows_of(folder, "train", sentences), config, progress=False)
    predicted = {s: ner.predict(trained.model, rows_of(folder, s)) for s in ("validation", "test")}
    row = {"start": setting.start, "sentences": sentences, "steps": steps, "rate": rate, "seed": seed}
    row |= measured(predicted) | {"optimizer": "muon", "seconds": round(trained.history.seconds, 1)}
    with runtime.write_atomically(tags) as temporary:
        temporary.write_text(json.dumps(predicted["test"]))
    return row


def family(folder: Path, runs: Path, setting: Setting) -> list[common.Row]:
    """The runs of one setting: both rates with the first seed, then the chosen one with the others."""
    grid = [one(folder, runs, setting, rate, SEEDS[0]) for rate in RATES]
    best = max(grid, key=lambda row: row["val_f1"])["rate"]
    rows = grid + [one(folder, runs, setting, best, seed) for seed in SEEDS[1:]]
    return [row | {"chosen": row["rate"] == best} for row in rows]


def main() -> None:
    parser = common.parser(__doc__, model=True)
    parser.add_argument("--only", choices=[f"{s.plan} {s.start}" for s in SETTINGS])
    options = parser.parse_args()
    common.same_model(options.runs, options.model)
    wanted = [s for s in SETTINGS if options.only in (None, f"{s.plan} {s.start}")]
    rows = [row for setting in wanted for row in family(options.model, options.runs, setting)]
    if options.only:
        return
    by = ["start", "sentences", "steps", "rate", "seed"]
    common.write(baselines() + rows, options.output, by)


if __name__ == "__main__":
    main()
