"""The table behind book/results/frozen.csv: what frozen encoders know of sentiment, from 2x32 to MiniLM.

    python studies/frozen.py --models RUNS --runs FOLDER --output book/results/frozen.csv

RUNS is the folder of the sweep, where each run has its model; the ladder's table says which of them are read
(seed 0, pre-norm). Every encoder is frozen; logistic regression on its mean-pooled states learns from 100,
400 or 1,600 labelled reviews, three draws of each, its strength chosen on the validation split. The last
encoder is MiniLM, 6 layers of width 384, trained elsewhere on far more text (extra `minilm`). Finished
encoders are kept in FOLDER, and skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd

from helpers import data, finetune, minilm, models
from helpers import tokenizer as tk

LABELS = (100, 400, 1600)
DRAWS = range(3)
HELD_OUT = {"validation": 500, "test": 1000}
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
COPIED = ("layers", "hidden", "params_non_embedding", "tokens", "mlm_loss")


def tables() -> dict[str, tuple[list[str], np.ndarray]]:
    """Texts and labels of everything that is read: the largest draw of each seed, and the judges."""
    drawn = {f"draw {seed}": data.take_labelled(common.reviews(), max(LABELS), seed=seed) for seed in DRAWS}
    held = {split: common.reviews().labelled(split) for split in HELD_OUT}
    return drawn | {
        split: (texts[: HELD_OUT[split]], labels[: HELD_OUT[split]])
        for split, (texts, labels) in held.items()
    }


def vectors(folder: Path | None, texts: list[str]) -> dict[str, np.ndarray]:
    """The frozen encoder's vector of each text, by text; None is MiniLM."""
    if folder is None:
        encoder, cut = minilm.load(), minilm.cut_windows(texts)
    else:
        encoder = models.load(folder).float().bert
        cut = finetune.cut_windows(tk.encode(tk.load(folder), texts))
    return dict(zip(texts, common.features(encoder, cut, batch=32), strict=True))


def one(name: str, folder: Path | None, about: common.Row, runs: Path) -> list[common.Row]:
    """The rows of one encoder; read from ``runs`` when they are there, made from these very weights."""
    mark = f"-{common.digest_of(folder)[:12]}" if folder else ""
    made = common.kept(runs / f"{name}{mark}.json", lambda: probes(name, folder))
    return [row | about for row in made]


def probes(name: str, folder: Path | None) -> list[common.Row]:
    """A row for each draw and number of labels."""
    parts = tables()
    known = vectors(folder, sorted({text for texts, _ in parts.values() for text in texts}))
    features = {part: np.stack([known[text] for text in texts]) for part, (texts, _) in parts.items()}
    rows = []
    for seed in DRAWS:
        place = {text: i for i, text in enumerate(parts[f"draw {seed}"][0])}
        for count in LABELS:
            texts, labels = data.take_labelled(common.reviews(), count, seed=seed)
            chosen = features[f"draw {seed}"][[place[text] for text in texts]]
            tried = []
            for strength in STRENGTHS:
                probe = common.probe(strength, iterations=3000)
                probe.fit(chosen, labels)
                tried.append((probe.score(features["validation"], parts["validation"][1]), strength, probe))
            best = max(tried, key=lambda t: t[0])
            measured = finetune.scores(parts["test"][1], best[2].predict_proba(features["test"]))
            rows.append(
                {"encoder": name, "labels": count, "seed": seed, "strength": best[1], "val_accuracy": best[0]}
                | measured
            )
    return rows


def encoders(runs: Path, ladder: Path, sizes: list[str]) -> list[tuple[str, Path | None, dict[str, Any]]]:
    """The runs of the ladder, of these sizes (of all for none), by name; first MiniLM, the slowest."""
    found: list[tuple[str, Path | None, dict[str, Any]]] = []
    rows = (
        pd.read_csv(ladder)
        .query("seed == 0 and arch == 'megatron-bert'")
        .sort_values(["params_total", "tokens"])
    )
    for row in rows.to_dict("records"):
        size = f"{row['layers']}x{row['hidden']}"
        if sizes and size not in sizes:
            continue
        folder = runs / row["run_id"] / "model"
        found.append((f"{size}-{row['tokens']}", folder, {key: row[key] for key in COPIED}))
    other = minilm.load()
    shape = {
        "layers": other.config.num_hidden_layers,
        "hidden": other.config.hidden_size,
        "params_non_embedding": sum(weight.numel() for weight in other.encoder.parameters()),
    }
    return [("MiniLM", None, shape), *found]


def main() -> None:
    parser = common.parser(__doc__, workers=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--ladder", type=Path, default=Path("book/results/ladder.csv"))
    parser.add_argument("--sizes", nargs="*", default=[])
    options = parser.parse_args()
    chosen = encoders(options.models, options.ladder, options.sizes)
    for _, folder, _ in chosen:
        if folder is not None:
            common.weights(folder)
    jobs = [(*encoder, options.runs) for encoder in chosen]
    rows = [row for made in common.in_processes(one, jobs, options.workers) for row in made]
    common.write(rows, options.output, by=["params_non_embedding", "tokens", "labels", "seed"])


if __name__ == "__main__":
    main()
