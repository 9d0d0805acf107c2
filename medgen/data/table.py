"""The table of a folder of studies: CSV or JSON, one row an image."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.data.splits import SPLITS
from medgen.errors import DataError, did_you_mean

TABLES = ("table.csv", "labels.csv", "table.json", "labels.json")
"""Names under which a table is found without being named."""

SPLIT_WORDS = {
    **{split: split for split in SPLITS},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "testing": "test",
}
"""Words of a split column, any case, and the split that they mean."""

MOST_CLASSES = 100
SHOWN = 10


@dataclass(frozen=True)
class Table:
    """Rows of a table, all values as text; a blank is "".

    Args:
        path: the file.
        columns: names of the columns.
        rows: one mapping a row.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def column(self, name: str, purpose: str) -> list[str]:
        """The values of a column.

        Raises:
            DataError: there is no such column; the text offers the nearest and lists all.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path}: no column '{name}' ({purpose}). {did_you_mean(name, self.columns)} "
                f"The columns are: {', '.join(self.columns)}."
            )
        return [row[name] for row in self.rows]

    def refuse(self, problems: Sequence[str]) -> None:
        """Raise for the problems found in rows, the first few in full.

        Raises:
            DataError: there are problems.
        """
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise DataError(f"{self.path}: {'; '.join(problems[:SHOWN])}{more}")


def find_table(folder: Path, name: str | None = None) -> Path:
    """The table of a folder: the one named, or the only one of the usual names.

    Raises:
        DataError: there is none, or there are several; the text lists what stands there.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder. Check `--data-root` and the `path` of the data."
        )
    found = [Path(name)] if name else [Path(usual) for usual in TABLES]
    found = [folder / inside(folder, str(each)) for each in found]
    present = [path for path in found if path.is_file()]
    if len(present) == 1:
        return present[0]
    if present:
        names = ", ".join(path.name for path in present)
        raise DataError(f"{folder}: several tables ({names}). Say which one with `table`.")
    held = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    listing = ", ".join(held[:SHOWN]) + (", ..." if len(held) > SHOWN else "") or "nothing"
    wanted = name or " or ".join(TABLES)
    raise DataError(f"{folder}: expected a table {wanted}; the folder holds {listing}.")


def inside(folder: Path, name: str) -> str:
    """A relative path that stays in its folder, with forward slashes.

    Raises:
        DataError: the path is blank, absolute, or leads out of the folder.
    """
    clean = name.replace("\\", "/")
    normal = os.path.normpath(clean)
    outside = normal == ".." or normal.startswith("../") or os.path.isabs(clean)
    if not name or outside or "\0" in name or clean[1:2] == ":":
        raise DataError(
            f"{folder}: path '{name}' is not inside the folder. Paths are relative to the table "
            "and may not lead out of its folder."
        )
    return normal


def read_table(path: Path) -> Table:
    """Read a CSV (comma, semicolon or tab; UTF-8) or a JSON list of objects.

    Raises:
        DataError: it is unreadable, empty, not UTF-8, or its rows do not fit its header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.start}). Save the table as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    table = _from_json(path, text) if path.suffix.lower() == ".json" else _from_csv(path, text)
    if not table.rows:
        raise DataError(f"{path}: the table has no rows.")
    return table


def _from_csv(path: Path, text: str) -> Table:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a readable CSV ({error}).") from error
    if not lines:
        raise DataError(f"{path}: the table is empty.")
    columns = tuple(name.strip() for name in lines[0])
    if len(set(columns)) < len(columns) or "" in columns:
        raise DataError(f"{path}: expected named, distinct columns, got: {', '.join(columns)}.")
    rows = [line for line in lines[1:] if line]
    problems = [
        f"row {i} has {len(row)} values for {len(columns)} columns"
        for i, row in enumerate(rows, 1)
        if len(row) != len(columns)
    ]
    table = Table(path, columns, ())
    table.refuse(problems)
    filled = (dict(zip(columns, map(str.strip, row), strict=True)) for row in rows)
    return Table(path, columns, tuple(filled))


def _from_json(path: Path, text: str) -> Table:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({error}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects, one an image.")
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    filled = tuple({name: _text(path, row.get(name)) for name in columns} for row in rows)
    return Table(path, columns, filled)


def _text(path: Path, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    raise DataError(f"{path}: expected text, numbers, true, false or null, got {str(value)[:60]}.")


def classes_of(table: Table, column: str) -> tuple[tuple[str, ...], list[int]]:
    """Sorted values of a column of exclusive findings, and the class of every row (-1: blank).

    Raises:
        DataError: no such column, all blank, or too many values for findings.
    """
    values = table.column(column, "the findings")
    names = tuple(sorted(set(values) - {""}))
    if not 0 < len(names) <= MOST_CLASSES:
        raise DataError(
            f"{table.path}: column '{column}' has {len(names)} different values; expected 1 "
            f"to {MOST_CLASSES} for findings."
        )
    place = {name: i for i, name in enumerate(names)}
    return names, [place.get(value, -1) for value in values]


def flags_of(table: Table, columns: Sequence[str]) -> list[list[int]]:
    """Rows of 1 (present), 0 (absent) and -1 (unknown: a blank or -1) of multi-label findings.

    Raises:
        DataError: no such column, or another value.
    """
    if len(set(columns)) < len(columns):
        raise DataError(f"findings name a column twice: {', '.join(columns)}.")
    meaning = {"": -1, "-1": -1, "-1.0": -1, "0": 0, "0.0": 0, "1": 1, "1.0": 1}
    meaning |= {"false": 0, "true": 1}
    found, problems = [], []
    for column in columns:
        values = [value.lower() for value in table.column(column, "a finding")]
        found.append([meaning.get(value, -1) for value in values])
        problems += [
            f"row {i}, column '{column}': expected 1, 0 or blank, got '{value}'"
            for i, value in enumerate(values, 1)
            if value not in meaning
        ]
    table.refuse(problems)
    return [list(row) for row in zip(*found, strict=True)]


def numbers_of(table: Table, columns: Sequence[str]) -> list[list[float]]:
    """Rows of numbers; a blank is NaN (unknown).

    Raises:
        DataError: no such column, or a value that is no finite number.
    """
    found, problems = [], []
    for column in columns:
        values = table.column(column, "a scalar")
        parsed = [_number(value) for value in values]
        found.append(parsed)
        problems += [
            f"row {i}, column '{column}': expected a number or blank, got '{value}'"
            for i, (value, number) in enumerate(zip(values, parsed, strict=True), 1)
            if not math.isfinite(number) and value.lower() not in {"", "nan"}
        ]
    table.refuse(problems)
    return [list(row) for row in zip(*found, strict=True)]


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def splits_of(table: Table, column: str = "split") -> list[str]:
    """The split of every row.

    Raises:
        DataError: a word that names no split.
    """
    words = table.column(column, "the split")
    problems = [
        f"row {i}: split '{word}'; expected one of {', '.join(SPLITS)}"
        for i, word in enumerate(words, 1)
        if word.lower() not in SPLIT_WORDS
    ]
    table.refuse(problems)
    return [SPLIT_WORDS[word.lower()] for word in words]


def repeated(values: Iterable[str]) -> list[str]:
    """Values that stand more than once, in order of their first repeat."""
    seen: set[str] = set()
    again: dict[str, None] = {}
    for value in values:
        if value in seen:
            again[value] = None
        seen.add(value)
    return list(again)
