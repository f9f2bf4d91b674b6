"""Claims stop a chapter; checks explain a wrong answer and let an unsolved one pass."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.claims import ClaimError, WrongAnswer, check, claim


@pytest.mark.parametrize("holds", [True, np.bool_(True)])
def test_a_claim_that_holds_is_printed(holds, capsys):
    claim("one is less than two", holds)
    assert capsys.readouterr().out == "✓ one is less than two\n"


@pytest.mark.parametrize("holds", [False, np.bool_(False)])
def test_a_claim_that_does_not_hold_raises_its_sentence(holds, capsys):
    with pytest.raises(ClaimError, match="two is less than one"):
        claim("two is less than one", holds)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "holds",
    [1, 0.0, float("nan"), "yes", None, np.array([True]), torch.tensor(True), torch.tensor([True, False])],
)
def test_a_claim_takes_one_bool_and_nothing_else(holds):
    with pytest.raises(TypeError, match="holds must be one bool, got"):
        claim("a sentence", holds)


@pytest.mark.parametrize("sentence", ["", "  ", None])
def test_a_claim_needs_a_sentence(sentence):
    with pytest.raises(ValueError, match="needs a sentence"):
        claim(sentence, True)


def test_an_unsolved_exercise_goes_on(capsys):
    check("7.1", ..., 12)
    assert capsys.readouterr().out == "exercise 7.1: not solved yet\n"


def test_a_tensor_is_compared_as_precisely_as_it_is():
    got = torch.tensor([1 + 1e-10], dtype=torch.float64)
    check("7.1", got, [1 + 1e-10], rtol=1e-12)
    with pytest.raises(WrongAnswer, match="close, but not within"):
        check("7.1", got, [1.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (12, 12),
        (12.0, 12),
        (np.float32(0.5), 0.5),
        (torch.tensor([1.0, 2.0]), [1, 2]),
        (torch.tensor([1.0], dtype=torch.bfloat16), [1]),
        (pd.Series([1, 2]), np.array([1, 2])),
        ([1, 2], (1, 2)),
        ("word", "word"),
        (True, True),
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}),
        (["a", 1], ["a", 1]),
        (float("nan"), float("nan")),
    ],
)
def test_a_right_answer_passes(got, expected, capsys):
    check("7.1", got, expected)
    assert capsys.readouterr().out == "✓ exercise 7.1\n"


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (None, 12, "return its result"),
        ("12", 12, "expected a number, got '12'"),
        (True, 12, "expected a number"),
        (12, "word", "expected a string"),
        (1, True, "expected a bool"),
        ("wrod", "word", "'wrod' is not right"),
        (-12, 12, "wrong sign"),
        (13, 12, "off by one"),
        (24, 12, "too large by a factor of 2: a multiply-add"),
        (4, 12, "too small by a factor of 3: the backward pass"),
        (0.5, 50, "too small by a factor of 100"),
        (12.3, 12, "close"),
        (17, 12, "too large"),
        (5, 12, "too small"),
        (1, 0, "not right"),
        (float("nan"), 12, "the answer is NaN"),
        (np.full(3, np.nan), np.ones(3), "3 of 3 values are NaN"),
        (np.ones(3), 12, "expected one number, got shape"),
        (np.ones((2, 3)), np.ones((3, 2)), "transposed"),
        ([1, 2, 4], [1, 2, 3], r"1 of 3 values are wrong; the first, at \[2\]"),
        ({"a": 1}, {"b": 1}, r"missing \['b'\]; not expected \['a'\]"),
        ({"a": 2}, {"a": 8}, "'a': 2 is too small by a factor of 4"),
        ([1, "b"], ["a", "b"], "item 0: expected a string"),
        (["a"], ["a", "b"], "expected 2 items, got 1"),
        (12, {"a": 1}, "expected a dict"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(got, expected, words):
    with pytest.raises(WrongAnswer, match=words):
        check("7.1", got, expected)


def test_a_wrong_answer_shows_the_hint():
    with pytest.raises(WrongAnswer, match=r"exercise 7\.1: .*\nHint: count again"):
        check("7.1", 7, 12, hint="count again")


def test_tolerances_are_those_that_were_given():
    check("7.1", 1.04, 1, rtol=0.05)
    check("7.1", 0.04, 0, atol=0.05)
    with pytest.raises(WrongAnswer):
        check("7.1", 1.04, 1, rtol=0.03)


def test_a_rule_can_stand_for_the_expected_value():
    check("7.1", 4, lambda x: None if x % 2 == 0 else "odd")
    with pytest.raises(WrongAnswer, match="odd"):
        check("7.1", 3, lambda x: None if x % 2 == 0 else "odd")


def test_the_version_is_that_of_the_distribution():
    import helpers

    assert helpers.__version__.startswith("0")
