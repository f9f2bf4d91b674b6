"""What the studies share: their arguments, rows that survive a stop, processes, and how a table is written.

A study is a list of runs. Each run's row is kept as JSON beside its name, so that a stopped study goes on
where it was; the table is written from the rows at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from functools import cache
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
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


def read(path: Path) -> Any:
    """What ``path`` holds as JSON; ``None`` for a file that is missing or was cut short."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``path`` holds as JSON; made, and kept there, when there is no such file that can be read."""
    if (found := read(path)) is not None:
        return found
    made = make()
    with runtime.write_atomically(path) as temporary:
        temporary.write_text(json.dumps(made))
    return made


def weights(model: Path) -> Path:
    """The file of a model's weights; raises ``ValueError`` for a folder without one, before any work."""
    if not (path := model / "model.safetensors").is_file():
        raise ValueError(f"{model} is not the folder of a model: no {path.name}")
    return path


def digest_of(model: Path) -> str:
    """The SHA-256 of a model's weights, in hexadecimal digits."""
    return hashlib.sha256(weights(model).read_bytes()).hexdigest()


def same_model(runs: Path, model: Path) -> None:
    """Raise ``ValueError`` for runs of another model: kept rows do not say whose they are."""
    digest, path = digest_of(model), runs / "model.txt"
    if path.exists() and read(path) is None:
        raise ValueError(f"{path} cannot be read, so whose runs these are is unknown: remove it if you know")
    if (began := kept(path, lambda: digest)) != digest:
        words = f"{runs} has runs of the model {began[:12]}, and {model} is {digest[:12]}"
        raise ValueError(f"{words}: choose another folder for --runs")


def provenance(precision: str | None = None) -> Row:
    """Where a row comes from; ``precision`` is the machine's unless the run says another."""
    return {
        "device": runtime.cpu_name(),
        "precision": precision or runtime.precision(),
        "torch": runtime.versions()["torch"],
        "commit": runtime.commit(),
    }


runtime.commit()  # rows name the code that is loaded now, whatever is committed while they are made


def in_processes(work: Callable[..., Any], jobs: Iterable[Sequence[Any]], workers: int) -> list[Any]:
    """``work(*job)`` for every job, in order, by so many processes of one thread each. The first error ends
    it: jobs that have not begun are dropped.
    """
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]


def write(rows: pd.DataFrame | list[Row], output: Path, by: list[str]) -> None:
    """Write the table, sorted by these columns, which tell its rows apart; numbers get six digits. Raises
    ``ValueError`` where a row, a column or a filled cell of the table that is there would be lost: a part of
    a study must not replace all of it.
    """
    write_in_order(pd.DataFrame(rows).sort_values(by), output, by)


def write_in_order(table: pd.DataFrame, output: Path, by: list[str]) -> None:
    """:func:`write` for a table that is sorted already."""
    text = table.to_csv(index=False, float_format="%.6g")
    if output.exists():
        old, new = filled(output, by), filled(StringIO(text), by)
        if lost := len(old.keys() - new.keys()):
            raise ValueError(f"{output} has {lost} rows that this run would drop; write to another file")
        if columns := [name for name in pd.read_csv(output, nrows=0) if name not in table]:
            raise ValueError(f"{output} has {columns} that this run would drop; write to another file")
        for row, names in old.items():
            if emptied := sorted(names - new[row]):
                words = f"{output} has {emptied} of {row} that this run would empty"
                raise ValueError(f"{words}; write to another file")
    with runtime.write_atomically(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def filled(file: Path | StringIO, by: list[str]) -> dict[tuple[Any, ...], set[str]]:
    """The columns in which a row of a CSV has a value, by what tells the row apart; raises ``ValueError``
    where the CSV lacks one of the columns ``by``.
    """
    table = pd.read_csv(file)
    if missing := [name for name in by if name not in table]:
        raise ValueError(f"the table lacks {missing}, which tell its rows apart")
    rows = table[by].itertuples(index=False, name=None)
    keys = [tuple("" if pd.isna(cell) else cell for cell in row) for row in rows]
    return {key: set(table.columns[has]) for key, has in zip(keys, table.notna().to_numpy(), strict=True)}


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


def probe(strength: float, *, iterations: int = 2000) -> Pipeline:
    """A linear classifier of such vectors: standardised, then logistic regression; a smaller ``strength``
    keeps its weights smaller.
    """
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations))
