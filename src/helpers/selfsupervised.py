"""Self-supervised tasks beside BERT's own two: replaced tokens in text, quarter turns of images.

Legend: ``B`` sequences in a batch, ``T`` tokens in a sequence, ``H`` hidden, ``V`` vocabulary, ``M`` masked
positions; ``n`` images of ``S`` pixels a side. Both tasks train through :func:`helpers.training.train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import PreTrainedModel

from helpers import models, pretrain, runtime, training
from helpers import tokenizer as tk
from helpers.corpus import Corpus
from helpers.metrics import clustered_mean
from helpers.training import Batch, History, TrainConfig

TURNS = 4
_QUESTION_KEY = 990_002  # apart from any training seed: what is asked of a trained model never changes


def rotations(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every image (n, C, S, S) in its four orientations (4n, C, S, S), and the quarter turns 0 to 3 (4n,).

    Turns are counter-clockwise; the four of an image stand together (Gidaris et al. 2018, section 2). Raises
    ``ValueError`` for images that are not square.
    """
    if pixels.ndim != 4 or pixels.size(2) != pixels.size(3):
        raise ValueError(f"expected square images (n, channels, S, S), got shape {tuple(pixels.shape)}")
    turned = torch.stack([torch.rot90(pixels, turn, (2, 3)) for turn in range(TURNS)], dim=1)
    return turned.flatten(0, 1), torch.arange(TURNS).repeat(len(pixels))


@dataclass(frozen=True)
class ImageConfig:
    """How to train a network on images: steps of ``batch`` images, AdamW at ``lr``, warmed up over a tenth of
    the steps and falling to zero after that."""

    steps: int
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")


