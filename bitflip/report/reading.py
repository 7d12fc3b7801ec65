"""The result files of a run, found and read back. What a run does not write is refused with a sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitflip import csvs
from bitflip.errors import BadInput, first_line
from bitflip.report import consistency
from bitflip.report.consistency import ROUNDING
from bitflip.report.runs import Mean, Outcomes, Place, Row, Run
from bitflip.results import columns
from bitflip.results.paths import Paths
from bitflip.statistics.rates import Rate

ERROR_RATES = "expected a run of single faults, got bit error rates, which have no rates by layer and bit"


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
    if not found and any(folder.glob("*_ber.csv")):
        raise BadInput(f"{folder}: {ERROR_RATES}")
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
    said = facts.get("settings", {})
    if said.get("seed") not in (None, seed) and "seeds" not in said:
        raise BadInput(f"{files.run}: expected the seed of {files.table.name}, {seed}, got {said['seed']}")
    means = tuple(_means(files.run, facts.get("means", [])))
    folder = said.get("output_path")
    run = Run(files, (seed,), layers, bits, means, facts, output_path=None if folder is None else str(folder))
    consistency.check_places(run)
    consistency.check(run)
    return run


def _row(row: csvs.Row, rate: str, bit: int | None = None) -> Row:
    """A row of either table, given the column of its rate."""
    place = Place(row.count("layer"), row["name"], row["path"], row.count("call"), row.get("parameter"))
    wrong, correct, outcomes = row.count("misclassified"), row.count("correct"), _outcomes(row)
    value, low, high = (row.number(name, 100) for name in (rate, "low", "high"))
    row.finish()
    found = Row(place, wrong, correct, Rate(value, low, high), outcomes, bit)
    if wrong > correct:
        row.wrong.append(f"expected misclassified <= correct, got {wrong} and {correct}")
    due = (outcomes and outcomes["due"]) or 0  # earlier files do without
    for kinds in (("masked", "benign", "sdc1"), ("harmless", "sdc1")):
        each = [outcomes[name] for name in kinds] if outcomes else []
        if outcomes and None not in each and (sum_ := int(sum(filter(None, each)) + due)) != outcomes.injections:
            row.wrong.append(f"expected {' + '.join(kinds)} + due to be injections, {outcomes.injections}, got {sum_}")
    if value is not None and found.rate.interval:
        low, high = found.rate.interval
        if not low - ROUNDING <= value <= high + ROUNDING:
            row.wrong.append(f"expected low <= rate <= high, got {low:g}, {value:g}, {high:g}")
    row.finish()
    return found


def _outcomes(row: csvs.Row) -> Outcomes | None:
    if "flips" not in row or "injections" not in row:
        return None
    counts = {name: row.count(name) for name in columns.KNOWN if name in row}
    sums = tuple(row.count(name) for name in columns.SUMS) if all(name in row for name in columns.SUMS) else None
    return Outcomes(counts, row.number(columns.CHANGE, 1), sums)


def _read_table(path: Path) -> tuple[int, tuple[Row, ...]]:
    table = csvs.Table(path, ended=True)
    if "bit_error_rate" in table.header:
        raise BadInput(f"{path}: {ERROR_RATES}")
    seeds = [name for name in table.header if name.startswith("seed_")]
    if len(seeds) != 1 or not seeds[0][5:].isdecimal() or len(seeds[0]) > 30:
        raise BadInput(f"{path}: expected the table of one seed, with a column seed_N, got {table.got}")
    seed = int(seeds[0][5:])
    table.require(("index", *columns.NEEDED), columns.of_layers(seeds[0][5:]))

    def parse(row: csvs.Row) -> tuple[int, Row]:
        return row.count("index"), _row(row, seeds[0])

    found = list(table.values(parse))
    for expected, (line, (index, _)) in enumerate(found):
        if index != expected:
            raise BadInput(f"{path}, line {line}: index: expected {expected}, got {index}")
    rows = tuple(row for _, (_, row) in found)
    if len({row.place for row in rows}) != len(rows):
        raise BadInput(f"{path}: expected each layer once")
    if not rows:
        raise BadInput(f"{path}: expected a row per layer, got none")
    return seed, rows


def _read_bits(path: Path) -> Iterator[Row]:
    table = csvs.Table(path, ended=True)
    table.require(("bit", "rate", *columns.NEEDED), columns.of_bits())
    seen = set()
    for line, row in table.values(lambda row: _row(row, "rate", row.count("bit", 63))):
        if (row.place, row.bit) in seen:
            raise BadInput(f"{path}, line {line}: bit: expected each bit of a layer once, got {row.bit} again")
        seen.add((row.place, row.bit))
        yield row


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(csvs.text(path))
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
