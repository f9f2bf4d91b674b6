"""What several test files share: a small synthetic corpus, and settings for a run of seconds."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from helpers import data, models, pretrain
from helpers.sweep import family as families

matplotlib.use("Agg")  # figures without a screen
GOOD, BAD = ("lovely", "superb", "moving"), ("dull", "clumsy", "tedious")
PLAIN = tuple(
    f"{first}{last}" for first in ("ba", "ke", "mo", "ti", "zu") for last in ("lan", "rek", "sot", "vim")
)


STUDY = """
[study]
name = "small"
sizes = ["1x32"]
tokens = [1024, 2048]
seeds = [0]
[pretrain]
seq_len = 16
batch = 8
warmup_tokens = 256
"""


def make_reviews(count: int = 240, seed: int = 0) -> data.Reviews:
    """Reviews of 20 to 60 invented words, of which some tell the label."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(count):
        label = number % 2
        words = rng.choice(PLAIN, rng.integers(20, 60)).tolist()
        for place in rng.integers(0, len(words), 5):
            words[place] = str(rng.choice(GOOD if label else BAD))
        texts.append(" ".join(words) + ".")
        labels.append(label)
    return data.prepare(pd.DataFrame({"text": texts, "label": labels}), source="invented", origin="tests")


@pytest.fixture(scope="session")
def reviews() -> data.Reviews:
    return make_reviews()


@pytest.fixture(scope="session")
def corpus(reviews: data.Reviews, tmp_path_factory: pytest.TempPathFactory) -> pretrain.Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELPERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return pretrain.load_corpus(reviews, vocab_size=200, seq_len=16)


@pytest.fixture(autouse=True)
def close_figures():
    """No test leaves a figure to the next one."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HELPERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny():
    """Settings of a run of ``steps`` steps that takes well under a second; named settings override them."""

    def config(steps: int = 8, **overrides) -> pretrain.PretrainConfig:
        settings = {
            "size": models.Size(1, 32),
            "tokens": steps * 8 * 16,
            "seq_len": 16,
            "batch": 8,
            "warmup_tokens": 2 * 8 * 16,
            "precision": "fp32",
            "compile": False,
        }
        return pretrain.PretrainConfig(**settings | overrides)

    return config


@pytest.fixture
def same_weights():
    """Whether two models have the same weights, bit for bit."""

    def compare(one: torch.nn.Module, other: torch.nn.Module) -> bool:
        ours, theirs = one.state_dict(), other.state_dict()
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    return compare


@pytest.fixture
def write_study(tmp_path):
    """Write the file of a study of two short runs, with parts of its text replaced; returns its path."""

    def write(*changes: tuple[str, str], name: str = "study.toml") -> Path:
        text = STUDY
        for old, new in changes:
            assert old in text, f"the study does not say {old!r}"
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


class Here:
    """An engine that does a task in this process, at once; ``work`` does something else in its place."""

    def __init__(self, work=None) -> None:
        self.work, self.ended = work, []

    def free(self):
        return not self.ended

    def start(self, name, task):
        self.ended = [(name, (self.work or families.work)(task))]

    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended

    def close(self):
        pass


@pytest.fixture
def here():
    """The class of an engine that needs no other process."""
    return Here
