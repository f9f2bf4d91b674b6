"""Compressed models on disk: a JSON description of the structure, and one safetensors file. No pickle.

A folder holds ``compression.json`` (the model's class and configuration, what was done to it in order, and
the digest of the weights) and ``weights-<digest>.safetensors``. A tensor that several layers share is written
once. A tensor with many zeros is written as its non-zero values and one bit an entry that says where they
stand: n entries of b bytes at density d take n (b d + 1/8) bytes instead of n b.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    MegatronBertModel,
    PreTrainedTokenizerFast,
)

from helpers import runtime
from helpers.finetune import Classifier

Options = dict[str, Any]
Rebuild = Callable[[nn.Module, Options], nn.Module]
CLASSES: dict[str, tuple[Any, Any]] = {
    model.__name__: (config, model)
    for config, model in (
        (BertConfig, BertForPreTraining),
        (BertConfig, BertModel),
        (MegatronBertConfig, MegatronBertForPreTraining),
        (MegatronBertConfig, MegatronBertModel),
    )
}
DESCRIPTION = "compression.json"
_REBUILD: dict[str, Rebuild] = {}


def rebuilds(method: str) -> Callable[[Rebuild], Rebuild]:
    """Register the function that gives a model of the original structure the structure that ``method`` left.

    It gets the model and the recorded options, and may change the model in place; values do not matter,
    since the stored ones follow.
    """

    def register(function: Rebuild) -> Rebuild:
        _REBUILD[method] = function
        return function

    return register


def history(model: nn.Module) -> list[dict[str, Any]]:
    """What was done to a model, in order: dicts with ``method`` and ``options``; empty for a plain one."""
    return list(getattr(model, "compression", []))


def record(model: nn.Module, method: str, options: Options) -> nn.Module:
    """Note on ``model`` that ``method`` was applied with JSON-able ``options``; returns the model."""
    if method not in _REBUILD:
        raise ValueError(f"no function rebuilds {method!r}: decorate one with storage.rebuilds")
    json.dumps(options)  # fails here, and not when hours of training are to be saved
    model.compression = [*history(model), {"method": method, "options": options}]  # type: ignore[assignment]
    return model


def check_changeable(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model that no method may change further: one with trainable masks, which
    every method would lose or miss, and one in int8, whose integers take no further step.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(f"{name} carries trainable masks: apply sparsity.finish first")
    if any(step["method"] == "int8" for step in history(model)):
        raise ValueError("the model is int8 already: quantise last, after every other method")


def layers_of(model: nn.Module) -> Any:
    """The encoder layers (``nn.ModuleList``) of a BERT, whatever stands around it (heads, classifier)."""
    for module in model.modules():
        layers = getattr(module, "layer", None)
        if isinstance(layers, nn.ModuleList) and len(layers) and hasattr(layers[0], "intermediate"):
            return layers
    raise ValueError(
        f"{type(model).__name__} has no encoder layers: expected a BERT, Megatron-BERT or Classifier"
    )


def distinct_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, each stored one once, under the first of its names."""
    seen: set[tuple] = set()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else (name,)
        if key not in seen:
            seen.add(key)
            found[name] = tensor
    return found


def describe(model: nn.Module) -> dict[str, Any]:
    """The class and configuration from which :func:`construct` builds a model of the original structure."""
    kind = type(model).__name__
    if isinstance(model, Classifier):
        head = {"classes": model.head.out_features, "pooling": model.pooling}
        return {"class": kind, "head": head, "encoder": describe(model.encoder)}
    if kind not in CLASSES:
        raise ValueError(f"cannot store a {kind}: expected a Classifier or one of {', '.join(CLASSES)}")
    options = {} if kind.endswith("PreTraining") else {"add_pooling_layer": model.pooler is not None}
    return {"class": kind, "config": model.config.to_dict(), "options": options}  # type: ignore[operator,union-attr]


def construct(description: dict[str, Any]) -> nn.Module:
    """A model with random weights from what :func:`describe` returned."""
    if description["class"] == "Classifier":
        return Classifier(construct(description["encoder"]), **description["head"])
    config_class, model_class = CLASSES[description["class"]]
    config = config_class.from_dict(description["config"])
    config._attn_implementation = "eager"  # the configuration's JSON leaves it out
    return model_class(config, **description["options"])


