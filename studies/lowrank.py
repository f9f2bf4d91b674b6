"""The runs behind book/results/lowrank.csv: what low rank costs, and what LoRA reaches.

    python studies/lowrank.py book/results/checkpoints/4x96 --runs RUNS --output book/results/lowrank.csv

Task ``mlm`` goes on pre-training the shipped model for 122 steps after its encoder matrices were factorised,
and reads the loss on the book's fixed validation text before and after. The rate of Muon is chosen with the
first seed, from the same five for the dense model and for factors (at the middle rank; other ranks take it
over): the lowest rate within a standard error of the best loss. Task ``lora`` fine-tunes with adapters on
Rotten Tomatoes in the setting of book/results/finetune.csv with 1,600 labels and 200 steps: the same labels,
batches, steps and three rates, of which the validation accuracy chooses with the first seed. Finished runs
are kept in RUNS, and skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import peft
import torch
from torch import nn

from helpers import data, models, pretrain, runtime, training
from helpers import finetune as ft
from helpers import tokenizer as tk
from helpers.compress import lowrank

SEEDS = {"mlm": range(3), "lora": range(4)}
MLM = {"tokens": 250_000, "lr_adam": 5e-4, "warmup_tokens": 20_000, "decay_share": 0.9}
MUON_RATES, MIDDLE = (0.04, 0.02, 0.01, 0.005, 0.0025), 16
RANKS = (32, 16, 8, 4)
LABELS, STEPS, ADAM_RATES = 1600, 200, (3e-3, 1e-2, 3e-2)
HELD_OUT = {"validation": 500, "test": 1000}
ADAPTED = {"query and value": ["query", "value"], "all matrices": ["query", "key", "value", "dense"]}
# method, and its rank; 0 for a method without one
Arm = tuple[str, int]
ARMS: dict[str, tuple[Arm, ...]] = {
    "mlm": (
        ("dense", 0), *(("weights", r) for r in RANKS), *(("inputs", r) for r in (16, 4)), ("fresh", 16),
    ),
    "lora": (("query and value", 4), ("all matrices", 4), ("no embeddings", 0)),
}  # fmt: skip


def factorised(model: nn.Module, arm: Arm, batches: list[training.Batch], seed: int) -> nn.Module:
    """The dense model, or one whose factors come from its weights, from these and the inputs that the layers
    see, or from nothing (``fresh``).
    """
    method, rank = arm
    if method == "dense":
        return model
    moments = lowrank.input_moments(model, batches, pretrain.mlm_only) if method == "inputs" else None
    smaller = lowrank.factorise(model, rank, moments=moments)
    if method == "fresh":
        generator = runtime.generator(seed, 5)
        for layer in (m for m in smaller.modules() if isinstance(m, lowrank.LowRank)):
            for part in (layer.up, layer.down):
                nn.init.normal_(part.weight, std=part.weight.std().item(), generator=generator)
    return smaller


def mlm(folder: Path, arm: Arm, rate: float, seed: int) -> common.Row:
    """Loss of the shipped model, factorised, before and after training."""
    corpus, base = pretrain.load_corpus(), models.load(folder).float()
    config = pretrain.PretrainConfig(models.size_of(base), seed=seed, next_sentence=False, lr=rate, **MLM)
    batch_of, evaluate = pretrain.batches(corpus, config), pretrain.evaluator(corpus, config)
    model = factorised(base, arm, [batch_of(1000 + i) for i in range(8)], seed)
    with torch.no_grad():
        before = evaluate(model.eval())["mlm_loss"]
    history = training.train(model, batch_of, pretrain.mlm_only, config.training(), progress=False)
    with torch.no_grad():
        after = evaluate(model.eval())
    return {
        "trained": sum(p.numel() for p in model.parameters()),
        "encoder": sum(p.numel() for p in model.bert.encoder.layer.parameters()),
        "steps": config.steps,
        "before": before,
        "validation": after["mlm_loss"],
        "quality": after["mlm_loss"],
        "quality_se": after["mlm_loss_se"],
        "train_seconds": round(history.seconds, 1),
    }


def adapted(folder: Path, arm: Arm) -> nn.Module:
    """A classifier on the shipped encoder with LoRA adapters, or with all but its embeddings trained."""
    model = ft.Classifier(models.load(folder).float().bert)
    method, rank = arm
    if method == "no embeddings":
        model.encoder.embeddings.requires_grad_(False)
        return model
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=ADAPTED[method], modules_to_save=["head"]
    )
    return peft.get_peft_model(model, config)


def lora(folder: Path, arm: Arm, rate: float, seed: int) -> common.Row:
    """Accuracy of adapters, trained as studies/finetune.py trains all weights."""
    tokenizer, reviews = tk.load(folder), data.reviews("rotten_tomatoes")

    def cut(texts: list[str]) -> ft.Windows:
        return ft.cut_windows(tk.encode(tokenizer, texts), seq_len=64, windows=1)

    texts, labels = data.take_labelled(reviews, LABELS, seed=seed)
    windows, target = cut(texts), torch.from_numpy(labels)
    optimizer = "adamw" if arm[1] else "muon"
    config = ft.FinetuneConfig(epochs=0, min_steps=STEPS, optimizer=optimizer, lr_adam=rate, seed=seed)

    def batch_of(step: int) -> training.Batch:
        rows = ft.rows_of_step(LABELS, config, step)
        return windows.take(rows) | {"labels": target[rows]}

    model = adapted(folder, arm)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    history = training.train(model, batch_of, ft.loss, config.training(LABELS), progress=False)
    accuracy = {}
    for split, count in HELD_OUT.items():
        held, truth = reviews.labelled(split)
        guesses = ft.predict(model, cut(held[:count]))
        accuracy[split] = ft.scores(truth[:count], guesses)["accuracy"]
    test = accuracy["test"]
    return {
        "trained": trained,
        "steps": STEPS,
        "validation": accuracy["validation"],
        "quality": test,
        "quality_se": (test * (1 - test) / min(HELD_OUT["test"], len(reviews.split("test")))) ** 0.5,
        "train_seconds": round(history.seconds, 1),
    }


TASKS: dict[str, Callable[..., common.Row]] = {"mlm": mlm, "lora": lora}


def one(folder: Path, runs: Path, task: str, arm: Arm, rate: float, seed: int) -> common.Row:
    """One run's row; read from ``runs`` when it is there."""

    def run() -> common.Row:
        row = {"task": task, "method": arm[0], "rank": arm[1], "rate": rate, "seed": seed}
        row |= TASKS[task](folder, arm, rate, seed) | common.provenance()
        print(json.dumps(row), flush=True)
        return row

    return common.kept(runs / f"{task}-{arm[0].replace(' ', '_')}-{arm[1]}-{rate:g}-{seed}.json", run)


