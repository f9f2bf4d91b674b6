"""Claims that a chapter makes, and checks of its exercises.

A claim is a sentence with a condition: it is printed when the condition holds and stops the chapter when it
does not, so no sentence of the book can outlive the result that it states. A check looks at a reader's
answer.

What `check` does, and why:

- The answer is still `...`: it prints "not solved yet" and goes on, so a chapter whose exercises nobody has
  solved runs from top to bottom, for a reader and in CI.
- The answer is wrong: it raises `WrongAnswer`, which a notebook shows as one short message without a
  traceback. The hidden solutions call the same `check`, so a solution that stops being right stops the tests.
- The answer is right: it prints "✓ exercise 7.1". The stored output of each solution must hold this line (a
  test looks), so a solution that was left as `...` does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["ClaimError", "WrongAnswer", "check", "claim"]

# Factors people are often wrong by, and what they usually forgot.
FACTORS = {
    2: "a multiply-add counts as two operations, and a float16 has two bytes",
    3: "the backward pass costs twice the forward pass",
    4: "a float32 has four bytes",
    8: "a byte has eight bits",
    100: "a percentage or a fraction?",
    1_000: "check the unit",
    1_024: "1 KiB is 1,024 bytes",
    1_000_000: "check the unit",
    1_048_576: "1 MiB is 1,048,576 bytes",
    math.log(2): "nats or bits?",
}


class _ShortError(AssertionError):
    """An error that a notebook shows as its message alone: the traceback would only show this module."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [f"{type(self).__name__}: {self}"]


class ClaimError(_ShortError):
    """A claim does not hold."""


class WrongAnswer(_ShortError):
    """An exercise has an answer, and it is not right."""


def claim(sentence: str, holds: bool) -> None:
    """Print `sentence` if it `holds`; raise `ClaimError` with the sentence otherwise.

    `holds` is one truth value, a bool or a numpy bool. Anything else raises `TypeError`: an array of several
    values has no single truth, NaN and a non-empty string would count as true.
    """
    if not isinstance(sentence, str) or not sentence.strip():
        raise ValueError(f"a claim needs a sentence, got {sentence!r}")
    if not isinstance(holds, bool | np.bool_):
        raise TypeError(
            f"holds must be one bool, got {_describe(holds)}; reduce it first, as in bool((x > 0).all())"
        )
    if not holds:
        raise ClaimError(f"this does not hold: {sentence}")
    print(f"✓ {sentence}")


def check(
    exercise: str, got: Any, expected: Any, *, rtol: float = 1e-6, atol: float = 0.0, hint: str = ""
) -> None:
    """Compare an answer with what is expected; the module's docstring says what happens in each case.

    `expected` is a number, a string, an array or tensor, a list, tuple or dict of these, or a function that
    takes the answer and returns what is wrong with it (an empty string or None when it is right). Numbers
    agree when `|got - expected| <= atol + rtol * |expected|`. `hint` is shown with a wrong answer.
    """
    if got is ...:
        print(f"exercise {exercise}: not solved yet")
        return
    problem = expected(got) if callable(expected) else _difference(got, expected, rtol, atol)
    if problem:
        raise WrongAnswer(f"exercise {exercise}: {problem}" + (f"\nHint: {hint}" if hint else ""))
    print(f"✓ exercise {exercise}")


def _difference(got: Any, expected: Any, rtol: float, atol: float) -> str:
    """What is wrong with `got`, in words; empty when nothing is."""
    got, expected = _plain(got), _plain(expected)
    if got is None and expected is not None:
        return "got None; does the function return its result?"
    if isinstance(expected, str | bool) or expected is None:
        return _different_value(got, expected)
    if isinstance(expected, Mapping):
        return _different_mapping(got, expected, rtol, atol)
    if isinstance(expected, list | tuple) and not _is_numeric(expected):
        return _different_sequence(got, expected, rtol, atol)
    return _different_numbers(got, expected, rtol, atol)


def _different_value(got: Any, expected: Any) -> str:
    if type(got) is not type(expected):
        return f"expected {_article(expected)}, got {_describe(got)}"
    return "" if got == expected else f"{got!r} is not right"


