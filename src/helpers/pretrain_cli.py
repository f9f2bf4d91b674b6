"""Pre-train one model from the command line, in one process or in many; the arguments are the same.

    python -m helpers.pretrain_cli --size 4x128 --tokens 4e6 --folder runs/mine
    torchrun --nproc-per-node 2 -m helpers.pretrain_cli --size 4x128 --tokens 4e6 --folder runs/mine
    accelerate launch --multi_gpu --num_processes 2 -m helpers.pretrain_cli --size 4x128 --folder runs/mine

(``accelerate launch`` starts several processes only with ``--multi_gpu``, which also serves CPUs.)

Checkpoints stand in the folder while it runs: the same command goes on where it was killed. At the end the
folder holds ``log.csv`` and ``model``, which ``from_pretrained`` reads. On several machines the folder must
be on storage that all of them see.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from helpers import data, distribution, models, pretrain, reporting, runtime
from helpers.optimizers import KINDS


def parser() -> argparse.ArgumentParser:
    """The arguments; their defaults are those of the book's recipe."""
    shape = argparse.ArgumentDefaultsHelpFormatter
    command = argparse.ArgumentParser("python -m helpers.pretrain_cli", formatter_class=shape)
    add = command.add_argument
    add("--size", type=models.Size.parse, default=models.Size(4, 128), help="layers x hidden")
    add("--tokens", type=float, default=4e6, help="positions to read, repeats included")
    add("--folder", type=Path, required=True, help="for checkpoints, the log and the model")
    add("--source", default="imdb", help="imdb or rotten_tomatoes")
    add("--arch", default="megatron-bert", choices=tuple(models.ARCHITECTURES))
    add("--optimizer", default="muon", choices=KINDS)
    add("--lr", type=float, default=0.02, help="Muon's rate")
    add("--lr-adam", type=float, default=2e-3, help="AdamW's rate")
    add("--batch", type=int, default=16, help="sequences in a step, over all processes")
    add("--seq-len", type=int, default=128)
    add("--vocab-size", type=int, default=4096)
    add("--mask-rate", type=float, default=0.3)
    add("--warmup-tokens", type=float, default=1e5)
    add("--accumulate", type=int, default=1, help="parts of a step that a process computes in turn")
    add("--shard", action="store_true", help="spread weights over processes (FSDP2; needs adamw)")
    add("--precision", choices=tuple(runtime.PRECISIONS), help="default: the machine's best")
    add("--seed", type=int, default=0)
    add("--eval-every", type=int, default=0, help="steps between evaluations; 0: at the end only")
    add("--log-every", type=int, default=20, help="steps between rows of the log")
    add("--checkpoint-seconds", type=float, default=120.0)
    add("--tracker", action="append", default=[], choices=tuple(reporting.TRACKERS), help="may be repeated")
    return command


@record  # torchrun then reports the reason of the process that failed first
def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the log and the model, print the run's table (the first process alone)."""
    options = parser().parse_args(arguments)
    state = distribution.state()
    with state.main_process_first():  # the others then read the tokenizer from the cache
        corpus = pretrain.load_corpus(
            data.reviews(options.source), vocab_size=options.vocab_size, seq_len=options.seq_len
        )
    config = pretrain.PretrainConfig(
        size=options.size,
        tokens=int(options.tokens),
        arch=options.arch,
        seq_len=options.seq_len,
        batch=options.batch,
        mask_rate=options.mask_rate,
        optimizer=options.optimizer,
        lr=options.lr,
        lr_adam=options.lr_adam,
        warmup_tokens=int(options.warmup_tokens),
        seed=options.seed,
        precision=options.precision,
    )
    result = pretrain.pretrain(
        corpus,
        config,
        folder=options.folder,
        log_every=options.log_every,
        eval_every=options.eval_every,
        checkpoint_seconds=options.checkpoint_seconds,
        accumulate=options.accumulate,
        shard=options.shard,
        trackers=options.tracker,
    )
    if state.is_main_process:
        result.save(options.folder / "model", corpus.tokenizer)
        with runtime.write_atomically(options.folder / "log.csv") as temporary:
            result.history.log.to_csv(temporary, index=False)
        print(f"{config.size}, {config.tokens:,} tokens of {options.source}, seed {config.seed}")
        print(result.history.summary(), flush=True)
    distribution.close()


if __name__ == "__main__":
    main()