def family(folder: Path, runs: Path, task: str, seeds: range) -> Iterator[common.Row]:
    """All rows of a task: rates are tried with the first seed, and the chosen one runs with every seed."""
    chosen: dict[str, float] = {}
    for arm in sorted(ARMS[task], key=lambda arm: arm[1] != MIDDLE):
        # Factors of every rank and start take the rate that is best at the middle rank.
        kind = "factors" if task == "mlm" and arm[1] else arm[0]
        if kind not in chosen:
            rates = MUON_RATES if task == "mlm" else ADAM_RATES
            tried = [one(folder, runs, task, arm, rate, seeds[0]) for rate in rates]
            chosen[kind] = choose(task, tried)
            yield from (row | {"chosen": False} for row in tried if row["rate"] != chosen[kind])
        for seed in seeds:
            yield one(folder, runs, task, arm, chosen[kind], seed) | {"chosen": True}


def choose(task: str, tried: list[common.Row]) -> float:
    """The rate of the best validation accuracy; or the lowest rate whose loss is within a standard error of
    the lowest loss.
    """
    if task == "lora":
        return max(tried, key=lambda row: row["validation"])["rate"]
    best = min(tried, key=lambda row: row["validation"])
    enough = best["validation"] + best["quality_se"]
    return min(row["rate"] for row in tried if row["validation"] <= enough)


def main() -> None:
    parser = common.parser(__doc__, model=True)
    parser.add_argument("--tasks", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=4, help="at most so many seeds an arm")
    options = parser.parse_args()
    common.same_model(options.runs, options.model)
    torch.set_num_threads(1)
    rows = [
        row
        for task in options.tasks
        for row in family(options.model, options.runs, task, SEEDS[task][: options.seeds])
    ]
    common.write(rows, options.output, by=["task", "method", "rank", "rate", "seed"])


if __name__ == "__main__":
    main()
