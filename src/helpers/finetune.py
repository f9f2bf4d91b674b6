"""Fine-tune an encoder on a classification task, from pre-trained or from fresh weights, and measure it with
intervals.

Legend: ``n`` texts, ``R`` windows (rows) in a batch, ``T`` tokens in a window, ``H`` hidden, ``C`` classes. A
long text is read through several windows (its head, its tail, what lies between); the mean of the encoder's
states over all of its tokens is classified.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from helpers import masking, runtime, training
from helpers import tokenizer as tk
from helpers.metrics import (
    bootstrap,
    calibration_error,
    check_labels,
    mean_interval,
    scores,
    soften,
    temperature,
)
from helpers.training import Batch, History, TrainConfig

__all__ = [
    "Classifier",
    "FinetuneConfig",
    "Finetuned",
    "Windows",
    "bootstrap",
    "calibration_error",
    "check_labels",
    "cut_windows",
    "finetune",
    "loss",
    "mean_interval",
    "predict",
    "scores",
    "soften",
    "temperature",
]

POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune. ``lr`` is Muon's rate (encoder matrices), ``lr_adam`` AdamW's (the rest, or all with
    ``optimizer="adamw"``); ``frozen`` trains the classifier alone. A budget is ``epochs`` over the labels,
    but at least ``min_steps`` steps, so that few labels are not also few updates; with 0 epochs it is exactly
    ``min_steps``."""

    epochs: float = 3.0
    min_steps: int = 100
    batch: int = 32
    optimizer: str = "adamw"
    lr: float = 2e-3
    lr_adam: float = 1e-3
    weight_decay: float = 0.05
    pooling: str = "mean"
    frozen: bool = False
    seed: int = 0
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.min_steps < 1 or self.batch < 1:
            raise ValueError(
                f"epochs must not be negative, min_steps and batch at least 1, got {self.epochs}, "
                f"{self.min_steps} and {self.batch}"
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {self.pooling!r}: expected one of {', '.join(POOLINGS)}")

    def steps(self, texts: int) -> int:
        """Optimizer steps for a number of labelled texts."""
        return max(self.min_steps, math.ceil(self.epochs * texts / self.batch))

    def training(self, texts: int) -> TrainConfig:
        """The loop's settings for a number of labelled texts: a tenth of the steps rises, the rest falls.

        Nothing is compiled, since the rows of a batch change in number or width.
        """
        steps = self.steps(texts)
        warmup = max(1, steps // 10)
        return TrainConfig(
            steps=steps,
            optimizer=self.optimizer,
            lr=self.lr,
            lr_adam=self.lr_adam,
            weight_decay=self.weight_decay,
            warmup=warmup,
            decay=steps - warmup,
            seed=self.seed,
            precision=self.precision,
            compile=False,
        )


@dataclass(frozen=True)
class Windows:
    """Texts cut into windows: ``input_ids`` (rows, T) padded with [PAD]; ``first`` (n + 1,), where each
    text's rows begin.
    """

    input_ids: torch.Tensor
    first: torch.Tensor

    def __len__(self) -> int:
        return len(self.first) - 1

    def take(self, texts: torch.Tensor) -> Batch:
        """The rows of the given texts: ``input_ids`` (R, T), and ``owner`` (R,), which text of the batch a
        row is from; where rows hold two sentences, ``token_type_ids`` (R, T), 1 in the second.
        """
        spans = [torch.arange(int(self.first[i]), int(self.first[i + 1])) for i in texts]
        owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(span) for span in spans]))
        ids = self.input_ids[torch.cat(spans)]
        marks = (ids == tk.SEP).cumsum(1)
        second = ((marks - (ids == tk.SEP).long() > 0) & (ids != tk.PAD)).long()  # behind the first [SEP]
        pair = {"token_type_ids": second} if second.any() else {}
        return {"input_ids": ids, "owner": owner} | pair


def cut_windows(documents: Sequence[np.ndarray], *, seq_len: int = 128, windows: int = 2) -> Windows:
    """Up to ``windows`` windows ``[CLS] ... [SEP]`` of ``seq_len`` tokens from each text's ids, spread from
    head to tail.

    Raises ``ValueError`` when there is no text, or one without tokens.
    """
    if seq_len < 3 or windows < 1:
        raise ValueError(f"seq_len must be at least 3 and windows at least 1, got {seq_len} and {windows}")
    if len(documents) == 0:
        raise ValueError("no texts to cut into windows")
    width, rows, first = seq_len - 2, [], [0]
    for number, ids in enumerate(documents):
        if len(ids) == 0:
            raise ValueError(f"text {number} has no tokens")
        count = min(windows, math.ceil(len(ids) / width))
        starts = np.linspace(0, max(len(ids) - width, 0), count).round().astype(int) if count > 1 else [0]
        for start in starts:
            body = ids[start : start + width]
            rows.append(np.concatenate([[tk.CLS], body, [tk.SEP], [tk.PAD] * (width - len(body))]))
        first.append(len(rows))
    return Windows(torch.from_numpy(np.stack(rows).astype(np.int64)), torch.tensor(first))


