"""The command line: every argument reaches what it is for, and the defaults are the recipe's."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from helpers import models, pretrain, pretrain_cli

# Argument: what is typed, where it must arrive, and as what.
ARGUMENTS = {
    "--size": ("2x64", "config.size", models.Size(2, 64)),
    "--tokens": ("3e5", "config.tokens", 300_000),
    "--folder": ("elsewhere", "how.folder", Path("elsewhere")),
    "--source": ("rotten_tomatoes", "source", "rotten_tomatoes"),
    "--arch": ("bert", "config.arch", "bert"),
    "--optimizer": ("adamw", "config.optimizer", "adamw"),
    "--lr": ("0.01", "config.lr", 0.01),
    "--lr-adam": ("0.003", "config.lr_adam", 0.003),
    "--batch": ("8", "config.batch", 8),
    "--seq-len": ("64", "config.seq_len", 64),
    "--vocab-size": ("300", "cut.vocab_size", 300),
    "--mask-rate": ("0.15", "config.mask_rate", 0.15),
    "--warmup-tokens": ("5e4", "config.warmup_tokens", 50_000),
    "--accumulate": ("4", "how.accumulate", 4),
    "--shard": (None, "how.shard", True),
    "--precision": ("bf16", "config.precision", "bf16"),
    "--seed": ("7", "config.seed", 7),
    "--eval-every": ("50", "how.eval_every", 50),
    "--log-every": ("5", "how.log_every", 5),
    "--checkpoint-seconds": ("9.5", "how.checkpoint_seconds", 9.5),
    "--tracker": ("tensorboard", "how.trackers", ["tensorboard"]),
}


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What a command line asks for, without doing it."""

    def ask(*words: str) -> SimpleNamespace:
        seen = SimpleNamespace()

        def load_corpus(source, **cut):
            seen.source, seen.cut = source, SimpleNamespace(**cut)
            return SimpleNamespace(tokenizer="the tokenizer")

        def run(corpus, config, **how):
            seen.config, seen.how = config, SimpleNamespace(**how)
            history = SimpleNamespace(log=pd.DataFrame({"step": [1]}), summary=lambda: "the table")
            return SimpleNamespace(save=lambda *where: setattr(seen, "saved", where), history=history)

        monkeypatch.setattr(pretrain_cli.data, "reviews", lambda source: source)
        monkeypatch.setattr(pretrain_cli.pretrain, "load_corpus", load_corpus)
        monkeypatch.setattr(pretrain_cli.pretrain, "pretrain", run)
        monkeypatch.chdir(tmp_path)
        for name in ("runs", "elsewhere"):
            Path(name).mkdir(exist_ok=True)
        pretrain_cli.main(["--folder", "runs", *words])
        return seen

    return ask


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_arrives(name, called):
    word, path, expected = ARGUMENTS[name]
    seen, default = called(name, *([word] if word else [])), called()
    for part in path.split("."):
        seen, default = getattr(seen, part), getattr(default, part)
    assert seen == expected != default


def test_no_argument_is_without_a_test():
    known = {action.option_strings[-1] for action in pretrain_cli.parser()._actions}
    assert known - {"--help"} == set(ARGUMENTS)


def test_the_defaults_are_those_of_the_recipe(called):
    assert called().config == pretrain.PretrainConfig(models.Size(4, 128), tokens=4_000_000)


def test_log_model_and_table_are_left_behind(called, capfd):
    seen = called("--seed", "3")
    assert seen.saved == (Path("runs/model"), "the tokenizer")
    assert pd.read_csv("runs/log.csv")["step"].tolist() == [1]
    assert capfd.readouterr().out.splitlines() == ["4x128, 4,000,000 tokens of imdb, seed 3", "the table"]


@pytest.mark.parametrize(
    "words", [("--size", "4"), ("--optimizer", "sgd"), ("--tracker", "mlflow"), ("--arch", "gpt")]
)
def test_what_cannot_be_typed_is_refused(words, called, capfd):
    with pytest.raises(SystemExit):
        called(*words)
    assert words[0] in capfd.readouterr().err
