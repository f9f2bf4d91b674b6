"""All that a frozen encoder can show of a text: which window, which pooling, which layer.

Legend: ``n`` texts, ``R`` rows, ``L`` layers, ``T`` tokens, ``H`` hidden.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from helpers import tokenizer as tk
from helpers.finetune import Windows

READS = ("head", "tail", "both")
POOLS = ("mean", "max", "cls")


@torch.no_grad()
def views(encoder: PreTrainedModel, windows: Windows, *, batch: int = 64) -> np.ndarray:
    """Vectors (n, reads, pools, L + 1, H) of every text from one pass: its first window, its last and their
    mean; mean, maximum and first of the states of real tokens; embeddings and each layer.
    """
    encoder.eval()
    return torch.cat(
        [_views(encoder, windows, rows) for rows in torch.arange(len(windows)).split(batch)]
    ).numpy()


def _views(encoder: PreTrainedModel, windows: Windows, texts: torch.Tensor) -> torch.Tensor:
    given = windows.take(texts)
    mask = (given["input_ids"] != tk.PAD).long()
    states = encoder(input_ids=given["input_ids"], attention_mask=mask, output_hidden_states=True)
    h, m = torch.stack(states.hidden_states, 1), mask[:, None, :, None]  # (R, L + 1, T, H), (R, 1, T, 1)
    pooled = [(h * m).sum(2) / m.sum(2), h.masked_fill(m == 0, -torch.inf).amax(2), h[:, :, 0]]
    rows = torch.stack(pooled, 1)  # (R, pools, L + 1, H)
    last = windows.first[texts + 1] - windows.first[texts]
    ends = last.cumsum(0)
    first, tail = rows[ends - last], rows[ends - 1]
    return torch.stack([first, tail, (first + tail) / 2], 1)