def save(model: nn.Module, folder: str | Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write a compressed (or plain) model; returns the folder, which holds the one before until this one is
    whole.

    Raises ``ValueError`` for a model that is no BERT, and for one whose masks are still being trained.
    """
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("the model still carries trainable masks: apply sparsity.finish to it first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in distinct_tensors(model).items():
        tensors |= pack(name, tensor.detach().cpu())
    content = serialised(tensors)
    digest = hashlib.sha256(content).hexdigest()
    description = {
        "model": describe(model),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "compression": history(model),
        "sha256": digest,
    }
    # The digest names the file: until the description is replaced, the old one finds its old weights.
    weights = _weights_path(folder, digest)
    with runtime.write_atomically(weights) as temporary:
        temporary.write_bytes(content)
    with runtime.write_atomically(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description, indent=1), encoding="utf-8")
    for old in set(folder.glob("weights*.safetensors")) - {weights}:
        old.unlink()
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def load(folder: str | Path) -> nn.Module:
    """The model saved in ``folder``, in evaluation mode; it predicts what the saved one predicted.

    Raises ``ValueError`` when a file is missing or damaged, names an unknown method or class, or when the
    stored tensors do not fit the described structure.
    """
    folder = Path(folder)
    try:
        description = _described(folder)
        weights = _weights(folder, description)
        if _digest(weights) != description["sha256"]:
            raise ValueError(f"{weights.name} does not match its digest")
        stored = load_file(str(weights))
        unknown = [step["method"] for step in description["compression"] if step["method"] not in _REBUILD]
        if unknown:
            raise ValueError(f"unknown method {unknown[0]!r}: expected one of {', '.join(sorted(_REBUILD))}")
        model = construct(description["model"]).to(getattr(torch, description["dtype"]))
        for step in description["compression"]:
            model = _REBUILD[step["method"]](model, step["options"])
        _fill(model, stored)
    except (OSError, LookupError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a whole compressed model: {error}") from error
    model.compression = description["compression"]
    return model.eval()


def stored_bytes(folder: str | Path) -> int:
    """Bytes of the weights and their description on disk, without a tokenizer."""
    folder = Path(folder)
    weights = _weights(folder, _described(folder))
    return sum(path.stat().st_size for path in (weights, folder / DESCRIPTION))


def pack(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """What :func:`save` writes for a tensor on the CPU: the tensor itself under ``name``, or, where it takes
    less room, the d n non-zero of its n entries, in order, under ``name|values`` (d n,), and one bit an
    entry that says where they stand under ``name|places`` (bytes, n / 8 rounded up).
    """
    present = tensor != 0
    packed = int(present.sum()) * tensor.element_size() + (tensor.numel() + 7) // 8
    if packed >= tensor.numel() * tensor.element_size():
        return {name: tensor.contiguous()}
    bits = torch.from_numpy(np.packbits(present.flatten().numpy()))
    return {f"{name}|values": tensor[present], f"{name}|places": bits}


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, ties included: methods change the copy, and the caller keeps what it had."""
    return copy.deepcopy(model)


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules at every place where the old ones stand, in place; returns the model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children skips a second use
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return model


def _described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))


def _weights(folder: Path, description: dict[str, Any]) -> Path:
    old = folder / "weights.safetensors"  # as version 0.1 wrote it
    path = _weights_path(folder, description["sha256"])
    return old if old.is_file() and not path.is_file() else path


def _weights_path(folder: Path, digest: str) -> Path:
    return folder / f"weights-{digest[:12]}.safetensors"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(values: torch.Tensor, bits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    present = torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel())).bool()
    if int(present.sum()) != len(values):
        raise ValueError(f"{len(values)} values for {int(present.sum())} places")
    flat = torch.zeros(shape.numel(), dtype=values.dtype)
    flat[present] = values
    return flat.view(shape)


def _fill(model: nn.Module, stored: dict[str, torch.Tensor]) -> None:
    """Copy stored tensors into a rebuilt model whose distinct tensors must be exactly these."""
    wanted = distinct_tensors(model)
    names = {name.split("|")[0] for name in stored}
    if wrong := sorted(names ^ wanted.keys()):
        side = "stored but not part of" if wrong[0] in names else "not stored, but part of"
        raise ValueError(f"{wrong[0]} is {side} the described model")
    for name, tensor in wanted.items():
        value = (
            stored[name]
            if name in stored
            else _unpack(stored[f"{name}|values"], stored[f"{name}|places"], tensor.shape)
        )
        if value.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, the model wants {tuple(tensor.shape)}")
        tensor.copy_(value)
