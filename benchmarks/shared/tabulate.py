"""The tables of the benchmarks, from the JSON lines that they print.

    python -m benchmarks.shared.tabulate LINES ...            prints the tables of these files
    python -m benchmarks.shared.tabulate LINES ... --store    also stores their rows
    python -m benchmarks.shared.tabulate --store              writes the stored rows to the README again

Rows are stored in book/results/benchmarks.csv, each in the place of the one with the same benchmark, size,
recipe, model and precision; benchmarks/README.md shows them all.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers import runtime

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "book" / "results" / "benchmarks.csv"
PAGE = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- tables: generated, begin -->", "<!-- tables: generated, end -->"
IDENTITY = ["benchmark", "size", "recipe", "model", "precision"]
CONDITIONS = ["machine", "threads", "precision", "torch", "transformers"]


@dataclass(frozen=True)
class Column:
    """A column of a printed table: its heading, its key, and how a number in ``unit`` is written."""

    title: str
    key: str
    form: str = ""
    unit: float = 1.0

    def cell(self, row: pd.Series) -> str:
        """The value, with the lowest and the highest where repeats differ; empty where there is none."""
        value, *ends = (row.get(self.key + end) for end in ("", "_low", "_high"))
        if pd.isna(value):
            return ""
        if isinstance(value, str):
            return value
        text, low, high = (
            "" if pd.isna(part) else format(part / self.unit, self.form) for part in (value, *ends)
        )
        return f"{text} ({low} to {high})" if ends[0] != ends[1] and low and high else text


SIZE = Column("size", "size")
PRECISION = Column("ours in", "precision")
RATIO = Column("ratio", "ratio", ".1f")
REPEATS = Column("repeats", "repeats", ".0f")
TABLES = {
    "throughput": (
        SIZE,
        Column("recipe", "recipe"),
        PRECISION,
        Column("stock, tokens/s", "stock_tokens_per_second", ",.0f"),
        Column("ours, tokens/s", "tokens_per_second", ",.0f"),
        RATIO,
        Column("share of the matrix rate", "share_of_matmul_rate", ".0%"),
        Column("ratio at the full rate", "ceiling", ".1f"),
        REPEATS,
    ),
    "time_to_loss": (
        SIZE,
        PRECISION,
        Column("stock's loss, nats", "stock_loss", ".2f"),
        Column("after, s", "stock_seconds", ".0f"),
        Column("ours is there after, s", "our_seconds", ".1f"),
        RATIO,
        REPEATS,
    ),
    "distributed": (
        SIZE,
        Column("one process, tokens/s", "one_process", ",.0f"),
        Column("two processes, tokens/s", "two_processes", ",.0f"),
        Column("ratio", "ratio", ".2f"),
        Column("largest difference of the loss, nats", "largest_difference_of_loss", ".1g"),
        REPEATS,
    ),
    "law_fitting": (
        Column("comparison", "comparison"),
        Column("scipy, s", "scipy_seconds", ",.0f"),
        Column("ours, s", "ours_seconds", ".1f"),
        RATIO,
        Column("worst objective over scipy's", "worst_objective_over_scipy", ".6f"),
    ),
    "memory": (
        Column("model", "model"),
        Column("predicted, MiB", "predicted_bytes", ",.1f", 2**20),
        Column("measured, MiB", "measured_bytes", ",.1f", 2**20),
        Column("ratio", "ratio", ".3f"),
    ),
}


def rows(paths: list[Path]) -> pd.DataFrame:
    """One row for each JSON line; a list of (median,) lowest and highest becomes columns of their own.

    ``ValueError`` for files without such a line, and for lines of a smoke test.
    """
    found = []
    for line in (line for path in paths for line in path.read_text().splitlines() if line.startswith("{")):
        row: dict[str, object] = {}
        for name, value in json.loads(line).items():
            values = value if isinstance(value, list) else [value]
            ends = {1: ("",), 2: ("_low", "_high"), 3: ("", "_low", "_high")}[len(values)]
            stem = name.removesuffix("_low_high")
            row |= {stem + end: part for end, part in zip(ends, values, strict=True)}
        if "--quick" in str(row.get("command")):
            raise ValueError(f"the numbers of a smoke test mean nothing: {row['command']}")
        found.append(row)
    if not found:
        raise ValueError(f"no JSON line in {', '.join(map(str, paths))}")
    return ordered(pd.DataFrame(found))


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by benchmark, in the order of ``TABLES``, then by size, recipe, model and precision."""
    table = table.reindex(columns=[*IDENTITY, *(name for name in table if name not in IDENTITY)])
    place = {name: number for number, name in enumerate(TABLES)}
    return table.sort_values(
        IDENTITY, key=lambda c: c.map(place) if c.name == "benchmark" else c, ignore_index=True
    )


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Both tables; where they have the same benchmark, size, recipe, model and precision, the new row."""
    both = ordered(pd.concat([old.astype(object), new.astype(object)], ignore_index=True))
    return both[~both.duplicated(IDENTITY, keep="last")].infer_objects().reset_index(drop=True)


def conditions(part: pd.DataFrame) -> list[str]:
    """Where and by which command the rows of a table were measured, a line for each that differs."""
    lines = []
    for row in part.to_dict("records"):
        known = {name: row[name] for name in CONDITIONS if not pd.isna(row.get(name))}
        if "threads" in known:
            known["threads"] = f"{int(known['threads'])} thread" + "s" * (known["threads"] > 1)
        known |= {name: f"{name} {known[name]}" for name in ("torch", "transformers") if name in known}
        lines.append(f"`{row['command']}`: {', '.join(map(str, known.values()))}.")
    return list(dict.fromkeys(lines))


def tables(table: pd.DataFrame) -> str:
    """Every benchmark's table in Markdown, with its conditions; what has no row is named at the end."""
    if "share_of_matmul_rate" in table:
        table = table.assign(ceiling=table["ratio"] / table["share_of_matmul_rate"])
    parts = []
    for name, columns in TABLES.items():
        part = table[table["benchmark"] == name]
        if part.empty:
            continue
        lines = [[column.title for column in columns], ["---"] * len(columns)]
        lines += [[column.cell(row) for column in columns] for _, row in part.iterrows()]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"### {name}\n\n" + "\n".join(conditions(part)) + f"\n\n{text}")
    if missing := [f"`{name}.py`" for name in TABLES if name not in set(table["benchmark"])]:
        parts.append(f"No numbers here from {', '.join(missing)}.")
    return "\n\n".join(parts)


def page(text: str, table: pd.DataFrame) -> str:
    """The README's text with these tables between its two markers."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"no place for the tables: expected {BEGIN} and {END}")
    between = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    return re.sub(between, lambda _: f"{BEGIN}\n\n{tables(table)}\n\n{END}", text, flags=re.DOTALL)


def store(table: pd.DataFrame) -> None:
    """Write the CSV and the README."""
    with runtime.write_atomically(STORED) as temporary:
        table.convert_dtypes().to_csv(temporary, index=False)
    with runtime.write_atomically(PAGE) as temporary:
        temporary.write_text(page(PAGE.read_text(), table))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", nargs="*", type=Path, help="what benchmarks printed; none: what is stored")
    parser.add_argument("--store", action="store_true", help="write the CSV and the README")
    options = parser.parse_args()
    try:
        table = rows(options.lines) if options.lines else pd.read_csv(STORED)
    except ValueError as error:
        parser.error(str(error))
    print(tables(table))
    if options.store:
        store(merged(pd.read_csv(STORED), table))


if __name__ == "__main__":
    main()
