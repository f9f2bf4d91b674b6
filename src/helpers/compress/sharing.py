"""Layers that use the same weights (ALBERT, Lan et al. 2020, section 3.1), in the same memory.

Sharing here means that two layers hold the same ``Parameter``: one tensor, one gradient that sums what both
layers ask for, one state in the optimizer. A copy of the weights is not sharing, since the copies part at
the first step.
"""

from __future__ import annotations

import torch
from torch import nn

from helpers.complexity import count_stored
from helpers.compress import storage

# A Megatron-BERT layer keeps the norm before its feed-forward part as `ln`; BERT's are inside `output`.
_FEED_FORWARD = ("ln", "intermediate", "output")
PARTS = {"attention": ("attention",), "ffn": _FEED_FORWARD, "all": ("attention", *_FEED_FORWARD)}
STARTS = ("first", "mean")


def group_of(layer: int, layers: int, groups: int) -> int:
    """The group of a layer when ``layers`` are cut into ``groups`` contiguous ones of nearly equal length."""
    return layer * groups // layers


def share_layers(model: nn.Module, what: str = "all", *, groups: int = 1, start: str = "first") -> nn.Module:
    """A copy of ``model`` in which the layers of a group share ``what``: ``"attention"``, ``"ffn"`` or
    ``"all"``.

    Shared weights begin as those of the group's first layer, or as the mean over the group. Layer norms are
    shared with the part they belong to. A trained model needs training afterwards: its layers were not made
    for each other's weights.

    Raises ``ValueError`` for an unknown ``what`` or ``start``, for a number of groups outside ``[1, layers]``
    for layers of different shapes, and for a model with trainable masks or in int8.
    """
    if what not in PARTS:
        raise ValueError(f"unknown part {what!r}: expected one of {', '.join(PARTS)}")
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}: expected one of {', '.join(STARTS)}")
    storage.check_changeable(model)
    shared = storage.copied(model)
    layers = storage.layers_of(shared)
    if not 1 <= groups <= len(layers):
        raise ValueError(f"groups must lie between 1 and the {len(layers)} layers, got {groups}")
    _check_shapes(layers, what)
    if start == "mean":
        _average(layers, what, groups)
    _tie(layers, what, groups)
    return storage.record(shared, "sharing", {"what": what, "groups": groups})


@storage.rebuilds("sharing")
def _rebuild(model: nn.Module, options: storage.Options) -> nn.Module:
    _tie(storage.layers_of(model), options["what"], options["groups"])
    return model


def stored_parameters(model: nn.Module) -> int:
    """Numbers that the model keeps in memory: each shared parameter counts once."""
    return count_stored(model).distinct


def used_parameters(model: nn.Module) -> int:
    """Numbers that a forward pass uses: each shared parameter counts as often as it is used."""
    return count_stored(model).named


def _parts(layer: nn.Module, what: str) -> list[str]:
    return [name for name in PARTS[what] if hasattr(layer, name)]


def _tie(layers: nn.ModuleList, what: str, groups: int) -> None:
    first: dict[int, nn.Module] = {}
    for number, layer in enumerate(layers):
        leader = first.setdefault(group_of(number, len(layers), groups), layer)
        for name in _parts(layer, what):
            setattr(layer, name, getattr(leader, name))


@torch.no_grad()
def _average(layers: nn.ModuleList, what: str, groups: int) -> None:
    for group in range(groups):
        members = [layer for i, layer in enumerate(layers) if group_of(i, len(layers), groups) == group]
        for name in _parts(members[0], what):
            stacks = zip(*(getattr(layer, name).parameters() for layer in members), strict=True)
            for stack in stacks:
                stack[0].copy_(torch.stack(stack).mean(0))


def _check_shapes(layers: nn.ModuleList, what: str) -> None:
    shapes = [
        [p.shape for name in _parts(layer, what) for p in getattr(layer, name).parameters()]
        for layer in layers
    ]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"layer {number} has other shapes than layer 0: layers must be alike to share")
