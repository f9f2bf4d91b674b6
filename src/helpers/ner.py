"""A tagger of named entities: tags aligned to word pieces, an encoder with one linear layer, entity scores.

Legend: ``n`` sentences of ``W`` words together, ``R`` rows of ``T`` tokens, ``C`` tags, ``H`` hidden. A word
of several pieces is tagged at its first piece; the others have no label (Devlin et al. 2019, section 5.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from helpers import runtime, training
from helpers import tokenizer as tk
from helpers.conll import TAGS, TYPES, Tagged, conll2003, parse
from helpers.entities import Entity, Score, entities, score, token_accuracy
from helpers.finetune import FinetuneConfig, check_rows, rows_of_step
from helpers.training import Batch, History

__all__ = [
    "TAGS",
    "TYPES",
    "Aligned",
    "Entity",
    "Score",
    "Tagged",
    "Tagger",
    "TrainedTagger",
    "align",
    "conll2003",
    "entities",
    "finetune",
    "loss",
    "parse",
    "predict",
    "score",
    "token_accuracy",
]

NO_LABEL = -100  # what torch's cross-entropy leaves out


@dataclass(frozen=True)
class Aligned:
    """Sentences as rows of pieces: ``input_ids`` (R, T), ``labels`` (R, T) with the tag of each word at its
    first piece and ``NO_LABEL`` elsewhere, ``places`` (W,), where each word begins in the flattened rows, and
    ``lengths`` (n,), words of each sentence.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: torch.Tensor) -> Batch:
        """The given rows, as wide as the longest of them."""
        ids = self.input_ids[rows]
        width = int((ids != tk.PAD).sum(1).max())
        return {"input_ids": ids[:, :width], "labels": self.labels[rows][:, :width]}

    def tags(self, numbers: torch.Tensor) -> list[list[str]]:
        """The tags of each sentence from the number of a tag at every position (R, T)."""
        flat = iter(numbers.flatten()[self.places].tolist())
        return [[TAGS[next(flat)] for _ in range(length)] for length in self.lengths]


def align(tokenizer: PreTrainedTokenizerFast, sentences: Tagged, *, seq_len: int = 128) -> Aligned:
    """Cut sentences into rows ``[CLS] ... [SEP]`` and put each word's tag at its first piece.

    A sentence too long for a row goes on in the next one, at the beginning of a word, so that no word is
    lost; a word that no piece can spell becomes ``[UNK]``. Raises ``ValueError`` when there is no sentence,
    or a row is too short to hold a word.
    """
    if len(sentences) == 0 or seq_len < 3:
        raise ValueError(f"need sentences and a seq_len of at least 3, got {len(sentences)} and {seq_len}")
    vocabulary = sorted({word for words in sentences.words for word in words})
    spelt = dict(zip(vocabulary, tk.encode(tokenizer, vocabulary), strict=True))
    rows: list[list[int]] = []
    marks: list[list[int]] = []
    places: list[int] = []
    for words, tags in zip(sentences.words, sentences.tags, strict=True):
        room = 0
        for word, tag in zip(words, tags, strict=True):
            pieces = (spelt[word].tolist() or [tk.UNK])[: seq_len - 2]
            if len(pieces) > room:
                rows.append([tk.CLS])
                marks.append([NO_LABEL])
                room = seq_len - 2
            places.append((len(rows) - 1) * seq_len + len(rows[-1]))
            rows[-1] += pieces
            marks[-1] += [TAGS.index(tag)] + [NO_LABEL] * (len(pieces) - 1)
            room -= len(pieces)
    input_ids = torch.full((len(rows), seq_len), tk.PAD)
    labels = torch.full((len(rows), seq_len), NO_LABEL)
    for i, (ids, numbers) in enumerate(zip(rows, marks, strict=True)):
        input_ids[i, : len(ids) + 1] = torch.tensor([*ids, tk.SEP])
        labels[i, : len(numbers)] = torch.tensor(numbers)
    return Aligned(input_ids, labels, torch.tensor(places), tuple(map(len, sentences.words)))


class Tagger(nn.Module):
    """An encoder and one linear layer that gives each piece a score for each tag."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(TAGS))
        nn.init.zeros_(self.head.weight)  # as in finetune.Classifier
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Scores (R, T, C) of each tag at each piece."""
        mask = (input_ids != tk.PAD).long()
        return self.head(self.encoder(input_ids=input_ids, attention_mask=mask)[0])


def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy in nats a word, over first pieces alone."""
    scores = model(batch["input_ids"]).flatten(0, 1).float()
    return F.cross_entropy(scores, batch["labels"].flatten(), ignore_index=NO_LABEL), {}


@dataclass(frozen=True)
class TrainedTagger:
    """A trained tagger and its history."""

    model: Tagger
    history: History


def finetune(
    encoder: PreTrainedModel, rows: Aligned, config: FinetuneConfig, *, progress: bool = True
) -> TrainedTagger:
    """Train a tagger on ``encoder`` (changed in place unless frozen) with the rows of some sentences.

    Of the configuration, ``pooling`` is about whole texts and has no meaning here. Raises ``ValueError`` for
    rows longer than the encoder's positions, or of another vocabulary.
    """
    check_rows(rows.input_ids, encoder)
    model = Tagger(encoder)
    encoder.requires_grad_(not config.frozen)

    def batch_of(step: int) -> Batch:
        return rows.take(rows_of_step(len(rows), config, step))

    settings = config.training(len(rows))
    return TrainedTagger(model, training.train(model, batch_of, loss, settings, progress=progress))


@torch.no_grad()
def predict(model: Tagger, rows: Aligned, *, batch: int = 128) -> list[list[str]]:
    """The most probable tag of each word, by sentence."""
    where, numbers = next(model.parameters()).device, torch.zeros_like(rows.input_ids)
    model.eval()
    for part in (rows.input_ids != tk.PAD).sum(1).argsort().split(batch):  # rows of one length together
        ids = rows.take(part)["input_ids"]
        with runtime.autocast(runtime.precision(where), where):
            numbers[part, : ids.size(1)] = model(ids.to(where)).argmax(2).cpu()
    return rows.tags(numbers)
