"""A study: a file that lists sizes, token budgets and seeds, and the runs and rows it stands for.

``python -m helpers.sweep plan|run|status|collect STUDY.toml --folder RUNS`` — runs of one size and seed share
their stable phase (the trunk) and branch off it to decay, so four budgets cost little more than the longest.
Each run has a folder named by the hash of its settings, with checkpoints while it runs and ``row.json`` when
it is done: what is done is skipped, what was cut resumes, and rows are collected from the folders at any
time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tomllib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from helpers import complexity, models, pretrain, runtime
from helpers.pretrain import Corpus, PretrainConfig

# Nats under the unigram entropy. A tenth of the masked positions shows its own word: without any context a
# model gets half a nat below that entropy, and a little more is evaluation noise.
PAST_PLATEAU = 0.7
_STUDY_KEYS = {"name", "sizes", "tokens", "seeds"}
_PRETRAIN_KEYS = {field.name for field in fields(PretrainConfig)} - {
    "size",
    "tokens",
    "seed",
    "compile",
    "precision",
}


@dataclass(frozen=True)
class Study:
    """Every combination of ``sizes``, ``tokens`` (budgets) and ``seeds``, with the settings of ``pretrain``
    in common.
    """

    name: str
    sizes: tuple[models.Size, ...]
    tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    pretrain: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read a study file; raises ``ValueError`` naming a key that is unknown or missing, or a value that
        is not usable.
        """
        path = Path(path)
        with path.open("rb") as file:
            tables = tomllib.load(file)
        if unknown := sorted(set(tables) - {"study", "pretrain"}):
            raise ValueError(f"{path.name}: unknown table [{unknown[0]}], expected [study] and [pretrain]")
        study, shared = tables.get("study", {}), tables.get("pretrain", {})
        for table, keys, allowed in (
            ("study", set(study), _STUDY_KEYS),
            ("pretrain", set(shared), _PRETRAIN_KEYS),
        ):
            if unknown := sorted(keys - allowed):
                raise ValueError(
                    f"{path.name}: unknown key {unknown[0]!r} in [{table}], expected one of "
                    f"{', '.join(sorted(allowed))}"
                )
        if missing := sorted(_STUDY_KEYS - set(study)):
            raise ValueError(f"{path.name}: [study] lacks {', '.join(missing)}")
        for key, kind in (("sizes", str), ("tokens", int), ("seeds", int)):
            if not isinstance(study[key], list) or any(type(value) is not kind for value in study[key]):
                raise ValueError(f"{path.name}: {key} must be a list of {kind.__name__}, got {study[key]!r}")
        result = cls(
            study["name"],
            tuple(models.Size.parse(size) for size in study["sizes"]),
            tuple(sorted(study["tokens"])),
            tuple(study["seeds"]),
            shared,
        )
        if not result.configs():
            raise ValueError(f"{path.name}: sizes, tokens and seeds must each list at least one value")
        for (
            config
        ) in result.configs():  # what is not usable shows before the first run, not hours into the study
            models.make_config(config.size, arch=config.arch)
            config.training()
        return result

    def configs(self) -> list[PretrainConfig]:
        """The runs, smallest first."""
        return [c for size in self.sizes for seed in self.seeds for c in self.family(size, seed)]

    def family(self, size: models.Size, seed: int) -> list[PretrainConfig]:
        """The runs of one size and seed, that share a trunk; shortest first."""
        return [
            PretrainConfig(size=size, tokens=tokens, seed=seed, **self.pretrain) for tokens in self.tokens
        ]


def run_id(config: PretrainConfig, corpus_digest: str) -> str:
    """Twelve hexadecimal digits that depend on everything that decides a run's weights: settings and text,
    not the machine.
    """
    settings = asdict(config) | {"corpus": corpus_digest}
    for how in ("precision", "compile"):
        del settings[how]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def trunk_of(family: Sequence[PretrainConfig]) -> tuple[PretrainConfig, frozenset[int]]:
    """The stable run that a family shares, and the steps at which its members branch off to decay."""
    branches = frozenset(config.steps - config.decay_steps for config in family)
    longest = max(family, key=lambda config: config.steps)
    return replace(longest, tokens=max(branches) * longest.batch_tokens, decay_share=0.0), branches


