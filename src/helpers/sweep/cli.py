"""The command line: ``plan``, ``run``, ``status`` and ``collect``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import reporting, runtime
from helpers.sweep.planning import calibrate, plan, wall_hours
from helpers.sweep.rows import collect_all, collect_logs, grow, published, run_id
from helpers.sweep.schedule import ENGINES, RETRIES, make_engine, run
from helpers.sweep.status import render, status, summary
from helpers.sweep.study import Study

_GRACE_SECONDS = 10
_QUIET_SECONDS = 60.0  # between lines in a file; a terminal is drawn again every two


def parser() -> argparse.ArgumentParser:
    """Each command with the options that it uses."""
    top = argparse.ArgumentParser(
        prog="python -m helpers.sweep", description="Run a study, or look at it; see helpers.sweep."
    )
    commands = top.add_subparsers(dest="command", required=True)
    tables = {
        "plan": "runs, FLOPs and hours, before anything starts",
        "run": "run what is missing; may be killed and started again",
        "status": "a table of what is done, and the time left",
        "collect": "add the rows of finished runs to a table",
    }
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in tables.items()}
    for command in made.values():
        command.add_argument("studies", type=Path, nargs="+", help="study files, as in studies/")
    for name in ("run", "status", "collect"):
        made[name].add_argument("--folder", type=Path, help="where runs live (default: the cache folder)")
    for command in (made["plan"], made["run"]):
        add = command.add_argument
        add("--workers", type=at_least(1), default=1, help="families at once on this machine")
    made["plan"].add_argument("--no-timing", action="store_true", help="do not calibrate, leave hours out")
    add = made["run"].add_argument
    add("--engine", choices=ENGINES, default="local")
    add("--address", help="ray: of a running cluster, 'auto' or host:port; without it a local one is started")
    add("--threads", type=at_least(1), help="of a family (default: cores / workers; ray: 1)")
    add("--retries", type=at_least(0), default=RETRIES, help="attempts in a row that may get no further")
    add("--checkpoint-seconds", type=at_least(0, float), default=120.0)
    add = made["status"].add_argument
    add("--watch", type=at_least(0.1, float), metavar="SECONDS", help="show again until all is done")
    made["collect"].add_argument("--output", type=Path, required=True, help="the CSV; rows that it has stay")
    made["collect"].add_argument("--logs", type=Path, help="a second CSV, of training losses along the runs")
    return top


def at_least(least: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """A reader of numbers for ``argparse``, which refuses those below ``least``."""

    def number(text: str) -> Any:
        if not (value := kind(text)) >= least:  # as nan is not
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return number


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what a study file gets wrong ends it with the file's line."""
    top = parser()
    options = top.parse_args(arguments)
    try:
        studies = [Study.read(path) for path in options.studies]
        if options.command == "plan":
            _plan(studies, options)
        else:
            folder = (options.folder or runtime.cache_dir() / "runs").resolve()
            {"run": _run, "status": _status, "collect": _collect}[options.command](studies, folder, options)
    except (ValueError, OSError) as error:
        top.exit(2, f"{top.prog}: {error}\n")
    except RuntimeError as error:  # runs that failed, text that cannot be reached
        top.exit(1, f"{top.prog}: {error}\n")


