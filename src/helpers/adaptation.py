"""Ways to adapt a pre-trained encoder to a task: which weights move, and how few they are.

Legend: ``k`` virtual tokens, ``r`` rank, ``H`` hidden. A way freezes the encoder and then trains its last
layers, all of it, or something small that `peft` adds: low-rank updates (LoRA, Hu et al. 2021), virtual
tokens in front of the text (prompt tuning, Lester et al. 2021), or their keys and values in every layer
(prefix tuning, Li and Liang 2021). The linear head on top is trained in every way.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from helpers import runtime
from helpers import tokenizer as tk
from helpers.finetune import Classifier

KINDS = ("frozen", "last", "full", "lora", "prompt", "prefix")
SIZED = ("last", "lora", "prompt", "prefix")
MATRICES = r".*\.layer\..*\.(query|key|value|dense)"  # of every layer, so not the unused pooler's
VIRTUAL = ("prompt", "prefix")


@dataclass(frozen=True)
class Way:
    """What is trained beside the head: nothing ("frozen"), everything ("full"), or as much as ``size`` says:
    the number of last layers, the rank of LoRA's updates, the number of virtual tokens."""

    kind: str
    size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown way {self.kind!r}: expected one of {', '.join(KINDS)}")
        if (self.kind in SIZED) != (self.size > 0):
            needed = "a size of at least 1" if self.kind in SIZED else "no size"
            raise ValueError(f"{self.kind!r} takes {needed}, got {self.size}")

    @classmethod
    def parse(cls, text: str) -> Way:
        """``Way.parse("lora-4") == Way("lora", 4)``."""
        if not (match := re.fullmatch(r"([a-z]+)(?:-(\d+))?", text)):
            raise ValueError(f"cannot read the way {text!r}: expected a kind and a size, as in 'lora-4'")
        return cls(match[1], int(match[2] or 0))

    @property
    def virtual(self) -> int:
        """Positions that the way takes from the text."""
        return self.size if self.kind in VIRTUAL else 0

    def __str__(self) -> str:
        return f"{self.kind}-{self.size}" if self.size else self.kind


class Prompted(nn.Module):
    """A `peft` model with virtual tokens, giving the states of the real ones alone, as an encoder does."""

    model: Any  # peft builds its classes at run time

    def __init__(self, model: nn.Module, virtual: int) -> None:
        super().__init__()
        self.model, self.virtual = model, virtual

    @property
    def config(self) -> Any:
        """The encoder's, with the positions that are left for text."""
        whole: Any = self.model.config
        config = type(whole).from_dict(whole.to_dict())
        config.max_position_embeddings -= self.virtual
        return config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: Any) -> tuple[Any]:
        """States (R, T, H) of ids (R, T); raises ``ValueError`` for ``token_type_ids``, which peft drops."""
        if more:
            raise ValueError(f"virtual tokens do not take {', '.join(more)}: adapt in another way")
        states = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return (states[:, -input_ids.size(1) :],)  # a prompt has states of its own, a prefix has none


def adapt(
    encoder: PreTrainedModel,
    way: Way,
    *,
    classes: int = 2,
    pooling: str = "mean",
    dropout: float = 0.0,
    seed: int = 0,
) -> Classifier:
    """A classifier on ``encoder`` (changed in place) in which only what ``way`` names can be trained.

    At its start it computes what the encoder computes; with virtual tokens, what it computes behind ``k``
    ordinary words drawn by ``seed``. ``dropout`` is the share of attention weights and of outputs of
    sub-layers that a training step sets to zero.

    Raises ``ValueError`` for more last layers than there are, a rank beyond ``H``, virtual tokens that leave
    fewer than 3 positions for text, and a dropout outside [0, 1).
    """
    _check(encoder, way, dropout)
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    encoder.requires_grad_(way.kind == "full")
    if (pooler := getattr(encoder, "pooler", None)) is not None:
        pooler.requires_grad_(False)  # it reads [CLS] for the next sentence, and no classifier here asks it
    model: Any = encoder
    if way.kind == "last":
        for layer in encoder.encoder.layer[-way.size :]:
            layer.requires_grad_(True)
        if (norm := getattr(encoder.encoder, "ln", None)) is not None:  # the norm behind the last layer
            norm.requires_grad_(True)
    elif way.kind == "lora":
        model = _lora(encoder, way.size, seed)
    elif way.kind in VIRTUAL:
        model = Prompted(_virtual(encoder, way, seed), way.size)
    return Classifier(model, classes, pooling)