def run_family(
    family: Sequence[PretrainConfig], corpus: Corpus, folder: Path, *, progress: bool = False
) -> list[dict[str, Any]]:
    """Run what is missing of a family and return all of its rows. May be killed at any moment and called
    again.
    """
    ids = [run_id(config, corpus.digest) for config in family]
    trunk, branches = trunk_of(family)
    trunk_id = run_id(trunk, corpus.digest)
    trunk_folder = folder / trunk_id
    if not all((folder / name / "row.json").exists() for name in ids):
        newest = trunk_folder / f"step-{trunk.steps:08d}"
        if not newest.exists():
            pretrain.pretrain(
                corpus, trunk, folder=trunk_folder, keep_steps=branches, log_every=50, progress=progress
            )
        for config, name in zip(family, ids, strict=True):
            if not (folder / name / "row.json").exists():
                start = trunk_folder / f"step-{config.steps - config.decay_steps:08d}"
                # A budget added to a finished study has no checkpoint to branch from: it runs from the start.
                _run(config, corpus, folder / name, start if start.exists() else None, trunk_id, progress)
    return [json.loads((folder / name / "row.json").read_text()) for name in ids]


def _run(
    config: PretrainConfig, corpus: Corpus, folder: Path, start: Path | None, trunk_id: str, progress: bool
) -> None:
    result = pretrain.pretrain(
        corpus, config, folder=folder, branch_from=start, log_every=50, progress=progress
    )
    result.save(folder / "model", corpus.tokenizer)
    with runtime.write_atomically(folder / "log.csv") as temporary:
        result.history.log.to_csv(temporary, index=False)
    with runtime.write_atomically(
        folder / "row.json"
    ) as temporary:  # last: its presence means that the run is done
        temporary.write_text(json.dumps(row(result, corpus, trunk=trunk_id)))


def row(result: pretrain.Pretrained, corpus: Corpus, *, trunk: str = "") -> dict[str, Any]:
    """The row of a finished run: settings, counts, losses, time and where it ran. Units are in
    ``book/results/README.md``.
    """
    config, final = result.config, result.history.final
    shape = result.model.config
    parts = complexity.count_parameters(shape)
    blocks = config.unique_blocks or len(corpus.train)
    return {
        "run_id": run_id(config, corpus.digest),
        "trunk": trunk,
        "arch": config.arch,
        "layers": config.size.layers,
        "hidden": config.size.hidden,
        "heads": config.size.heads,
        "params_embedding": parts["embeddings"],
        "params_non_embedding": complexity.non_embedding_parameters(shape),
        "params_total": sum(parts.values()),
        "vocab_size": corpus.vocab_size,
        "seq_len": config.seq_len,
        "tokens": config.steps * config.batch_tokens,
        "unique_tokens": min(config.steps * config.batch_tokens, blocks * config.seq_len),
        "steps": config.steps,
        "batch_tokens": config.batch_tokens,
        "lr_muon": config.lr,
        "lr_adam": config.lr_adam,
        "weight_decay": config.weight_decay,
        "mask_rate": config.mask_rate,
        "seed": config.seed,
        "flops_6nd": 6.0 * complexity.non_embedding_parameters(shape) * config.steps * config.batch_tokens,
        "flops_exact": sum(
            complexity.training_flops(
                shape,
                seq_len=config.seq_len,
                tokens=config.steps * config.batch_tokens,
                mask_rate=config.mask_rate,
            ).values()
        ),
        "mlm_loss": final["mlm_loss"],
        "mlm_loss_se": final["mlm_loss_se"],
        "nsp_accuracy": final["nsp_accuracy"],
        "unigram_entropy": corpus.unigram_entropy,
        "past_plateau": is_past_plateau(final | {"unigram_entropy": corpus.unigram_entropy}),
        "seconds": round(result.history.seconds, 1),
        "tokens_per_second": round(config.steps * config.batch_tokens / result.history.seconds),
        "device": runtime.cpu_name() if runtime.device().type == "cpu" else torch.cuda.get_device_name(),
        "precision": result.history.precision,
        "torch": runtime.versions()["torch"],
        "transformers": runtime.versions()["transformers"],
        "commit": runtime.commit(),
    }


