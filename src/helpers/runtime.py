"""Where the code runs: profile, device, precision, random streams, files, clocks. Nothing here prints."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

PROFILES = ("quick", "colab", "full")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _read_umask() -> int:
    """It can only be read by setting it, for a moment, for all threads: to the strictest."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def profile(name: str | None = None) -> str:
    """The name of the profile in force: the argument, else ``BOOK_PROFILE``, else ``"quick"``.

    Raises ``ValueError`` for a name that is none of ``PROFILES``.
    """
    chosen = name if name is not None else os.environ.get("BOOK_PROFILE") or "quick"
    if chosen not in PROFILES:
        raise ValueError(f"unknown profile {chosen!r}: BOOK_PROFILE must be one of {', '.join(PROFILES)}")
    return chosen


def cache_dir() -> Path:
    """The folder for what can be made again: ``HELPERS_CACHE``, else ``~/.cache/scalability-helpers``."""
    root = os.environ.get("HELPERS_CACHE") or Path.home() / ".cache" / "scalability-helpers"
    path = Path(root).resolve()  # other processes may stand in other folders
    path.mkdir(parents=True, exist_ok=True)
    return path


def cores() -> int:
    """CPU cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, of the same suffix, that replaces it when the block ends without an
    error. A missing folder is made: hours of runs must not end at one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        settle(Path(name), path)
    finally:
        Path(name).unlink(missing_ok=True)


def settle(temporary: Path, target: Path) -> None:
    """Rename a finished temporary file, or folder of files, to ``target``. It gets the mode of what it
    replaces, else the usual one (temporary files are private), and its content is on the disk before its
    name: a machine that stops must not leave a file that is there and empty.
    """
    folder = temporary.is_dir()
    for file in temporary.iterdir() if folder else [temporary]:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
        if folder:
            make_readable(file)
    usual = (0o777 if folder else 0o666) & ~_UMASK
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else usual
    with contextlib.suppress(PermissionError):  # storage that has no modes
        temporary.chmod(mode)
    os.replace(temporary, target)


def make_readable(file: Path) -> None:
    """Give a new file the usual mode: safetensors makes files that only their owner can read."""
    with contextlib.suppress(PermissionError):  # storage that has no modes
        file.chmod(0o666 & ~_UMASK)


def device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU as Linux lists them; empty where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    return frozenset(
        next((line.split(":")[1] for line in text.splitlines() if line.startswith("flags")), "").split()
    )


def cpu_name() -> str:
    """The CPU's model name, for labels; ``"unknown CPU"`` where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "unknown CPU"
    return next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")),
        "unknown CPU",
    )


def precision(where: torch.device | None = None) -> str:
    """The fastest precision that trains well: ``"bf16"``, ``"fp16"`` or ``"fp32"``.

    bf16 needs matrix units that multiply it: AMX or AVX512-BF16 on a CPU, Ampere or newer on a GPU. Without
    them a CPU converts every operand to fp32 first, which is slower than fp32 throughout. fp16 (with loss
    scaling) is left for GPUs older than Ampere. ``HELPERS_PRECISION`` overrides the choice, and so does
    ``accelerate launch --mixed_precision bf16`` (or fp16). GPU choices have not been run.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    forced = os.environ.get("HELPERS_PRECISION") or (launched if launched != "no" else None)
    if forced:
        if forced not in PRECISIONS:
            raise ValueError(
                f"unknown precision {forced!r}: HELPERS_PRECISION must be one of {', '.join(PRECISIONS)}"
            )
        return forced
    where = where or device()
    if where.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(where)[0] >= 8 else "fp16"
    return "bf16" if cpu_flags() & {"amx_bf16", "avx512_bf16"} else "fp32"


def autocast(name: str, where: torch.device) -> contextlib.AbstractContextManager[object]:
    """The autocast context for a precision name; a context that does nothing for fp32."""
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}: expected one of {', '.join(PRECISIONS)}")
    if name == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(where.type, dtype=PRECISIONS[name])


def can_compile(where: torch.device | None = None) -> bool:
    """Whether ``torch.compile`` can work here: on a CPU it needs a C++ compiler at run time."""
    where = where or device()
    if sys.platform == "win32":
        return False
    compiler = os.environ.get("CXX") or "g++"
    return where.type == "cuda" or shutil.which(compiler) is not None


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the whole key and on nothing else.

    The key is hashed through ``numpy.random.SeedSequence``, so that (seed, step) and (step, seed), or
    neighbouring seeds, give unrelated streams. Keys of one purpose have one length: zeros at the end of a key
    do not count.
    """
    state = np.random.SeedSequence([int(k) for k in key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


@dataclass
class Timer:
    """Seconds between entering and leaving the ``with`` block, on a clock that never runs backwards."""

    seconds: float = field(default=0.0, init=False)


@contextlib.contextmanager
def timer() -> Iterator[Timer]:
    """``with timer() as t: ...`` leaves the block's wall time, in seconds, in ``t.seconds``."""
    clock, start = Timer(), time.perf_counter()
    try:
        yield clock
    finally:
        clock.seconds = time.perf_counter() - start


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of ``transformers`` in the block: a small model takes a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number in this book."""
    import importlib.metadata as metadata

    names = ("torch", "transformers", "tokenizers", "numpy", "scipy", "statsmodels")
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}


@functools.cache
def commit() -> str:
    """The commit of the code, with a plus sign when files differ from it; empty outside a repository.

    The first call in a process decides. Call it before long work: the folder may change meanwhile, the code
    in memory does not.
    """
    try:
        here = Path(__file__).parent
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
        return out.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
