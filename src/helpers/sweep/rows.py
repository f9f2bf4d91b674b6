"""Names and rows: the hash that names a run, the trunk that runs share, and the row of a finished run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from helpers import checkpoints, complexity, pretrain, runtime
from helpers.pretrain import Corpus, PretrainConfig
from helpers.sweep.study import Study

try:
    import fcntl
except ImportError:  # Windows: collect into a table from one program at a time
    fcntl = None  # type: ignore[assignment]

# Nats under the unigram entropy. A tenth of the masked positions shows its own word: without any context a
# model gets half a nat below that entropy, and a little more is evaluation noise.
PAST_PLATEAU = 0.7


def run_id(config: PretrainConfig, corpus_digest: str) -> str:
    """Twelve hexadecimal digits that depend on everything that decides a run's weights: settings and text,
    not the machine.
    """
    settings = asdict(config) | {"corpus": corpus_digest}
    for how in ("precision", "compile"):
        del settings[how]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def trunk_of(family: Sequence[PretrainConfig]) -> tuple[PretrainConfig, frozenset[int]]:
    """The stable run that a family shares, and the steps at which its members branch off to decay."""
    branches = frozenset(config.steps - config.decay_steps for config in family)
    longest = max(family, key=lambda config: config.steps)
    return replace(longest, tokens=max(branches) * longest.batch_tokens, decay_share=0.0), branches


def stable_id(config: PretrainConfig, corpus_digest: str) -> str:
    """The hash of all that decides a run before it decays. Runs that share it are one run until the first of
    them branches off, however long each is and wherever it was made.
    """
    return run_id(replace(config, tokens=config.batch_tokens, decay_share=0.0), corpus_digest)


def trunk_folder(folder: Path, config: PretrainConfig, corpus_digest: str) -> Path:
    """Where the trunk of a run keeps its checkpoints, as ``trunk-*/step-*``: all runs that begin alike share
    it, whatever family they are of. It holds ``trunk-STEP/step-STEP`` for each step at which a run left it.
    """
    return folder / stable_id(config, corpus_digest)


def row(result: pretrain.Pretrained, corpus: Corpus) -> dict[str, Any]:
    """The row of a finished run: settings, counts, losses, time and where it ran. Units are in
    ``book/results/README.md``.
    """
    config, final = result.config, result.history.final
    shape = result.model.config
    parts = complexity.count_parameters(shape)
    blocks = config.unique_blocks or len(corpus.train)
    return {
        "run_id": run_id(config, corpus.digest),
        "trunk": stable_id(config, corpus.digest),
        "arch": config.arch,
        "layers": config.size.layers,
        "hidden": config.size.hidden,
        "heads": config.size.heads,
        "params_embedding": parts["embeddings"],
        "params_non_embedding": complexity.non_embedding_parameters(shape),
        "params_total": sum(parts.values()),
        "vocab_size": corpus.vocab_size,
        "seq_len": config.seq_len,
        "tokens": config.steps * config.batch_tokens,
        "unique_tokens": min(config.steps * config.batch_tokens, blocks * config.seq_len),
        "steps": config.steps,
        "batch_tokens": config.batch_tokens,
        "lr_muon": config.lr,
        "lr_adam": config.lr_adam,
        "weight_decay": config.weight_decay,
        "mask_rate": config.mask_rate,
        "seed": config.seed,
        "flops_6nd": 6.0 * complexity.non_embedding_parameters(shape) * config.steps * config.batch_tokens,
        "flops_exact": sum(
            complexity.training_flops(
                shape,
                seq_len=config.seq_len,
                tokens=config.steps * config.batch_tokens,
                mask_rate=config.mask_rate,
            ).values()
        ),
        "mlm_loss": final["mlm_loss"],
        "mlm_loss_se": final["mlm_loss_se"],
        "nsp_accuracy": final["nsp_accuracy"],
        "unigram_entropy": corpus.unigram_entropy,
        "past_plateau": is_past_plateau(final | {"unigram_entropy": corpus.unigram_entropy}),
        "seconds": round(result.history.seconds, 1),
        "tokens_per_second": round(config.steps * config.batch_tokens / result.history.seconds),
        "device": runtime.cpu_name() if runtime.device().type == "cpu" else torch.cuda.get_device_name(),
        "precision": result.history.precision,
        "torch": runtime.versions()["torch"],
        "transformers": runtime.versions()["transformers"],
        "commit": runtime.commit(),
    }


def read_row(folder: Path) -> dict[str, Any] | None:
    """The row of the run in a folder, or ``None`` while it is not done. A row that cannot be read, as one
    that was cut short, counts as missing: the run then goes on from its last checkpoint.
    """
    try:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return row if isinstance(row, dict) and "run_id" in row else None


def collect(study: Study, corpus_digest: str, folder: Path) -> pd.DataFrame:
    """The rows of a study that are done, in the order of the study. What follows from a row and a setting is
    made anew: the trunk, and whether the run is past the plateau.
    """
    rows = []
    for config in study.configs():
        if row := read_row(folder / run_id(config, corpus_digest)):
            row |= {"trunk": stable_id(config, corpus_digest), "past_plateau": is_past_plateau(row)}
            rows.append(row)
    return pd.DataFrame(rows)


def collect_all(studies: Sequence[Study], corpus_digests: Sequence[str], folder: Path) -> pd.DataFrame:
    """The rows of several studies that are done, study by study; a run that two of them share comes twice."""
    both = zip(studies, corpus_digests, strict=True)
    return pd.concat([collect(study, digest, folder) for study, digest in both], ignore_index=True)


def collect_logs(run_ids: Sequence[str], folder: Path) -> pd.DataFrame:
    """Training losses along finished runs, trunk included: ``run_id``, ``step`` (the last of those that a
    loss is a mean over), ``rate`` (factor on the learning rates), and ``mlm`` in nats a masked token.
    """
    logs = [pd.read_csv(folder / name / "log.csv").assign(run_id=name) for name in run_ids]
    return pd.concat(logs, ignore_index=True)[["run_id", "step", "rate", "mlm"]]


def grow(path: Path, rows: pd.DataFrame, order: Sequence[str], *, digits: int = 6) -> list[str]:
    """Add to the CSV at ``path`` the rows of the runs that it lacks; returns the run ids that it had already.

    Those stay as they are, to the letter: a table is made on several machines, and a run that is repeated on
    another one must not change what was published. Runs are written in ``order``; others stand before them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        return _grow(path, rows, order, digits)


