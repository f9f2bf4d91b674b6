"""Before anything starts: runs, FLOPs, and hours on this machine from a short calibration."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from helpers import complexity, models, pretrain, runtime
from helpers.batches import split
from helpers.engine import Run
from helpers.pretrain import Corpus, PretrainConfig
from helpers.sweep.rows import trunk_of
from helpers.sweep.study import Family, Study

# Validation blocks that end every run; a forward pass costs a third of a training step.
_EVAL_BLOCKS, _FORWARD_SHARE = 1024, 1 / 3


def plan(study: Study, speeds: Mapping[models.Size, float] | None = None) -> pd.DataFrame:
    """Runs, tokens and FLOPs of a study before anything starts, one row a family; shared trunks are counted
    once. ``speeds`` (tokens/s by size, as from :func:`calibrate`) add ``hours``, evaluations included.
    """
    rows = []
    for family in study.families():
        config = family[0]
        row: dict[str, Any] = {"size": str(config.size), "seed": config.seed}
        row |= axes_of(study, config) | {
            "runs": len(family),
            "tokens": tokens_of(family),
            "flops": flops_of(study, family),
        }
        if speeds is not None:
            evaluated = len(family) * _EVAL_BLOCKS * config.seq_len * _FORWARD_SHARE
            row["hours"] = (row["tokens"] + evaluated) / speeds[config.size] / 3600
        rows.append(row)
    return pd.DataFrame(rows)


def axes_of(study: Study, config: PretrainConfig) -> dict[str, float]:
    """The columns that tell families of one size and seed apart, where the study has them."""
    axes: dict[str, float] = {"lr": config.lr} if len(study.lr_scales) > 1 else {}
    return axes | ({"unique": (config.unique_blocks or 0) * config.seq_len} if study.unique_tokens else {})


def tokens_of(family: Family) -> int:
    """Positions that a family reads: its trunk once, and the decay of each run."""
    trunk, _ = trunk_of(family)
    return trunk.tokens + sum(config.decay_steps * config.batch_tokens for config in family)


def flops_of(study: Study, family: Family) -> float:
    """FLOPs of the training of a family of the study, its trunk counted once."""
    config = family[0]
    shape = models.make_config(config.size, arch=config.arch, vocab_size=study.text.vocab_size)
    counts = complexity.training_flops(
        shape, seq_len=config.seq_len, tokens=tokens_of(family), mask_rate=config.mask_rate
    )
    return sum(counts.values())


def calibrate(
    study: Study, corpus: Corpus, *, threads: int | None = None, seconds: float = 1.5
) -> dict[models.Size, float]:
    """Training speed of each size on this machine, in tokens/s, from ``seconds`` of steps after a first one.

    One size at a time: workers that share memory are somewhat slower; compiled runs are faster.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return {
            size: _speed(next(f[0] for f in study.families() if f[0].size == size), corpus, seconds)
            for size in study.sizes
        }
    finally:
        torch.set_num_threads(before)


def _speed(config: PretrainConfig, corpus: Corpus, seconds: float) -> float:
    model = models.build(
        config.size, arch=config.arch, vocab_size=corpus.vocab_size, max_positions=config.seq_len
    )
    loss = pretrain.losses if config.next_sentence else pretrain.mlm_only
    batch_of = pretrain.batches(corpus, config)
    run = Run(model, loss, replace(config, compile=False).training(), {}, split=split)
    run.begin(None, None, batch_of)
    run.step(batch_of(0), 0)
    took: list[float] = []
    while sum(took) < seconds:
        step = 1 + len(took)
        with runtime.timer() as clock:
            run.step(batch_of(step), min(step, config.steps))
        took.append(clock.seconds)
    return config.batch_tokens / statistics.median(took)  # a machine that is busy for a moment says nothing


def wall_hours(hours: pd.Series, workers: int) -> float:
    """Hours until the last worker is done when each takes the longest family that waits."""
    busy = [0.0] * workers
    for one in sorted(hours, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)
