"""The runs behind book/results/pareto.csv: every way to be smaller, on one model, one task, one test split.

    python studies/pareto.py book/results/checkpoints/4x96 --runs RUNS --output book/results/pareto.csv
    (the same) --latency

Every arm begins with the shipped pre-trained model (the fresh students with random weights), is changed, and
then fine-tuned on the same labelled reviews in the same order with the same rates and number of steps; no arm
is tuned for itself. Gradual pruning happens during these steps. Students are taught by the dense arm of their
seed. int8 is applied after the training, and needs none. A text is read through its head and its tail.

Finished runs are kept in RUNS with their models, and skipped. The second command measures what models cost,
all of them in turns, in processor time of one thread: what other programs take does not count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers import complexity, compress, data, models, pretrain, runtime, stopping, training
from helpers import finetune as ft
from helpers.compress import distill, lowrank, quantize, sharing, sparsity, storage, structured
from helpers.compress.distill import Recipe
from helpers.compress.sparsity import Schedule

SEQ_LEN, WINDOWS, LABELS, STEPS, BATCH, RATE = 64, 2, 1600, 100, 32, 2e-3
TEXTS = 1000  # of the test split, as in chapter 8
LOGITS = Recipe(temperature=2.0, soft=0.5, hard=0.5)
STATES = Recipe(temperature=2.0, soft=0.5, hard=0.5, hidden=1.0)
ANSWERS = Recipe(temperature=2.0, soft=1.0, hard=0.0)  # no labels


@dataclass(frozen=True)
class Arm:
    """A way to be smaller: ``how`` says what :func:`prepared` and :func:`train` do, ``value`` how much."""

    family: str
    how: str = ""
    value: float = 0.0
    recipe: Recipe | None = None
    pool: str = "labelled"


ARMS = {
    "dense": Arm("dense"),
    "first 2 layers": Arm("fewer layers", "first"),
    "every other layer": Arm("fewer layers", "alternate"),
    "distilled": Arm("distilled", "alternate", recipe=LOGITS),
    "distilled, hidden states": Arm("distilled", "alternate", recipe=STATES),
    "distilled, more text": Arm("distilled", "alternate", recipe=ANSWERS, pool="unlabelled"),
    "fresh 2 layers": Arm("not pre-trained", "fresh"),
    "fresh, distilled": Arm("not pre-trained", "fresh", recipe=LOGITS),
    "1 layer shared by 4": Arm("sharing", "share", 1),
    "2 layers shared by 4": Arm("sharing", "share", 2),
    "magnitude 30 %": Arm("sparse", "magnitude", 0.3),
    "magnitude 10 %": Arm("sparse", "magnitude", 0.1),
    "movement 10 %": Arm("sparse", "movement", 0.1),
    "2:4": Arm("sparse", "2:4", 0.5),
    "half of the units": Arm("units", "units", 0.5),
    "low rank 50 %": Arm("low rank", "low rank", 0.5),
    "int8": Arm("int8", "int8 of dense"),
    "int8, distilled": Arm("int8", "int8 of distilled"),
}


cut = partial(common.cut, seq_len=SEQ_LEN, windows=WINDOWS)


@cache
def labelled(folder: Path, seed: int) -> tuple[ft.Windows, torch.Tensor]:
    """The labelled reviews of a seed."""
    texts, labels = data.take_labelled(common.reviews(), LABELS, seed=seed)
    return cut(folder, texts), torch.from_numpy(labels)


@cache
def unlabelled(folder: Path) -> ft.Windows:
    """All training reviews, without their labels."""
    return cut(folder, common.reviews().texts("train"))


@cache
def held_out(folder: Path) -> tuple[ft.Windows, np.ndarray]:
    """The first reviews of the test split: a random sample, since they are ordered by hash."""
    texts, labels = common.reviews().labelled("test")
    return cut(folder, texts[:TEXTS]), labels[:TEXTS]


def prepared(folder: Path, arm: Arm, seed: int) -> nn.Module:
    """The classifier of an arm before its training."""
    base: Any = models.load(folder).float()
    if arm.how == "first":
        base = distill.student_of(base, [0, 1])
    elif arm.how == "alternate":
        base = distill.student_of(base)
    elif arm.how == "fresh":
        shape = models.Size(2, base.config.hidden_size)
        base = models.build(shape, vocab_size=base.config.vocab_size, seed=100 + seed)
    elif arm.how == "units":
        base = halved(base, arm.value, seed)
    model: nn.Module = ft.Classifier(base.bert)
    model.compression = storage.history(base)  # type: ignore[assignment]
    if arm.how == "share":
        return sharing.share_layers(model, groups=int(arm.value))
    if arm.how == "low rank":
        return lowrank.factorise(model, density=arm.value)
    if arm.how == "2:4":
        return sparsity.attach(sparsity.prune(model, pattern=(2, 4)))
    return sparsity.attach(model, arm.how) if arm.how in sparsity.KINDS else model


def halved(base: Any, keep: float, seed: int) -> Any:
    """The pre-trained model without the heads and neurons that its own task needs least."""
    corpus = pretrain.load_corpus()
    config = pretrain.PretrainConfig(models.size_of(base), tokens=16 * 128, seed=seed)
    batch_of = pretrain.batches(corpus, config)
    found = structured.importance(base, [batch_of(i) for i in range(8)], pretrain.mlm_only)
    base = structured.remove_heads(base, structured.least(found["heads"], keep))
    return structured.remove_neurons(base, structured.least(found["neurons"], keep))


def train(folder: Path, runs: Path, arm: Arm, seed: int) -> tuple[nn.Module, float]:
    """The trained and finished model of an arm, and the seconds of its training."""
    if arm.how.startswith("int8 of "):
        return quantize.quantize(compress.load(runs / slug(arm.how[8:], seed))), 0.0
    settings = ft.FinetuneConfig(epochs=0, min_steps=STEPS, batch=BATCH, lr_adam=RATE, seed=seed)
    windows, labels = labelled(folder, seed)
    if arm.pool == "unlabelled":
        windows = unlabelled(folder)

    def batch_of(step: int) -> training.Batch:
        rows = ft.rows_of_step(len(windows), settings, step)
        batch = windows.take(rows)
        return batch if arm.pool == "unlabelled" else batch | {"labels": labels[rows]}

    config = settings.training(len(windows))
    model = prepared(folder, arm, seed)
    if arm.recipe is not None:
        teacher = compress.load(runs / slug("dense", seed))
        history = distill.distil(teacher, model, batch_of, config, arm.recipe, progress=False)
        return model, history.seconds
    batches, loss_of = batch_of, ft.loss
    if arm.how in sparsity.KINDS:
        schedule = Schedule(1 - arm.value, begin=STEPS // 10, end=7 * STEPS // 10)
        batches, loss_of = sparsity.gradually(batch_of, ft.loss, schedule, every=5)
    history = training.train(model, batches, loss_of, config, progress=False)
    return (sparsity.finish(model) if arm.family == "sparse" else model), history.seconds


def slug(name: str, seed: int) -> str:
    """The folder of a run."""
    return "-".join([*"".join(c if c.isalnum() else " " for c in name).split(), str(seed)])


def one(folder: Path, runs: Path, name: str, seed: int) -> common.Row:
    """One run's row; read from its folder when it is there, which also holds the model and its answers."""
    return common.kept(runs / slug(name, seed) / "row.json", lambda: run(folder, runs, name, seed))


