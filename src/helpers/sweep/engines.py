"""Where families run: in processes of this machine here, on a cluster in ``helpers.sweep.cluster``."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Hashable
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import Protocol

from helpers.sweep.family import Failure, Task, work

_LONGEST = 2000  # characters of a reason


class Engine(Protocol):
    """What the schedule asks of a place where families run."""

    def free(self) -> bool:
        """Whether another task may be started."""
        ...

    def start(self, name: Hashable, task: Task) -> None:
        """Start a task under a name."""
        ...

    def wait(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        """The tasks that have ended, and why they failed if they did; waits for one, but no longer than
        ``seconds``.
        """
        ...

    def close(self) -> None:
        """End what is still running; it resumes when the study is run again."""
        ...


@dataclass
class _Running:
    process: multiprocessing.process.BaseProcess
    says: connection.Connection


class Local:
    """One process a family, ``workers`` at a time. A process that dies takes nobody with it, and all of them
    end with the driver, however that ends.
    """

    def __init__(self, workers: int = 1, *, method: str | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        # A fork server imports torch once for all families, and holds it; one worker at a time does without.
        # Plain fork is not safe in a process with threads.
        usual = "forkserver" if workers > 1 and os.name == "posix" else "spawn"
        self.context = multiprocessing.get_context(method or usual)
        if self.context.get_start_method() == "forkserver":
            self.context.set_forkserver_preload(["helpers.sweep.engines"])
        self.workers, self.running = workers, dict[Hashable, _Running]()

    def free(self) -> bool:
        return len(self.running) < self.workers

    def start(self, name: Hashable, task: Task) -> None:
        hears, says = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_child, args=(task, says), daemon=True)  # type: ignore[attr-defined]
        process.start()
        says.close()
        self.running[name] = _Running(process, hears)

    def wait(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        connection.wait([entry.process.sentinel for entry in self.running.values()], seconds)
        ended = [name for name, entry in self.running.items() if not entry.process.is_alive()]
        return [(name, _outcome(self.running.pop(name))) for name in ended]

    def close(self) -> None:
        for entry in self.running.values():
            entry.process.kill()
            entry.process.join()
            entry.says.close()
        self.running.clear()


def _outcome(entry: _Running) -> Failure | None:
    entry.process.join()
    with entry.says:
        try:
            if entry.says.poll():
                return entry.says.recv()
        except (EOFError, OSError):  # died while it was saying it
            pass
    code = entry.process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
    return Failure(f"the process ended with {how}")


def _child(task: Task, says: connection.Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Ctrl-C in a terminal reaches every process of the group: the driver ends its workers itself.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    failure = work(task)
    if failure is not None:
        # The driver reads when this process has ended; what does not fit into the pipe would keep it alive.
        failure = replace(failure, reason=failure.reason[:_LONGEST])
    says.send(failure)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)  # at once: a driver started again must not wait for an orphan