def collect(study: Study, corpus_digest: str, folder: Path) -> pd.DataFrame:
    """The rows of a study that are done, in the order of the study, judged by today's ``PAST_PLATEAU``."""
    paths = (folder / run_id(config, corpus_digest) / "row.json" for config in study.configs())
    rows = [json.loads(path.read_text()) for path in paths if path.exists()]
    return pd.DataFrame([row | {"past_plateau": is_past_plateau(row)} for row in rows])


def is_past_plateau(row: dict[str, Any]) -> bool:
    """Whether a run's loss is so far under the unigram entropy that it must have learned from context."""
    return row["mlm_loss"] < row["unigram_entropy"] - PAST_PLATEAU


def run(study: Study, folder: Path, *, workers: int = 1) -> pd.DataFrame:
    """Run what is missing of a study in ``workers`` processes, threads divided among them, and return the
    rows.

    A family that fails is reported after the others have finished; its finished runs and checkpoints stay.
    """
    corpus = _corpus(study.configs()[0])  # fills the cache before workers read it
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Largest first: the longest job must not be the last to start.
    families = [
        study.family(size, seed) for size in sorted(study.sizes, reverse=True) for seed in study.seeds
    ]
    failures = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        jobs = {pool.submit(_family_job, family, folder): family for family in families}
        for job in as_completed(jobs):
            name = f"{jobs[job][0].size} seed {jobs[job][0].seed}"
            if error := job.exception():
                failures.append(f"{name}: {error}")
            else:
                print(f"{name} done: {[round(row['mlm_loss'], 3) for row in job.result()]}", flush=True)
    if failures:
        raise RuntimeError("some runs failed, run the study again to resume them: " + "; ".join(failures))
    return collect(study, corpus.digest, folder)


def _family_job(family: list[PretrainConfig], folder: Path) -> list[dict[str, Any]]:
    return run_family(family, _corpus(family[0]), folder)


def _corpus(config: PretrainConfig) -> Corpus:
    return pretrain.load_corpus(seq_len=config.seq_len)


def plan(study: Study) -> pd.DataFrame:
    """Runs, tokens and FLOPs of a study before anything starts; shared trunks are counted once."""
    rows = []
    for size in study.sizes:
        for seed in study.seeds:
            family = study.family(size, seed)
            trunk, _ = trunk_of(family)
            tokens = trunk.tokens + sum(config.decay_steps * config.batch_tokens for config in family)
            shape = models.make_config(size, arch=trunk.arch)
            flops = sum(
                complexity.training_flops(
                    shape, seq_len=trunk.seq_len, tokens=tokens, mask_rate=trunk.mask_rate
                ).values()
            )
            rows.append(
                {"size": str(size), "seed": seed, "runs": len(family), "tokens": tokens, "flops": flops}
            )
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``plan``, ``run``, ``status`` and ``collect``."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("plan", "run", "status", "collect"))
    parser.add_argument("studies", type=Path, nargs="+", help="study files, as in studies/")
    parser.add_argument("--folder", type=Path, help="where runs live (default: the cache folder)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, help="collect: the CSV to write")
    options = parser.parse_args(arguments)
    studies = [Study.read(path) for path in options.studies]
    folder = options.folder or runtime.cache_dir() / "runs"
    if options.command == "plan":
        print(pd.concat([plan(study) for study in studies]).to_string(index=False))
        return
    if options.command == "run":
        for study in studies:
            run(study, folder, workers=options.workers)
    tables = [collect(study, _corpus(study.configs()[0]).digest, folder) for study in studies]
    rows = pd.concat(tables, ignore_index=True)
    print(f"{len(rows)} of {sum(len(study.configs()) for study in studies)} runs done")
    if options.command == "collect":
        if options.output is None:
            parser.error("collect needs --output")
        with runtime.write_atomically(options.output) as temporary:
            rows.to_csv(temporary, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