class Classifier(nn.Module):
    """An encoder, a pooling of its states, and one linear layer."""

    def __init__(self, encoder: PreTrainedModel, classes: int = 2, pooling: str = "mean") -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: expected one of {', '.join(POOLINGS)}")
        self.encoder, self.pooling = encoder, pooling
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        nn.init.zeros_(
            self.head.weight
        )  # the first updates then come from the features, not from a random projection
        nn.init.zeros_(self.head.bias)

    def features(self, batch: Batch) -> torch.Tensor:
        """One vector a text, (n, H): the mean over its real tokens, or over its windows' [CLS] states."""
        ids, owner = batch["input_ids"], batch["owner"]
        mask_RxT = (ids != tk.PAD).long()
        given = {"input_ids": ids, "attention_mask": mask_RxT}
        if "token_type_ids" in batch:
            given["token_type_ids"] = batch["token_type_ids"]
        states_RxTxH = self.encoder(**given)[0]
        if self.pooling == "cls":
            sums, counts = states_RxTxH[:, 0], torch.ones_like(mask_RxT[:, 0])
        else:
            sums, counts = (states_RxTxH * mask_RxT[..., None]).sum(1), mask_RxT.sum(1)
        texts = int(owner[-1]) + 1
        total = sums.new_zeros(texts, sums.size(1)).index_add(0, owner, sums)
        return total / counts.new_zeros(texts).index_add(0, owner, counts)[:, None]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (n, C) of the texts whose windows are in the batch."""
        return self.head(self.features(batch))

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerFast) -> Path:
        """Write the encoder and tokenizer as ``from_pretrained`` reads them, and the head beside them."""
        folder = Path(folder)
        with runtime.without_bars():
            self.encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_model(self.head, str(folder / "head.safetensors"))
        (folder / "head.json").write_text(
            json.dumps({"classes": self.head.out_features, "pooling": self.pooling})
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        """A classifier written by :meth:`save`; raises ``ValueError`` when the folder is not one."""
        folder = Path(folder)
        needed = ("config.json", "model.safetensors", "head.json", "head.safetensors")
        if missing := [name for name in needed if not (folder / name).is_file()]:
            raise ValueError(f"{folder} is not a saved classifier: no {' and no '.join(missing)}")
        try:
            model = cls(_encoder(folder), **json.loads((folder / "head.json").read_text()))
            load_model(model.head, str(folder / "head.safetensors"))
        except (SafetensorError, OSError, RuntimeError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} is not a whole classifier: {error}") from error
        return model.eval()


def _encoder(folder: Path) -> PreTrainedModel:
    """The encoder of a saved classifier; a weight that is missing would otherwise be drawn at random."""
    with runtime.without_bars():
        model, report = AutoModel.from_pretrained(
            folder,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="eager",
        )
    if missing := sorted(report["missing_keys"]):
        raise OSError(f"its encoder lacks the weights {missing[:3]}")
    return model


def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy of the labels, in nats a text."""
    return F.cross_entropy(model(batch).float(), batch["labels"]), {}


@dataclass(frozen=True)
class Finetuned:
    """A trained classifier, its history and its configuration."""

    model: Classifier
    history: History
    config: FinetuneConfig


def finetune(
    encoder: PreTrainedModel,
    texts: Windows,
    labels: np.ndarray,
    config: FinetuneConfig,
    *,
    classes: int = 2,
    progress: bool = True,
) -> Finetuned:
    """Train a classifier on ``encoder`` (changed in place unless frozen) with the labels (n,) of ``texts``.

    ``encoder`` is ``model.bert`` of a pre-training model, fresh or loaded. Raises ``ValueError`` for labels
    outside ``[0, classes)``, for labels and texts of different number, and for windows longer than the
    encoder's positions.
    """
    labels = check_labels(labels, classes)
    if len(labels) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(labels)} labels")
    check_rows(texts.input_ids, encoder)
    model = Classifier(encoder, classes, config.pooling)
    encoder.requires_grad_(not config.frozen)
    target = torch.from_numpy(labels)

    def batch_of(step: int) -> Batch:
        rows = rows_of_step(len(texts), config, step)
        return texts.take(rows) | {"labels": target[rows]}

    settings = config.training(len(texts))
    return Finetuned(model, training.train(model, batch_of, loss, settings, progress=progress), config)


def check_rows(input_ids: torch.Tensor, encoder: PreTrainedModel) -> None:
    """Raise ``ValueError`` for rows (R, T) longer than the encoder's positions, or of another vocabulary."""
    if input_ids.size(1) > encoder.config.max_position_embeddings:
        raise ValueError(
            f"rows of {input_ids.size(1)} tokens, but the encoder has "
            f"{encoder.config.max_position_embeddings} positions"
        )
    masking.check_ids(input_ids, encoder.config.vocab_size)


def rows_of_step(texts: int, config: FinetuneConfig, step: int) -> torch.Tensor:
    """Which texts a step reads: epochs follow each other without a gap, each in an order of its own."""
    size = min(config.batch, texts)
    epoch, place = divmod(step * size, texts)
    orders = [torch.randperm(texts, generator=runtime.generator(config.seed, epoch + i, 3)) for i in range(2)]
    return torch.cat(orders)[place : place + size]


@torch.no_grad()
def predict(model: Classifier, texts: Windows, *, batch: int = 64) -> np.ndarray:
    """Class probabilities (n, C) of every text."""
    where = next(model.parameters()).device
    model.eval()
    parts = []
    for rows in torch.arange(len(texts)).split(batch):
        inputs = {name: value.to(where) for name, value in texts.take(rows).items()}
        with runtime.autocast(runtime.precision(where), where):
            parts.append(model(inputs).float().softmax(1).cpu())
    return torch.cat(parts).numpy()
