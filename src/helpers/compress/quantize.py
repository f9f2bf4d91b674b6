"""Dynamic int8: weights in one byte each, activations rounded when they arrive. No training is needed.

A weight matrix is stored as integers in -127 .. 127 with one scale for each output row. In a product the
inputs are rounded too, to 7 bits over the range of the whole batch, and integers are multiplied: torch's own
kernel ``quantized::linear_dynamic``. Its front end, ``torch.ao.quantization``, is deprecated and on its way
out of torch, so the layer here holds plain tensors and packs them for the kernel itself. Where there is no
such kernel (a GPU), the weights are multiplied out and used as floats.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from helpers.compress import storage

LIMIT = 127
# Without the VNNI instructions a CPU adds two products in 16 bits, which 8-bit inputs overflow: 7 bits give
# the same integers on every CPU.
REDUCE_RANGE = True


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (rows, columns) int8 and scales (rows,) float32, so that ``weight`` is nearly
    ``integers * scale``: no entry is off by more than half of its row's scale.

    Raises ``ValueError`` for a tensor that is no matrix, or holds a number that is not finite.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a matrix of floats, got shape {tuple(weight.shape)} of {weight.dtype}")
    if not torch.isfinite(weight).all():
        raise ValueError("the matrix holds a number that is not finite")
    exact = weight.detach().float()
    scale = exact.abs().amax(1) / LIMIT
    scale[scale == 0] = 1.0  # a row of zeros needs no scale, and must not divide by one of zero
    return (exact / scale[:, None]).round().clamp(-LIMIT, LIMIT).to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer for inference with an int8 ``weight`` (O, I), ``scale`` (O,) and a float ``bias`` (O,)
    or none.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        integers, scale = quantize_rows(linear.weight)
        self.register_buffer("weight", integers)
        self.register_buffer("scale", scale)
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), False)
        self.register_parameter("bias", bias)
        self._packed: tuple[int, Any] | None = None

    def dequantized(self) -> torch.Tensor:
        """The weights as floats, (O, I)."""
        return self.weight.float() * self.scale[:, None]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O). How the inputs are rounded depends on the largest of the whole batch."""
        if inputs.device.type != "cpu" or not torch.backends.quantized.supported_engines:
            return F.linear(inputs, self.dequantized().to(inputs.dtype), _as(self.bias, inputs.dtype))
        outputs = torch.ops.quantized.linear_dynamic(inputs.float(), self._pack(), REDUCE_RANGE)
        return outputs.to(inputs.dtype)

    def _pack(self) -> Any:
        """The weights as the kernel wants them, packed once; again after other weights were loaded."""
        version = self.weight._version + self.scale._version
        if self._packed is None or self._packed[0] != version:
            zeros = torch.zeros(self.out_features, dtype=torch.int64)
            with warnings.catch_warnings():  # the tensor type is deprecated, the kernel is not
                warnings.simplefilter("ignore")
                rows = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
                self._packed = version, torch.ops.quantized.linear_prepack(rows, _as(self.bias, torch.float))
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights, which cannot be copied and are made again when needed."""
        return self.__dict__ | {"_packed": None}

    def extra_repr(self) -> str:
        """As of a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"


class Int8Embedding(nn.Module):
    """A table for inference with int8 rows (V, H) and a ``scale`` (V,) for each."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        integers, scale = quantize_rows(table.weight)
        self.register_buffer("weight", integers)
        self.register_buffer("scale", scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) -> (..., H)."""
        return self.weight[ids].float() * self.scale[ids][..., None]


def quantize(model: nn.Module, *, embeddings: bool = True) -> nn.Module:
    """A copy of ``model`` for inference whose linear layers, and tables unless ``embeddings`` is false, hold
    int8 weights. A layer used twice stays one layer. A table whose weights also decode (a tied
    masked-language-model head) stays as it is, with its decoder.

    It is the last step: all other methods refuse what it returns. Raises ``ValueError`` for a model that is
    int8 already, carries trainable masks, or has nothing to quantise.
    """
    storage.check_changeable(model)
    smaller = _in_int8(storage.copied(model), embeddings)
    return storage.record(smaller, "int8", {"embeddings": embeddings}).eval()


@storage.rebuilds("int8")
def _rebuild(model: nn.Module, options: storage.Options) -> nn.Module:
    return _in_int8(model, options["embeddings"])


def _in_int8(model: nn.Module, embeddings: bool) -> nn.Module:
    kinds: dict[type[nn.Module], Any] = {nn.Linear: Int8Linear}
    if embeddings:
        kinds[nn.Embedding] = Int8Embedding
    tied = _tied_to_tables(model)
    new: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if type(module) in kinds and weight is not None and weight.data_ptr() not in tied:
            new[module] = kinds[type(module)](module)
    if not new:
        raise ValueError(f"{type(model).__name__} has no layer to quantise")
    return storage.replace_modules(model, new).requires_grad_(False)


def _tied_to_tables(model: nn.Module) -> set[int]:
    """Addresses of weights that serve both as a table and as a linear layer."""
    at: dict[type, set[int]] = {nn.Embedding: set(), nn.Linear: set()}
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.Linear):
            at[nn.Linear if isinstance(module, nn.Linear) else nn.Embedding].add(module.weight.data_ptr())
    return at[nn.Embedding] & at[nn.Linear]


def _as(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype)
