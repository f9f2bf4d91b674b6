"""The gate: the stages of `make test`, one after the other, each with its seconds and its budget.

`python tools/gate.py [stage ...]` runs the named stages, or all: lint, format, types, unit, slow, chapters,
build. A failing stage does not stop the rest, so one run shows all that is wrong. The last line counts tests
as pytest does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 40 * 60
PYTEST = ("-m", "pytest", "-q", "--color=no")


@dataclass(frozen=True)
class Stage:
    """One command of the gate; `budget` is in seconds, and going past it is reported but fails nothing."""

    name: str
    command: tuple[str, ...]
    budget: float
    pytest: bool = False


@dataclass
class Result:
    """How a stage ended; a stage that is not pytest counts as one test."""

    stage: Stage
    code: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)


def chapters(root: Path = ROOT) -> list[Path]:
    """The chapter notebooks, in order."""
    return sorted((root / "book").glob("[0-9][0-9]_*.ipynb"))


def script(name: str) -> str:
    """A console script of the environment that runs this file."""
    return str(Path(sys.executable).parent / name)


def stages(root: Path = ROOT) -> list[Stage]:
    """All stages in the order in which they run: cheap ones first."""
    python = sys.executable
    nbval = [
        Stage(f"chapters: {path.name}", (python, *PYTEST, "--nbval", f"book/{path.name}"), 180, pytest=True)
        for path in chapters(root)
    ]
    # --all reads every page again: a page from the cache would not repeat its warnings.
    build = (script("jupyter-book"), "build", ".", "--all", "-n", "-W", "--keep-going", "-q")
    return [
        Stage("lint", (python, "-m", "ruff", "check", "."), 10),
        Stage("format", (python, "-m", "ruff", "format", "--check", "."), 10),
        Stage("types", (python, "-m", "mypy"), 120),
        Stage("unit", (python, *PYTEST, "tests", "-m", "not slow"), 180, pytest=True),
        Stage("slow", (python, *PYTEST, "tests", "-m", "slow"), 300, pytest=True),
        *nbval,
        Stage("build", build, 90),
    ]


def chosen(names: list[str], root: Path = ROOT) -> list[Stage]:
    """The stages of these names; all of them for no name. `chapters` stands for every chapter."""
    available = stages(root)
    known = dict.fromkeys(stage.name.split(":")[0] for stage in available)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown stage {unknown[0]!r}: choose from {', '.join(known)}")
    return [stage for stage in available if not names or stage.name.split(":")[0] in names]


def run(stage: Stage, limit: float) -> Result:
    """Run one stage, stopping it with all its children after `limit` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*stage.command, *([f"--junitxml={report}"] if stage.pytest else [])]
        start = time.perf_counter()
        code = run_group(command, limit)
        seconds = time.perf_counter() - start
        return Result(stage, code, seconds, counts(report, code) if stage.pytest else plain_counts(code))


def run_group(command: list[str], limit: float) -> int:
    """The exit code of a command in its own process group; 124 when it ran out of time."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    try:
        return process.wait(timeout=max(limit, 0.1))
    except subprocess.TimeoutExpired:
        print(f"stopped after {limit:.0f} s: the gate's time is over", flush=True)
        return 124
    finally:  # also on Ctrl-C: a kernel must not outlive the gate
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment() -> dict[str, str]:
    """The gate tests the quick profile, offline, whatever the shell has set."""
    return os.environ | {"BOOK_PROFILE": "quick", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def plain_counts(code: int) -> dict[str, int]:
    return {"failed": 1} if code else {"passed": 1}


def counts(report: Path, code: int) -> dict[str, int]:
    """Passed, failed and skipped tests from pytest's own report; a run without one has failed."""
    try:
        suites = ElementTree.parse(report).getroot().iter("testsuite")
    except (OSError, ElementTree.ParseError):
        return {"failed": 1}
    total = {"passed": 0, "failed": 0, "skipped": 0}
    for suite in suites:
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        total["failed"] += failed
        total["skipped"] += skipped
        total["passed"] += int(suite.get("tests", 0)) - failed - skipped
    if code and not total["failed"]:  # nothing collected, or an error outside any test
        total["failed"] = 1
    return total


def table(results: list[Result]) -> str:
    """One line a stage."""
    lines = []
    for result in results:
        verdict = "ok" if result.code == 0 else "FAILED"
        over = "  over its budget" if result.seconds > result.stage.budget else ""
        time_used = f"{result.seconds:7.1f} s of {result.stage.budget:4.0f}"
        lines.append(f"{verdict:6}  {time_used}  {result.stage.name}{over}")
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    """The last line, in pytest's form."""
    total = {key: sum(r.counts.get(key, 0) for r in results) for key in ("failed", "passed", "skipped")}
    parts = [f"{number} {key}" for key, number in total.items() if number or key == "passed"]
    return f"===== {', '.join(parts)} in {sum(r.seconds for r in results):.2f}s ====="


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", nargs="*", help="lint, format, types, unit, slow, chapters, build")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="wall time for all stages")
    arguments = parser.parse_args()
    try:
        selected = chosen(arguments.stage)
    except ValueError as error:
        parser.error(str(error))
    end, results = time.perf_counter() + arguments.seconds, []
    for stage in selected:
        print(f"\n----- {stage.name}", flush=True)
        results.append(run(stage, end - time.perf_counter()))
        print(f"----- {stage.name}: {results[-1].seconds:.1f} s", flush=True)
    print(f"\n{table(results)}\n\n{summary(results)}", flush=True)
    return int(any(result.code for result in results))


if __name__ == "__main__":
    sys.exit(main())
