"""Train a small model, the student, on what a large one, the teacher, says and thinks (Hinton et al. 2015).

Legend: ``n`` examples in a batch, ``C`` classes, ``T`` tokens, ``H`` width. The temperature, which papers
call T, is written out. The teacher is only asked: it runs in evaluation mode without gradients, no optimizer
sees its weights, and a student that shares a weight with it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from helpers import runtime, training
from helpers import tokenizer as tk
from helpers.compress import storage
from helpers.training import Batch, History, TrainConfig

LogitsOf = Callable[[nn.Module, Batch], torch.Tensor]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Recipe:
    """The student's loss: ``hard`` x cross-entropy of the labels + ``soft`` x :func:`soft_target_loss` +
    ``hidden`` x :func:`hidden_state_loss`, summed over pairs of layers. With ``hard=0`` no label is read.
    """

    temperature: float = 2.0
    soft: float = 0.5
    hard: float = 0.5
    hidden: float = 0.0

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        weights = (self.soft, self.hard, self.hidden)
        if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
            raise ValueError(f"soft, hard and hidden must not be negative, nor all zero, got {weights}")


def soft_target_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """``temperature^2 KL(p || q)`` in nats an example, p and q being the teacher's and the student's softmax
    of logits / temperature (Hinton et al. 2015, section 2).

    Logits (..., C): every leading axis counts as examples, so that a sequence is not one example. The factor
    keeps the gradient's size as the temperature grows. Raises ``ValueError`` for logits of different shapes
    and for a temperature that is not positive.
    """
    _check_temperature(temperature)
    if student.shape != teacher.shape or student.ndim < 2 or student.size(-1) < 2:
        raise ValueError(
            f"logits must have one shape (..., classes), got {tuple(student.shape)} from the student and "
            f"{tuple(teacher.shape)} from the teacher"
        )
    log_q, log_p = (
        F.log_softmax(logits.float() / temperature, dim=-1).flatten(0, -2) for logits in (student, teacher)
    )
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def hidden_state_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference of two states (..., H), over the places where ``mask`` (...) is true.

    The student's state must have the teacher's width: put a projection before it where it has not (Jiao et
    al. 2020, equation 8).
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"states must have one shape, got {tuple(student.shape)} from the student and "
            f"{tuple(teacher.shape)} from the teacher: project the student's"
        )
    squares = (student.float() - teacher.float()).square().mean(-1)
    if mask is None:
        return squares.mean()
    if mask.shape != squares.shape or not mask.any():
        raise ValueError(f"the mask must have shape {tuple(squares.shape)} and a true entry")
    return squares[mask].mean()


def student_of(teacher: nn.Module, layers: Sequence[int] | None = None) -> nn.Module:
    """A new model with copies of some of the teacher's layers, by default every other one from the first
    (DistilBERT's start, Sanh et al. 2019), and of all that is not a layer.

    Works for a BERT, Megatron-BERT or Classifier that was not compressed; raises ``ValueError`` for another,
    and for layers that do not exist, repeat or are out of order.
    """
    if done := storage.history(teacher):
        raise ValueError(f"the teacher was changed by {done[0]['method']!r}: take the student first")
    storage.check_changeable(teacher)
    depth = len(storage.layers_of(teacher))
    chosen = list(range(0, depth, 2)) if layers is None else list(layers)
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < depth:
        raise ValueError(f"layers must rise within 0 .. {depth - 1}, got {chosen}")
    student: Any = storage.copied(teacher)
    kept = storage.layers_of(student)
    fewer = nn.ModuleList(kept[number] for number in chosen)
    for module in student.modules():
        if getattr(module, "layer", None) is kept:
            module.layer = fewer
        settings: Any = getattr(module, "config", None)
        if hasattr(settings, "num_hidden_layers"):
            settings.num_hidden_layers = len(chosen)
    return student


def matched_layers(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Names (student's, teacher's) of encoder layers at the same relative height, the last with the last
    (Jiao et al. 2020, section 4.1). Raises ``ValueError`` when the student has more layers.
    """
    ours, theirs = _layer_names(student), _layer_names(teacher)
    if len(ours) > len(theirs):
        raise ValueError(f"the student has {len(ours)} layers, more than the teacher's {len(theirs)}")
    heights = [(number + 1) * len(theirs) // len(ours) - 1 for number in range(len(ours))]
    return [(name, theirs[height]) for name, height in zip(ours, heights, strict=True)]


def distil(
    teacher: nn.Module,
    student: nn.Module,
    batch_of: Callable[[int], Batch],
    config: TrainConfig,
    recipe: Recipe,
    *,
    logits_of: LogitsOf = lambda model, batch: model(batch),
    pairs: Pairs | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> History:
    """Train ``student`` in place on ``teacher``'s answers by :func:`helpers.training.train`; returns its
    history, with the columns ``soft``, ``hard`` and ``hidden`` of those parts that the recipe weighs.

    ``batch_of(step)`` gives ``input_ids``, and ``labels`` unless ``recipe.hard`` is 0. ``logits_of(model,
    batch)`` (n, C) is asked of both. ``pairs`` are names of modules (student's, teacher's) whose outputs the
    hidden part compares, by default :func:`matched_layers`; where widths differ a projection is trained with
    the student and then dropped. ``[PAD]`` tokens do not count. The rest is as in ``training.train``; a
    run in a ``folder`` goes on only with the same recipe, pairs and teacher.

    Raises ``ValueError`` when the two share a weight, differ in classes, or labels are missing.
    """
    _check_apart(teacher, student)
    watched: Pairs = ()
    if recipe.hidden:
        watched = matched_layers(student, teacher) if pairs is None else pairs
    was_training = teacher.training
    teacher.eval().to(runtime.device())
    student.to(runtime.device())
    apprentice = _Apprentice(student, _projections(teacher, student, batch_of(0), recipe, logits_of, watched))

    def loss_of(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert isinstance(model, _Apprentice)
        with _watch(model.student, [ours for ours, _ in watched]) as states:
            logits = logits_of(model.student, batch)
        with torch.no_grad(), _watch(teacher, [theirs for _, theirs in watched]) as targets:
            answers = logits_of(teacher, batch)
        parts: dict[str, torch.Tensor] = {}
        if recipe.soft:
            parts["soft"] = soft_target_loss(logits, answers, recipe.temperature)
        if recipe.hard:
            parts["hard"] = F.cross_entropy(logits.float(), batch["labels"])
        if watched:
            parts["hidden"] = model.distance(states, targets, batch)
        total = sum((getattr(recipe, name) * part for name, part in parts.items()), torch.zeros(()))
        assert isinstance(total, torch.Tensor)
        return total, parts

    # The student alone is evaluated: projections are scaffolding.
    judge = None if evaluate is None else (lambda model: evaluate(model.student))
    try:
        return training.train(
            apprentice,
            batch_of,
            loss_of,
            config,
            evaluate=judge,
            folder=folder,
            fingerprint=None if folder is None else _identity(teacher, recipe, watched),
            progress=progress,
        )
    finally:
        teacher.train(was_training)


def _identity(teacher: nn.Module, recipe: Recipe, pairs: Pairs) -> dict[str, Any]:
    """What the student learns from, as JSON gives it back; the teacher by the SHA-256 of its state."""
    digest = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    names = [list(pair) for pair in pairs]
    return {"recipe": asdict(recipe), "pairs": names, "teacher": digest.hexdigest()}


class _Apprentice(nn.Module):
    """The student with the projections of its states: what is trained."""

    def __init__(self, student: nn.Module, projections: Sequence[nn.Module]) -> None:
        super().__init__()
        self.student, self.projections = student, nn.ModuleList(projections)

    def distance(self, states: list[torch.Tensor], targets: list[torch.Tensor], batch: Batch) -> torch.Tensor:
        """The hidden-state loss summed over the pairs of layers."""
        losses = [
            hidden_state_loss(project(state), target, _real_tokens(state, batch))
            for project, state, target in zip(self.projections, states, targets, strict=True)
        ]
        return torch.stack(losses).sum()


def _real_tokens(state: torch.Tensor, batch: Batch) -> torch.Tensor | None:
    ids = batch["input_ids"]
    return ids != tk.PAD if state.ndim == 3 and ids.shape == state.shape[:-1] else None


@torch.no_grad()
def _projections(
    teacher: nn.Module, student: nn.Module, batch: Batch, recipe: Recipe, logits_of: LogitsOf, pairs: Pairs
) -> list[nn.Module]:
    """Projections by pair, from one trial batch, which also shows whether the two models fit."""
    if recipe.hard and "labels" not in batch:
        raise ValueError(f"hard is {recipe.hard}, but the batch has no labels, only {', '.join(batch)}")
    batch = {name: value.to(runtime.device()) for name, value in batch.items()}
    was_training = student.training
    student.eval()
    with _watch(student, [ours for ours, _ in pairs]) as states:
        ours = logits_of(student, batch)
    with _watch(teacher, [theirs for _, theirs in pairs]) as targets:
        theirs = logits_of(teacher, batch)
    student.train(was_training)
    soft_target_loss(ours, theirs, recipe.temperature)  # raises when the classes differ
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            nn.Identity()
            if state.size(-1) == target.size(-1)
            else nn.Linear(state.size(-1), target.size(-1), bias=False)
            for state, target in zip(states, targets, strict=True)
        ]


@contextlib.contextmanager
def _watch(model: nn.Module, names: Sequence[str]) -> Iterator[list[torch.Tensor]]:
    """The outputs of the named modules, in the order of the names, once the block has called the model."""
    found: dict[str, torch.Tensor] = {}
    states: list[torch.Tensor] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    inside = dict(model.named_modules())
    if unknown := [name for name in names if name not in inside]:
        raise ValueError(f"{type(model).__name__} has no module {unknown[0]!r}")
    handles = [inside[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield states
        states += [found[name] for name in names]
    finally:
        for handle in handles:
            handle.remove()


def _layer_names(model: nn.Module) -> list[str]:
    layers = {id(layer) for layer in storage.layers_of(model)}
    return [name for name, module in model.named_modules() if id(module) in layers]


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, got {temperature}")


def _check_apart(teacher: nn.Module, student: nn.Module) -> None:
    owned = {p.data_ptr(): name for name, p in teacher.named_parameters() if p.numel()}
    for name, parameter in student.named_parameters():
        if parameter.data_ptr() in owned:
            raise ValueError(
                f"the student's {name} is the teacher's {owned[parameter.data_ptr()]}: training the one "
                "would train the other; give the student a copy (distill.student_of)"
            )
