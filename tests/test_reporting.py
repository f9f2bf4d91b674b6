"""A bar where lines can be redrawn, plain lines where they cannot, and numbers that can be read."""

import io

import pytest

from helpers import reporting
from helpers.reporting import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def go(stream, steps: int = 6, shown: bool = True) -> str:
    with Progress(steps, 2, shown, stream) as bar:
        for step in range(2, steps):
            bar.say(f"loss {step}")
            bar.update()
    return stream.getvalue()


def test_a_terminal_shows_a_bar():
    assert "\r" in go(Terminal()) and "loss" in go(Terminal())


def test_a_log_file_gets_whole_lines_and_few(monkeypatch):
    monkeypatch.setattr(reporting, "can_redraw", lambda stream: stream.isatty())
    text = go(io.StringIO())
    assert text.splitlines() == ["step 6 of 6, 00:00 left, loss 5"] and "\r" not in text
    monkeypatch.setattr(reporting, "LOG_SECONDS", 0.0)
    assert [line.split(",")[0] for line in go(io.StringIO()).splitlines()] == [
        f"step {n} of 6" for n in (3, 4, 5, 6)
    ]


def test_nothing_is_shown_when_not_asked():
    assert go(Terminal(), shown=False) == "" == go(io.StringIO(), shown=False)


def test_a_notebook_redraws(monkeypatch):
    monkeypatch.setitem(reporting.sys.modules, "ipykernel", object())
    assert reporting.can_redraw(io.StringIO())


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (3.14159265, "3.1416"), (23456.7, "23,457"), (True, "True"), ("bf16", "bf16")],
)
def test_values_are_readable(value, text):
    assert reporting.summary({"a": value, "longer": 1}).splitlines()[0] == f"a       {text}"
