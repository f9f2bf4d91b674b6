"""The two rates that bound a program on this machine: matrix products, and bytes from memory.

The roofline (Williams et al. 2009) puts them together: work that does I FLOPs for each byte it moves runs at
``min(rate, I * bandwidth)`` FLOP/s at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .timing import time_together


@dataclass(frozen=True)
class Machine:
    """Measured ceilings: ``flops_per_second`` of fp32 matrix products, ``bytes_per_second`` of copying."""

    flops_per_second: float
    bytes_per_second: float
    threads: int

    @property
    def balance(self) -> float:
        """FLOPs for each byte at which the two ceilings meet."""
        return self.flops_per_second / self.bytes_per_second

    def attainable(self, intensity: float) -> float:
        """The ceiling, in FLOP/s, of work with this many FLOPs for each byte."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for this many FLOPs and bytes, when both go on at once."""
        return max(flops / self.flops_per_second, moved / self.bytes_per_second)


def measure_machine(
    *, side: int = 1024, megabytes: int = 128, repeats: int = 15, clock: str = "wall"
) -> Machine:
    """Time the product of two ``side`` x ``side`` matrices and a copy of ``megabytes``, on torch's threads,
    by one of the clocks of :func:`helpers.complexity.time_call`.

    The copy reads and writes, so it moves twice its size; it should be far larger than the cache. The best of
    the calls counts, not the median: a ceiling is what the machine can do when nothing disturbs it.
    """
    if side < 1 or megabytes < 1:
        raise ValueError(f"side and megabytes must be positive, got {side} and {megabytes}")
    a, b = torch.randn(side, side), torch.randn(side, side)
    product = torch.empty(side, side)
    source = torch.ones(megabytes * 2**18)
    target = torch.zeros_like(source)
    timings = time_together(
        {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)},
        repeats=repeats,
        max_seconds=5.0,
        clock=clock,
    )
    return Machine(
        flops_per_second=2 * side**3 / timings["product"].best,
        bytes_per_second=2 * 4 * source.numel() / timings["copy"].best,
        threads=timings["copy"].threads,
    )
