"""The text a model is pre-trained on: a tokenizer, and the blocks of the training and validation splits."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from helpers import data, masking, runtime
from helpers import tokenizer as tk


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and the blocks of each split; ``unigram_entropy`` of the validation text under training
    frequencies, in nats.
    """

    tokenizer: PreTrainedTokenizerFast
    train: masking.Blocks
    validation: masking.Blocks
    unigram_entropy: float
    origin: str
    digest: str

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return len(self.tokenizer)

    @property
    def own_input_entropy(self) -> float:
        """Lowest loss of a model that sees no input but a masked position's own, in nats (:func:`helpers.
        masking.own_input_entropy`): what lies between it and ``unigram_entropy`` needs no context.
        """
        counts = np.bincount(self.train.ids.flatten().numpy(), minlength=self.vocab_size) + 1.0
        ordinary = counts[len(tk.SPECIAL_TOKENS) :]
        return masking.own_input_entropy(ordinary / ordinary.sum())


def load_corpus(reviews: data.Reviews | None = None, *, vocab_size: int = 4096, seq_len: int = 128) -> Corpus:
    """Train the tokenizer on the training split, and cut both splits into blocks. Encoded text is kept in the
    cache folder.
    """
    reviews = reviews or data.reviews("imdb")
    tokenizer = tk.train_wordpiece(reviews.texts("train"), vocab_size)
    documents = {name: _encode_cached(tokenizer, reviews.texts(name)) for name in ("train", "validation")}
    entropy = data.unigram_entropy(
        np.concatenate(documents["validation"]), np.concatenate(documents["train"]), len(tokenizer)
    )
    train, validation = (masking.cut_blocks(documents[name], seq_len) for name in ("train", "validation"))
    digest = hashlib.sha256(train.ids.numpy().tobytes()).hexdigest()[:16]
    return Corpus(tokenizer, train, validation, entropy, reviews.origin, digest)


def _encode_cached(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    if not texts:
        raise ValueError("empty corpus: a split has no text")
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    path = runtime.cache_dir() / f"ids-{digest.hexdigest()[:16]}.npz"
    if (kept := _read(path)) is not None:
        return kept
    ids = tk.encode(tokenizer, texts)
    with runtime.write_atomically(path) as temporary:
        np.savez(temporary, flat=np.concatenate(ids), ends=np.cumsum([len(row) for row in ids]))
    return ids


def _read(path: Path) -> list[np.ndarray] | None:
    """The ids that a file of the cache holds; ``None`` where it is missing or damaged, and made again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return np.split(saved["flat"], saved["ends"][:-1])
    except (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
