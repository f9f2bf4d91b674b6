"""The runs behind book/results/sparsity.csv: what pruning costs, with and without tuning.

    python studies/sparsity.py book/results/checkpoints/3x64 --runs RUNS --output book/results/sparsity.csv

Task ``mlm`` goes on pre-training the shipped model for a few hundred steps while weights are removed, and
reads the loss on the book's fixed validation text; task ``sentiment`` fine-tunes it on the first 64 pieces
of 800 reviews while weights are removed, and reads the accuracy on the test split. Every arm gets the same
steps, batches and rates; none is tuned. Density counts the matrices of the encoder; embeddings and heads are
not pruned. Finished runs are kept in RUNS, and skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import common
import torch
from torch import nn

from helpers import data, masking, models, pretrain, runtime, training
from helpers import finetune as ft
from helpers import tokenizer as tk
from helpers.compress import sparsity, structured
from helpers.compress.sparsity import Schedule

DENSITIES = {"mlm": (0.5, 0.1, 0.03), "sentiment": (0.1, 0.03)}
ROWS = 800  # labelled reviews
MLM = {"tokens": 250_000, "lr": 0.005, "lr_adam": 5e-4, "warmup_tokens": 20_000, "decay_share": 0.9}
# method, and the share of weights that it shall leave
Arm = tuple[str, float]


def arms(task: str) -> Iterator[Arm]:
    """Every arm of a task, cheapest comparison first."""
    yield "dense", 1.0
    for density in DENSITIES[task]:
        yield from (("magnitude", density), ("movement", density))
    if task == "mlm":
        yield from (("2:4, then tuned", 0.5), ("half of the units", 0.5))


def prepared(model: nn.Module, arm: Arm, batches: list, loss_of: training.LossFunction) -> nn.Module:
    """The model of an arm before its training: pruned already, with masks, or as it was."""
    method, density = arm
    if method in sparsity.KINDS:
        return sparsity.attach(model, method)
    if method == "2:4, then tuned":
        return sparsity.attach(sparsity.prune(model, pattern=(2, 4)))
    if method == "half of the units":
        found = structured.importance(model, batches, loss_of)
        model = structured.remove_heads(model, structured.least(found["heads"], density))
        return structured.remove_neurons(model, structured.least(found["neurons"], density))
    return model


def train(model, arm: Arm, batch_of, loss_of, config: training.TrainConfig) -> nn.Module:
    """Train an arm's model; gradual arms draw their masks between a tenth and seven tenths of the steps."""
    if gradual := arm[0] in sparsity.KINDS:
        schedule = Schedule(1 - arm[1], begin=max(1, config.steps // 10), end=7 * config.steps // 10)
        batch_of, loss_of = sparsity.gradually(batch_of, loss_of, schedule, every=5)
    training.train(model, batch_of, loss_of, config, progress=False)
    return sparsity.finish(model) if gradual or "then tuned" in arm[0] else model


def mlm(folder: Path, arm: Arm, seed: int) -> common.Row:
    """Loss of the shipped model after pruning and tuning."""
    corpus, base = pretrain.load_corpus(), models.load(folder).float()
    config = pretrain.PretrainConfig(models.size_of(base), seed=seed, next_sentence=False, **MLM)
    batch_of, evaluate = pretrain.batches(corpus, config), pretrain.evaluator(corpus, config)
    model = prepared(base, arm, [batch_of(1000 + i) for i in range(8)], pretrain.mlm_only)
    model = train(model, arm, batch_of, pretrain.mlm_only, config.training())
    with torch.no_grad():
        after = evaluate(model.eval())
    return {
        "density": sparsity.density(model),
        "encoder_nonzero": nonzero(model),
        "steps": config.steps,
        "quality": after["mlm_loss"],
        "quality_se": after["mlm_loss_se"],
    }


def sentiment(folder: Path, arm: Arm, seed: int) -> common.Row:
    """Test accuracy of a classifier that is pruned while it is fine-tuned."""
    tokenizer, reviews, base = tk.load(folder), data.reviews("imdb"), models.load(folder).float()
    config = ft.FinetuneConfig(seed=seed, epochs=4, min_steps=100)

    def cut(texts: list[str]) -> ft.Windows:
        return ft.cut_windows(tk.encode(tokenizer, texts), seq_len=64, windows=1)

    texts, labels = data.take_labelled(reviews, ROWS, seed=seed)
    windows, target = cut(texts), torch.from_numpy(labels)
    masking.check_ids(windows.input_ids, base.config.vocab_size)

    def batch_of(step: int) -> training.Batch:
        rows = ft.rows_of_step(ROWS, config, step)
        return windows.take(rows) | {"labels": target[rows]}

    model = prepared(ft.Classifier(base.bert), arm, [], ft.loss)
    model = train(model, arm, batch_of, ft.loss, config.training(ROWS))
    held, truth = reviews.labelled("test")
    measured = ft.scores(truth, ft.predict(model, cut(held)))
    return {
        "density": sparsity.density(model),
        "encoder_nonzero": nonzero(model),
        "steps": config.steps(ROWS),
        "quality": measured["accuracy"],
        "quality_se": (measured["accuracy"] * (1 - measured["accuracy"]) / len(truth)) ** 0.5,
    }


def nonzero(model: nn.Module) -> int:
    """Non-zero entries of the encoder's matrices, however large these are."""
    return sum(int(torch.count_nonzero(layer.weight)) for layer in sparsity.targets(model).values())


def one(folder: Path, runs: Path, task: str, arm: Arm, seed: int) -> common.Row:
    """One run's row; read from ``runs`` when it is there."""
    name = "-".join(
        (task, *"".join(c if c.isalnum() else " " for c in arm[0]).split(), f"{arm[1]:g}", str(seed))
    )
    return common.kept(runs / f"{name}.json", lambda: run(folder, task, arm, seed))


def run(folder: Path, task: str, arm: Arm, seed: int) -> common.Row:
    """Train and judge one arm of a task."""
    with runtime.timer() as clock:
        measured = (mlm if task == "mlm" else sentiment)(folder, arm, seed)
    row = {"task": task, "method": arm[0], "asked": arm[1], "seed": seed} | measured
    return row | {"seconds": round(clock.seconds, 1)} | common.provenance()


def main() -> None:
    parser = common.parser(__doc__, model=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=list(DENSITIES), default=list(DENSITIES))
    options = parser.parse_args()
    common.same_model(options.runs, options.model)
    torch.set_num_threads(1)
    rows = [
        one(options.model, options.runs, task, arm, seed)
        for seed in range(options.seeds)
        for task in options.tasks
        for arm in arms(task)
    ]
    common.write(rows, options.output, by=["task", "method", "asked", "seed"])


if __name__ == "__main__":
    main()
