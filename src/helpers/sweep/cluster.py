"""Families on a Ray cluster: ``ray start`` on each machine, one folder that all of them see.

Ray is an extra (``pip install 'scalability-helpers[ray]'``). Its dashboard and its usage statistics stay off
where this module starts it; for a cluster that is started by hand, set ``RAY_USAGE_STATS_ENABLED=0`` and pass
``--include-dashboard=false`` there.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from helpers.sweep.family import Failure, Task, work

# What decides where data are kept and how runs are computed goes with a task: other machines have their own.
_PASSED_ON = ("BOOK_PROFILE", "HELPERS_CACHE", "HELPERS_PRECISION", "HF_HUB_OFFLINE")


class Ray:
    """One Ray task a family. Ray queues what does not fit, and sees when a worker or its machine dies; trying
    again is left to the schedule, as for every engine.
    """

    def __init__(self, address: str | None = None, *, threads: int = 1) -> None:
        self.ray = ray = _import()
        how: dict[str, Any] = {"include_dashboard": False} if address is None else {}
        ray.init(address, log_to_driver=False, logging_level="ERROR", **how)
        cores = max((n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]), default=0)
        if threads > cores:  # such a task would wait for ever, and say nothing
            ray.shutdown()
            raise ValueError(
                f"threads must be at most {cores:g}, the cores of the largest node, got {threads}"
            )
        gpus = min(1, ray.cluster_resources().get("GPU", 0))
        # Ray's own retries know nothing of progress.
        self.remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(work)
        self.running: dict[Any, Hashable] = {}

    def free(self) -> bool:
        return True

    def start(self, name: Hashable, task: Task) -> None:
        passed = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        self.running[self.remote.remote(replace(task, environment=passed))] = name

    def wait(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        ended, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [(self.running.pop(reference), self._outcome(reference)) for reference in ended]

    def close(self) -> None:
        self.running.clear()
        self.ray.shutdown()  # ends this driver's tasks

    def _outcome(self, reference: Any) -> Failure | None:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            # The first line of a task's error says where, its last line what.
            words = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
            last = words[-1] if isinstance(error, self.ray.exceptions.RayTaskError) else words[0]
            return Failure(f"{type(error).__name__}: {last}")


def _import() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "the engine 'ray' is not installed: pip install 'scalability-helpers[ray]'"
        ) from error
    return ray