def _grow(path: Path, rows: pd.DataFrame, order: Sequence[str], digits: int) -> list[str]:
    columns = list(rows.columns) if len(rows) else ["run_id"]
    old = _read_text(path) if path.exists() else pd.DataFrame(columns=columns, dtype=str)
    if not set(columns) <= set(old.columns):
        raise ValueError(f"{path} is another table: it has the columns {', '.join(old.columns)}")
    known = list(dict.fromkeys(old["run_id"]))
    new = rows[~rows["run_id"].isin(known)] if len(rows) else rows
    if new.empty:
        return known
    new = _as_text(new, digits)
    place = {name: i for i, name in enumerate(order)}
    table = pd.concat([old, new])
    table = table.sort_values("run_id", key=lambda ids: ids.map(place).fillna(-1), kind="stable")
    with runtime.write_atomically(path) as temporary:
        table.to_csv(temporary, index=False)
    return known


def published(path: Path, rows: pd.DataFrame, *, digits: int = 6) -> list[str]:
    """Run ids of those ``rows`` that stand in the CSV at ``path`` as they are, and not as another training
    of the same run, made elsewhere.
    """
    trained = ["run_id", "mlm_loss", "seconds", "device", "precision", "commit"]
    here, there = (table[trained] for table in (_as_text(rows, digits), _read_text(path)))
    return list(here.merge(there)["run_id"])


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against others who would read a table in it, grow it and write it at the same time."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # storage without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _as_text(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    """A table as it is read from the CSV that it becomes."""
    return _read_text(io.StringIO(table.to_csv(index=False, float_format=f"%.{digits}g")))


def _read_text(file: Path | io.StringIO) -> pd.DataFrame:
    """A CSV whose cells stay the text that they are: a commit of digits alone is no number."""
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' errors do not say which file
        raise ValueError(f"{file} is not a table: {error}") from error


def is_past_plateau(row: dict[str, Any]) -> bool:
    """Whether a run's loss is so far under the unigram entropy that it must have learned from context."""
    return row["mlm_loss"] < row["unigram_entropy"] - PAST_PLATEAU


def checkpoints_until(trunks: Path, step: int) -> list[Path]:
    """Checkpoints of the trunks in a folder, at ``step`` at the latest, newest first."""
    every = [path for home in trunks.glob("trunk-*") for path in checkpoints.available(home)]
    found = [path for path in every if checkpoints.step_of(path) <= step]
    return sorted(found, key=checkpoints.step_of, reverse=True)


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in a run's folder; 0 where there is none."""
    return max(map(checkpoints.step_of, checkpoints.available(folder)), default=0)
