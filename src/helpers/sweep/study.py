"""The study file: what it may say, what is refused with its line, and the runs it stands for.

[study]
name = "ladder"
sizes = ["2x64", "4x128"]        # layers x hidden
tokens = [1_000_000, 4_000_000]  # budgets
seeds = [0, 1]
lr_scales = [0.5, 1.0, 2.0]      # optional: factors on both learning rates, for tuning
unique_tokens = [500_000]        # optional: text that larger budgets repeat

[pretrain]                       # optional: settings of PretrainConfig that all runs share
[rates]                          # optional: a factor on both learning rates of a size, "12x768" = 0.25
[corpus]                         # optional: source, vocab_size, hub
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers import data, models, pretrain
from helpers.pretrain import Corpus, PretrainConfig
from helpers.sweep.lines import StudyFile

Family = list[PretrainConfig]


@dataclass(frozen=True)
class Text:
    """What is read: a source of :func:`helpers.data.reviews`, and whether the larger copy on the hub is
    meant.
    """

    source: str = "imdb"
    vocab_size: int = 4096
    hub: bool = False


@dataclass(frozen=True)
class Study:
    """Every combination of ``sizes``, ``tokens`` (budgets) and ``seeds``, and, where given, of ``lr_scales``
    (factors on both learning rates) and ``unique_tokens`` (text that larger budgets repeat), with the
    settings of ``pretrain`` in common. ``rates`` has a factor on the learning rates of single sizes.
    """

    name: str
    sizes: tuple[models.Size, ...]
    tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    pretrain: dict[str, Any]
    lr_scales: tuple[float, ...] = (1.0,)
    unique_tokens: tuple[int, ...] = ()
    rates: dict[models.Size, float] = field(default_factory=dict)
    text: Text = Text()

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read a study file; raises ``ValueError`` with the line of a key that is unknown, missing,
        inconsistent with another, or has a value that no run can use.
        """
        file = StudyFile.open(Path(path))
        lists = {key: tuple(file.study[key]) for key in ("sizes", "tokens", "seeds")}
        sizes = tuple(file.value("study", "sizes", models.Size.parse, size) for size in lists["sizes"])
        result = cls(
            file.study["name"],
            sizes,
            tuple(sorted(lists["tokens"])),
            lists["seeds"],
            file.pretrain,
            tuple(map(float, file.study.get("lr_scales", (1.0,)))),
            tuple(sorted(file.study.get("unique_tokens", ()))),
            file.factors(),
            Text(**file.corpus),
        )
        # The settings first: the problems are computed with them.
        file.value("pretrain", None, result._settings)
        for problem in result._problems():
            raise file.error(*problem)
        # What is not usable shows before the first run, not hours into the study.
        for size in sizes:
            file.value("study", "sizes", result._shape, size)
        for size, seed in [(size, seed) for size in sizes for seed in result.seeds]:
            for config in file.value("pretrain", None, result._of, size, seed):
                file.value("pretrain", None, config.training)
                if config.decay_steps == config.steps:
                    message = (
                        f"decay_share {config.decay_share} leaves no step of {config.steps} to the trunk"
                    )
                    raise file.error("pretrain", "decay_share", message)
        return result

    def configs(self) -> list[PretrainConfig]:
        """The runs, smallest first."""
        return [config for family in self.families() for config in family]

    def families(self) -> list[Family]:
        """The runs by what they share: each family has one trunk. Smallest first."""
        return [
            self.family(size, seed, lr_scale, unique)
            for size in self.sizes
            for seed in self.seeds
            for lr_scale in self.lr_scales
            for unique in self.unique_tokens or (None,)
        ]

    def family(
        self, size: models.Size, seed: int, lr_scale: float = 1.0, unique_tokens: int | None = None
    ) -> Family:
        """The runs of one size and seed (and rate, and text), that share a trunk; shortest first.

        A budget below ``unique_tokens`` would repeat nothing: it is left out.
        """
        base = replace(self._settings(), size=size, seed=seed)
        factor = lr_scale * self.rates.get(size, 1.0)
        base = replace(base, lr=base.lr * factor, lr_adam=base.lr_adam * factor)
        if unique_tokens is not None:
            base = replace(base, unique_blocks=unique_tokens // base.seq_len)
        return [replace(base, tokens=t) for t in self.tokens if unique_tokens is None or t >= unique_tokens]

    def load_corpus(self) -> Corpus:
        """The text of the study, from the cache after the first time."""
        seq_len = self.pretrain.get("seq_len", PretrainConfig.seq_len)
        profile = "colab" if self.text.hub else None
        return pretrain.load_corpus(
            data.reviews(self.text.source, profile=profile),
            vocab_size=self.text.vocab_size,
            seq_len=seq_len,
        )

    def check_text(self, corpus: Corpus) -> Corpus:
        """The corpus; raises ``ValueError`` where a run asks for more different text than it has."""
        least = max((unique // corpus.train.seq_len for unique in self.unique_tokens), default=0)
        least = max(least, self.pretrain.get("unique_blocks") or 0)
        if least > len(corpus.train):
            here = f"the text of {self.name} has {len(corpus.train):,} sequences of {corpus.train.seq_len}"
            raise ValueError(f"{here}, and {least:,} different ones are asked for")
        return corpus

    def name_of(self, family: Family) -> str:
        """What tells a family from the others of this study, for people: ``2x64 seed 0 lr 0.01``."""
        config = family[0]
        words = [f"{config.size} seed {config.seed}"]
        if len(self.lr_scales) > 1:
            words.append(f"lr {config.lr:g}")
        if self.unique_tokens:
            words.append(f"unique {(config.unique_blocks or 0) * config.seq_len:,}")
        return " ".join(words)

    def _settings(self) -> PretrainConfig:
        return PretrainConfig(self.sizes[0], max(self.tokens), seed=self.seeds[0], **self.pretrain)

    def _of(self, size: models.Size, seed: int) -> list[PretrainConfig]:
        here = replace(self, sizes=(size,), seeds=(seed,))
        return here.configs()

    def _shape(self, size: models.Size) -> object:
        arch = self.pretrain.get("arch", PretrainConfig.arch)
        return models.make_config(size, arch=arch, vocab_size=self.text.vocab_size)

    def _problems(self) -> Iterator[tuple[str, str | None, str]]:
        """Table, key and what is wrong, for what is only seen when keys are taken together."""
        for key in ("sizes", "tokens", "seeds", "lr_scales", "unique_tokens"):
            values = getattr(self, key)
            if twice := [value for value in values if values.count(value) > 1]:
                yield "study", key, f"{key} lists {twice[0]} twice: a run ends once"
        shared = self._settings()
        for key, unit in (("tokens", shared.batch_tokens), ("unique_tokens", shared.seq_len)):
            same = defaultdict(list)
            for value in getattr(self, key):
                same[value // unit].append(value)
            for count, values in same.items():
                if len(values) > 1:
                    yield "study", key, f"{key} {values} are all {count} times {unit}: a run ends once"
        for scale in self.lr_scales:
            if not 0 < scale < math.inf:
                yield "study", "lr_scales", f"lr_scales must be positive and finite, got {scale}"
        for size, factor in self.rates.items():
            if size not in self.sizes:
                yield "rates", str(size), f"[rates] names {size}, which is not one of the sizes"
            if not 0 < factor < math.inf:
                yield "rates", str(size), f"the factor of {size} must be positive and finite, got {factor}"
        if self.unique_tokens and "unique_blocks" in self.pretrain:
            yield "study", "unique_tokens", "unique_tokens and unique_blocks say the same: give one of them"
        for unique in self.unique_tokens:
            if unique > max(self.tokens):
                largest = max(self.tokens)
                yield "study", "unique_tokens", f"no budget repeats {unique} tokens, the largest is {largest}"
            if unique < shared.batch_tokens:
                least = shared.batch_tokens
                yield "study", "unique_tokens", f"unique_tokens must fill a batch of {least}, got {unique}"
        if self.text.vocab_size < 100:
            yield "corpus", "vocab_size", f"vocab_size must be at least 100, got {self.text.vocab_size}"
        if self.text.source not in data.WHEEL_ROWS:
            known = ", ".join(data.WHEEL_ROWS)
            yield "corpus", "source", f"unknown source {self.text.source!r}: expected one of {known}"
