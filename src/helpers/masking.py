"""Next-sentence pairs and masked positions, as pure functions of (ids, generator).

Legend: ``n`` blocks, ``B`` sequences in a batch, ``T`` tokens in a sequence, ``W = T - 3`` text tokens in one
(a pair spends three on ``[CLS] A [SEP] B [SEP]``), ``M`` masked positions in a batch, ``V`` vocabulary.

Departures from google-research/bert ``create_pretraining_data.py``, each deliberate: segments are exchanged
inside a batch, so that every token is read once an epoch and exactly half of the pairs are negative (the
original makes more than half, since documents that run out force one); exactly ``round(rate * maskable)``
positions are masked in a batch, which keeps shapes fixed for ``torch.compile``; masks are drawn anew at every
step instead of ten times in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from helpers import tokenizer as tk

IS_NEXT, NOT_NEXT = 0, 1  # the labels of transformers' BertForPreTraining


@dataclass(frozen=True)
class Blocks:
    """Documents cut into blocks of equal length: ``ids`` (n, W) int64, ``document`` (n,) int64, ``skipped``
    documents.
    """

    ids: torch.Tensor
    document: torch.Tensor
    skipped: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seq_len(self) -> int:
        """Tokens of the sequence that a block fills, special tokens included."""
        return self.ids.size(1) + 3

    def first(self, count: int) -> Blocks:
        """The first ``count`` blocks: a smaller corpus that every larger one contains."""
        if not 0 < count <= len(self):
            raise ValueError(f"cannot take {count} of {len(self)} blocks")
        return Blocks(self.ids[:count], self.document[:count], self.skipped)


def own_input_entropy(frequencies: np.ndarray, *, keep: float = 0.1, swap: float = 0.1) -> float:
    """Lowest loss, in nats a masked token, of a model that sees a masked position's own input and no other.

    ``frequencies`` (V',) of the ordinary tokens sum to one; a masked position keeps its token with
    probability ``keep``, shows one of the V' tokens at random with ``swap``, and else ``[MASK]``, which tells
    nothing. Raises ``ValueError`` for frequencies that are negative or do not sum to one.
    """
    p = np.asarray(frequencies, float)
    if p.ndim != 1 or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"frequencies must be a vector that sums to one, got {p.shape} with sum {p.sum()}")
    # The shown token x is y itself or, by chance, any: P(y, x) is p_y swap / V', and p_y keep more at x = y.
    by_chance = swap / len(p)
    shown = keep * p + by_chance
    same = special.xlogy(p * (keep + by_chance), p * (keep + by_chance) / shown)
    joint = p * by_chance
    # Sum over x != y of joint_y log(joint_y / shown_x), without the table of V'^2 terms.
    others = (len(p) - 1) * special.xlogy(joint, joint) - joint * (np.log(shown).sum() - np.log(shown))
    masked = (1 - keep - swap) * -special.xlogy(p, p).sum()
    return float(masked - same.sum() - others.sum())


def cut_blocks(documents: Sequence[np.ndarray], seq_len: int) -> Blocks:
    """Cut each document into consecutive blocks of ``W = seq_len - 3`` tokens, so that no batch needs
    padding.

    The last block of a document reaches back to be full; documents shorter than a block are skipped and
    counted. Raises ``ValueError`` for ``seq_len < 8`` and when no document fills a block.
    """
    if seq_len < 8:
        raise ValueError(
            f"seq_len must be at least 8 to hold two segments and three special tokens, got {seq_len}"
        )
    width = seq_len - 3
    rows, owners, skipped = [], [], 0
    for number, ids in enumerate(documents):
        if len(ids) < width:
            skipped += 1
            continue
        starts = [*range(0, len(ids) - width, width), len(ids) - width]
        rows += [ids[start : start + width] for start in starts]
        owners += [number] * len(starts)
    if not rows:
        raise ValueError(
            f"empty corpus: none of {len(documents)} documents has the {width} tokens that fill a block"
        )
    return Blocks(torch.from_numpy(np.stack(rows).astype(np.int64)), torch.tensor(owners), skipped)


def exchange(document: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For each of B rows, the row whose second segment it receives: itself for positives, another for
    negatives.

    Half of the rows (rounded down) are drawn as negatives and pass their second segments around a circle. The
    circle is turned until no row receives a segment of its own document; rows for which that fails stay
    positive. Shape (B,).
    """
    count = len(document)
    donor = torch.arange(count)
    negative = torch.randperm(count, generator=generator)[: count // 2]
    if len(negative) < 2:
        return donor
    clashes = [
        (document[negative.roll(k)] == document[negative]).sum().item() for k in range(1, len(negative))
    ]
    turn = 1 + int(np.argmin(clashes))
    donor[negative] = negative.roll(turn)
    return torch.where(document[donor] == document, torch.arange(count), donor)


@dataclass(frozen=True)
class Pairs:
    """``input_ids`` and ``token_type_ids`` (B, T); ``next_label`` (B,), 0 where B follows A, 1 where it does
    not.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    next_label: torch.Tensor


def make_pairs(ids: torch.Tensor, document: torch.Tensor, generator: torch.Generator) -> Pairs:
    """``[CLS] A [SEP] B [SEP]`` from blocks ``ids`` (B, W) of documents ``document`` (B,).

    A and B are the two parts of a block, cut at one random place for the whole batch (between a quarter and
    three quarters); in half of the rows B comes from another document. Raises ``ValueError`` when all rows
    are one document, since then no negative exists.
    """
    rows, width = ids.shape
    if rows >= 4 and bool((document == document[0]).all()):
        raise ValueError("next-sentence pairs need at least two documents in a batch: all rows come from one")
    cut = int(torch.randint(width // 4, width - width // 4, (1,), generator=generator))
    donor = exchange(document, generator)
    first, second = ids[:, :cut], ids[donor, cut:]
    cls, sep = (torch.full((rows, 1), token) for token in (tk.CLS, tk.SEP))
    input_ids = torch.cat([cls, first, sep, second, sep], dim=1)  # (B, T)
    token_type_ids = torch.zeros_like(input_ids)
    token_type_ids[:, cut + 2 :] = 1
    return Pairs(input_ids, token_type_ids, (donor != torch.arange(rows)).long() * NOT_NEXT)


def make_order_pairs(ids: torch.Tensor, document: torch.Tensor, generator: torch.Generator) -> Pairs:
    """Pairs of sentence-order prediction (Lan et al. 2019, section 3.1), shaped as by :func:`make_pairs`.

    The two parts of a block stand in order, or, in half of the rows (rounded down), swapped:
    ``[CLS] B [SEP] A [SEP]``, with ``next_label`` 1. Both parts of every pair come from one document, so
    that its topic answers nothing, and ``document`` (B,) is not looked at.
    """
    rows, width = ids.shape
    cut = int(torch.randint(width // 4, width - width // 4, (1,), generator=generator))
    swapped = torch.zeros(rows, dtype=torch.bool)
    swapped[torch.randperm(rows, generator=generator)[: rows // 2]] = True
    cls, sep = (torch.full((rows, 1), token) for token in (tk.CLS, tk.SEP))
    first, second = ids[:, :cut], ids[:, cut:]
    in_order = torch.cat([cls, first, sep, second, sep], dim=1)  # (B, T)
    reversed_ = torch.cat([cls, second, sep, first, sep], dim=1)
    place = torch.arange(in_order.size(1))
    ends_at = torch.where(swapped, width - cut, cut)[:, None] + 1  # the [SEP] behind the first part
    input_ids = torch.where(swapped[:, None], reversed_, in_order)
    return Pairs(input_ids, (place > ends_at).long(), swapped.long() * NOT_NEXT)


@dataclass(frozen=True)
class Masked:
    """``input_ids`` (B, T) with masks put in; ``positions`` (M,) into the flattened batch; ``labels`` (M,),
    the original ids.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor


def mask_tokens(
    input_ids: torch.Tensor,
    generator: torch.Generator,
    *,
    vocab_size: int,
    rate: float = 0.15,
    keep: float = 0.1,
    swap: float = 0.1,
) -> Masked:
    """Choose ``round(rate * maskable)`` positions of (B, T) ids and hide them (Devlin et al. 2019, section
    3.1).

    Of the chosen, a share ``swap`` becomes a random ordinary token, a share ``keep`` stays, the rest becomes
    ``[MASK]``. Special tokens and padding are never chosen, and never drawn as replacements. Raises
    ``ValueError`` for a rate outside (0, 1), for ids outside the vocabulary, and when nothing can be masked.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}")
    if keep < 0 or swap < 0 or keep + swap > 1:
        raise ValueError(f"keep and swap must be shares that sum to at most 1, got {keep} and {swap}")
    check_ids(input_ids, vocab_size)
    flat = input_ids.flatten()
    maskable = (
        (flat >= len(tk.SPECIAL_TOKENS)).nonzero().squeeze(1)
    )  # special ids stand first in the vocabulary
    count = round(rate * len(maskable))
    if count == 0:
        raise ValueError(f"nothing to mask: {len(maskable)} ordinary tokens at rate {rate}")
    chosen = torch.randperm(len(maskable), generator=generator)[:count]
    positions = maskable[chosen].sort().values
    labels = flat[positions]
    draw = torch.rand(count, generator=generator)
    random_ids = torch.randint(len(tk.SPECIAL_TOKENS), vocab_size, (count,), generator=generator)
    hidden = torch.where(draw < keep, labels, torch.where(draw < keep + swap, random_ids, tk.MASK))
    return Masked(flat.index_put((positions,), hidden).view_as(input_ids), positions, labels)


def check_ids(input_ids: torch.Tensor, vocab_size: int) -> None:
    """Raise ``ValueError`` naming the first token id outside ``[0, vocab_size)``."""
    bad = input_ids[(input_ids < 0) | (input_ids >= vocab_size)]
    if bad.numel():
        raise ValueError(
            f"token id {int(bad[0])} lies outside the vocabulary of {vocab_size} tokens: wrong tokenizer "
            "for this model?"
        )
