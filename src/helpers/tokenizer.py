"""WordPiece: train it on the training split, keep it by content, load it as a ``transformers`` tokenizer."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from helpers import runtime

# The ids follow from the order: [PAD] must be 0, as BERT's configurations assume.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
_FORMAT = 3  # part of the cache key: raise it when the construction below changes


_ALPHABET = 80


def _blank(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tokenizer


def _train(texts: list[str], vocab_size: int) -> Tokenizer:
    """WordPiece trained so that the result does not depend on chance.

    The trainer numbers the letters inside words ("##e") in the order of a randomly seeded hash table, and
    breaks ties of counts by these numbers: two trainings differ. Passed as special tokens, the letters have
    fixed numbers. Symbols inside words ("##£") are too rare to break a tie, and are numbered afterwards.
    """
    blank = _blank()
    clean = [blank.normalizer.normalize_str(text) for text in texts]
    counts: Counter[str] = Counter()
    for text in clean:
        counts.update(text)
    letters = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:_ALPHABET]
    inside = [f"##{c}" for c in letters if not unicodedata.category(c).startswith(("P", "S"))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *inside],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    blank.train_from_iterator(texts, trainer)
    vocabulary = blank.get_vocab()
    symbols = {c for c in letters if f"##{c}" in vocabulary and f"##{c}" not in inside}
    pieces = [f"##{c}" for c in _by_use_inside_words(blank, clean, symbols)]
    vocabulary |= dict(zip(pieces, sorted(vocabulary[piece] for piece in pieces), strict=True))
    tokenizer = _blank(vocabulary)  # without the letters among the special tokens
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _by_use_inside_words(blank: Tokenizer, clean: list[str], symbols: set[str]) -> list[str]:
    """Symbols by how often they stand inside a word of these texts, most frequent first."""
    counts = Counter(
        c
        for text in clean
        if symbols & set(text)
        for word, _ in blank.pre_tokenizer.pre_tokenize_str(text)
        for c in word[1:]
        if c in symbols
    )
    return sorted(symbols, key=lambda c: (-counts[c], c))


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A ``tokenizers`` object as a ``transformers`` tokenizer, with BERT's special tokens set."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def train_wordpiece(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer (Wu et al. 2016, section 4.1, as BERT uses it) trained on ``texts``.

    The same texts give the same vocabulary. A trained tokenizer is kept in the cache folder under a hash of
    the texts and settings, and read back from there. Raises ``ValueError`` for an empty corpus, or a
    vocabulary that is too small for the special tokens and the alphabet.
    """
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise ValueError("cannot train a tokenizer on an empty corpus: every text is empty")
    if vocab_size < 100:
        raise ValueError(
            f"vocab_size must be at least 100 to hold the special tokens and an alphabet, got {vocab_size}"
        )
    digest = hashlib.sha256(json.dumps([_FORMAT, vocab_size]).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    path = runtime.cache_dir() / f"wordpiece-{vocab_size}-{digest.hexdigest()[:16]}.json"
    if (kept := _read(path)) is not None:
        return wrap(kept)
    text = _train(texts, vocab_size).to_str()
    with runtime.write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return wrap(Tokenizer.from_str(text))


def _read(path: Path) -> Tokenizer | None:
    """The tokenizer in a file of the cache; ``None`` where it is missing or damaged, and made again."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the only class that tokenizers raises, whatever is wrong with a file
        return None


def load(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a model folder; raises ``ValueError`` when there is none."""
    if not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer.json: expected a folder written by save_pretrained")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text (int32, without special tokens), in order.

    A text that says "[SEP]" is encoded letter by letter, as any other: it must not end a sentence.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(encoding.ids, np.int32) for encoding in encodings]
