"""Where attention looks before training: the initialisation that spares a small BERT its plateau.

A fresh BERT attends to all positions alike, and until some head has found the neighbouring words the model
knows no context: its loss rests at what word frequencies allow. Finding them takes far longer than a short
run, since position vectors are random and mixed with word vectors of equal size. Here words and positions
start in subspaces of their own, positions as sinusoids, and the heads of the first layer as look-ups of fixed
offsets: one word back, one ahead, two back, and so on. Nothing of the architecture changes, everything stays
trainable.

Related: sinusoidal positions, whose shifts are rotations (Vaswani et al. 2017, section 3.5); initial weights
that mimic trained ones (Trockman and Kolter 2023).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedModel

WORD_STD = 0.1  # BERT's 0.02 is soon buried under the optimizer's steps, and with it which word is which
POSITION_AMPLITUDE = 0.14  # of the sinusoids: as long a vector as a word's
PEAK_SCORE = 25.0  # attention score, before the softmax, of the position that a head is pointed at
_GOLDEN = (math.sqrt(5) - 1) / 2


def frequencies(count: int) -> torch.Tensor:
    """``count`` angular frequencies in (0, pi), spread by the golden ratio: no shift below the length of a
    text brings all of them back into phase, as evenly spaced ones would.
    """
    return math.pi * ((torch.arange(1, count + 1) * _GOLDEN) % 1)


def rotation(angles: torch.Tensor) -> torch.Tensor:
    """The (2k, 2k) matrix that turns ``[sin a, cos a]`` into ``[sin(a + angle), cos(a + angle)]``."""
    cos, sin = torch.diag(angles.cos()), torch.diag(angles.sin())
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 0)


def offsets(heads: int) -> list[int]:
    """The position each head looks at, relative to its own: -1, 1, -2, 2, ..."""
    return [(-1 if h % 2 == 0 else 1) * (h // 2 + 1) for h in range(heads)]


@torch.no_grad()
def point_heads_at_neighbours(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Initialise word and position vectors and the first layer's queries and keys of a BERT or Megatron-BERT,
    in place.

    Legend: ``P`` positions, ``H`` hidden, ``S = H / 2`` dimensions of the position subspace, ``d`` head
    width.
    """
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    share, width = hidden // 2, hidden // heads
    turn = frequencies(share // 2)
    table = model.bert.embeddings.position_embeddings.weight  # (P, H)
    angles = torch.arange(len(table))[:, None] * turn  # (P, S / 2)
    table.zero_()
    table[:, :share] = POSITION_AMPLITUDE * torch.cat([angles.sin(), angles.cos()], dim=1)
    words = model.bert.embeddings.word_embeddings.weight  # (V, H)
    words.mul_(WORD_STD / model.config.initializer_range)
    words[:, :share] = 0.0
    attention = model.bert.encoder.layer[0].attention.self
    attention.query.weight.zero_()
    attention.key.weight.zero_()
    # After the layer norm a vector has squared norm H, of which positions hold a part, and a head of width
    # d < S sees d / S of that.
    part = POSITION_AMPLITUDE**2 / (POSITION_AMPLITUDE**2 + WORD_STD**2)
    seen = hidden * part * min(1.0, width / share)
    gain = math.sqrt(PEAK_SCORE * math.sqrt(width) / seen)
    for head, offset in enumerate(offsets(heads)):
        rows = slice(head * width, (head + 1) * width)
        lookup = nn.init.orthogonal_(torch.empty(width, share), generator=generator)  # (d, S)
        attention.key.weight[rows, :share] = gain * lookup
        attention.query.weight[rows, :share] = gain * lookup @ rotation(turn * offset)
