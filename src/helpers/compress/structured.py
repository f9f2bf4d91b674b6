"""Remove whole attention heads and feed-forward neurons: the tensors shrink, and any hardware is faster.

Legend: ``h`` heads of a layer, ``d`` width of a head, ``H`` hidden, ``I`` neurons of the feed-forward layer.
A head is ``d`` rows of query, key and value, and ``d`` columns of the attention's output; a neuron is a row
of ``intermediate`` and a column of ``output``. Biases of the outputs stay. Of a factorised layer
(:class:`lowrank.LowRank`) the rows are those of ``up``, the columns those of ``down``; its rank stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from helpers.compress import storage
from helpers.compress.lowrank import LowRank
from helpers.training import Batch, LossFunction

Removal = Mapping[int, Sequence[int]]


def remove_heads(model: nn.Module, heads: Removal) -> nn.Module:
    """A copy of ``model`` without the given heads, by layer: ``{0: [1], 2: [0, 1]}``.

    Outputs are equal when the removed heads contributed nothing (zero output columns). Raises ``ValueError``
    for a layer or head that does not exist, when a layer would keep no head, for shared layers, and for a
    model with trainable masks or in int8.
    """
    return _remove(model, heads, {})


def remove_neurons(model: nn.Module, neurons: Removal) -> nn.Module:
    """A copy of ``model`` without the given feed-forward neurons, by layer; the rest as `remove_heads`."""
    return _remove(model, {}, neurons)


def shape_of(model: nn.Module) -> dict[str, list[int]]:
    """``heads`` and ``neurons`` of every layer."""
    layers = storage.layers_of(model)
    return {
        "heads": [layer.attention.self.num_attention_heads for layer in layers],
        "neurons": [layer.intermediate.dense.out_features for layer in layers],
    }


def importance(
    model: nn.Module, batches: Sequence[Batch], loss_of: LossFunction
) -> dict[str, list[torch.Tensor]]:
    """How much the loss depends on each head (h,) and neuron (I,) of every layer, to first order.

    If a gate g scaled a unit's output columns W, the loss would change by ``dL/dg = sum(W * dL/dW)`` at
    g = 1; the mean absolute value over batches is the importance (Michel et al. 2019, equation 2, there with
    single texts in place of batches). The model's mode is put back, and it is left without gradients.

    Raises ``ValueError`` when there is no batch, and for a model with trainable masks or in int8.
    """
    if len(batches) == 0:
        raise ValueError("no batches to measure importance on")
    storage.check_changeable(model)
    layers, was_training = storage.layers_of(model), model.training
    model.eval()
    totals: dict[str, list[torch.Tensor]] = {"heads": [], "neurons": []}
    try:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            loss_of(model, batch)[0].backward()
            for number, layer in enumerate(layers):
                for store, value in zip(totals.values(), _gate_gradients(layer), strict=True):
                    share = value.abs() / len(batches)
                    if number < len(store):
                        store[number] += share
                    else:
                        store.append(share)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return totals


def least(values: Sequence[torch.Tensor], keep: float) -> dict[int, list[int]]:
    """The least important units of every layer, so that a share ``keep`` stays, but at least one."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share in (0, 1], got {keep}")
    drop = {i: len(v) - max(1, round(keep * len(v))) for i, v in enumerate(values)}
    return {i: sorted(v.argsort()[: drop[i]].tolist()) for i, v in enumerate(values)}


@storage.rebuilds("structured")
def _rebuild(model: nn.Module, options: storage.Options) -> nn.Module:
    """Cut any units: which ones were kept is a matter of the stored values."""
    for number, layer in enumerate(storage.layers_of(model)):
        _keep_heads(layer, list(range(options["heads"][number])))
        _keep_neurons(layer, list(range(options["neurons"][number])))
    return model


def _gate_gradients(layer: Any) -> list[torch.Tensor]:
    """``dL/dg`` of each head (h,) and of each neuron (I,) of an encoder layer."""
    heads = _gate_gradient(layer.attention.output.dense).view(layer.attention.self.num_attention_heads, -1)
    return [heads.sum(1), _gate_gradient(layer.output.dense)]


def _gate_gradient(layer: nn.Linear | LowRank) -> torch.Tensor:
    # A unit is read through its columns alone, so a gate on it scales them.
    weight = (layer.down if isinstance(layer, LowRank) else layer).weight
    assert weight.grad is not None
    return (weight.detach() * weight.grad).sum(0)  # (H, columns) -> (columns,)


def _remove(model: nn.Module, heads: Removal, neurons: Removal) -> nn.Module:
    storage.check_changeable(model)
    smaller = storage.copied(model)
    layers, shape = storage.layers_of(smaller), shape_of(model)
    owners = {id(part) for layer in layers for part in (layer.attention, layer.output)}
    if len(owners) < 2 * len(layers):
        raise ValueError("layers share their weights: remove units first, share afterwards")
    for kind, removal, cut in (("heads", heads, _keep_heads), ("neurons", neurons, _keep_neurons)):
        for number, units in removal.items():
            if not 0 <= number < len(layers):
                raise ValueError(f"there is no layer {number}: the model has {len(layers)}")
            count = shape[kind][number]
            if bad := [unit for unit in units if not 0 <= unit < count]:
                raise ValueError(f"layer {number} has {count} {kind}, none has the number {bad[0]}")
            kept = [unit for unit in range(count) if unit not in set(units)]
            if not kept:
                raise ValueError(f"layer {number} would keep none of its {count} {kind}")
            cut(layers[number], kept)
    return storage.record(smaller, "structured", shape_of(smaller))


def _keep_heads(layer: Any, kept: list[int]) -> None:
    attention = layer.attention.self
    width = attention.attention_head_size
    rows = torch.cat([torch.arange(head * width, (head + 1) * width) for head in kept])
    for name in ("query", "key", "value"):
        setattr(attention, name, _cut(getattr(attention, name), rows=rows))
    layer.attention.output.dense = _cut(layer.attention.output.dense, columns=rows)
    attention.num_attention_heads, attention.all_head_size = len(kept), len(rows)


def _keep_neurons(layer: Any, kept: list[int]) -> None:
    index = torch.tensor(kept)
    layer.intermediate.dense = _cut(layer.intermediate.dense, rows=index)
    layer.output.dense = _cut(layer.output.dense, columns=index)


@torch.no_grad()
def _cut(
    layer: nn.Linear | LowRank, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> nn.Linear | LowRank:
    """A new layer with the given rows (outputs) or columns (inputs) of ``layer``; of two factors, the second
    makes the rows and the first reads the columns.
    """
    if isinstance(layer, LowRank):
        layer.up = _cut_linear(layer.up, rows, None)
        layer.down = _cut_linear(layer.down, None, columns)
        return layer
    return _cut_linear(layer, rows, columns)


def _cut_linear(linear: nn.Linear, rows: torch.Tensor | None, columns: torch.Tensor | None) -> nn.Linear:
    weight = linear.weight if rows is None else linear.weight[rows]
    weight = weight if columns is None else weight[:, columns]
    new = nn.Linear(weight.size(1), weight.size(0), bias=linear.bias is not None)
    new = new.to(device=weight.device, dtype=weight.dtype)
    new.weight.copy_(weight)
    if linear.bias is not None:
        new.bias.copy_(linear.bias if rows is None else linear.bias[rows])
    return new
