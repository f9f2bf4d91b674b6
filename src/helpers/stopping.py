"""Early stopping: fine-tune, look at the validation texts on the way, and keep the best weights.

Prechelt 1998 ("Early stopping, but when?") compares rules for the moment; here training goes on to its end,
so that the whole course can be looked at, and :func:`stopped` says where a rule would have stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers import adaptation, training
from helpers.finetune import Classifier, FinetuneConfig, Windows, check_rows, loss, predict, rows_of_step
from helpers.metrics import check_labels
from helpers.training import Batch, History

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stopped:
    """A trained classifier, its history, and its trainable numbers at the best validation loss and at the
    end; the model holds the best."""

    model: Classifier
    history: History
    best: State
    last: State

    @property
    def course(self) -> pd.DataFrame:
        """One row an evaluation: step, training loss since the last one, validation loss and accuracy."""
        names = {"eval_loss": "val_loss", "eval_accuracy": "val_accuracy"}
        rows = self.history.log.dropna(subset=list(names))
        return rows[["step", "loss", *names]].rename(columns=names).reset_index(drop=True)

    @property
    def step(self) -> int:
        """The step of the best validation loss."""
        return int(self.course.loc[self.course["val_loss"].idxmin(), "step"])

    def use(self, state: State) -> Classifier:
        """The model with the numbers of ``best`` or ``last`` put into it."""
        adaptation.put(self.model, state)
        return self.model


def tune(
    model: Classifier,
    texts: Windows,
    labels: np.ndarray,
    config: FinetuneConfig,
    validation: tuple[Windows, np.ndarray],
    *,
    every: int,
    progress: bool = True,
) -> Stopped:
    """Train what is trainable of ``model`` in place, judged on the ``validation`` texts and labels every
    ``every`` steps and at the end.

    ``config.frozen`` and ``config.pooling`` are not read: the model was built with its own. Raises
    ``ValueError`` as :func:`helpers.finetune.finetune` does.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    target, answers = (check_labels(part, model.head.out_features) for part in (labels, validation[1]))
    for some, their in ((texts, target), (validation[0], answers)):
        if len(some) != len(their):
            raise ValueError(f"{len(some)} texts but {len(their)} labels")
        check_rows(some.input_ids, model.encoder)
    targets, best, lowest = torch.from_numpy(target), {}, float("inf")

    def batch_of(step: int) -> Batch:
        rows = rows_of_step(len(texts), config, step)
        return texts.take(rows) | {"labels": targets[rows]}

    def evaluate(_: nn.Module) -> dict[str, float]:
        nonlocal best, lowest
        measured = judge(predict(model, validation[0]), answers)
        if measured["loss"] < lowest:
            best, lowest = _copy(model), measured["loss"]
        return measured

    settings = replace(config.training(len(texts)), eval_every=every, log_every=every)
    history = training.train(model, batch_of, loss, settings, evaluate=evaluate, progress=progress)
    last = _copy(model)
    adaptation.put(model, best)
    return Stopped(model, history, best, last)


def _copy(model: nn.Module) -> State:
    return {name: p.detach().clone() for name, p in adaptation.trained(model).items()}


def judge(guesses: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Mean log-loss (nats a text) and accuracy of probabilities (n, C)."""
    likelihood = guesses[np.arange(len(answers)), answers].clip(1e-7)
    return {
        "loss": float(-np.log(likelihood).mean()),
        "accuracy": float((guesses.argmax(1) == answers).mean()),
    }


def stopped(course: pd.DataFrame, patience: int) -> int:
    """The step that early stopping keeps: the best before ``patience`` evaluations in a row were not better.

    ``course`` has the columns ``step`` and ``val_loss``. Raises ``ValueError`` for a patience below 1 or an
    empty course.
    """
    if patience < 1 or course.empty:
        raise ValueError(f"patience must be at least 1 and the course not empty, got {patience}")
    losses, best = course["val_loss"].to_numpy(), 0
    for place, value in enumerate(losses):
        if value < losses[best]:
            best = place
        elif place - best >= patience:
            break
    return int(course["step"].iloc[best])