def _plan(studies: list[Study], options: argparse.Namespace) -> None:
    threads = max(1, runtime.cores() // options.workers)
    tables = []
    for study in studies:
        corpus = None if options.no_timing else study.load_corpus()
        speeds = calibrate(study, corpus, threads=threads) if corpus else None
        tables.append(plan(study, speeds))
    table = pd.concat(tables, ignore_index=True)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    words = f"{table['runs'].sum()} runs, {table['tokens'].sum():,} tokens, {table['flops'].sum():.2e} FLOPs"
    if "hours" in table:
        hours = wall_hours(table["hours"], options.workers)
        words += f", {hours:.1f} hours with {options.workers} at once, {threads} threads each"
    print(words)


def _run(studies: list[Study], folder: Path, options: argparse.Namespace) -> None:
    if options.engine == "ray" and options.workers != 1:
        raise ValueError("--workers is for the engine local; a cluster runs as many as it has cores")
    threads = options.threads or (1 if options.engine == "ray" else None)
    digests = [study.load_corpus().digest for study in studies]
    board = _Board(lambda: _table(studies, digests, folder))
    rows = run(
        studies,
        folder,
        engine=make_engine(
            options.engine, workers=options.workers, address=options.address, threads=threads or 1
        ),
        workers=options.workers,
        threads=threads,
        retries=options.retries,
        checkpoint_seconds=options.checkpoint_seconds,
        show=board.say,
        every=board.tick,
    )
    wanted = sum(len(study.configs()) for study in studies)
    for _ in range(_GRACE_SECONDS):  # storage between machines may show a new file some seconds late
        if len(rows) < wanted:
            time.sleep(1.0)
            rows = collect_all(studies, digests, folder)
    if len(rows) < wanted:
        lost = f"{wanted - len(rows)} of {wanted} runs ended, and their rows are not in {folder}"
        raise RuntimeError(f"{lost}: all machines must see one folder by this name")
    print(f"{wanted} of {wanted} runs done", flush=True)


def _table(studies: list[Study], digests: list[str], folder: Path) -> pd.DataFrame:
    """The status of all studies."""
    both = zip(studies, digests, strict=True)
    return pd.concat([status(study, digest, folder) for study, digest in both], ignore_index=True)


class _Board:
    """The status now and then: in a terminal the table over the old one, in a file a line."""

    def __init__(self, look: Callable[[], pd.DataFrame]) -> None:
        self.look, self.drawn, self.last = look, 0, time.monotonic()
        self.redraw = sys.stdout.isatty()

    def say(self, line: str) -> None:
        """A line that stays."""
        print(line, flush=True)
        self.drawn = 0

    def tick(self) -> None:
        """Called about once a second."""
        if time.monotonic() - self.last < (2.0 if self.redraw else _QUIET_SECONDS):
            return
        self.last = time.monotonic()
        if not self.redraw:
            print(summary(self.look()), flush=True)
            return
        text = render(self.look())
        print(f"\x1b[{self.drawn}F\x1b[J" * bool(self.drawn) + text, flush=True)
        self.drawn = text.count("\n") + 1


def _status(studies: list[Study], folder: Path, options: argparse.Namespace) -> None:
    digests = [study.load_corpus().digest for study in studies]
    while True:
        table = _table(studies, digests, folder)
        if options.watch and reporting.can_redraw(sys.stdout):
            print("\x1b[2J\x1b[H", end="")
        print(render(table), flush=True)
        if not options.watch or (table["done"] == table["runs"]).all():
            return
        time.sleep(options.watch)


def _collect(studies: list[Study], folder: Path, options: argparse.Namespace) -> None:
    digests = [study.load_corpus().digest for study in studies]
    rows = collect_all(studies, digests, folder)
    # Two studies may share runs; a row is written once.
    rows = rows.drop_duplicates("run_id") if len(rows) else rows
    both = zip(studies, digests, strict=True)
    ids = [run_id(config, digest) for study, digest in both for config in study.configs()]
    wanted = list(dict.fromkeys(ids))
    known = grow(options.output, rows, wanted)
    if options.logs and len(rows):
        logged = published(options.output, rows)  # a curve belongs to the training whose row is published
        if logged:
            grow(options.logs, collect_logs(logged, folder), wanted, digits=5)
    found = set(rows["run_id"]) if len(rows) else set()
    words = f"{len(set(wanted) & (found | set(known)))} of {len(wanted)} runs done, in {options.output}"
    if again := len(found & set(known)):
        words += f"; {again} of them stood there already and were left as they were"
    print(words)
