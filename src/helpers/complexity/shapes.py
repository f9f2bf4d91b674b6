"""Shapes of the small networks that stand beside BERT in the counting: multilayer perceptrons and conv nets.

Each has ``build()``, so that every formula of this package can be checked against the real module.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from torch import nn
from transformers import BertConfig, MegatronBertConfig

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Transformer: TypeAlias = BertConfig | MegatronBertConfig


@dataclass(frozen=True)
class MLP:
    """Dense layers between ``widths`` (inputs, hidden layers, outputs), with ReLU between them."""

    widths: tuple[int, ...]
    bias: bool = True

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be two or more positive numbers, got {self.widths}")

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each dense layer."""
        return tuple(pairwise(self.widths))

    def build(self) -> nn.Sequential:
        """The module, from inputs (B, widths[0]) to outputs (B, widths[-1])."""
        parts: list[nn.Module] = []
        for inputs, outputs in self.layers:
            parts += [nn.Linear(inputs, outputs, bias=self.bias), nn.ReLU(inplace=False)]
        return nn.Sequential(*parts[:-1])


@dataclass(frozen=True)
class ConvNet:
    """Stages of convolution (odd ``kernel``, same padding), ReLU and 2 x 2 max-pooling, then one dense layer.

    ``channels`` are those of the image and of each stage, ``image`` is the side of a square image in pixels,
    ``groups`` splits the channels of every stage but the first.
    """

    channels: tuple[int, ...]
    image: int
    classes: int
    kernel: int = 3
    groups: int = 1

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(*self.channels, self.classes, self.kernel, self.groups) < 1:
            raise ValueError(
                f"need at least one stage, and positive numbers, got channels {self.channels}, classes "
                f"{self.classes}, kernel {self.kernel}, groups {self.groups}"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that the image keeps its size, got {self.kernel}")
        if self.image % 2 ** len(self.stages):
            raise ValueError(
                f"image must be divisible by 2 once a stage, {len(self.stages)} times; got {self.image}"
            )
        if any(n % self.groups for n in self.channels[1:]):
            raise ValueError(f"groups ({self.groups}) must divide the channels {self.channels[1:]}")

    @property
    def stages(self) -> tuple[tuple[int, int, int, int], ...]:
        """(input channels, output channels, groups, side of the image) of each convolution."""
        return tuple(
            (c_in, c_out, self.groups if i else 1, self.image >> i)
            for i, (c_in, c_out) in enumerate(pairwise(self.channels))
        )

    @property
    def features(self) -> int:
        """Inputs of the dense layer."""
        return self.channels[-1] * (self.image >> len(self.stages)) ** 2

    def build(self) -> nn.Sequential:
        """The module, from images (B, channels[0], image, image) to scores (B, classes)."""
        parts: list[nn.Module] = []
        for c_in, c_out, groups, _ in self.stages:
            conv = nn.Conv2d(c_in, c_out, self.kernel, padding=self.kernel // 2, groups=groups)
            parts += [conv, nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(self.features, self.classes))


Shape: TypeAlias = Transformer | MLP | ConvNet


def is_transformer(shape: Shape) -> TypeIs[Transformer]:
    """Whether a shape is a BERT; raises ``ValueError`` for what is no shape at all."""
    if not isinstance(shape, BertConfig | MegatronBertConfig | MLP | ConvNet):
        raise ValueError(
            f"cannot count a {type(shape).__name__}: expected a BertConfig, a MegatronBertConfig, an MLP or "
            "a ConvNet; complexity.report measures any module"
        )
    return isinstance(shape, BertConfig | MegatronBertConfig)


def check_transformer(shape: Shape) -> None:
    """Raise ``ValueError`` for a shape that is no BERT, where a count has no meaning for another."""
    if not is_transformer(shape):
        raise ValueError(f"expected a BertConfig or a MegatronBertConfig, got an {type(shape).__name__}")


def checked_length(shape: Shape, seq_len: int | None) -> int:
    """``seq_len`` of a BERT, 1 for another shape; raises ``ValueError`` for a BERT without it, and for
    another shape with it.
    """
    if not is_transformer(shape):
        if seq_len is not None:
            raise ValueError(f"seq_len is for BERTs, but an {type(shape).__name__} was given with {seq_len}")
        return 1
    if seq_len is None or seq_len < 1:
        raise ValueError(f"a BERT needs seq_len >= 1, got {seq_len}")
    return seq_len
