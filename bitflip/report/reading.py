"""The result files of a run, found and read back. What a run does not write is refused with a sentence."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bitflip.errors import BadInput, first_line
from bitflip.report.runs import COUNTS, Mean, Outcomes, Place, Rate, Row, Run, parameters_of
from bitflip.results.paths import Paths

T = TypeVar("T")

OLDEST = ("index", "name", "layer", "path", "call", "misclassified", "correct")  # columns that every table has
BITS = ("layer", "name", "path", "call", "parameter", "bit", "misclassified", "correct", *COUNTS, "largest_change")
SQUARES = ("mm", "mn", "nn")
ROUNDING = 1e-3  # percent, of the ends of an interval in a file
LARGEST = 10**15  # count that a file may hold; larger ones are damage


def find(folder: Path) -> list[Path]:
    """The tables (``.csv``) of the runs in a folder, or, if there is none, in its immediate subfolders.

    Raises:
        BadInput: if there is none there either.
    """
    found = _tables(folder)
    if not found:
        try:
            inner = sorted(
                path
                for path in folder.iterdir()
                if path.is_dir() and not path.name.startswith(".") and path.suffix != ".unfinished"
            )
        except OSError as error:
            raise BadInput(f"{folder}: expected a folder that can be read ({error.strerror})") from error
        found = [table for path in inner for table in _tables(path)]
    if not found:
        raise BadInput(f"{folder}: expected the result files of a run (MODEL_DATASET_SEED.csv), found none")
    return found


def _tables(folder: Path) -> list[Path]:
    def is_table(path: Path) -> bool:
        if path.name.endswith("_bits.csv") and path.with_name(path.name[: -len("_bits.csv")] + ".csv").exists():
            return False
        try:
            with path.open("rb") as file:
                start = file.read(11)
        except OSError:
            return True  # named when it is read
        return start == b"index,name," or (start == b"" and path.with_suffix(".json").exists())

    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".csv" and is_table(path))
    except OSError as error:
        raise BadInput(f"{folder}: expected a folder that can be read ({error.strerror})") from error


def table_of(path: Path) -> Path:
    """The table of the run that a file belongs to, given one of its ``.csv``, ``_bits.csv``, ``.json``, ``.html``."""
    for suffix in ("_bits.csv", ".csv", ".json", ".html"):
        if path.name.endswith(suffix):
            table = path.with_name(path.name[: -len(suffix)] + ".csv")
            if table.exists():
                return table
    raise BadInput(f"{path}: expected a folder, or the .csv or .json of a run")


def read(table: Path) -> Run:
    """Read a run, given its ``.csv``.

    Raises:
        BadInput: if a file is damaged, cut off, or something else; it names the file.
    """
    files = Paths(table.parent, table.name[: -len(".csv")])
    seed, layers = _read_table(files.table)
    bits = tuple(_read_bits(files.bits)) if files.bits.exists() else ()
    facts = _read_facts(files.run) if files.run.exists() else {}
    _check_facts(files, seed, layers, facts)
    places = {row.place for row in layers}
    strays = [row for row in bits if row.place not in places]
    if strays:
        raise BadInput(f"{files.bits}: expected the layers of {files.table.name}, found {strays[0].place.label!r}")
    if bits and {row.place for row in bits} != {row.place for row in layers if not _idle(row)}:
        raise BadInput(f"{files.bits}: expected all layers of {files.table.name}, got fewer; the file is cut off")
    means = tuple(_means(files.run, facts.get("means", [])))
    return Run(files, (seed,), layers, bits, means, facts)


def _idle(row: Row) -> bool:
    return row.outcomes is not None and row.outcomes.flips == 0


def _check_facts(files: Paths, seed: int, layers: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Whether the ``.json`` belongs to the table, and the table has all its layers."""
    if not facts:
        return
    said = facts["settings"].get("seed")
    if said is not None and said != seed and "seeds" not in facts["settings"]:
        raise BadInput(f"{files.run}: expected the seed of {files.table.name}, {seed}, got {said}")
    names = str(facts["settings"].get("parameters", "weight")).split(",")

    def has(item: Mapping[str, Any]) -> bool:
        if facts.get("target") != "weight":
            return bool(item.get("per_image"))
        return any("all" in names or parameter.get("name") in names for parameter in parameters_of(item))

    items = [item for item in facts.get("layers", []) if isinstance(item, dict)]
    have = {row.place.layer for row in layers}
    missing = [item["number"] for item in items if has(item) and item.get("number", 0) not in have]
    if missing and not facts["settings"].get("faults"):  # a fault list need not reach every layer
        raise BadInput(
            f"{files.table}: expected a row for each layer of {files.run.name}, layer {missing[0]} is missing"
        )


