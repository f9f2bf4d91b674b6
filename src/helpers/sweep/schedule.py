"""Keeping an engine busy until studies are done: largest family first, what died started again."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers import runtime
from helpers.pretrain import Corpus
from helpers.sweep.engines import Engine, Local
from helpers.sweep.family import Failure, Task
from helpers.sweep.planning import flops_of
from helpers.sweep.rows import collect_all, newest_step, read_row, run_id, trunk_folder
from helpers.sweep.study import Family, Study

ENGINES = ("local", "ray")
RETRIES = 3
_FAILURE = "failure.json"


@dataclass
class _Job:
    name: str
    family: Family
    load: Callable[[], Corpus]
    flops: float
    folders: list[Path]
    trunks: Path
    failures: int = 0
    reached: int = 0

    def progress(self) -> int:
        """A number that grows with every checkpoint and every finished run."""
        rows = sum(read_row(folder) is not None for folder in self.folders)
        return rows + sum(map(newest_step, [*self.folders, *self.trunks.glob("trunk-*")]))


def make_engine(name: str, *, workers: int = 1, address: str | None = None, threads: int = 1) -> Engine:
    """The engine of a name; raises ``ValueError`` for a name that is unknown and an option it cannot use."""
    if name == "local":
        if address is not None:
            raise ValueError(f"the engine 'local' has no address, got {address!r}")
        return Local(workers)
    if name == "ray":
        from helpers.sweep.cluster import Ray

        return Ray(address, threads=threads)
    raise ValueError(f"unknown engine {name!r}: expected one of {', '.join(ENGINES)}")


def run(
    studies: Study | Sequence[Study],
    folder: Path,
    *,
    engine: Engine | None = None,
    workers: int = 1,
    threads: int | None = None,
    retries: int = RETRIES,
    checkpoint_seconds: float = 120.0,
    load: Callable[[], Corpus] | None = None,
    show: Callable[[str], None] = print,
    every: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Run what is missing of a study, or of several at once, and return the rows, study by study.

    Without an ``engine``, families run in ``workers`` processes of this machine, its threads divided among
    them. A family whose process dies goes on from its checkpoints; after ``retries`` attempts in a row that
    got no further, or an error that would come back, it is given up. What failed is reported when the other
    families are done; its finished runs and checkpoints stay. ``load`` gives the corpus in each process
    (default: each study's), ``show`` prints a line, ``every`` is called about once a second. Raises
    ``ValueError`` for a study that asks for more different text than there is.
    """
    if workers < 1 or (threads is not None and threads < 1):
        raise ValueError(f"workers and threads must be at least 1, got {workers} and {threads}")
    studies, folder = [studies] if isinstance(studies, Study) else studies, folder.resolve()
    # Fills the cache before workers read it; the texts themselves are not kept.
    digests = [study.check_text((load or study.load_corpus)()).digest for study in studies]
    threads = threads or max(1, runtime.cores() // workers)
    waiting = deque(_jobs(studies, digests, folder, load))
    engine = engine or Local(workers)
    running: dict[Hashable, _Job] = {}  # by their trunks: two rates may be written alike
    given_up: list[str] = []
    try:
        while waiting or running:
            while engine.free() and (job := _next(waiting, running)):
                running[job.trunks.name] = job
                job.reached = max(job.reached, job.progress())
                engine.start(job.trunks.name, Task(job.family, folder, job.load, threads, checkpoint_seconds))
            for key, failure in engine.wait(1.0):
                job = running.pop(key)
                if failure is None:
                    (job.folders[-1] / _FAILURE).unlink(missing_ok=True)
                    show(f"{job.name} done: {_losses(job)}")
                elif _again(job, failure, retries, show):
                    waiting.append(job)
                else:
                    given_up.append(f"{job.name}: {failure.reason}")
            every()
    finally:
        engine.close()
    if given_up:
        raise RuntimeError("some runs failed, run the study again to resume them: " + "; ".join(given_up))
    return collect_all(studies, digests, folder)


def _jobs(
    studies: Sequence[Study], digests: Sequence[str], folder: Path, load: Callable[[], Corpus] | None
) -> list[_Job]:
    """Families with runs missing, largest first: the longest job must not be the last to start."""
    jobs = []
    for study, digest in zip(studies, digests, strict=True):
        for family in study.families():
            folders = [folder / run_id(config, digest) for config in family]
            if all(map(read_row, folders)):
                continue
            name, trunks = study.name_of(family), trunk_folder(folder, family[0], digest)
            if len(studies) > 1:
                name = f"{study.name}: {name}"
            flops = flops_of(study, family)
            jobs.append(_Job(name, family, load or study.load_corpus, flops, folders, trunks))
    return sorted(jobs, key=lambda job: job.flops, reverse=True)


def _next(waiting: deque[_Job], running: dict[Hashable, _Job]) -> _Job | None:
    """The first job whose trunk nobody trains: another study's runs on it would only wait for the lock."""
    job = next((job for job in waiting if job.trunks.name not in running), None)
    if job:
        waiting.remove(job)
    return job


def _again(job: _Job, failure: Failure, retries: int, show: Callable[[str], None]) -> bool:
    """Whether to try once more; tells why not, to people and to ``status``."""
    progress = job.progress()
    job.failures = 0 if progress > job.reached else job.failures + 1
    job.reached = max(job.reached, progress)
    if not failure.lasting and job.failures <= retries:
        tries = f"{job.failures} of {retries} retries without progress"
        show(f"{job.name} starts again: {failure.reason} ({tries})")
        return True
    show(f"{job.name} given up: {failure.reason}")
    job.folders[-1].mkdir(parents=True, exist_ok=True)
    with runtime.write_atomically(job.folders[-1] / _FAILURE) as temporary:
        temporary.write_text(json.dumps({"reason": failure.reason, "time": time.time()}))
    return False


def _losses(job: _Job) -> list[float]:
    """Of the rows that can be seen: storage between machines may show a new file some seconds late."""
    return [round(row["mlm_loss"], 3) for row in map(read_row, job.folders) if row]
