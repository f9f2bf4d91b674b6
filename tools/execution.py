"""Run a chapter from a fresh kernel, in the folder book/ and the quick profile, and measure what it costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from chapters import ROOT, address, formatted, furnish, normalise, read, write
from labels import Label, cell_text, save
from nbclient import NotebookClient
from nbformat import NotebookNode

CELL_SECONDS = 1200
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Wall time, memory and downloads of one execution."""

    seconds: float
    peak_bytes: int
    download_bytes: int


class PeakMemory:
    """The largest resident size of a process and its children together, sampled from a thread."""

    def __init__(self, interval: float = 0.2) -> None:
        self.interval, self.peak = interval, 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pid: int) -> None:
        self._thread = threading.Thread(target=self._watch, args=(psutil.Process(pid),), daemon=True)
        self._thread.start()

    def _watch(self, process: psutil.Process) -> None:
        while True:  # at least one sample, however short the run
            self.peak = max(self.peak, resident_bytes(process))
            if self._stop.wait(self.interval):
                break

    def stop(self) -> int:
        self._stop.set()
        if self._thread:
            self._thread.join()
        return self.peak


def resident_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process and all below it; 0 once it has ended.

    Processes share the pages of their libraries. Where the system tells each one's part of them (Linux), the
    parts are summed, so that no page counts twice.
    """
    total = 0
    try:
        members = (process, *process.children(recursive=True))
        for member in members:
            alone = len(members) == 1 or not psutil.LINUX
            total += member.memory_info().rss if alone else member.memory_full_info().pss
    except psutil.NoSuchProcess:  # a child that ended between the two calls
        pass
    return total


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder; 0 if there is none."""
    if not folder.exists():
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def download_folders() -> list[Path]:
    """Where downloads of the notebooks land: the hub's cache and the helpers' own."""
    home = Path.home() / ".cache"
    hub = os.environ.get("HF_HOME") or home / "huggingface"
    own = os.environ.get("HELPERS_CACHE") or home / "scalability-helpers"
    return [Path(hub), Path(own) / "downloads"]


def offline_environment() -> dict[str, str]:
    """The quick profile needs no network; a chapter that asks for it should fail here, not at a reader's."""
    return {
        "BOOK_PROFILE": "quick",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
    }


def run(notebook: NotebookNode, folder: Path, *, verbose: bool = False, kernel: str = "python3") -> Cost:
    """Execute all cells in place, in `folder`. A cell that fails raises nbclient's `CellExecutionError`."""
    memory = PeakMemory()
    before = sum(map(folder_bytes, download_folders()))
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=kernel,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    # The kernel's process exists from here on.
    client.on_notebook_start = lambda notebook: memory.start(client.km.provisioner.pid)
    if verbose:
        client.on_cell_start = lambda cell, cell_index: report(cell, cell_index, len(notebook.cells))
    start = time.perf_counter()
    try:
        client.execute(env=os.environ | offline_environment())
    finally:
        peak = memory.stop()
    seconds = time.perf_counter() - start
    return Cost(seconds, peak, sum(map(folder_bytes, download_folders())) - before)


def report(cell: NotebookNode, index: int, total: int) -> None:
    if cell.cell_type == "code":
        print(f"  cell {index + 1} of {total}: {cell.source.splitlines()[0][:80]}", flush=True)


def tidy(notebook: NotebookNode) -> list[str]:
    """Make outputs fit to keep: no stderr, alt text on figures. Returns warnings that the cells wrote."""
    warnings = []
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        stderr = "".join(o.text for o in cell.outputs if o.get("name") == "stderr")
        warnings += [line for line in stderr.splitlines() if "Warning" in line]
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        set_alt_text(cell)
    return warnings


def set_alt_text(cell: NotebookNode) -> None:
    """Copy a figure's alt text from its output, where `show` put it, to where the book's build reads it."""
    figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    texts = [figure.metadata.get("image/png", {}).get("alt") for figure in figures]
    settings = cell.metadata.get("mystnb", {})
    settings.pop("image", None)
    if texts and texts[0]:
        settings["image"] = {"alt": texts[0]}
    cell.metadata["mystnb"] = settings
    if not settings:
        cell.metadata.pop("mystnb")


def machine() -> str:
    """The processor's name without trademarks and clock rates."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    name = names[0] if names else "unknown processor"
    return " ".join(re.sub(r"\((R|TM)\)|CPU|Processor|@.*$", " ", name).split())


def precision(notebook: NotebookNode) -> str:
    """The precision that the last cell printed, since a chapter may choose its own; else the machine's."""
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1:]
    printed = " ".join(output.get("text", "") for cell in last for output in cell.outputs)
    if found := re.search(r"\b(fp32|bf16|fp16)\b", printed):
        return found[0]
    code = "from helpers import runtime; print(runtime.precision())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or "unknown precision"


def precomputed(notebook: NotebookNode, root: Path) -> str:
    """The shipped result files that the code names, but for the labels themselves."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    shipped = sorted({path.stem for path in (root / "book" / "results").glob("*.csv")} - {"labels"})
    return " ".join(f"{name}.csv" for name in shipped if f"{name}.csv" in code)


def label_of(path: Path, notebook: NotebookNode, cost: Cost, root: Path) -> Label:
    return Label(
        chapter=path.stem,
        profile="quick",
        minutes=round(cost.seconds / 60, 2),
        peak_gib=round(cost.peak_bytes / GIB, 2),
        download_mb=round(cost.download_bytes / 1e6),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        machine=machine(),
        precision=precision(notebook),
        precomputed=precomputed(notebook, root),
        torch=version("torch").split("+")[0],
    )


def execute(path: Path, root: Path = ROOT) -> tuple[Label, list[str]]:
    """Run one chapter, store outputs and label; a chapter that fails leaves its notebook as it was."""
    notebook = read(path)
    furnish(notebook, path.stem, address(root), "")
    notebook = formatted(normalise(notebook), path.stem, root)
    cost = run(notebook, path.parent, verbose=True)
    warnings = tidy(notebook)
    label = label_of(path, notebook, cost, root)
    furnish(notebook, path.stem, address(root), cell_text(label))
    write(path, normalise(notebook))
    save(label, root)
    return label, warnings
