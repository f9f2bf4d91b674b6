"""How far a study is: one row a family, and the time that is left."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import checkpoints
from helpers.sweep.family import at_work
from helpers.sweep.planning import axes_of, flops_of, tokens_of
from helpers.sweep.rows import checkpoints_until, newest_step, read_row, run_id, trunk_folder, trunk_of
from helpers.sweep.study import Family, Study


def status(study: Study, corpus_digest: str, folder: Path) -> pd.DataFrame:
    """One row a family: ``done`` of ``runs``, per cent of its ``steps``, ``state`` (done, running, waiting,
    or failed with the reason in ``note``), ``tokens_per_second``, and ``left``, the seconds that its rest
    takes (NaN while no family of the study has been timed).

    A family that has not been timed is taken to compute as many FLOPs a second as those that have.
    """
    rows = [_look(study, family, corpus_digest, folder) for family in study.families()]
    table = pd.DataFrame(rows)
    rates = (table["flops"] * table["tokens_per_second"] / table["tokens"]).dropna()
    usual = statistics.median(rates) if len(rates) else float("nan")
    rest = table["flops"] * (1 - table["share"])
    own = table["flops"] * table["tokens_per_second"] / table["tokens"]
    table["left"] = (rest / own.fillna(usual)).where(table["done"] < table["runs"], 0.0)
    return table


def _look(study: Study, family: Family, digest: str, folder: Path) -> dict[str, Any]:
    trunk, _ = trunk_of(family)
    trunks = trunk_folder(folder, trunk, digest)
    newest = next(iter(checkpoints_until(trunks, trunk.steps)), None)
    folders = [folder / run_id(config, digest) for config in family]
    read = [read_row(place) for place in folders]
    rows = [row for row in read if row]
    seconds, tokens = (rows[-1]["seconds"], rows[-1]["tokens"]) if rows else _timed(newest, trunk)
    steps, total = checkpoints.step_of(newest) if newest else 0, trunk.steps
    for config, place, row in zip(family, folders, read, strict=True):
        stable = config.steps - config.decay_steps
        whole = config.decay_steps if row else 0
        steps, total = steps + max(whole, newest_step(place) - stable, 0), total + config.decay_steps
    done = len(rows) == len(family)
    state, note = ("done", "") if done else _state(trunks, folders[-1])
    return {
        "size": str(trunk.size),
        "seed": trunk.seed,
        **axes_of(study, trunk),
        "runs": len(family),
        "done": len(rows),
        "share": 1.0 if done else steps / total,
        "state": state,
        "tokens": tokens_of(family),
        "flops": flops_of(study, family),
        "tokens_per_second": tokens / seconds if seconds else float("nan"),
        "note": note,
    }


def _timed(checkpoint: Path | None, trunk: Any) -> tuple[float, int]:
    """Seconds and tokens of the trunk's newest checkpoint; zeros where none can be read."""
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8")) if checkpoint else None
    except (OSError, ValueError):  # pruned this moment
        state = None
    return (state["seconds"], state["step"] * trunk.batch_tokens) if state else (0.0, 0)


def _state(trunks: Path, longest: Path) -> tuple[str, str]:
    if at_work(trunks):
        return "running", ""
    try:
        return "failed", json.loads((longest / "failure.json").read_text())["reason"]
    except (OSError, ValueError, KeyError):
        return "waiting", ""


def seconds_left(table: pd.DataFrame) -> float:
    """Seconds until the study is done if as many families as now, and at least one, run at once."""
    at_once = max(1, int((table["state"] == "running").sum()))
    return max(table["left"].sum(skipna=False) / at_once, table["left"].max())


def summary(table: pd.DataFrame) -> str:
    """One line: runs done, families running and failed, time left."""
    states = table["state"].value_counts()
    words = [f"{table['done'].sum()} of {table['runs'].sum()} runs done"]
    words += [f"{states[name]} {name}" for name in ("running", "failed") if name in states]
    if (left := seconds_left(table)) > 0:
        words.append(f"about {clock(left)} left")
    return ", ".join(words)


def render(table: pd.DataFrame) -> str:
    """The table as people read it, with the summary below."""
    shown = table.drop(columns=["tokens", "flops", "share", "left", "tokens_per_second"])
    shown.insert(shown.columns.get_loc("state"), "steps", (100 * table["share"]).map("{:.0f} %".format))
    speed = table["tokens_per_second"].map(lambda v: f"{v:,.0f}" if v == v else "")
    left = table["left"].map(lambda v: clock(v) if v > 0 else "")
    shown.insert(shown.columns.get_loc("note"), "tokens/s", speed)
    shown.insert(shown.columns.get_loc("note"), "left", left)
    if not shown["note"].any():
        shown = shown.drop(columns="note")
    return f"{shown.to_string(index=False)}\n{summary(table)}"


def clock(seconds: float) -> str:
    """``41 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
