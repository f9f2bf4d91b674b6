"""Children of a benchmark: each measurement is a process of its own, and repeats alternate."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from helpers import runtime


def child(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What ``script`` prints as its last line, as JSON. Compiles into an empty folder: that time counts."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, script, *arguments],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def alternate(script: str, names: Sequence[str], arguments: Sequence[str], repeats: int) -> dict[str, list]:
    """Results of every name, ``repeats`` each, taken in turns so that all meet the same disturbances."""
    found: dict[str, list] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            found[name].append(child(script, ["--child", name, *arguments]))
    return found


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest, to four digits."""
    low, high = min(values), max(values)
    return tuple(float(f"{value:.4g}") for value in (statistics.median(values), low, high))  # type: ignore


def machine() -> dict[str, Any]:
    """Where a result was measured."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else runtime.cpu_name()
    return {
        "machine": name,
        "threads": torch.get_num_threads(),
        "precision": runtime.precision(),
        "torch": torch.__version__,
        "transformers": runtime.versions()["transformers"],
    }


def command() -> str:
    """The command that runs now, as a reader repeats it from the root of the repository."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(words)


def publish(line: dict[str, Any]) -> None:
    """Print one comparison as a line of JSON, with its command and the machine; the line's own keys win."""
    print(json.dumps(line | {"command": command()} | machine() | line), flush=True)
