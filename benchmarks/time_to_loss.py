"""Wall time to a loss: train the stock recipe for five minutes, then see how soon ours is as good.

    python benchmarks/time_to_loss.py [--quick] [--seconds 300] [--repeats 3]

Both are judged on the same validation text with the same masks (15 % of the words). The stock recipe's time
is that of training alone; ours includes building the model and compiling it, if it does. Evaluations, every
few steps of ours, are not counted. One JSON line for each size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace

from shared import children, recipes
from shared.recipes import RECOMMENDED, Setting
from torch import nn

from helpers import engine, models, pretrain, runtime
from helpers.corpus import Corpus

SIZES = ("4x128", "4x256")
STEPS = engine.STEPS_THAT_REPAY_COMPILING - 1  # fewer than repay compiling: it is stopped long before


class Reached(Exception):
    """Ours is as good as stock."""


def judge(setting: Setting, corpus: Corpus, blocks: int) -> Callable[[nn.Module], dict[str, float]]:
    """The fixed evaluation of both recipes."""
    config = pretrain.PretrainConfig(
        setting.size, tokens=10**6, seq_len=setting.seq_len, mask_rate=recipes.MASK_RATE
    )
    return pretrain.evaluator(corpus, config, blocks=blocks)


def run_stock(setting: Setting, seconds: float, blocks: int) -> dict[str, float]:
    """The loss after ``seconds`` of the stock recipe."""
    corpus = setting.corpus()
    model, moments = recipes.stock(setting, corpus, steps=10**6, seconds=seconds)
    loss = judge(setting, corpus, blocks)(model.eval())["mlm_loss"]
    return {"loss": loss, "seconds": moments[-1] - moments[0], "steps": len(moments) - 1}


def run_ours(setting: Setting, target: float, limit: float, blocks: int) -> dict[str, float]:
    """The seconds after which our loss is at most ``target``; infinite past ``limit``."""
    corpus = setting.corpus()
    examine, spent, losses = judge(setting, corpus, blocks), 0.0, []
    begin = time.perf_counter()

    def evaluate(model) -> dict[str, float]:
        nonlocal spent
        with runtime.timer() as clock:
            losses.append(examine(model)["mlm_loss"])
        spent += clock.seconds
        if losses[-1] <= target or time.perf_counter() - begin - spent > limit:
            raise Reached
        return {"mlm_loss": losses[-1]}

    with contextlib.suppress(Reached):
        recipes.ours(
            setting, corpus, RECOMMENDED, steps=STEPS, mask_rate=0.3, evaluate=evaluate, eval_every=20
        )
    seconds = time.perf_counter() - begin - spent
    return {"seconds": seconds if losses[-1] <= target else float("inf"), "loss": losses[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one size, 20 seconds, once: a smoke test")
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--blocks", type=int, default=512, help="validation sequences that judge both")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.seconds, options.repeats = SIZES[:1], 20.0, 1
        options.batch, options.vocab_size, options.blocks = 8, 4096, 64
    setting = Setting(models.Size.parse(options.sizes[0]), batch=options.batch, vocab_size=options.vocab_size)
    if options.child == "stock":
        print(json.dumps(run_stock(setting, options.seconds, options.blocks)))
        return
    if options.child == "ours":
        print(json.dumps(run_ours(setting, options.target, options.seconds, options.blocks)))
        return
    for size in options.sizes:
        compare(replace(setting, size=models.Size.parse(size)), options)


def compare(setting: Setting, options: argparse.Namespace) -> None:
    """Print the line of one size."""
    common = ["--sizes", str(setting.size), "--seconds", str(options.seconds)]
    common += ["--batch", str(setting.batch), "--vocab-size", str(setting.vocab_size)]
    common += ["--blocks", str(options.blocks)]
    stock, ours = [], []
    for _ in range(options.repeats):
        stock.append(children.child(__file__, ["--child", "stock", *common]))
        target = ["--target", str(stock[-1]["loss"])]
        ours.append(children.child(__file__, ["--child", "ours", *target, *common]))
    pairs = zip(stock, ours, strict=True)
    ratio, low, high = children.middle([theirs["seconds"] / mine["seconds"] for theirs, mine in pairs])
    line = {
        "benchmark": "time_to_loss",
        "size": str(setting.size),
        "ratio": ratio,
        "ratio_low_high": [low, high],
        "stock_loss": children.middle([run["loss"] for run in stock]),
        "stock_seconds": children.middle([run["seconds"] for run in stock]),
        "our_seconds": children.middle([run["seconds"] for run in ours]),
        "repeats": options.repeats,
        "batch": setting.batch,
        "vocab_size": setting.vocab_size,
    }
    children.publish(line)


if __name__ == "__main__":
    main()
