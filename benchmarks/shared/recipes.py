"""The stock recipe as a tutorial reader writes it, and ours, each trained on the same blocks of text.

Legend: ``B`` sequences in a batch, ``T`` tokens in a sequence, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from helpers import complexity, data, masking, models, pretrain, runtime, training
from helpers.corpus import Corpus
from helpers.training import Batch
from shared import allocator

MASK_RATE = 0.15  # of the stock collator, and of every comparison


@dataclass(frozen=True)
class Setting:
    """What both recipes have in common."""

    size: models.Size
    vocab_size: int = 8192
    seq_len: int = 128
    batch: int = 32

    def corpus(self) -> Corpus:
        """The reviews, tokenised and cut; read from the cache after the first time."""
        return pretrain.load_corpus(data.reviews("imdb"), vocab_size=self.vocab_size, seq_len=self.seq_len)


def pairs(corpus: Corpus) -> list[dict[str, Any]]:
    """The training blocks as a data set of sentence pairs, as the stock collator reads it."""
    blocks, rows = corpus.train, []
    order = torch.randperm(len(blocks), generator=runtime.generator(0))
    for number, chunk in enumerate(order.split(64)):
        made = masking.make_pairs(blocks.ids[chunk], blocks.document[chunk], runtime.generator(1, number))
        for ids, types, label in zip(made.input_ids, made.token_type_ids, made.next_label, strict=True):
            rows.append(
                {
                    "input_ids": ids.tolist(),
                    "token_type_ids": types.tolist(),
                    "next_sentence_label": int(label),
                }
            )
    return rows


class Clock(TrainerCallback):
    """The moments at which steps end; asks the Trainer to stop after ``seconds``."""

    def __init__(self, seconds: float = float("inf")) -> None:
        self.ends: list[float] = []
        self.seconds = seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())
        control.should_training_stop |= self.ends[-1] - self.ends[0] > self.seconds


def stock(setting: Setting, corpus: Corpus, *, steps: int, seconds: float = float("inf")) -> tuple:
    """Train the stock recipe; returns the model and the moments at which its steps ended."""
    size = setting.size
    config = BertConfig(
        vocab_size=setting.vocab_size,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=setting.seq_len,
    )
    model, clock = BertForPreTraining(config), Clock(seconds)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setting.batch,
            max_steps=steps,
            learning_rate=1e-4,
            weight_decay=0.01,
            warmup_steps=100,
            save_strategy="no",
            report_to="none",
            logging_steps=50,
            disable_tqdm=True,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=pairs(corpus),
            data_collator=DataCollatorForLanguageModeling(corpus.tokenizer, mlm_probability=MASK_RATE),
            callbacks=[clock],
        ).train()
    return model, clock.ends


def dense(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The stock loss: every position passes through the head, and most scores are thrown away."""
    labels = torch.full_like(batch["input_ids"], -100).flatten()
    labels = labels.index_put((batch["positions"],), batch["labels"])
    out = model(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
    words = F.cross_entropy(out.prediction_logits.flatten(0, 1).float(), labels)
    return words + F.cross_entropy(out.seq_relationship_logits.float(), batch["next_label"]), {}


@dataclass(frozen=True)
class Variant:
    """Our loop with some of the speed steps taken; the defaults are the identical model with all of them."""

    arch: str = "bert"
    loss: Callable = pretrain.losses
    attention: str = "eager"
    dropout: float = 0.0
    precision: str | None = None
    compile: bool | None = None
    keep_memory: bool = True
    optimizer: str = "adamw"
    torch_muon: bool = False


BEST = Variant()
RECOMMENDED = Variant(arch="megatron-bert", optimizer="muon")
# Each adds one change to the one before; "stock" is the Trainer.
STEPS: dict[str, Variant | None] = {
    "stock": None,
    "our loop": Variant(
        loss=dense, attention="sdpa", dropout=0.1, precision="fp32", compile=False, keep_memory=False
    ),
    "masked positions only": Variant(
        attention="sdpa", dropout=0.1, precision="fp32", compile=False, keep_memory=False
    ),
    "no dropout": Variant(attention="sdpa", precision="fp32", compile=False, keep_memory=False),
    "plain attention": Variant(precision="fp32", compile=False, keep_memory=False),
    "the machine's precision": Variant(compile=False, keep_memory=False),
    "memory kept": Variant(compile=False),
    "compiled": Variant(compile=True),
    "identical": BEST,
    "pre-norm, torch's Muon": Variant(arch="megatron-bert", optimizer="muon", torch_muon=True),
    "recommended": RECOMMENDED,
}


def ours(
    setting: Setting,
    corpus: Corpus,
    variant: Variant,
    *,
    steps: int,
    mask_rate: float = MASK_RATE,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    eval_every: int = 0,
) -> tuple[training.History, list[float]]:
    """Train our recipe; returns its history and the moments at which its steps began."""
    config = pretrain.PretrainConfig(
        setting.size,
        tokens=steps * setting.batch * setting.seq_len,
        arch=variant.arch,
        init="standard" if variant.arch == "bert" else "neighbours",
        seq_len=setting.seq_len,
        batch=setting.batch,
        mask_rate=mask_rate,
        optimizer=variant.optimizer,
        precision=variant.precision,
        compile=variant.compile,
        decay_share=0.0,
    )
    model = models.build(
        config.size,
        arch=config.arch,
        init=config.init,
        vocab_size=corpus.vocab_size,
        max_positions=config.seq_len,
        dropout=variant.dropout,
    )
    model.set_attn_implementation(variant.attention)
    source, starts = pretrain.batches(corpus, config), []

    def batch_of(step: int) -> Batch:
        starts.append(time.perf_counter())
        return source(step)

    if variant.torch_muon:
        from helpers import optimizers

        def slow(params, *, lr, weight_decay, dtype):
            return torch.optim.Muon(
                params, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="original"
            )

        optimizers.Muon = slow  # type: ignore[assignment, misc]
    settings = config.training(log_every=20, eval_every=eval_every)
    with allocator.memory_kept() if variant.keep_memory else contextlib.nullcontext():
        history = training.train(
            model, batch_of, variant.loss, settings, evaluate=evaluate, split=pretrain.split, progress=False
        )
    return history, [*starts, time.perf_counter()]


def steady(moments: list[float], skip: int) -> float:
    """Median seconds of a step, the first ``skip`` left out: they compile and warm caches."""
    spans = [after - before for before, after in zip(moments[:-1], moments[1:], strict=True)]
    return statistics.median(spans[skip:])


def flops_per_token(setting: Setting, mask_rate: float) -> float:
    """FLOPs a token of forward and backward; a head that sees all positions has mask rate 1."""
    shape = models.make_config(
        setting.size, arch="bert", vocab_size=setting.vocab_size, max_positions=setting.seq_len
    )
    counted = complexity.training_flops(shape, seq_len=setting.seq_len, tokens=10**6, mask_rate=mask_rate)
    return sum(counted.values()) / 10**6


def matmul_rate(setting: Setting, precision: str, *, seconds: float = 0.3) -> float:
    """FLOP/s of this machine in the model's own products: one step's dense layers and masked head."""
    rows, wide, inner = setting.batch * setting.seq_len, setting.size.hidden, setting.size.intermediate
    masked = round(MASK_RATE * rows)
    layers = setting.size.layers
    shapes = [(rows, wide, wide)] * 4 * layers + [(rows, wide, inner), (rows, inner, wide)] * layers
    shapes += [(masked, wide, setting.vocab_size)]
    dtype, where = runtime.PRECISIONS[precision], runtime.device()
    work = 0.0
    spent = 0.0
    for shape in set(shapes):
        m, k, n = shape
        # Forward, gradient of the input, gradient of the weight: the three products of a linear layer.
        for one, two in (((m, k), (k, n)), ((m, n), (n, k)), ((k, m), (m, n))):
            a, b = torch.randn(one, dtype=dtype, device=where), torch.randn(two, dtype=dtype, device=where)
            times = []
            begin = time.perf_counter()
            while len(times) < 5 or time.perf_counter() - begin < seconds:
                start = time.perf_counter()
                torch.mm(a, b)
                if where.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            count = shapes.count(shape)
            work += count * 2.0 * m * k * n
            spent += count * statistics.median(times)
    return work / spent
