"""Sizes and models: from (layers, hidden) to a ``transformers`` model that is saved and loaded as one.

Two architectures with the same parts: ``"bert"`` normalises after each sub-layer (Devlin et al. 2019),
``"megatron-bert"`` before it (Shoeybi et al. 2019), which trains at higher rates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    BertConfig,
    BertForPreTraining,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    PreTrainedModel,
)

from helpers import runtime
from helpers.initialization import point_heads_at_neighbours

HEAD_WIDTH = 32
INITIALISATIONS = ("neighbours", "standard")
ARCHITECTURES = {
    "bert": (BertConfig, BertForPreTraining),
    "megatron-bert": (MegatronBertConfig, MegatronBertForPreTraining),
}


@dataclass(frozen=True, order=True)
class Size:
    """The shape of an encoder; everything else follows from depth and width."""

    layers: int
    hidden: int

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")
        if self.hidden < HEAD_WIDTH or self.hidden % HEAD_WIDTH:
            raise ValueError(
                f"hidden must be a positive multiple of {HEAD_WIDTH} (the width of a head), got {self.hidden}"
            )

    @classmethod
    def parse(cls, text: str) -> Size:
        """``Size.parse("4x128") == Size(4, 128)``."""
        if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
            raise ValueError(f"cannot read the size {text!r}: expected layers x hidden, as in '4x128'")
        return cls(int(match[1]), int(match[2]))

    @property
    def heads(self) -> int:
        """Attention heads of ``HEAD_WIDTH``, but at least two: one to look back and one to look ahead."""
        return max(2, self.hidden // HEAD_WIDTH)

    @property
    def intermediate(self) -> int:
        """Width of the feed-forward layer: four times the hidden width, as in BERT."""
        return 4 * self.hidden

    def __str__(self) -> str:
        return f"{self.layers}x{self.hidden}"


LADDER = tuple(Size(*shape) for shape in ((2, 32), (3, 64), (4, 96), (4, 128), (6, 192), (8, 256)))


def make_config(
    size: Size,
    *,
    arch: str = "megatron-bert",
    vocab_size: int = 4096,
    max_positions: int = 128,
    dropout: float = 0.0,
) -> BertConfig | MegatronBertConfig:
    """The ``transformers`` configuration of a size; dropout is 0 because one pass over the data does not
    overfit.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    if vocab_size < 1 or max_positions < 1:
        raise ValueError(
            f"vocab_size and max_positions must be positive, got {vocab_size} and {max_positions}"
        )
    return ARCHITECTURES[arch][0](
        vocab_size=vocab_size,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=max_positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="eager",  # the fused CPU kernel has a slow backward at short lengths
    )


def build(
    size: Size,
    *,
    arch: str = "megatron-bert",
    seed: int = 0,
    vocab_size: int = 4096,
    max_positions: int = 128,
    dropout: float = 0.0,
    init: str = "neighbours",
) -> PreTrainedModel:
    """A fresh model with both pre-training heads; the same seed gives the same weights.

    ``init="standard"`` draws all weights as BERT does; ``"neighbours"`` then points the first layer's heads
    at neighbouring words (see :mod:`helpers.initialization`).

    Returns ``BertForPreTraining`` or ``MegatronBertForPreTraining``: ``.bert`` is the encoder,
    ``.cls.predictions`` the tied masked-language-model head, ``.cls.seq_relationship`` the next-sentence
    head.
    """
    if init not in INITIALISATIONS:
        raise ValueError(f"unknown init {init!r}: expected one of {', '.join(INITIALISATIONS)}")
    config = make_config(size, arch=arch, vocab_size=vocab_size, max_positions=max_positions, dropout=dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[arch][1](config)
    if init == "neighbours":
        point_heads_at_neighbours(model, torch.Generator().manual_seed(seed))
    return model


def load(folder: str | Path) -> PreTrainedModel:
    """The pre-training model saved in ``folder``.

    Raises ``ValueError`` when the folder is not a checkpoint (no ``config.json`` or no
    ``model.safetensors``), holds another architecture, or lacks weights. Pickled weights are refused.
    """
    folder = Path(folder)
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a checkpoint: no {' and no '.join(missing)}; expected a folder written by "
            "save_pretrained"
        )
    try:
        with runtime.without_bars():
            return _load(folder)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder} is not a whole checkpoint: {error}") from error


def _load(folder: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"{folder} holds a {config.model_type!r} model, expected one of {', '.join(ARCHITECTURES)}"
        )
    model, report = ARCHITECTURES[config.model_type][1].from_pretrained(
        folder,
        output_loading_info=True,
        use_safetensors=True,
        local_files_only=True,
        attn_implementation="eager",
    )
    if report["missing_keys"]:
        raise ValueError(
            f"{folder} lacks the weights {sorted(report['missing_keys'])[:3]}: not saved from a "
            "pre-training model"
        )
    return model


def size_of(model: PreTrainedModel) -> Size:
    """The ``Size`` a model was built with."""
    return Size(model.config.num_hidden_layers, model.config.hidden_size)
