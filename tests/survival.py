"""Kill a study again and again; run by test_sweep_survival.py as `python survival.py local|ray FOLDER`.

It stands apart from the tests because it forks: this process imports torch once and never computes, so that
each driver, and each local worker, starts in a moment. The last line of output is JSON: what was killed, how
many drivers it took, and rows that were written twice (there must be none).
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import torch  # noqa: F401 - before the forks

from conftest import make_reviews
from helpers import data, pretrain, sweep

STUDY = """
[study]
name = "survival"
sizes = ["1x32", "1x64"]
tokens = [19_200, 38_400]
seeds = [0]
[pretrain]
seq_len = 16
batch = 8
warmup_tokens = 1_280
"""
LIMIT = 240.0  # seconds in which everything must be over
KILLS = {"local": ["worker", "worker", "driver", "worker", "driver", "driver"]}
KILLS["ray"] = ["worker", "node", "driver"]


def load(texts: Path) -> pretrain.Corpus:
    """The corpus of the test fixtures, from a file: a worker of ray does not find this folder."""
    reviews = data.prepare(pd.read_csv(texts), source="invented", origin="tests")
    return pretrain.load_corpus(reviews, vocab_size=200, seq_len=16)


def fork(target: Callable[[], None]) -> int:
    """Run ``target`` in a child process; returns its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        target()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def drive(folder: Path, make: Callable[[], sweep.Engine]) -> None:
    """What `python -m helpers.sweep run` does, with a checkpoint at every chance."""
    study = sweep.Study.read(folder / "study.toml")
    how = {"threads": 1, "checkpoint_seconds": 0, "load": partial(load, folder / "texts.csv")}
    # A death can hit a family again before it gets further.
    sweep.run(study, folder / "runs", engine=make(), retries=5, **how)


class Watch:
    """The folder of runs as it grows: a row that changes after it was first seen was written twice."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.twice, self.steps = folder, {}, set(), set()

    def look(self) -> bool:
        """Whether a checkpoint or a row came since the last look."""
        before = len(self.seen) + len(self.steps)
        for row in self.folder.glob("*/row.json"):
            stamp = (row.stat().st_ino, row.stat().st_mtime_ns)
            if self.seen.setdefault(row.parent.name, stamp) != stamp:
                self.twice.add(row.parent.name)
        places = [p for where in ("*", "*/trunk-*") for p in self.folder.glob(f"{where}/step-*")]
        self.steps |= {str(p.relative_to(self.folder)) for p in places}
        return len(self.seen) + len(self.steps) > before


def torture(folder: Path, kills: list[str], make: Callable, strike: Callable[[str, int], bool]) -> dict:
    """Start drivers until one gets through; after each sign of progress, kill what comes next on the list, as
    soon as ``strike`` finds it.
    """
    watch, done, drivers, end, due = Watch(folder / "runs"), [], 0, time.monotonic() + LIMIT, False
    while True:
        driver, drivers, status, struck = fork(lambda: drive(folder, make)), drivers + 1, None, False
        while status is None:
            if time.monotonic() > end:
                os.kill(driver, signal.SIGKILL)
                raise TimeoutError(f"not over after {LIMIT} s; killed so far: {done}")
            due = watch.look() or due
            if due and not struck and len(done) < len(kills) and strike(kills[len(done)], driver):
                done.append(kills[len(done)])
                due, struck = False, done[-1] == "driver"
            pid, code = os.waitpid(driver, os.WNOHANG)
            status = code if pid else None
            time.sleep(0.02)
        if status == 0:
            watch.look()
            return {"killed": done, "drivers": drivers, "twice": sorted(watch.twice)}
        if not (struck and os.WIFSIGNALED(status)):
            raise RuntimeError(f"a driver that was not killed ended with {status}; killed so far: {done}")


def strike_local(what: str, driver: int) -> bool:
    """Kill the driver, whose workers must then end by themselves, or one of its workers if there is one."""
    workers = psutil.Process(driver).children()
    if what == "worker":
        for worker in workers[:1]:
            worker.kill()
        return bool(workers)
    os.kill(driver, signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=20)
    if alive:
        raise RuntimeError(f"{len(alive)} workers outlived their driver")
    return True


def local(folder: Path) -> dict:
    return torture(folder, KILLS["local"], lambda: sweep.Local(2, method="fork"), strike_local)


def keep_cluster(orders: int, answers: int) -> None:
    """Two nodes of one core in this process; an order to kill the second; then the end."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    # An address of its own, so that drivers, which are on the first machine, can be told from it.
    node = cluster.add_node(node_ip_address="127.0.0.2", **small)
    os.write(answers, f"{cluster.address}\n".encode())
    for order in lines(orders):
        if order == "kill":
            cluster.remove_node(node, allow_graceful=False)
            os.write(answers, b"killed\n")
    cluster.shutdown()


def lines(handle: int) -> Iterator[str]:
    """The lines that come through a pipe, until it closes."""
    with os.fdopen(handle) as file:
        yield from (line.strip() for line in iter(file.readline, ""))


def at_work(cluster: int) -> list[psutil.Process]:
    """The workers under this process that run a family; those of another cluster are not ours to kill."""
    found = []
    for process in psutil.Process(cluster).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if process.cmdline()[:1] == ["ray::work"]:
                found.append(process)
    return found


def on_ray(folder: Path) -> dict:
    (orders_out, orders), (answers, answers_in) = os.pipe(), os.pipe()

    def keep() -> None:
        os.close(orders)  # so that the end of this script is the end of the cluster
        keep_cluster(orders_out, answers_in)

    keeper, said = fork(keep), lines(answers)
    os.close(answers_in)
    address = next(said)

    def strike(what: str, driver: int) -> bool:
        if what == "driver":
            os.kill(driver, signal.SIGKILL)
        elif what == "node":
            os.write(orders, b"kill\n")
            return next(said) == "killed"
        else:
            workers = at_work(keeper)
            for worker in workers[:1]:
                worker.kill()
            return bool(workers)
        return True

    def make() -> sweep.Engine:
        import ray

        from helpers.sweep.cluster import Ray

        # Of several nodes on one machine Ray gives a driver any, also one that has just died.
        ray.init = partial(ray.init, _node_ip_address=address.partition(":")[0])
        return Ray(address)

    try:
        return torture(folder, KILLS["ray"], make, strike)
    finally:
        os.close(orders)
        os.waitpid(keeper, 0)


if __name__ == "__main__":
    where = Path(sys.argv[2])
    (where / "runs").mkdir(parents=True)
    (where / "study.toml").write_text(STUDY)
    make_reviews().frame[["text", "label"]].to_csv(where / "texts.csv", index=False)
    result = {"local": local, "ray": on_ray}[sys.argv[1]](where)
    print(json.dumps(result), flush=True)
