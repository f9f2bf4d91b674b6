"""What the studies share: their arguments, rows that survive a stop, processes, and how a table is written.

A study is a list of runs. Each run's row is kept as JSON beside its name, so that a stopped study goes on
where it was; the table is written from the rows at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from helpers import data, finetune, runtime
from helpers import tokenizer as tk

Row = dict[str, Any]


def parser(doc: str | None, *, model: bool = False, workers: bool = False) -> argparse.ArgumentParser:
    """The arguments of a study with the documentation ``doc``: ``--runs`` (which is made), ``--output``, and
    on request the folder of the pre-trained model and the number of processes.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        made.add_argument("model", type=Path, help="folder of the pre-trained model")
    made.add_argument("--runs", type=folder, required=True, help="where finished runs are kept, and skipped")
    made.add_argument("--output", type=Path, required=True, help="the table, or the folder of the tables")
    if workers:
        made.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    return made


def folder(name: str) -> Path:
    """A folder, made when it is missing."""
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``path`` holds as JSON; made, and kept there, when there is no such file."""
    if path.exists():
        return json.loads(path.read_text())
    made = make()
    with runtime.write_atomically(path) as temporary:
        temporary.write_text(json.dumps(made))
    return made


def provenance(precision: str | None = None) -> Row:
    """Where a row comes from; ``precision`` is the machine's unless the run says another."""
    return {
        "device": runtime.cpu_name(),
        "precision": precision or runtime.precision(),
        "torch": runtime.versions()["torch"],
        "commit": runtime.commit(),
    }


def in_processes(work: Callable[..., Any], jobs: Iterable[Sequence[Any]], workers: int) -> list[Any]:
    """``work(*job)`` for every job, in order, by so many processes of one thread each."""
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return [job.result() for job in [pool.submit(work, *job) for job in jobs]]


def write(rows: pd.DataFrame | list[Row], output: Path, by: list[str]) -> None:
    """Write the table, sorted by these columns; numbers get six digits."""
    output.parent.mkdir(parents=True, exist_ok=True)  # hours of runs must not end at a missing folder
    with runtime.write_atomically(output) as temporary:
        pd.DataFrame(rows).sort_values(by).to_csv(temporary, index=False, float_format="%.6g")


@cache
def reviews() -> data.Reviews:
    """The labelled reviews of IMDB, read once a process."""
    return data.reviews("imdb")


def cut(model: Path, texts: list[str], *, seq_len: int, windows: int) -> finetune.Windows:
    """Texts as the first and last tokens that the model in this folder reads of them."""
    return finetune.cut_windows(tk.encode(tk.load(model), texts), seq_len=seq_len, windows=windows)


@torch.no_grad()
def features(encoder: PreTrainedModel, windows: finetune.Windows, *, batch: int = 64) -> np.ndarray:
    """The frozen encoder's vector of each text, (n, H)."""
    model = finetune.Classifier(encoder).eval()
    parts = torch.arange(len(windows)).split(batch)
    return torch.cat([model.features(windows.take(rows)) for rows in parts]).float().numpy()