def _check(encoder: PreTrainedModel, way: Way, dropout: float) -> None:
    config = encoder.config
    if way.kind == "last" and way.size > config.num_hidden_layers:
        raise ValueError(f"the encoder has {config.num_hidden_layers} layers, asked to train {way.size}")
    if way.kind == "lora" and way.size > config.hidden_size:
        raise ValueError(f"the rank must be at most the width {config.hidden_size}, got {way.size}")
    if (left := config.max_position_embeddings - way.virtual) < 3:
        raise ValueError(f"{way.virtual} virtual tokens leave {left} positions for text, expected 3 or more")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")


@contextmanager
def _adding(seed: int) -> Iterator[None]:
    """Draw an adapter's weights by the seed, without the warnings about calls between the two libraries."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        yield


def _lora(encoder: PreTrainedModel, rank: int, seed: int) -> nn.Module:
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=MATRICES)
    with _adding(seed):
        return peft.get_peft_model(encoder, config)


def _virtual(encoder: PreTrainedModel, way: Way, seed: int) -> Any:
    """The encoder with virtual tokens that begin as words: as N(0, 1) numbers they would drown the text."""
    kind = peft.PromptTuningConfig if way.kind == "prompt" else peft.PrefixTuningConfig
    start = _as_prompt if way.kind == "prompt" else _as_prefix
    words = virtual_words(encoder, way.size, seed)
    weights = start(encoder, words)
    with _adding(seed):
        model: Any = peft.get_peft_model(
            encoder, kind(num_virtual_tokens=way.size, task_type="FEATURE_EXTRACTION")
        )
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(weights)
    return model


def virtual_words(encoder: PreTrainedModel, count: int, seed: int) -> torch.Tensor:
    """Ids (k,) of the ordinary words that virtual tokens begin as."""
    first = len(tk.SPECIAL_TOKENS)
    return torch.randint(first, encoder.config.vocab_size, (count,), generator=runtime.generator(seed, 7))


@torch.no_grad()
def _as_prompt(encoder: PreTrainedModel, words: torch.Tensor) -> torch.Tensor:
    """The words' embeddings (k, H)."""
    return encoder.get_input_embeddings()(words).clone()


@torch.no_grad()
def _as_prefix(encoder: PreTrainedModel, words: torch.Tensor) -> torch.Tensor:
    """The words' keys and values in every layer, (k, layers * 2 * H), in the order of peft."""
    found: list[torch.Tensor] = []
    parts = [
        getattr(layer.attention.self, name) for layer in encoder.encoder.layer for name in ("key", "value")
    ]
    handles = [part.register_forward_hook(lambda *call: found.append(call[2][0])) for part in parts]
    was_training = encoder.training
    try:
        encoder.eval()(input_ids=words[None])
    finally:
        for handle in handles:
            handle.remove()
        encoder.train(was_training)
    return torch.cat(found, dim=1)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a task has to store: the trainable numbers, by name, not copied."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def count(model: nn.Module) -> int:
    """How many numbers can be trained, the head's among them."""
    return sum(p.numel() for p in trained(model).values())


def save_trained(model: nn.Module, path: Path) -> int:
    """Write the trainable numbers alone, and return the bytes of the file."""
    with runtime.write_atomically(path) as temporary:
        save_file({name: p.contiguous() for name, p in trained(model).items()}, str(temporary))
    return path.stat().st_size


def load_trained(model: nn.Module, path: Path) -> nn.Module:
    """Put stored numbers into a model that was adapted in the same way; returns it.

    Raises ``ValueError`` when the file is broken or holds other tensors than the model would store.
    """
    try:
        stored = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} does not hold an adaptation: {error}") from error
    put(model, stored, str(path))
    return model


@torch.no_grad()
def put(model: nn.Module, stored: dict[str, torch.Tensor], source: str = "the given state") -> None:
    """Copy trainable numbers into a model that was adapted in the same way; errors as in
    :func:`load_trained`."""
    own = trained(model)
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in stored.items()}:
        odd = sorted(own.keys() ^ stored.keys()) or ["a tensor of another shape"]
        raise ValueError(f"{source} is from another way or another encoder: {odd[0]}")
    for name, p in own.items():
        p.copy_(stored[name])
