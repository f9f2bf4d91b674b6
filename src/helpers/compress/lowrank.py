"""A weight matrix as the product of two thin ones: truncated SVD, a layer to drop in, and ranks.

Legend: ``m`` outputs, ``n`` inputs, ``r`` rank of a layer. Its ``weight`` is (m, n), and it computes ``x @
weight.T + bias``. Two factors hold r (m + n) numbers and take as many multiply-adds for each row of x, so
they save only below the break-even rank m n / (m + n).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from helpers.compress import sparsity, storage
from helpers.compress.spectra import Spectrum, singular_values
from helpers.training import Batch, LossFunction

WHAT = ("all", "attention", "ffn")
RIDGE = 1e-6  # inputs that never vary would leave their weights undetermined


def break_even(outputs: int, inputs: int) -> float:
    """The rank m n / (m + n) at which two factors hold as many numbers as the matrix."""
    if outputs < 1 or inputs < 1:
        raise ValueError(f"outputs and inputs must be at least 1, got {outputs} and {inputs}")
    return outputs * inputs / (outputs + inputs)


def truncate(
    weight: torch.Tensor, rank: int, *, moment: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors ``up`` (m, r) and ``down`` (r, n) of the matrix of rank r nearest to ``weight`` (m, n).

    A layer with these weights computes ``x @ down.T @ up.T``. Nearest is meant in the Frobenius norm, where
    cutting the singular value decomposition after r terms is optimal (Eckart and Young 1936); each factor
    gets the roots of the singular values. With the second ``moment`` (n, n) of the inputs, ``x.T @ x`` over
    many rows, the error of the outputs ``x @ weight.T`` is smallest instead (Chen et al. 2021, DRONE).

    Raises ``ValueError`` unless ``1 <= rank <= min(m, n)``, and for what is not a finite matrix.
    """
    root = _root(weight, moment)
    full = weight.double() if root is None else weight.double() @ root
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"rank must lie between 1 and {min(weight.shape)} for a matrix of shape {tuple(weight.shape)}, "
            f"got {rank}"
        )
    left, values, right = torch.linalg.svd(full, full_matrices=False)
    roots = values[:rank].sqrt()
    up, down = left[:, :rank] * roots, roots[:, None] * right[:rank]
    if root is not None:
        down = torch.linalg.solve_triangular(root, down, upper=False, left=False)  # undo the product
    return up.to(weight.dtype), down.to(weight.dtype)


class LowRank(nn.Module):
    """A linear layer of rank r: ``down`` (r, n), then ``up`` (m, r) with the bias. Takes the place of an
    ``nn.Linear``.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=bias)

    @property
    def rank(self) -> int:
        """The width between the two factors."""
        return self.down.out_features

    @property
    def in_features(self) -> int:
        """Inputs n, as of the layer whose place it takes."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """Outputs m."""
        return self.up.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n) to (..., m)."""
        return self.up(self.down(x))

    def matrix(self) -> torch.Tensor:
        """The product of the factors, (m, n): the weight of the dense layer that computes the same."""
        return self.up.weight @ self.down.weight

    @classmethod
    def of(cls, linear: nn.Linear, rank: int, *, moment: torch.Tensor | None = None) -> LowRank:
        """The nearest layer of a rank; arguments and errors as in :func:`truncate`."""
        up, down = truncate(linear.weight.detach(), rank, moment=moment)
        layer = cls.like(linear, rank)
        with torch.no_grad():
            layer.up.weight.copy_(up)
            layer.down.weight.copy_(down)
            if linear.bias is not None:
                layer.up.bias.copy_(linear.bias)
        return layer.train(linear.training)

    @classmethod
    def like(cls, linear: nn.Linear, rank: int) -> LowRank:
        """A layer of the shape, device and type of ``linear``, with random factors."""
        layer = cls(linear.in_features, linear.out_features, rank, bias=linear.bias is not None)
        return layer.to(device=linear.weight.device, dtype=linear.weight.dtype)


def targets(model: nn.Module, what: str = "all") -> dict[str, nn.Linear]:
    """The linear layers that can be factorised, by name: those of a BERT's encoder, in its ``"attention"``,
    its feed-forward part ``"ffn"`` or ``"all"``; of any other model, every linear layer. A shared one comes
    once.
    """
    if what not in WHAT:
        raise ValueError(f"unknown part {what!r}: expected one of {', '.join(WHAT)}")
    return {
        name: layer
        for name, layer in sparsity.targets(model).items()
        if isinstance(layer, nn.Linear)
        and (what == "all" or (".attention." in name) == (what == "attention"))
    }