def run(folder: Path, runs: Path, name: str, seed: int) -> common.Row:
    """Train, save and judge one arm."""
    arm, place = ARMS[name], runs / slug(name, seed)
    model, seconds = train(folder, runs, arm, seed)
    compress.save(model, place)
    windows, truth = held_out(folder)
    guess = ft.predict(model.eval(), windows)  # type: ignore[arg-type]
    judged = stopping.judge(guess, truth)
    np.save(place / "test.npy", guess)
    dense = np.load(runs / slug("dense", seed) / "test.npy")
    return {
        "name": name,
        "family": arm.family,
        "seed": seed,
        "labels": LABELS,
        "steps": STEPS,
        "texts": len(truth),
        "accuracy": judged["accuracy"],
        "log_loss": judged["loss"],
        "differs": float((dense.argmax(1) != guess.argmax(1)).mean()),
        "density": sparsity.density(model) if sparsity.targets(model) else 1.0,
        "packed_bytes": storage.stored_bytes(place),
        "seconds": round(seconds, 1),
        **common.provenance(),
    }


class Served(nn.Module):
    """A classifier behind one tensor of ids (n, windows, T): what a service would call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (n, 2)."""
        owner = torch.arange(len(ids)).repeat_interleave(ids.size(1))
        return self.model({"input_ids": ids.flatten(0, 1), "owner": owner})


