"""What a model holds and what it writes to disk: distinct tensors, their elements and their bytes.

Two names can mean one tensor (a tied decoder, a layer used twice). Memory and disk pay for a tensor once, so
everything here goes by storage and not by name.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

_SPARSE = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_coo: ("_indices", "_values"),
}
# How safetensors writes a type's name; the length of the header depends on it.
_TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_NOT_WEIGHTS = ("mask", "scale", "zero_point", "indices")


@dataclass(frozen=True)
class Counts:
    """Elements of a model's weights, counted three ways.

    ``distinct`` counts a shared tensor once: what memory and disk hold. ``named`` counts it under each of its
    names: what the computation reads. ``nonzero`` is the distinct elements that are not zero.
    """

    distinct: int
    named: int
    nonzero: int


def count_stored(model: nn.Module) -> Counts:
    """Count the weights of any model: its parameters, and the packed or sparse tensors that replace them.

    A buffer counts where it replaces a parameter: packed by torch's int8 modules, or named with ``weight`` or
    ``bias`` (without ``mask``, ``scale``, ``zero_point`` or ``indices``). Positions and running statistics
    do not.
    """
    weights = _weights(model)
    distinct = distinct_tensors(weights)
    return Counts(
        distinct=sum(_values(t).numel() for t in distinct.values()),
        named=sum(_values(t).numel() for t in weights.values()),
        nonzero=sum(_nonzero(t) for t in distinct.values()),
    )


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors_of(model):
        leaf = name.rpartition(".")[2]
        replaces = "weight" in leaf or "bias" in leaf or "_packed_params" in name.split(".")
        if replaces and not any(word in leaf for word in _NOT_WEIGHTS):
            found.setdefault(name, tensor)
    return found


def tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the state dict under its name, those inside the tuples of packed modules included."""
    for name, value in model.state_dict().items():
        yield from _flatten(name, value)


def _flatten(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _flatten(f"{name}.{i}", part)


def distinct_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without those that are another name, or a reshaping, of memory that came before."""
    seen: dict[tuple[int, int], str] = {}
    for name, tensor in tensors.items():
        seen.setdefault(_address(tensor), name)
    return {name: tensors[name] for name in seen.values()}


def _address(tensor: torch.Tensor) -> tuple[int, int]:
    values = _values(tensor)
    if values.device.type == "meta" or values.is_quantized or not values.numel():
        return id(tensor), -1  # no memory to compare
    return values.untyped_storage().data_ptr(), values.storage_offset()


def _values(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout in _SPARSE:
        return tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    return tensor


def _nonzero(tensor: torch.Tensor) -> int:
    values = _values(tensor.detach())
    if values.device.type == "meta":
        return values.numel()
    return int(torch.count_nonzero(values.int_repr() if values.is_quantized else values))


def plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint must hold: the distinct tensors of the state dict, sparse ones as indices and values,
    quantised ones as integers, scales and zero points.
    """
    parts: dict[str, torch.Tensor] = {}
    for name, tensor in distinct_tensors(dict(tensors_of(model))).items():
        if tensor.layout in _SPARSE:
            parts |= {f"{name}.{part}": getattr(tensor, part)() for part in _SPARSE[tensor.layout]}
        elif tensor.is_quantized:
            parts[name] = tensor.int_repr()
            per_channel = tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
            scale = tensor.q_per_channel_scales() if per_channel else torch.tensor(tensor.q_scale())
            zero = tensor.q_per_channel_zero_points() if per_channel else torch.tensor(tensor.q_zero_point())
            parts |= {f"{name}.scale": scale.float(), f"{name}.zero_point": zero.to(torch.int8)}
        else:
            parts[name] = tensor
    return {name: t.detach() for name, t in parts.items()}


def checkpoint_bytes(model: nn.Module, *, metadata: Mapping[str, str] | None = None) -> int:
    """The size in bytes of the model's checkpoint as a safetensors file, computed without writing it.

    A safetensors file is 8 bytes, a JSON header padded to a multiple of 8, and the tensors one after another.
    ``save_pretrained`` writes the header with ``metadata={"format": "pt"}``.
    """
    # Largest types first, then by name: the order decides the digits of the offsets.
    tensors = sorted(plain_tensors(model).items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors:
        if tensor.dtype not in _TYPE_NAMES:
            raise ValueError(f"cannot compute the size of {name}: unexpected type {tensor.dtype}")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + end


def bytes_on_disk(model: nn.Module) -> int:
    """Write the model's tensors as a safetensors file, and return the size of the file in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        # Copies, because safetensors refuses views; one that shared memory has been left out before.
        save_file({name: t.clone().contiguous() for name, t in plain_tensors(model).items()}, path)
        return path.stat().st_size