def train_images(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    config: ImageConfig,
    *,
    progress: bool = False,
) -> History:
    """Train ``model``, from images (n, C, S, S) to scores (n, classes), in place with cross-entropy.

    Images come in a new random order each epoch. Raises ``ValueError`` when there is no image, or another
    number of labels.
    """
    if len(pixels) == 0 or len(pixels) != len(labels):
        raise ValueError(f"need as many labels as images, and at least one: {len(pixels)} and {len(labels)}")

    def batch_of(step: int) -> Batch:
        epoch, place = divmod(step * size, len(pixels))
        orders = [
            torch.randperm(len(pixels), generator=runtime.generator(config.seed, epoch + i, 4))
            for i in range(2)
        ]
        rows = torch.cat(orders)[place : place + size]
        # The loop counts what it reads under the name of BERT's input.
        return {"input_ids": pixels[rows], "labels": labels[rows]}

    size, rise = min(config.batch, len(pixels)), max(1, config.steps // 10)
    settings = TrainConfig(
        steps=config.steps,
        optimizer="adamw",
        lr_adam=config.lr,
        weight_decay=config.weight_decay,
        warmup=rise,
        decay=config.steps - rise,
        seed=config.seed,
        precision="fp32",  # these networks are small enough for any machine
        compile=False,
    )
    return training.train(model, batch_of, _image_loss, settings, progress=progress)


def _image_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return F.cross_entropy(model(batch["input_ids"]), batch["labels"]), {}


@dataclass(frozen=True)
class Replaced:
    """``input_ids`` (B, T) with sampled tokens put in; ``replaced`` (B, T), where they differ from the text;
    ``asked`` (B, T), the ordinary tokens, about which the question is asked.
    """

    input_ids: torch.Tensor
    replaced: torch.Tensor
    asked: torch.Tensor


def replace_tokens(batch: Batch, sampled: torch.Tensor) -> Replaced:
    """Put ``sampled`` (M,) at the masked positions of a pre-training batch.

    A sampled token that happens to be the true one counts as not replaced (Clark et al. 2020, section 3.1).
    Raises ``ValueError`` when there is not one token a position.
    """
    if sampled.shape != batch["positions"].shape:
        raise ValueError(
            f"{tuple(sampled.shape)} sampled tokens for {tuple(batch['positions'].shape)} positions"
        )
    shape, flat = batch["input_ids"].shape, batch["input_ids"].flatten()
    text = flat.index_put((batch["positions"],), batch["labels"])
    ids = flat.index_put((batch["positions"],), sampled)
    asked = text >= len(tk.SPECIAL_TOKENS)
    return Replaced(ids.view(shape), (ids != text).view(shape), asked.view(shape))


def sample_tokens(logits: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """One token (M,) for each row of scores (M, V), drawn from their softmax without the special tokens."""
    ordinary = logits.detach().float().index_fill(1, _specials(logits), -torch.inf)
    return torch.multinomial(ordinary.softmax(1), 1, generator=generator)[:, 0]


def _specials(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(tk.SPECIAL_TOKENS), device=like.device)


class Electra(nn.Module):
    """A generator that fills masked positions, and a discriminator that says which tokens are replaced.

    After Clark et al. 2020 (section 3), with three departures: the two share no embeddings, so that no weight
    between their losses is needed; the generator reads BERT's masks (80/10/10) in place of ``[MASK]`` alone,
    so that both tasks can be trained on the very same batches; and both start pointed at neighbours, as all
    models of the book (:mod:`helpers.initialization`), unless ``init`` says otherwise.
    """

    def __init__(self, generator: PreTrainedModel, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.generator, self.encoder = generator, encoder
        self.head = nn.Linear(encoder.config.hidden_size, 1)

    @classmethod
    def build(
        cls,
        generator: models.Size,
        size: models.Size,
        *,
        vocab_size: int,
        max_positions: int,
        arch: str = "megatron-bert",
        init: str = "neighbours",
        seed: int = 0,
    ) -> Electra:
        """Fresh weights for a generator and a discriminator of the given sizes."""
        build = partial(
            models.build, arch=arch, init=init, vocab_size=vocab_size, max_positions=max_positions
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(build(generator, seed=seed), build(size, seed=seed + 1).bert)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Scores (B, T): positive where the discriminator holds a token for replaced."""
        states_BxTxH = self.encoder(input_ids=input_ids, token_type_ids=token_type_ids)[0]
        return self.head(states_BxTxH)[..., 0].float()


def electra_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The generator's masked-language-model loss plus the discriminator's, in nats a token, and both parts.

    The generator learns from its own loss alone: no gradient passes through the sampling.
    """
    words_MxV, _ = pretrain.forward(model.generator, batch)
    mlm = F.cross_entropy(words_MxV.float(), batch["labels"])
    made = replace_tokens(batch, sample_tokens(words_MxV))
    scores = model(made.input_ids, batch["token_type_ids"])[made.asked]
    rtd = F.binary_cross_entropy_with_logits(scores, made.replaced[made.asked].float())
    return mlm + rtd, {"mlm": mlm, "rtd": rtd}


def pretrain_electra(
    corpus: Corpus, config: pretrain.PretrainConfig, generator: models.Size, *, progress: bool = False
) -> tuple[Electra, History]:
    """Train a discriminator of ``config.size`` and its generator on the batches that ``pretrain.pretrain``
    would read with the same configuration.
    """
    model = Electra.build(
        generator,
        config.size,
        vocab_size=corpus.vocab_size,
        max_positions=config.seq_len,
        arch=config.arch,
        init=config.init,
        seed=config.seed,
    )
    batch_of = pretrain.batches(corpus, config)
    return model, training.train(model, batch_of, electra_losses, config.training(), progress=progress)


@dataclass(frozen=True)
class Detection:
    """Answers about held-out tokens: ``scores`` (n,), ``replaced`` (n,) bool, ``tokens`` (n,), the ids that
    were shown, and ``owners`` (n,), the sequence of each.
    """

    scores: np.ndarray
    replaced: np.ndarray
    tokens: np.ndarray
    owners: np.ndarray

    @property
    def majority(self) -> float:
        """Share of right answers of a model that always gives the more frequent answer."""
        share = float(self.replaced.mean())
        return max(share, 1 - share)

    @property
    def auc(self) -> float:
        """Chance that a replaced token is scored above an original one; one half without any knowledge."""
        return float(roc_auc_score(self.replaced, self.scores))

    def accuracy(self) -> tuple[float, float]:
        """Share of right answers and its standard error over sequences."""
        return clustered_mean(((self.scores > 0) == self.replaced).astype(float), self.owners)


def questions(corpus: Corpus, config: pretrain.PretrainConfig, *, blocks: int = 512) -> list[Batch]:
    """Validation blocks with pairs and masks that never change, in batches of up to 64."""
    held_out = corpus.validation.first(min(blocks, len(corpus.validation)))
    order = torch.randperm(len(held_out), generator=runtime.generator(_QUESTION_KEY))
    return [
        pretrain.make_batch(
            held_out,
            rows,
            runtime.generator(_QUESTION_KEY, i),
            vocab_size=corpus.vocab_size,
            rate=config.mask_rate,
        )
        for i, rows in enumerate(order.split(64))
    ]


@dataclass(frozen=True)
class Answers:
    """What a BERT answers rightly: ``words`` (n,), 1 or 0 for each masked position, ``owners`` (n,), the
    sequence of each, and ``pairs`` (sequences,), 1 or 0 for each next-sentence question.
    """

    words: np.ndarray
    owners: np.ndarray
    pairs: np.ndarray


@torch.no_grad()
def answers(model: PreTrainedModel, batches: list[Batch]) -> Answers:
    """Which masked words and which pairs of held-out batches a pre-training model gets right."""
    where, parts, before = next(model.parameters()).device, [], 0
    model.eval()
    for batch in batches:
        words, following = pretrain.forward(model, {k: v.to(where) for k, v in batch.items()})
        owner = before + batch["positions"] // batch["input_ids"].size(1)
        right = (words.argmax(1).cpu() == batch["labels"], following.argmax(1).cpu() == batch["next_label"])
        parts.append([right[0].double().numpy(), owner.numpy(), right[1].double().numpy()])
        before += len(following)
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def detect(model: Electra, batches: list[Batch]) -> Detection:
    """What the discriminator says about text in which its generator has filled the masked positions."""
    where, parts, before = next(model.parameters()).device, [], 0
    model.eval()
    for i, batch in enumerate(batches):
        words, _ = pretrain.forward(model.generator, {k: v.to(where) for k, v in batch.items()})
        made = replace_tokens(batch, sample_tokens(words.cpu(), runtime.generator(_QUESTION_KEY, i, 1)))
        scores = model(made.input_ids.to(where), batch["token_type_ids"].to(where)).cpu()
        owner = before + torch.arange(len(scores))[:, None].expand_as(scores)
        parts.append([t[made.asked].numpy() for t in (scores, made.replaced, made.input_ids, owner)])
        before += len(scores)
    return Detection(*(np.concatenate(column) for column in zip(*parts, strict=True)))