class _Reader:
    """The cells of one row of a CSV file; a cell that can't be is a sentence that names file, line and column."""

    def __init__(self, path: Path, line: int, cells: Mapping[str, str]) -> None:
        self.where = f"{path}, line {line}"
        self.cells = cells

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def text(self, column: str) -> str:
        return self.cells[column]

    def _parsed(self, column: str, parse: Callable[[str], T], expected: str) -> T:
        try:
            return parse(self.cells[column])
        except ValueError:
            text = self.cells[column]
            shown = repr(text if len(text) < 40 else f"{text[:40]}…")
            raise BadInput(f"{self.where}: {column}: expected {expected}, got {shown}") from None

    def count(self, column: str) -> int:
        def parse(text: str) -> int:
            if not (text.isascii() and text.isdecimal() and len(text) < 17) or int(text) > LARGEST:
                raise ValueError
            return int(text)

        return self._parsed(column, parse, "a whole number")

    def number(self, column: str, largest: float) -> float:
        def parse(text: str) -> float:
            value = float(text)
            if not 0 <= value <= largest:
                raise ValueError
            return value

        return self._parsed(column, parse, f"a number from 0 to {largest:g}")

    def optional(self, column: str, largest: float) -> float | None:
        return self.number(column, largest) if self.cells.get(column) else None

    def rate(self, column: str) -> Rate:
        rate = Rate(*(self.optional(name, 100) for name in (column, "low", "high")))
        if rate.value is not None and rate.interval:
            low, high = rate.interval
            if not low - ROUNDING <= rate.value <= high + ROUNDING:
                raise BadInput(f"{self.where}: expected low <= rate <= high, got {low:g}, {rate.value:g}, {high:g}")
        return rate

    def outcomes(self) -> Outcomes | None:
        if "flips" not in self:
            return None
        counts = {name: self.count(name) for name in COUNTS}
        squares = tuple(self.count(name) for name in SQUARES) if all(name in self for name in SQUARES) else None
        return Outcomes(**counts, largest_change=self.optional("largest_change", 1) or 0.0, squares=squares)

    def row(self, rate: str, bit: int | None = None) -> Row:
        place = Place(
            self.count("layer"),
            self.text("name"),
            self.text("path"),
            self.count("call"),
            self.text("parameter") if "parameter" in self else "",
        )
        wrong, correct, outcomes = self.count("misclassified"), self.count("correct"), self.outcomes()
        if wrong > correct:
            raise BadInput(f"{self.where}: expected misclassified <= correct, got {wrong} and {correct}")
        if outcomes and outcomes.masked + outcomes.benign + outcomes.sdc1 != outcomes.injections:
            raise BadInput(f"{self.where}: expected masked + benign + sdc1 to be injections")
        return Row(place, wrong, correct, self.rate(rate), outcomes, bit)


def _rows(path: Path) -> Iterator[_Reader]:
    """The rows of a CSV file, the header (with an empty list of cells) left out."""
    text = _text(path)
    if not text.endswith("\n"):
        raise BadInput(f"{path}: expected a whole file, its last line is cut off" if text else f"{path}: it is empty")
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise BadInput(f"{path}: expected a CSV file ({first_line(error)})") from error
    if len(set(header)) != len(header):
        raise BadInput(f"{path}: expected columns of different names, got {', '.join(header)[:200]}")
    yield _Reader(path, 1, dict.fromkeys(header, ""))
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(header):
            raise BadInput(f"{path}, line {number}: expected {len(header)} columns, got {len(cells)}")
        yield _Reader(path, number, dict(zip(header, cells, strict=True)))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BadInput(f"{path}: expected a file that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error


def _read_table(path: Path) -> tuple[int, tuple[Row, ...]]:
    rows = _rows(path)
    header = list(next(rows).cells)
    missing = [name for name in OLDEST if name not in header]
    seeds = [name for name in header if name.startswith("seed_")]
    if missing or len(seeds) != 1 or not seeds[0][5:].isdecimal() or len(seeds[0]) > 30:
        wanted = "index,name,seed_N,layer,path,call,…,misclassified,correct"
        raise BadInput(
            f"{path}: expected the table of one seed, with the columns {wanted}, got {','.join(header)[:200]}"
        )
    if "flips" in header and (lost := [name for name in (*COUNTS, "largest_change") if name not in header]):
        raise BadInput(f"{path}: expected a column {lost[0]}")
    read = []
    for index, reader in enumerate(rows):
        if reader.count("index") != index:
            raise BadInput(f"{reader.where}: index: expected {index}, got {reader.text('index')!r}")
        read.append(reader.row(seeds[0]))
    if len({row.place for row in read}) != len(read):
        raise BadInput(f"{path}: expected each layer once")
    if not read:
        raise BadInput(f"{path}: expected a row per layer, got none")
    return int(seeds[0][5:]), tuple(read)


def _read_bits(path: Path) -> Iterator[Row]:
    rows = _rows(path)
    header = list(next(rows).cells)
    if missing := [name for name in (*BITS, "rate") if name not in header]:
        raise BadInput(f"{path}: expected the columns {','.join(BITS)}, {missing[0]} is missing")
    seen = set()
    for reader in rows:
        bit = reader.count("bit")
        row = reader.row("rate", bit)
        if bit > 63 or (row.place, bit) in seen:
            raise BadInput(f"{reader.where}: bit: expected a new bit from 0 to 63, got {bit}")
        seen.add((row.place, bit))
        yield row


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: expected the whole JSON of a run ({first_line(error)})") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("settings"), dict):
        raise BadInput(f"{path}: expected the JSON of a run, with its settings")
    wrong = [
        name
        for name, kind in {"layers": list, "means": list, "model": dict, "versions": dict, "images": int}.items()
        if name in facts and not isinstance(facts[name], kind)
    ]
    if type(facts["settings"].get("bit_flip_pos", -1)) is not int:
        wrong.append("bit_flip_pos")
    if wrong or facts.get("target", "neuron") not in ("neuron", "weight"):
        raise BadInput(f"{path}: expected the JSON of a run, {(*wrong, 'target')[0]} is not what a run writes")
    confidence = facts.get("confidence", 0.95)
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        raise BadInput(f"{path}: confidence: expected a number between 0 and 1, got {str(confidence)[:40]!r}")
    return facts


def _means(path: Path, items: Sequence[Any]) -> Iterator[Mean]:
    def percent(value: Any) -> bool:
        return value is None or (type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 100)

    for item in items:
        if not isinstance(item, dict) or not all(percent(item.get(key)) for key in ("rate", "low", "high")):
            raise BadInput(f"{path}: means: expected rates in percent, got {str(item)[:80]}")
        rate = Rate(*(item.get(key) for key in ("rate", "low", "high")))
        yield Mean(str(item.get("of")), str(item.get("name")), rate)
