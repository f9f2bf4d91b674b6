"""What a run shows of itself: a bar while it runs, trackers if asked for, and a table at the end."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from tqdm.std import tqdm

# Names that accelerate knows, the module each needs, and nothing else: a typing error must not go unnoticed.
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
LOG_SECONDS = 30.0


def check_trackers(names: Sequence[str]) -> None:
    """Raise ``ValueError`` for a tracker that is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}: expected one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise ValueError(
                f"the tracker {name!r} is not installed: pip install 'scalability-helpers[trackers]'"
            )


def can_redraw(stream: TextIO) -> bool:
    """Whether a line can be drawn over: in a terminal and in a notebook, not in a file."""
    return stream.isatty() or "ipykernel" in sys.modules


class Progress:
    """A bar in terminals and notebooks; in plain logs a line every ``LOG_SECONDS``; nothing if not shown."""

    def __init__(self, total: int, initial: int, shown: bool, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.done, self.first, self.total = initial, initial, total
        self.lines = shown and not can_redraw(self.stream)
        self.start = self.last = time.monotonic()
        self.note = ""
        self.bar = tqdm(
            total=total,
            initial=initial,
            disable=not shown or self.lines,
            file=self.stream,
            unit="step",
            mininterval=1.0,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """One step is done."""
        self.done += 1
        self.bar.update()
        now = time.monotonic()
        if self.lines and (now - self.last >= LOG_SECONDS or self.done == self.total):
            left = (now - self.start) / (self.done - self.first) * (self.total - self.done)
            clock = tqdm.format_interval(left)
            print(f"step {self.done:,} of {self.total:,}, {clock} left{self.note}", file=self.stream)
            self.stream.flush()
            self.last = now

    def say(self, note: str) -> None:
        """What stands behind the bar."""
        self.note = f", {note}"
        self.bar.set_postfix_str(note)


def summary(values: dict[str, Any]) -> str:
    """Names and values as an aligned table; numbers with separators and five digits."""
    shown = {name: format_value(value) for name, value in values.items()}
    width = max(map(len, shown))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())


def format_value(value: Any) -> str:
    """An integer with separators, any other number with five digits, the rest as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"