def factorise(
    model: nn.Module,
    rank: int | None = None,
    *,
    energy: float | None = None,
    density: float | None = None,
    what: str = "all",
    moments: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """A copy of ``model`` whose encoder matrices are products of two factors; untuned.

    Give one of: ``rank``, the same for every matrix; ``energy``, the share of a matrix's squared singular
    values that its factors keep at least; ``density``, the share of its numbers that they may hold at most.
    With ``energy``, a matrix whose factors would not be smaller stays as it is.

    ``what`` as in :func:`targets`. ``moments`` (:func:`input_moments`) make the factors best for the inputs
    that the layers see; energy is then that of the outputs. Matrices that layers share stay shared.

    Raises ``ValueError`` unless exactly one of the three is given, for values out of range, for an ``energy``
    at which no matrix gets smaller, and for a model that is factorised, in int8 or carries masks.
    """
    given = {"rank": rank, "energy": energy, "density": density}
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"give exactly one of rank, energy and density, got {given}")
    for name, value in (("energy", energy), ("density", density)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} must be a share in (0, 1], got {value}")
    _check_plain(model)
    smaller = storage.copied(model)
    layers = targets(smaller, what)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer to factorise")
    if missing := sorted(layers.keys() - moments.keys()) if moments is not None else []:
        raise ValueError(f"there is no input moment for {missing[0]}")
    moments = moments or {}
    ranks = {name: _rank(layer, rank, energy, density, moments.get(name)) for name, layer in layers.items()}
    ranks = {name: chosen for name, chosen in ranks.items() if chosen or energy is None}
    if not ranks:
        raise ValueError(f"no matrix gets smaller at energy {energy}: the ranks that it needs save nothing")
    storage.replace_modules(
        smaller,
        {layers[name]: LowRank.of(layers[name], r, moment=moments.get(name)) for name, r in ranks.items()},
    )
    return storage.record(smaller, "lowrank", {"ranks": ranks})


def merge(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with each pair of factors multiplied into a dense matrix of the original shape.

    Raises ``ValueError`` for a model without factors, with trainable masks or in int8.
    """
    storage.check_changeable(model)
    dense = storage.copied(model)
    _merge(dense)
    return storage.record(dense, "merged", {})


def ranks_of(model: nn.Module) -> dict[str, int]:
    """The rank of each factorised layer, by name."""
    return {name: layer.rank for name, layer in model.named_modules() if isinstance(layer, LowRank)}


@torch.no_grad()
def input_moments(
    model: nn.Module, batches: Sequence[Batch], loss_of: LossFunction, *, what: str = "all"
) -> dict[str, torch.Tensor]:
    """``x.T @ x`` (n, n) over all rows x that each layer reads while ``loss_of`` runs on ``batches``.

    About ten times n rows are needed for a fair estimate. The model's mode is put back.
    """
    if len(batches) == 0:
        raise ValueError("no batches to measure input moments on")
    layers, was_training = targets(model, what), model.training
    found = {name: torch.zeros((layer.in_features,) * 2).double() for name, layer in layers.items()}

    def add(name: str):
        def hook(layer: nn.Module, given: tuple) -> None:
            rows = given[0].detach().flatten(0, -2).double().cpu()
            found[name].addmm_(rows.T, rows)

        return hook

    handles = [layer.register_forward_pre_hook(add(name)) for name, layer in layers.items()]
    model.eval()
    try:
        for batch in batches:
            loss_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return found


@storage.rebuilds("lowrank")
def _rebuild(model: nn.Module, options: storage.Options) -> nn.Module:
    layers = targets(model)
    if unknown := sorted(options["ranks"].keys() - layers.keys()):
        raise ValueError(f"the model has no layer {unknown[0]} to factorise")
    ranks = options["ranks"]
    return storage.replace_modules(model, {layers[n]: LowRank.like(layers[n], r) for n, r in ranks.items()})


@storage.rebuilds("merged")
def _rebuild_merged(model: nn.Module, options: storage.Options) -> nn.Module:
    _merge(model)
    return model


def _rank(
    layer: nn.Linear,
    rank: int | None,
    energy: float | None,
    density: float | None,
    moment: torch.Tensor | None,
) -> int:
    """The rank a layer shall get; 0 when it is better left as it is."""
    if rank is not None:
        return rank
    limit = break_even(layer.out_features, layer.in_features)
    if density is not None:
        return max(1, int(density * limit + 1e-9))
    assert energy is not None
    weight = layer.weight.detach()
    root = _root(weight, moment)
    values = singular_values(weight if root is None else weight.double() @ root)
    needed = Spectrum(values, (layer.out_features, layer.in_features)).rank_for(energy)
    return needed if needed < limit else 0


def _root(weight: torch.Tensor, moment: torch.Tensor | None) -> torch.Tensor | None:
    """A lower triangular L with L @ L.T the moment of the inputs, slightly ridged; checks both."""
    if weight.ndim != 2 or not bool(torch.isfinite(weight).all()):
        raise ValueError(f"expected a matrix of finite numbers, got one of shape {tuple(weight.shape)}")
    if moment is None:
        return None
    if moment.shape != (weight.size(1),) * 2:
        raise ValueError(
            f"the moment of {weight.size(1)} inputs must be square of that size, got {tuple(moment.shape)}"
        )
    moment = moment.to(weight.device).double()
    size = moment.diagonal().mean()
    return torch.linalg.cholesky(moment + RIDGE * size * torch.eye(len(moment), device=weight.device))


def _check_plain(model: nn.Module) -> None:
    storage.check_changeable(model)
    if ranks := ranks_of(model):
        raise ValueError(f"{next(iter(ranks))} is factorised already: merge the model first")


@torch.no_grad()
def _merge(model: nn.Module) -> None:
    pairs = [layer for layer in model.modules() if isinstance(layer, LowRank)]
    if not pairs:
        raise ValueError("the model has no factors to merge")
    merged: dict[nn.Module, nn.Module] = {}
    for layer in pairs:
        linear = nn.Linear(layer.down.in_features, layer.up.out_features, bias=layer.up.bias is not None)
        linear = linear.to(device=layer.up.weight.device, dtype=layer.up.weight.dtype)
        linear.weight.copy_(layer.matrix())
        if layer.up.bias is not None:
            linear.bias.copy_(layer.up.bias)
        merged[layer] = linear.train(layer.training)
    storage.replace_modules(model, merged)
