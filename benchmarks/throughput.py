"""Tokens a second: the stock recipe (Trainer, BertForPreTraining, AdamW, dense head) against ours.

    python benchmarks/throughput.py [--quick] [--repeats 5] [--steps 60]
    python benchmarks/throughput.py --table book/results/speed_steps.csv

Both train on the same blocks, with the same batch, sequence length, vocabulary and size. Repeats alternate,
each in a process of its own; a repeat is the median step after the first ones, which compile. The first form
prints a JSON line for each comparison; the second measures each speed step by itself and writes a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
from shared import children, recipes
from shared.recipes import Setting

from helpers import models, runtime

SIZES = ("4x128", "4x256")


def measure(name: str, setting: Setting, steps: int, skip: int) -> dict[str, float]:
    """Tokens a second of one recipe, and the seconds of its first step, in which it compiles."""
    corpus, variant = setting.corpus(), recipes.STEPS[name]
    if variant is None:
        _, moments = recipes.stock(setting, corpus, steps=steps)
    else:
        _, moments = recipes.ours(setting, corpus, variant, steps=steps)
    speed = setting.batch * setting.seq_len / recipes.steady(moments, skip)
    return {"tokens_per_second": speed, "first_step_seconds": moments[1] - moments[0]}


def compare(size: str, options: argparse.Namespace) -> None:
    """Print a line for the identical model, and one for the recommended recipe, both against stock."""
    setting = Setting(models.Size.parse(size), batch=options.batch, vocab_size=options.vocab_size)
    names = ("stock", "identical", "recommended")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    rates = []
    for _ in range(options.repeats):  # the machine's own rate meets the same disturbances
        for name, runs in children.alternate(__file__, names, arguments(size, options), 1).items():
            found[name] += runs
        rates.append(recipes.matmul_rate(setting, runtime.precision()))
    speeds = {name: children.middle([run["tokens_per_second"] for run in found[name]]) for name in names}
    rate = children.middle(rates)[0]
    useful = recipes.flops_per_token(setting, recipes.MASK_RATE)
    for name in names[1:]:
        ratio, low, high = children.middle(
            [
                mine["tokens_per_second"] / theirs["tokens_per_second"]
                for mine, theirs in zip(found[name], found["stock"], strict=True)
            ]
        )
        line = {
            "benchmark": "throughput",
            "size": size,
            "recipe": name,
            "ratio": ratio,
            "ratio_low_high": [low, high],
            "tokens_per_second": speeds[name],
            "stock_tokens_per_second": speeds["stock"],
            "first_step_seconds": children.middle([run["first_step_seconds"] for run in found[name]]),
            "achieved_gflops": round(useful * speeds[name][0] / 1e9, 1),
            "matmul_gflops": round(rate / 1e9, 1),
            "share_of_matmul_rate": round(useful * speeds[name][0] / rate, 3),
            "batch": setting.batch,
            "seq_len": setting.seq_len,
            "vocab_size": setting.vocab_size,
            "repeats": options.repeats,
        }
        children.publish(line)


def table(options: argparse.Namespace) -> pd.DataFrame:
    """One row for each speed step: its speed, its gain over the one before, its ratio to stock."""
    names = [name for name in recipes.STEPS if name != "identical"]
    rows = []
    for size in options.sizes:
        found = children.alternate(__file__, names, arguments(size, options), options.repeats)
        before, first = None, None
        for number, name in enumerate(names):
            speed, low, high = children.middle([run["tokens_per_second"] for run in found[name]])
            first, before = first or speed, before or speed
            rows.append(
                {
                    "size": size,
                    "number": number,
                    "step": name,
                    "tokens_per_second": speed,
                    "low": low,
                    "high": high,
                    "gain": round(speed / before, 3),
                    "ratio_to_stock": round(speed / first, 3),
                    "repeats": options.repeats,
                    "batch": options.batch,
                    "vocab_size": options.vocab_size,
                }
                | children.machine()
            )
            before = speed
    return pd.DataFrame(rows)


def arguments(size: str, options: argparse.Namespace) -> list[str]:
    """What a child needs to know."""
    named = {"--sizes": size, "--steps": options.steps, "--batch": options.batch}
    named |= {"--vocab-size": options.vocab_size, "--skip": options.skip}
    return [str(word) for pair in named.items() for word in pair]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one size, one repeat, few steps: a smoke test")
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--skip", type=int, default=10, help="first steps that are not counted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--table", type=Path, help="measure every speed step and write them here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.repeats, options.steps, options.skip = SIZES[:1], 1, 12, 4
        options.batch, options.vocab_size = 8, 4096
    if options.child:
        setting = Setting(
            models.Size.parse(options.sizes[0]), batch=options.batch, vocab_size=options.vocab_size
        )
        print(json.dumps(measure(options.child, setting, options.steps, options.skip)))
    elif options.table:
        with runtime.write_atomically(options.table) as temporary:
            table(options).to_csv(temporary, index=False)
    else:
        for size in options.sizes:
            compare(size, options)


if __name__ == "__main__":
    main()
