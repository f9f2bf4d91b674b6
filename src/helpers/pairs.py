"""Sentence pairs: two texts in one row, ``[CLS] A [SEP] B [SEP]``, and two tasks made of them.

*Segment pairs* are made here from any reviews, without a network: does B follow A, or is it from another
review? *MRPC* (Dolan and Brockett 2005) asks whether two sentences of news say the same; it is on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from helpers import data, runtime
from helpers import tokenizer as tk
from helpers.finetune import Windows

_END = re.compile(r"(?<=[.!?])\s+")
FEWEST_WORDS = 4  # "Yes." follows anything
MRPC = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")  # name and revision on the hub


@dataclass(frozen=True)
class Pairs:
    """Texts ``first`` and ``second`` and labels (n,): 1 when they belong together."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def sentences(text: str) -> list[str]:
    """The sentences of a text that have at least ``FEWEST_WORDS`` words, split at marks and spaces."""
    return [part for part in _END.split(text) if len(part.split()) >= FEWEST_WORDS]


def neighbours(texts: Sequence[str], count: int, *, seed: int) -> Pairs:
    """``count`` pairs, one a text: a sentence and the next one (label 1), or, in half of the pairs, another
    pair's second sentence (label 0). The second sentences of the two classes are equally often first, last
    and long, since negatives only change places among themselves.

    Raises ``ValueError`` when fewer than ``count`` texts have two sentences in a row, and for fewer than 4.
    """
    if count < 4:
        raise ValueError(f"half of the pairs change places: ask for at least 4, not {count}")
    rng = np.random.default_rng([seed, 5])
    found: list[tuple[str, str]] = []
    for place in rng.permutation(len(texts)):
        if len(found) == count:
            break
        parts = sentences(texts[place])
        if len(parts) > 1:
            at = int(rng.integers(len(parts) - 1))
            found.append((parts[at], parts[at + 1]))
    if len(found) < count:
        raise ValueError(f"only {len(found)} of {len(texts)} texts have two sentences, asked for {count}")
    first, second = (list(side) for side in zip(*found, strict=True))
    away = count // 2  # the first half passes its second sentences around a circle; nothing stays in place
    second[:away] = second[1:away] + second[:1]
    order = rng.permutation(count)
    labels = (np.arange(count) >= away).astype(np.int64)
    return Pairs(tuple(first[i] for i in order), tuple(second[i] for i in order), labels[order])


def rows(tokenizer: PreTrainedTokenizerFast, pairs: Pairs, *, seq_len: int = 64) -> Windows:
    """Each pair as one row of ``seq_len`` ids, ``[CLS] A [SEP] B [SEP]`` and padding. When it is too long,
    the longer sentence loses its last tokens first, as in BERT."""
    if seq_len < 5:
        raise ValueError(f"seq_len must be at least 5 for two tokens and three marks, got {seq_len}")
    room, made = seq_len - 3, []
    for a, b in zip(*(tk.encode(tokenizer, list(side)) for side in (pairs.first, pairs.second)), strict=True):
        short = min(len(a), len(b))
        if len(a) + len(b) > room:
            longest = max(room - short, (room + 1) // 2)
            a, b = a[:longest], b[:longest]
            b = b[: room - len(a)]
        body = [tk.CLS, *a, tk.SEP, *b, tk.SEP]
        made.append(body + [tk.PAD] * (seq_len - len(body)))
    return Windows(torch.tensor(made), torch.arange(len(made) + 1))


def shared_words(pairs: Pairs, common: set[str]) -> np.ndarray:
    """How many words outside ``common`` both sentences have, (n,): the plainest judge of a pair."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"[a-z']+", text.lower())) - common

    both = zip(pairs.first, pairs.second, strict=True)
    return np.array([len(words(a) & words(b)) for a, b in both])


def mrpc() -> dict[str, Pairs]:
    """MRPC's splits from the hub; raises ``DataUnavailable`` in the quick profile and without a network."""
    if runtime.profile() == "quick":
        raise data.DataUnavailable("MRPC is read from the hub: set BOOK_PROFILE=colab to download it")
    from datasets import load_dataset

    name, revision = MRPC
    try:
        parts = load_dataset(name, "mrpc", revision=revision)
    except (OSError, ConnectionError, ValueError) as error:
        raise data.DataUnavailable(f"cannot read {name}@{revision[:7]} from the hub ({error})") from error
    return {
        split: Pairs(tuple(part["sentence1"]), tuple(part["sentence2"]), np.asarray(part["label"], np.int64))
        for split, part in parts.items()
    }
