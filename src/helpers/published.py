"""Runs that other people published: where they are looked for, and under which column names.

None of these tables is ours to pass on, so none is shipped. They are looked for in the folder named by the
environment variable HELPERS_DATA, then among earlier downloads. One of them exists as a plain file on the
network: `find(..., download=True)` fetches it once and checks its SHA-256. Chapters that use them read our
own fits from `results/published_fits.csv` and compare where the data can be found.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers import runtime
from helpers.data import DataUnavailable


@dataclass(frozen=True)
class Source:
    """A published table: path below HELPERS_DATA, columns {ours: theirs}, who made it, rows, a download."""

    path: str
    columns: dict[str, str]
    origin: str
    rows: int
    url: str = ""
    sha256: str = ""


SOURCES = {
    # D is not a column: it follows from the compute, D = C / (6 N).
    "chinchilla": Source(
        "epoch_chinchilla/svg_extracted_data.csv",
        {"N": "Model Size", "C": "Training FLOP", "L": "loss"},
        "points of figure 4 of Hoffmann et al. 2022, digitised by Besiroglu et al. 2024",
        245,
        "https://raw.githubusercontent.com/epoch-research/analyzing-chinchilla/9225883/data/svg_extracted_data.csv",
        "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
    ),
    "porian_isoflops": Source(
        "porian2024/isoflop_points.csv",
        {"dataset": "dataset", "config": "config", "C": "flops", "N": "n", "D": "tokens", "L": "loss"},
        "IsoFLOP points of Porian et al. 2024",
        1264,
    ),
    "porian_optima": Source(
        "porian2024/optimal_pairs.csv",
        {"dataset": "dataset", "config": "config", "C": "flops", "N": "n_opt", "D": "t_opt", "L": "loss_opt",
         "log_N_sd": "n_log_std"},
        "best size of each budget of Porian et al. 2024",
        129,
    ),
    "datablations": Source(
        "datablations/fit_subset_182.csv",
        {"N": "params", "U": "unique_tokens", "D": "tokens", "L": "val_loss"},
        "182 runs with repeated data of Muennighoff et al. 2023",
        182,
    ),
}  # fmt: skip


def find(name: str, *, download: bool = False) -> pd.DataFrame | None:
    """The table `name` with our column names, or None.

    N is in parameters, D and U (different ones) in tokens, C in FLOPs, L in nats.

    With `download` a table that has an address is fetched when it is nowhere on this machine. Raises
    ValueError for an unknown name, or for a file with another number of rows or without the columns;
    DataUnavailable when the download fails or brings another file.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown table {name!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    path = _path(source, download)
    if path is None:
        return None
    table = pd.read_csv(path)
    if missing := set(source.columns.values()) - set(table.columns):
        raise ValueError(f"{path.name} lacks the columns {sorted(missing)}")
    if len(table) != source.rows:
        raise ValueError(f"{path.name} has {len(table)} rows, expected {source.rows}: {source.origin}")
    table = table[list(source.columns.values())].set_axis(list(source.columns), axis=1)
    if "D" not in table:
        table["D"] = table["C"] / (6 * table["N"])
    return table


def _path(source: Source, download: bool) -> Path | None:
    """The file on this machine, fetched if need be and allowed; None if it is nowhere."""
    kept = runtime.cache_dir() / "downloads" / Path(source.path).name
    folders = [Path(os.environ["HELPERS_DATA"]) / source.path] if os.environ.get("HELPERS_DATA") else []
    for path in (*folders, kept):
        if path.is_file():
            return path
    if not (download and source.url):
        return None
    import pooch

    try:
        fetched = pooch.retrieve(source.url, f"sha256:{source.sha256}", fname=kept.name, path=kept.parent)
    except (OSError, ValueError) as error:  # those of requests are among the first
        raise DataUnavailable(
            f"cannot download {source.url} ({error}): connect to the network, or put {source.path} into the "
            "folder named by HELPERS_DATA"
        ) from error
    return Path(fetched)
