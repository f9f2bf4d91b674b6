"""The runs behind book/results/ablations.csv: what each choice of the pre-training recipe is worth.

    python studies/ablations.py --runs RUNS --output book/results/ablations.csv

Each arm changes one choice of the book's recipe and nothing else, and reads the same blocks in the same
order. AdamW gets a tuning budget of three rates, since the recipe's were chosen for Muon. Losses of two
masking rates are different questions, so every model answers the same two sets of fixed pairs and masks (at
15 and 30 per cent), its own pair task, and a judge that no arm was trained for: logistic regression on the
frozen encoder's vectors of 1,600 labelled reviews, its strength chosen on the validation split. Finished runs
are kept in RUNS, and skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import common
import numpy as np
from transformers import PreTrainedModel

from helpers import data, finetune, masking, models, pretrain, training
from helpers import tokenizer as tk
from helpers.batches import PairMaker

BASE = pretrain.PretrainConfig(models.Size(3, 64), tokens=500_000)
JUDGES = (0.15, 0.3)  # masking rates of the evaluation
PROBE = {"train": 1600, "validation": 500, "test": 1000}  # labelled reviews
STRENGTHS = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Arm:
    """One change of the recipe: fields of the configuration, and how pairs are made."""

    changes: dict[str, Any] = field(default_factory=dict)
    pairs: PairMaker = masking.make_pairs

    @property
    def config(self) -> pretrain.PretrainConfig:
        return replace(BASE, **self.changes)


ADAMW = {"optimizer": "adamw"}
ARMS = {
    "recipe": Arm(),
    "mask 15 %": Arm({"mask_rate": 0.15}),
    "mask 50 %": Arm({"mask_rate": 0.5}),
    "no sentence task": Arm({"next_sentence": False}),
    "segment order": Arm(pairs=masking.make_order_pairs),
    "post-norm": Arm({"arch": "bert"}),
    "BERT's start": Arm({"init": "standard"}),
    "AdamW 1e-3": Arm(ADAMW | {"lr_adam": 1e-3}),
    "AdamW 3e-3": Arm(ADAMW | {"lr_adam": 3e-3}),
    "AdamW 1e-2": Arm(ADAMW | {"lr_adam": 1e-2}),
    "all of BERT's": Arm(
        ADAMW | {"arch": "bert", "init": "standard", "mask_rate": 0.15, "lr_adam": 1e-3, "weight_decay": 0.01}
    ),
}


@cache
def corpus() -> pretrain.Corpus:
    return pretrain.load_corpus()


@cache
def labelled(split: str) -> tuple[finetune.Windows, np.ndarray]:
    """The first labelled reviews of a split; their order is that of the hashes, so a random sample."""
    texts, labels = data.reviews("imdb").labelled(split)
    count = PROBE[split]
    return finetune.cut_windows(tk.encode(corpus().tokenizer, texts[:count])), labels[:count]


def probe(encoder: PreTrainedModel) -> float:
    """Test accuracy of a linear probe of the frozen encoder."""
    vectors = {split: common.features(encoder, labelled(split)[0]) for split in PROBE}
    answers = {split: labelled(split)[1] for split in PROBE}
    tried = [common.probe(strength) for strength in STRENGTHS]
    for model_ in tried:
        model_.fit(vectors["train"], answers["train"])
    best = max(tried, key=lambda m: m.score(vectors["validation"], answers["validation"]))
    return float(best.score(vectors["test"], answers["test"]))


def one(name: str, seed: int, runs: Path) -> common.Row:
    """One run's row; read from ``runs`` when it is there."""
    path = runs / f"{name.replace(' ', '_').replace('%', 'percent')}-{seed}.json"
    return common.kept(path, lambda: run(name, seed))


def run(name: str, seed: int) -> common.Row:
    """Train and judge one arm."""
    arm = ARMS[name]
    config = replace(arm.config, seed=seed)
    model = models.build(
        config.size,
        arch=config.arch,
        init=config.init,
        vocab_size=corpus().vocab_size,
        max_positions=config.seq_len,
        seed=seed,
    )
    history = training.train(
        model,
        pretrain.batches(corpus(), config, pairs=arm.pairs),
        pretrain.losses if config.next_sentence else pretrain.mlm_only,
        config.training(),
        progress=False,
    )
    model.eval()
    judged = {rate: pretrain.evaluator(corpus(), replace(config, mask_rate=rate))(model) for rate in JUDGES}
    asked = pretrain.evaluator(corpus(), config, pairs=arm.pairs)(model)["nsp_accuracy"]
    return {
        "arm": name,
        "seed": seed,
        "size": str(config.size),
        "tokens": config.steps * config.batch_tokens,
        **{
            f"mlm_loss_{round(100 * rate)}{end}": judged[rate]["mlm_loss" + end]
            for rate in JUDGES
            for end in ("", "_se")
        },
        "pair_accuracy": asked if config.next_sentence else float("nan"),
        "probe_accuracy": probe(model.bert),
        "unigram_entropy": corpus().unigram_entropy,
        "seconds": round(history.seconds, 1),
        **common.provenance(history.precision),
    }


def main() -> None:
    parser = common.parser(__doc__, workers=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    corpus()  # trained and cached once, before the workers ask for it
    jobs = [(name, seed, options.runs) for seed in range(options.seeds) for name in ARMS]
    rows = common.in_processes(one, jobs, options.workers)
    common.write(rows, options.output, by=["arm", "seed"])


if __name__ == "__main__":
    main()