def _different_mapping(got: Any, expected: Mapping, rtol: float, atol: float) -> str:
    if not isinstance(got, Mapping):
        return f"expected a dict, got {_describe(got)}"
    missing, extra = [k for k in expected if k not in got], [k for k in got if k not in expected]
    if missing or extra:
        return "; ".join(
            f"{word} {keys}" for word, keys in (("missing", missing), ("not expected", extra)) if keys
        )
    return _first_problem([(repr(key), got[key], expected[key]) for key in expected], rtol, atol)


def _different_sequence(got: Any, expected: Sequence, rtol: float, atol: float) -> str:
    if not isinstance(got, list | tuple):
        return f"expected {_article(expected)}, got {_describe(got)}"
    if len(got) != len(expected):
        return f"expected {len(expected)} items, got {len(got)}"
    return _first_problem(
        [(f"item {i}", g, e) for i, (g, e) in enumerate(zip(got, expected, strict=True))], rtol, atol
    )


def _first_problem(parts: list[tuple[str, Any, Any]], rtol: float, atol: float) -> str:
    for name, got, expected in parts:
        if problem := _difference(got, expected, rtol, atol):
            return f"{name}: {problem}"
    return ""


def _different_numbers(got: Any, expected: Any, rtol: float, atol: float) -> str:
    if isinstance(got, bool) or not _is_numeric(got):
        return f"expected {_article(expected)}, got {_describe(got)}"
    actual, wanted = np.asarray(got, dtype=float), np.asarray(expected, dtype=float)
    if actual.shape != wanted.shape:
        return _different_shape(actual.shape, wanted.shape)
    if np.isnan(actual).any() and not np.isnan(wanted).any():
        return (
            f"{int(np.isnan(actual).sum())} of {actual.size} values are NaN"
            if actual.size > 1
            else "the answer is NaN"
        )
    wrong = ~np.isclose(actual, wanted, rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return ""
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    count = (
        f"{int(wrong.sum())} of {wrong.size} values are wrong; the first, at {list(where)}: "
        if wrong.ndim
        else ""
    )
    return count + _different_number(float(actual[where]), float(wanted[where]))


def _different_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    words = f"expected {_shape(expected)}, got {_shape(got)}"
    return words + ("; transposed?" if len(got) > 1 and got == expected[::-1] else "")


def _shape(shape: tuple[int, ...]) -> str:
    return f"shape {shape}" if shape else "one number"


def _different_number(got: float, expected: float) -> str:
    """Name the usual slips (sign, off by one, a known factor) without giving the answer away."""
    if not math.isfinite(got) or expected == 0:
        return f"{got:g} is not right"
    ratio = got / expected
    if math.isclose(ratio, -1, rel_tol=1e-3):
        return f"{got:g} has the wrong sign"
    if float(expected).is_integer() and abs(expected) > 2 and abs(abs(got - expected) - 1) < 1e-9:
        return f"{got:g} is off by one"
    for factor, reason in FACTORS.items():
        for value, words in ((factor, "too large"), (1 / factor, "too small")):
            if math.isclose(ratio, value, rel_tol=1e-3):
                size, words = (factor, words) if factor > 1 else (1 / factor, _opposite(words))
                return f"{got:g} is {words} by a factor of {size:.4g}: {reason}"
    if abs(ratio - 1) < 0.05:
        return f"{got:g} is close, but not within the tolerance"
    return f"{got:g} is too {'large' if got > expected else 'small'}"


def _opposite(words: str) -> str:
    return "too small" if words == "too large" else "too large"


def _plain(value: Any) -> Any:
    """Tensors, arrays, numpy scalars and tables as numpy arrays or Python values."""
    if hasattr(value, "detach"):  # a torch tensor; torch itself is not needed here
        value = value.detach().cpu()
        value = (value.double() if value.dtype.is_floating_point else value).numpy()
    if hasattr(value, "to_numpy"):  # a pandas table or column
        value = value.to_numpy()
    return value.item() if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0 else value


def _is_numeric(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "iufb" and not isinstance(value, str)
    except ValueError:  # a list of rows of different lengths
        return False


def _article(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    name = {int: "number", float: "number", bool: "bool", str: "string"}.get(
        type(value), type(value).__name__
    )
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
