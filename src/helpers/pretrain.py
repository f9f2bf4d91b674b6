"""Pre-train a BERT on masked words and next sentences.

Legend: ``B`` sequences in a batch, ``T`` tokens in a sequence, ``H`` hidden, ``V`` vocabulary, ``M`` masked
positions. Losses are in nats. Only the M masked positions pass through the vocabulary-sized head: the loss
and its gradients are the same as with all ``B T`` of them, at a fraction of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from helpers import masking, models, runtime, training
from helpers.batches import PairMaker, make_batch, split
from helpers.corpus import Corpus
from helpers.corpus import load_corpus as load_corpus  # readers look for it here
from helpers.metrics import clustered_mean
from helpers.training import Batch, History, TrainConfig

_EVAL_KEY = 990_001  # apart from any training seed: evaluation masks never change


@dataclass(frozen=True)
class PretrainConfig:
    """What to pre-train, on how much. ``tokens`` counts positions read (B T a step), repeats included.

    The learning rate rises over ``warmup_tokens``, stays, and falls over the last ``decay_share`` of the
    steps. ``unique_blocks`` restricts the corpus, so that a larger budget repeats it.
    """

    size: models.Size
    tokens: int
    arch: str = "megatron-bert"
    init: str = "neighbours"
    seq_len: int = 128
    batch: int = 16
    mask_rate: float = 0.3
    next_sentence: bool = True
    optimizer: str = "muon"
    lr: float = 0.02
    lr_adam: float = 2e-3
    weight_decay: float = 0.1
    warmup_tokens: int = 100_000
    decay_share: float = 0.25
    unique_blocks: int | None = None
    seed: int = 0
    precision: str | None = None
    compile: bool | None = None

    def __post_init__(self) -> None:
        for name, known in (("arch", models.ARCHITECTURES), ("init", models.INITIALISATIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate must lie in (0, 1), got {self.mask_rate}")
        if self.batch < 4:
            raise ValueError(f"batch must hold at least 4 sequences, to exchange segments, got {self.batch}")
        if self.seq_len < 8:
            raise ValueError(f"seq_len must be at least 8, to hold two segments, got {self.seq_len}")
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens must cover at least one step of {self.batch_tokens}, got {self.tokens}")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share must lie in [0, 1], got {self.decay_share}")
        if self.warmup_tokens < 0:
            raise ValueError(f"warmup_tokens must not be negative, got {self.warmup_tokens}")
        if self.unique_blocks is not None and self.unique_blocks < self.batch:
            raise ValueError(
                f"unique_blocks asks for {self.unique_blocks} blocks, fewer than one batch of {self.batch}"
            )
        self.training()  # refuses what the loop cannot use

    @property
    def batch_tokens(self) -> int:
        """Positions read in a step."""
        return self.batch * self.seq_len

    @property
    def steps(self) -> int:
        """Optimizer steps: as many whole batches as ``tokens`` pays for."""
        return self.tokens // self.batch_tokens

    @property
    def decay_steps(self) -> int:
        """Steps of the final decay of the learning rate."""
        return round(self.decay_share * self.steps)

    def training(
        self, *, log_every: int = 20, eval_every: int = 0, checkpoint_seconds: float = 120.0
    ) -> TrainConfig:
        """The loop's settings for this run."""
        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            lr_adam=self.lr_adam,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            warmup=max(1, self.warmup_tokens // self.batch_tokens),
            decay=self.decay_steps,
            seed=self.seed,
            precision=self.precision,
            compile=self.compile,
            log_every=log_every,
            eval_every=eval_every,
            checkpoint_seconds=checkpoint_seconds,
        )


