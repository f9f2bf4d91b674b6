"""Study files as text: tables and keys checked against what exists, and errors that name the line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from helpers import models
from helpers.pretrain import PretrainConfig

T = TypeVar("T")
_LISTS = {"sizes": str, "tokens": int, "seeds": int, "lr_scales": float, "unique_tokens": int}
_REQUIRED = {"name", "sizes", "tokens", "seeds"}
# The study says the first three run by run; the others are the machine's business, not the study's.
_NOT_SHARED = {"size", "tokens", "seed", "compile", "precision"}
_PRETRAIN = {
    field.name: str(field.type).removesuffix(" | None")
    for field in fields(PretrainConfig)
    if field.name not in _NOT_SHARED
}
_CORPUS = {"source": "str", "vocab_size": "int", "hub": "bool"}
_KEYS = {"study": _REQUIRED | set(_LISTS), "pretrain": set(_PRETRAIN), "corpus": set(_CORPUS)}
_TABLES = (*_KEYS, "rates")
# Settings of a run that a study lists.
_LISTED = {"tokens": "tokens", "seed": "seeds"}


@dataclass(frozen=True)
class StudyFile:
    """A parsed study file whose keys exist and whose values have the right types."""

    name: str
    text: str
    tables: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> StudyFile:
        """Read and check; raises ``ValueError`` naming the file and, where there is one, the line."""
        try:
            text = path.read_text(encoding="utf-8")
            tables = tomllib.loads(text)
        except ValueError as error:  # not UTF-8; or TOML's own, which name line and column
            raise ValueError(f"{path.name}: {error}") from error
        file = cls(path.name, text, tables)
        file._check_keys()
        file._check_integers()
        file._check_lists()
        for table, kinds in (("pretrain", _PRETRAIN), ("corpus", _CORPUS)):
            file._check_types(table, kinds)
        return file

    @property
    def study(self) -> dict[str, Any]:
        return self.tables["study"]

    @property
    def pretrain(self) -> dict[str, Any]:
        floats = {key for key, kind in _PRETRAIN.items() if kind == "float"}
        shared = self.tables.get("pretrain", {})
        return {key: float(value) if key in floats else value for key, value in shared.items()}

    @property
    def rates(self) -> dict[str, Any]:
        return self.tables.get("rates", {})

    @property
    def corpus(self) -> dict[str, Any]:
        return self.tables.get("corpus", {})

    def factors(self) -> dict[models.Size, float]:
        """[rates] by size; raises ``ValueError`` for one that is spelt in two ways."""
        found: dict[models.Size, float] = {}
        for text, factor in self.rates.items():
            size = self.value("rates", text, models.Size.parse, text)
            if size in found:
                raise self.error("rates", text, f"[rates] names {size} twice")
            found[size] = float(factor)
        return found

    def line(self, table: str, key: str | None = None) -> int | None:
        """The number of the line where a key of a table stands, or the table's own line; the table "" is what
        stands above all tables.
        """
        inside, header, whole = not table, None, ".".join(filter(None, (table, key)))
        for number, line in enumerate(self.text.splitlines(), start=1):
            if match := re.match(r"\s*\[{1,2}([^\[\]]+)\]{1,2}\s*(?:#.*)?$", line):
                place = re.sub(r"[\s\"']", "", match[1])
                if key and place == whole:  # a key that is a table of its own
                    return number
                inside = place == table
                header = number if inside else header
            elif match := re.match(r"\s*([^=#]+?)\s*=", line):
                name = re.sub(r"[\s\"']", "", match[1])
                if name == whole or (inside and name == key):
                    return number
                header = number if header is None and name == table else header  # table = {key = value}
        return header

    def error(self, table: str, key: str | None, message: object) -> ValueError:
        """A ``ValueError`` that says where: the key's line, else that of the key the message names first,
        else the table's.
        """
        if key is None:
            known = self.tables.get(table, {})
            words = {name: re.search(rf"\b{re.escape(name)}\b", str(message)) for name in known}
            named = {name: word.start() for name, word in words.items() if word}
            key = min(named, key=named.__getitem__, default=None)
        number = self.line(table, key)
        return ValueError(f"{self.name}{f', line {number}' if number else ''}: {message}")

    def value(self, table: str, key: str | None, make: Callable[..., T], *arguments: Any) -> T:
        """``make(*arguments)``, with the place in the file added to what it refuses."""
        try:
            return make(*arguments)
        except ValueError as error:
            # What a study lists stands in another table than the settings it does not go with.
            listed = _LISTED.get(str(error).partition(" ")[0]) if key is None else None
            place = ("study", listed) if listed else (table, key)
            raise self.error(*place, error) from error

    def _check_keys(self) -> None:
        for table, content in self.tables.items():
            known = ", ".join(f"[{name}]" for name in _TABLES)
            if not isinstance(content, dict):
                what = f"must be a table [{table}]" if table in _TABLES else f"must stand in one of {known}"
                raise self.error("", table, f"{table} {what}, got {content!r}")
            if table not in _TABLES:
                raise self.error(table, None, f"unknown table [{table}], expected {known}")
            for key in content:
                if table in _KEYS and key not in _KEYS[table]:
                    known = ", ".join(sorted(_KEYS[table]))
                    raise self.error(table, key, f"unknown key {key!r} in [{table}], expected one of {known}")
        if missing := sorted(_REQUIRED - set(self.tables.get("study", {}))):
            raise self.error("study", None, f"[study] lacks {', '.join(missing)}")
        if type(self.study["name"]) is not str:
            raise self.error("study", "name", f"name must be a str, got {self.study['name']!r}")

    def _check_integers(self) -> None:
        """TOML's integers have 64 bits; Python reads longer ones, which no run can use."""
        for table, content in self.tables.items():
            for key, value in content.items():
                for item in value if isinstance(value, list) else [value]:
                    if isinstance(item, int) and item.bit_length() > 63:
                        raise self.error(table, key, f"{key} has an integer of more than 64 bits")

    def _check_lists(self) -> None:
        for key, kind in _LISTS.items():
            value = self.study.get(key)
            if value is None:
                continue
            fits = (int, float) if kind is float else (kind,)
            if not isinstance(value, list) or any(type(item) not in fits for item in value):
                raise self.error("study", key, f"{key} must be a list of {kind.__name__}, got {value!r}")
            if not value:
                raise self.error("study", key, f"{key} must list at least one value")
        for size, factor in self.rates.items():
            if type(factor) not in (int, float):
                raise self.error("rates", size, f"the factor of {size} must be a number, got {factor!r}")

    def _check_types(self, table: str, kinds: dict[str, str]) -> None:
        for key, value in self.tables.get(table, {}).items():
            found = type(value).__name__
            if found != kinds[key] and (found, kinds[key]) != ("int", "float"):
                raise self.error(table, key, f"{key} must be of type {kinds[key]}, got {value!r}")
