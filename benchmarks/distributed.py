"""Two processes of one thread each against one process of two threads: throughput, and the same loss.

    python benchmarks/distributed.py [--quick] [--repeats 5]

Both run ``helpers.pretrain_cli`` with the same arguments; repeats alternate. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from shared import children

LAUNCH = {
    "one": (),
    "two": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
}


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second and final loss of one run, read from the table that it prints."""
    threads = {"one": "2", "two": "1"}[name]
    with tempfile.TemporaryDirectory() as folder:
        words = ["--size", options.size, "--tokens", str(options.tokens), "--batch", str(options.batch)]
        command = [sys.executable, "-m", *LAUNCH[name], "helpers.pretrain_cli", *words, "--folder", folder]
        done = subprocess.run(
            [*command, "--precision", options.precision, "--checkpoint-seconds", "3600"],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    rows = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if "  " in line)
    number = {key.strip(): value.replace(",", "") for key, value in rows.items()}
    return {"tokens_per_second": float(number["tokens/s"]), "loss": float(number["mlm_loss"])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="once, few steps: a smoke test")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", default="4x256")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.tokens, options.size, options.batch = 1, 20_000, "2x64", 8
    found: dict[str, list] = {name: [] for name in LAUNCH}
    for _ in range(options.repeats):
        for name in LAUNCH:
            found[name].append(run(name, options))
    pairs = list(zip(found["two"], found["one"], strict=True))
    ratio, low, high = children.middle([a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs])
    line = {
        "benchmark": "distributed",
        "size": options.size,
        "ratio": ratio,
        "ratio_low_high": [low, high],
        "two_processes": children.middle([run["tokens_per_second"] for run in found["two"]]),
        "one_process": children.middle([run["tokens_per_second"] for run in found["one"]]),
        "largest_difference_of_loss": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "batch": options.batch,
        "repeats": options.repeats,
        "precision": options.precision,
    }
    children.publish(line)


if __name__ == "__main__":
    main()