def batches(
    corpus: Corpus, config: PretrainConfig, *, pairs: PairMaker = masking.make_pairs
) -> Callable[[int], Batch]:
    """``batch_of(step)``: the batch of a step, which depends on (seed, step) and the corpus alone.

    Blocks are read in a new random order each epoch; pairs (by ``pairs``) and masks are drawn anew at every
    step.
    """
    blocks = corpus.train if config.unique_blocks is None else corpus.train.first(config.unique_blocks)
    if blocks.seq_len != config.seq_len:
        raise ValueError(f"the corpus is cut for seq_len {blocks.seq_len}, the run wants {config.seq_len}")
    if len(blocks) < config.batch:
        raise ValueError(f"the corpus has {len(blocks)} blocks, fewer than one batch of {config.batch}")
    per_epoch = len(blocks) // config.batch
    orders: dict[int, torch.Tensor] = {}

    def batch_of(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = torch.randperm(len(blocks), generator=runtime.generator(config.seed, epoch, 1))
        rows = orders[epoch][place * config.batch : (place + 1) * config.batch]
        return make_batch(
            blocks,
            rows,
            runtime.generator(config.seed, step, 2),
            vocab_size=corpus.vocab_size,
            rate=config.mask_rate,
            pairs=pairs,
        )

    return batch_of


def forward(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the masked positions (M, V), and of the next-sentence question (B, 2)."""
    hidden_BxTxH, pooled_BxH = model.bert(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        attention_mask=batch.get("attention_mask"),
    )[:2]
    masked_MxH = hidden_BxTxH.flatten(0, 1)[batch["positions"]]
    return model.cls.predictions(masked_MxH), model.cls.seq_relationship(pooled_BxH)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
    """The mean over ``labels``, or, in a part of a batch, their sum over the number in the whole batch."""
    if total is None:
        return F.cross_entropy(logits.float(), labels)
    return F.cross_entropy(logits.float(), labels, reduction="sum") / total


def losses(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Masked-language-model loss plus next-sentence loss (Devlin et al. 2019, section 3.1), and the two
    parts.
    """
    words_MxV, next_Bx2 = forward(model, batch)
    words, pairs = batch["totals"] if "totals" in batch else (None, None)
    mlm = _cross_entropy(words_MxV, batch["labels"], words)
    nsp = _cross_entropy(next_Bx2, batch["next_label"], pairs)
    return mlm + nsp, {"mlm": mlm, "nsp": nsp}


def mlm_only(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The masked-language-model loss alone; pairs are still shown, but nobody asks about them."""
    words_MxV, _ = forward(model, batch)
    mlm = _cross_entropy(words_MxV, batch["labels"], batch["totals"][0] if "totals" in batch else None)
    return mlm, {"mlm": mlm}


def evaluator(
    corpus: Corpus, config: PretrainConfig, *, blocks: int = 1024, pairs: PairMaker = masking.make_pairs
) -> Callable[[nn.Module], dict[str, float]]:
    """A function from a model to its losses on the first ``blocks`` validation blocks, with pairs and masks
    that never change.

    ``mlm_loss`` (nats a masked token) and its standard error over sequences, ``mlm_accuracy``, ``nsp_loss``,
    ``nsp_accuracy``. Batches hold up to 64 blocks, and are as equal as possible: in one that holds few, all
    could be of one document, which leaves no next sentence to doubt.
    """
    held_out = corpus.validation.first(min(blocks, len(corpus.validation)))
    order = torch.randperm(
        len(held_out), generator=runtime.generator(_EVAL_KEY)
    )  # neighbours would be one document
    fixed = [
        make_batch(
            held_out,
            rows,
            runtime.generator(_EVAL_KEY, i),
            vocab_size=corpus.vocab_size,
            rate=config.mask_rate,
            pairs=pairs,
        )
        for i, rows in enumerate(order.tensor_split(math.ceil(len(held_out) / 64)))
    ]

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        where = next(model.parameters()).device
        token_losses, owners, hits, next_losses, next_hits, before = [], [], [], [], [], 0
        for batch in fixed:
            batch = {name: value.to(where) for name, value in batch.items()}
            words, following = forward(model, batch)
            token_losses.append(F.cross_entropy(words.float(), batch["labels"], reduction="none").cpu())
            owners.append(before + batch["positions"].cpu() // config.seq_len)
            before += len(following)
            hits.append((words.argmax(1) == batch["labels"]).cpu())
            next_losses.append(
                F.cross_entropy(following.float(), batch["next_label"], reduction="none").cpu()
            )
            next_hits.append((following.argmax(1) == batch["next_label"]).cpu())
        loss, error = clustered_mean(torch.cat(token_losses).double().numpy(), torch.cat(owners).numpy())
        return {
            "mlm_loss": loss,
            "mlm_loss_se": error,
            "mlm_accuracy": torch.cat(hits).double().mean().item(),
            "nsp_loss": torch.cat(next_losses).double().mean().item(),
            "nsp_accuracy": torch.cat(next_hits).double().mean().item(),
        }

    return evaluate


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained model, its history, and the configuration that made it."""

    model: PreTrainedModel
    history: History
    config: PretrainConfig

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerFast) -> Path:
        """Write model and tokenizer as ``from_pretrained`` reads them."""
        with runtime.without_bars():
            self.model.save_pretrained(folder)
        for weights in Path(folder).glob("*.safetensors"):
            runtime.make_readable(weights)
        tokenizer.save_pretrained(folder)
        return Path(folder)


def pretrain(
    corpus: Corpus,
    config: PretrainConfig,
    *,
    folder: Path | None = None,
    branch_from: Path | None = None,
    keep_steps: frozenset[int] = frozenset(),
    log_every: int = 20,
    eval_every: int = 0,
    checkpoint_seconds: float = 120.0,
    accumulate: int = 1,
    shard: bool = False,
    trackers: Sequence[str] = (),
    evaluate: bool = True,
    progress: bool = True,
) -> Pretrained:
    """Pre-train a fresh model of ``config.size`` on ``corpus`` and, unless ``evaluate`` is false, evaluate it
    on the validation split.

    ``folder``, ``branch_from``, ``keep_steps``, ``accumulate``, ``shard`` and ``trackers`` as in
    :func:`helpers.training.train`.
    """
    model = models.build(
        config.size,
        arch=config.arch,
        vocab_size=corpus.vocab_size,
        max_positions=config.seq_len,
        seed=config.seed,
        init=config.init,
    )
    history = training.train(
        model,
        batches(corpus, config),
        losses if config.next_sentence else mlm_only,
        replace(
            config.training(
                log_every=log_every, eval_every=eval_every, checkpoint_seconds=checkpoint_seconds
            ),
            accumulate=accumulate,
        ),
        evaluate=evaluator(corpus, config) if evaluate else None,
        split=split,
        shard=shard,
        trackers=trackers,
        folder=folder,
        branch_from=branch_from,
        keep_steps=keep_steps,
        fingerprint={
            "size": str(config.size),
            "arch": config.arch,
            "init": config.init,
            "batch": config.batch,
            "seq_len": config.seq_len,
            "mask_rate": config.mask_rate,
            "next_sentence": config.next_sentence,
            "unique_blocks": config.unique_blocks,
            "vocab_size": corpus.vocab_size,
            "corpus": corpus.digest,
        },
        progress=progress,
    )
    return Pretrained(model, history, config)
