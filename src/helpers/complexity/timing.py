"""How long something takes: warmed up, repeated, and reported with its spread and its threads.

A single timing of a first call measures allocation, code that is still being chosen and whatever else the
machine does. So every function here runs a few calls that do not count, then many that do, and returns the
median with the quartiles.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, lower and upper quartile, over ``repeats`` calls on ``threads`` threads."""

    median: float
    low: float
    high: float
    repeats: int
    threads: int

    def __str__(self) -> str:
        spread = f"{1e3 * self.low:.3g} to {1e3 * self.high:.3g}"
        return f"{1e3 * self.median:.3g} ms ({spread}; {self.repeats} calls, {self.threads} threads)"


@contextlib.contextmanager
def use_threads(threads: int | None) -> Iterator[int]:
    """Run a block on this many threads of torch, and put the old number back; ``None`` changes nothing."""
    before = torch.get_num_threads()
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads or before)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)


def time_call(
    function: Callable[[], object],
    *,
    repeats: int = 30,
    warmup: int = 3,
    max_seconds: float = 10.0,
    threads: int | None = None,
) -> Timing:
    """Time a call: ``warmup`` calls that do not count, then ``repeats`` that do.

    Slow functions stop early, once ``max_seconds`` have passed and five calls have counted.
    """
    return time_together(
        {"": function}, repeats=repeats, warmup=warmup, max_seconds=max_seconds, threads=threads
    )[""]


def time_together(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 30,
    warmup: int = 3,
    max_seconds: float = 10.0,
    threads: int | None = None,
) -> dict[str, Timing]:
    """Time several functions in turns, so that what disturbs the machine disturbs all of them alike.

    ``max_seconds`` is for all of them together; the rest is as in :func:`time_call`.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"need repeats >= 1 and warmup >= 0, got {repeats} and {warmup}")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    with use_threads(threads) as used:
        for function in functions.values():
            for _ in range(warmup):
                function()
        _synchronize()
        begin = time.perf_counter()
        for turn in range(repeats):
            if turn >= 5 and time.perf_counter() - begin > max_seconds:
                break
            for name, function in functions.items():
                start = time.perf_counter()
                function()
                _synchronize()
                seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values, used) for name, values in seconds.items()}


def _summary(values: list[float], threads: int) -> Timing:
    low, median, high = np.percentile(values, [25, 50, 75])
    return Timing(float(median), float(low), float(high), len(values), threads)


def _synchronize() -> None:
    if torch.cuda.is_available():  # a GPU works on after the call has returned
        torch.cuda.synchronize()