def check_costs(runs: Path, names: list[str]) -> None:
    """Raise ``ValueError`` where costs have been measured of arms that are not named: times compare when all
    are taken in turns, and the new ones replace the old.
    """
    if lost := sorted(set(common.read(runs / "costs.json") or {}) - set(names), key=order):
        place = runs / "costs.json"
        raise ValueError(f"{place} has {', '.join(lost)}, which this run would drop: measure them as well")


def measure(folder: Path, runs: Path, names: list[str], seed: int, repeats: int) -> None:
    """Write what the models of a seed cost at inference, all timed in turns on one thread."""
    served: dict[str, nn.Module] = {name: Served(compress.load(runs / slug(name, seed))) for name in names}
    windows, _ = held_out(folder)
    full = [i for i in range(len(windows)) if windows.first[i + 1] - windows.first[i] == WINDOWS][:32]
    ids = windows.take(torch.tensor(full))["input_ids"].unflatten(0, (len(full), WINDOWS))
    dense = {name: complexity.report(served[name], ids, batches=(1,), repeats=1).flops for name in names}
    # The counter does not know the int8 kernel; it does as many multiply-adds, on integers.
    known = {name: dense[ARMS[name].how[8:]] for name in names if ARMS[name].family == "int8"}
    reports = complexity.report_together(
        served, ids, repeats=repeats, warmup=3, max_seconds=1e9, threads=1, clock="cpu", flops=known
    )
    costs = {name: {k: v for k, v in r.row().items() if k != "name"} for name, r in reports.items()}
    with runtime.write_atomically(runs / "costs.json") as temporary:
        temporary.write_text(json.dumps(costs))


def write(runs: Path, rows: list[common.Row], output: Path) -> None:
    """The table of the runs, with the costs where they were measured."""
    table = pd.DataFrame(rows)
    if found := common.read(runs / "costs.json"):
        costs = pd.DataFrame.from_dict(found, orient="index").rename_axis("name")
        table = table.merge(costs.reset_index(), on="name", how="left")
    table = table.sort_values(["name", "seed"], key=lambda c: c.map(order) if c.name == "name" else c)
    common.write_in_order(table, output, by=["name", "seed"])


def complete(names: list[str]) -> list[str]:
    """These arms and those they need, in the order of the table: dense judges and teaches all of them."""
    needed = {"dense", *names} | {ARMS[name].how[8:] for name in names if ARMS[name].family == "int8"}
    return [name for name in ARMS if name in needed]


def order(name: str) -> int:
    """The place of an arm in the table."""
    return list(ARMS).index(name)


def main() -> None:
    parser = common.parser(__doc__, model=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--latency", action="store_true", help="measure costs; train what is missing before")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    common.same_model(options.runs, options.model)
    torch.set_num_threads(1)
    arms = complete(options.arms)
    if options.latency:
        check_costs(options.runs, arms)
    rows: list[common.Row] = []
    for seed in options.seeds:
        for name in arms:
            rows.append(one(options.model, options.runs, name, seed))
            print(
                *(rows[-1][key] for key in ("name", "seed", "accuracy", "log_loss", "seconds")),
                flush=True,
            )
    if options.latency:
        measure(options.model, options.runs, arms, options.seeds[0], options.repeats)
    write(options.runs, rows, options.output)


if __name__ == "__main__":
    main()
