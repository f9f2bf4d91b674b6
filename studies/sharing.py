"""The runs behind book/results/sharing.csv: what layers that share their weights cost in loss.

    python studies/sharing.py --runs RUNS --output book/results/sharing.csv

All arms read the same batches in the same order with the same rates; the book's recipe is not tuned for any
of them. ``1 layer`` has as many weights as ``all``, but uses each once. ``none`` is a run of the ladder as
well (``3x64`` at this budget), with the same loss to the last digit. Finished runs are kept in RUNS, and
skipped.
"""

from __future__ import annotations

from pathlib import Path

import common
import torch

from helpers import complexity, models, pretrain, training
from helpers.compress import sharing

# size, what is shared, groups
ARMS: dict[str, tuple[models.Size, str, int]] = {
    "none": (models.Size(3, 64), "", 1),
    "attention": (models.Size(3, 64), "attention", 1),
    "ffn": (models.Size(3, 64), "ffn", 1),
    "all": (models.Size(3, 64), "all", 1),
    "1 layer": (models.Size(1, 64), "", 1),
}
TOKENS = 500_000


def one(corpus: pretrain.Corpus, arm: str, seed: int, runs: Path) -> common.Row:
    """One run's row; read from ``runs`` when it is there."""
    return common.kept(runs / f"{arm.replace(' ', '_')}-{seed}.json", lambda: run(corpus, arm, seed))


def run(corpus: pretrain.Corpus, arm: str, seed: int) -> common.Row:
    """Train and judge one arm."""
    size, what, groups = ARMS[arm]
    config = pretrain.PretrainConfig(size, tokens=TOKENS, seed=seed)
    model = models.build(size, vocab_size=corpus.vocab_size, max_positions=config.seq_len, seed=seed)
    model = sharing.share_layers(model, what, groups=groups) if what else model
    history = training.train(
        model,
        pretrain.batches(corpus, config),
        pretrain.losses,
        config.training(),
        evaluate=pretrain.evaluator(corpus, config),
        progress=False,
    )
    tokens = config.steps * config.batch_tokens
    flops = complexity.training_flops(
        model.config, seq_len=config.seq_len, tokens=tokens, mask_rate=config.mask_rate
    )
    return {
        "arm": arm,
        "layers": size.layers,
        "hidden": size.hidden,
        "shared": what or "none",
        "groups": groups,
        "seed": seed,
        "tokens": tokens,
        "encoder_stored": sharing.stored_parameters(model.bert.encoder),
        "encoder_used": sharing.used_parameters(model.bert.encoder),
        "params_stored": sharing.stored_parameters(model),
        "flops_encoder": flops["dense"] + flops["attention"],
        "flops_training": sum(flops.values()),
        "mlm_loss": history.final["mlm_loss"],
        "mlm_loss_se": history.final["mlm_loss_se"],
        "unigram_entropy": corpus.unigram_entropy,
        "seconds": round(history.seconds, 1),
        **common.provenance(history.precision),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus = pretrain.load_corpus()
    rows = [one(corpus, arm, seed, options.runs) for seed in range(options.seeds) for arm in ARMS]
    common.write(rows, options.output, by=["arm", "seed"])


if __name__ == "__main__":
    main()
