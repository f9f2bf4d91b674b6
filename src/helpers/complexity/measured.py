"""What the machine says: FLOPs by torch's counter and peak memory by its allocator."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _cpu_attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


# The counter knows the fused attention of GPUs and counts the one of CPUs as nothing.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


def measured_flops(function: Callable[[], object]) -> int:
    """FLOPs of one call by ``torch.utils.flop_counter``, fused attention on CPUs included.

    It counts matrix products and convolutions (a multiply-add as 2), and nothing else: no softmax, norm or
    activation. Masked weights count as dense, and kernels for sparse or int8 weights may not count at all.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation that the counter does not know
    try:
        with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def measured_peak_bytes(function: Callable[[], object]) -> int:
    """The most memory, in bytes, that one call holds at once beyond what was allocated before it.

    On a CPU it replays what torch's allocator reports to the profiler, every tensor inside an operation
    included; scratch space that a matrix library takes for itself is not seen. On a GPU it asks the
    allocator. Call the function once before, so that what it sets up once does not count.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    profiler = torch.autograd.profiler.profile(profile_memory=True)
    with _without_native_messages():
        profiler.__enter__()
    try:
        function()
    finally:
        with _without_native_messages():
            profiler.__exit__(None, None, None)
    results = profiler.kineto_results
    assert results is not None
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"
    )
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Some builds of torch write a line to the process's standard error when profiling starts and stops."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
