"""Batches of pre-training as functions of (seed, step), and how several processes share one.

Legend: ``B`` sequences in a batch, ``T`` tokens in a sequence, ``V`` vocabulary, ``M`` masked positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from helpers import masking, runtime
from helpers.corpus import Corpus
from helpers.engine import Batch

if TYPE_CHECKING:
    from helpers.pretrain import PretrainConfig


def batches(corpus: Corpus, config: PretrainConfig) -> Callable[[int], Batch]:
    """``batch_of(step)``: the batch of a step, which depends on (seed, step) and the corpus alone.

    Blocks are read in a new random order each epoch; pairs and masks are drawn anew at every step.
    """
    blocks = corpus.train if config.unique_blocks is None else corpus.train.first(config.unique_blocks)
    if blocks.seq_len != config.seq_len:
        raise ValueError(f"the corpus is cut for seq_len {blocks.seq_len}, the run wants {config.seq_len}")
    if len(blocks) < config.batch:
        raise ValueError(f"the corpus has {len(blocks)} blocks, fewer than one batch of {config.batch}")
    per_epoch = len(blocks) // config.batch
    orders: dict[int, torch.Tensor] = {}

    def batch_of(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = torch.randperm(len(blocks), generator=runtime.generator(config.seed, epoch, 1))
        rows = orders[epoch][place * config.batch : (place + 1) * config.batch]
        return make_batch(
            blocks,
            rows,
            runtime.generator(config.seed, step, 2),
            vocab_size=corpus.vocab_size,
            rate=config.mask_rate,
        )

    return batch_of


def make_batch(
    blocks: masking.Blocks, rows: torch.Tensor, generator: torch.Generator, *, vocab_size: int, rate: float
) -> Batch:
    """Pairs with masks, of the blocks ``rows`` (B,), as the tensors that :func:`losses` reads."""
    pairs = masking.make_pairs(blocks.ids[rows], blocks.document[rows], generator)
    masked = masking.mask_tokens(pairs.input_ids, generator, vocab_size=vocab_size, rate=rate)
    return {
        "input_ids": masked.input_ids,
        "token_type_ids": pairs.token_type_ids,
        "positions": masked.positions,
        "labels": masked.labels,
        "next_label": pairs.next_label,
    }


def split(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch by rows into ``count`` parts, as equal as possible, whose losses add up to the batch's.

    Each part carries ``totals`` (2,), the masked positions and the rows of the whole batch: a mean over a
    part's own positions would weigh them by chance. Raises ``ValueError`` for fewer rows than parts.
    """
    rows, length = batch["input_ids"].shape
    if rows < count:
        raise ValueError(f"a batch of {rows} sequences cannot be cut into {count} parts")
    totals = torch.tensor([len(batch["labels"]), rows], dtype=torch.float32)
    owner = batch["positions"] // length
    parts, first = [], 0
    for chunk in torch.arange(rows).tensor_split(count):
        last = first + len(chunk)
        masked = (owner >= first) & (owner < last)
        by_row = {
            name: value[first:last]
            for name, value in batch.items()
            if name not in ("positions", "labels", "totals")
        }
        here = {"positions": batch["positions"][masked] - first * length, "labels": batch["labels"][masked]}
        parts.append(by_row | here | {"totals": totals})
        first = last
    return parts
