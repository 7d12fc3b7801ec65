"""Whether the files of a run agree: rates with counts, bits with layers, means, settings and the record with both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitflip.errors import BadInput
from bitflip.network.layers import is_beside
from bitflip.report import record
from bitflip.report.runs import Place, Row, Run, parameters_of
from bitflip.report.summary import means_of, parts_of, sums
from bitflip.results import columns
from bitflip.statistics import rates
from bitflip.statistics.rates import Rate

ROUNDING = 1e-3  # percent, of numbers in a file


def check(run: Run) -> None:
    """See that the files of a run say the same, as far as they say anything.

    Raises:
        BadInput: for the first number that is not what another file, or another number of the file, leads to expect.
    """
    _check_target(run)
    for path, rows in ((run.files.table, run.layers), (run.files.bits, run.bits)):
        for row in rows:
            _check_counts(f"{path}: {_name(row)}", row, single=run.target == "neuron" and run.listed is None)
    _check_bits(run)
    _check_rates(run)
    _check_images(run)
    _check_means(run)
    if run.files.faults.exists() and (run.target == "neuron" or any(row.place.parameter for row in run.layers)):
        _check_record(run)  # tables of earlier versions do not say which parameter was struck
    if run.listed is not None and run.files.listed_faults.exists():
        _check_list(run)


def _name(row: Row) -> str:
    return f"{row.place.named}{'' if row.bit is None else f', bit {row.bit}'}"


def check_places(run: Run) -> None:
    """See that the table has the layers of the ``.json``, and the table of bits those of the table.

    Raises:
        BadInput: if it has not.
    """
    files, settings = run.files, run.settings
    names = str(settings.get("parameters", "weight")).split(",")

    def has(item: Mapping[str, Any]) -> bool:
        if run.facts.get("target") != "weight":
            return bool(item.get("per_image"))
        found = [str(parameter.get("name")) for parameter in parameters_of(item)]
        return any(name in names or ("all" in names and not is_beside(name)) for name in found)

    items = [item for item in run.facts.get("layers", []) if isinstance(item, dict)]
    have = {row.place.layer for row in run.layers}
    numbers = [_whole(item.get("number")) for item in items if has(item)]
    missing = [number for number in numbers if number is not None and number not in have]
    if missing and not settings.get("faults"):  # a fault list need not reach every layer
        raise BadInput(
            f"{files.table}: expected a row for each layer of {files.run.name}, layer {missing[0]} is missing"
        )
    by_number: dict[object, set[Place]] = {}
    for row in run.layers:
        by_number.setdefault(row.place.layer, set()).add(row.place)
    for item in items:
        for place in by_number.get(_whole(item.get("number")), ()):
            for name in ("path", "call", "type"):
                said, got = item.get(name, getattr(place, name)), getattr(place, name)
                if said != got:
                    raise BadInput(
                        f"{files.table}: layer {place.layer}: expected the {name} of {files.run.name}, "
                        f"{str(said)[:40]!r}, got {str(got)[:40]!r}"
                    )
    places = {row.place for row in run.layers}
    strays = [row for row in run.bits if row.place not in places]
    if strays:
        raise BadInput(f"{files.bits}: expected the layers of {files.table.name}, found {strays[0].place.named}")
    if run.bits and {row.place for row in run.bits} != {row.place for row in run.layers if not _idle(row)}:
        raise BadInput(f"{files.bits}: expected all layers of {files.table.name}, got fewer; the file is cut off")


def _idle(row: Row) -> bool:
    return row.outcomes is not None and row.outcomes.flips == 0


def _check_target(run: Run) -> None:
    """Whether parameters are named where weights were struck, and only there; earlier files name none at all."""
    if "target" not in run.facts:
        return
    named = any(row.place.parameter for row in run.layers) or any(row.place.parameter for row in run.bits)
    for path, rows in ((run.files.table, run.layers), (run.files.bits, run.bits)):
        for row in rows:
            where = f"{path}: {_name(row)}: expected {run.target} faults as in {run.files.run.name}"
            if row.place.parameter and run.target == "neuron":
                raise BadInput(f"{where}, got {row.place.parameter}")
            if not row.place.parameter and run.target == "weight" and (named or _squares(row)):
                raise BadInput(f"{where}, got no parameter")


def _squares(row: Row) -> tuple[int, ...] | None:
    return None if row.outcomes is None else row.outcomes.squares


def _check_counts(where: str, row: Row, *, single: bool) -> None:
    """Whether the counts of a row can be; ``single`` if each flip hits one image."""
    m, n = row.misclassified, row.correct

    def expect(true: bool, words: str, *got: int) -> None:
        if not true:
            raise BadInput(f"{where}: expected {words}, got {' and '.join(map(str, got))}")

    if row.outcomes is None:
        return
    counts, all_ = row.outcomes.counts, row.outcomes.injections
    expect(n <= all_, "correct <= injections", n, all_)
    flips = row.outcomes.flips
    expect(flips == all_ if single else flips <= all_, f"flips {'=' if single else '<='} injections", flips, all_)
    for name in columns.KNOWN:
        if name in counts:
            expect(counts[name] <= all_, f"{name} <= injections", counts[name], all_)
    if "sdc1" in counts:
        sdc1 = counts["sdc1"]
        expect(m <= sdc1 <= m + all_ - n, "sdc1 to be misclassified, and wrong images besides", sdc1, m)
        expect(counts.get("sdc5", 0) <= sdc1, "sdc5 <= sdc1", counts.get("sdc5", 0), sdc1)
    if "sdc10" in counts and "sdc20" in counts:
        expect(counts["sdc20"] <= counts["sdc10"], "sdc20 <= sdc10", counts["sdc20"], counts["sdc10"])
    if "proved" in counts:
        proved, harmless, audited = counts["proved"], counts.get("harmless", all_), counts.get("audited", 0)
        expect(audited <= proved <= harmless, "audited <= proved <= harmless", audited, proved, harmless)
    if (squares := row.outcomes.squares) is None:
        return
    mm, mn, nn = squares
    if single:
        expect((mm, mn, nn) == (m, m, n), "mm, mn and nn as of one image per flip", mm, mn, nn)
    # m_i <= n_i of each flip, and Cauchy and Schwarz.
    possible = m <= mm <= mn <= nn and m * m <= flips * mm and n * n <= flips * nn and mn * mn <= mm * nn
    expect(possible, f"mm, mn and nn as of {flips} flips", mm, mn, nn)


def _count(row: Row, name: str) -> int | None:
    """A count of a row; None if its file does not say."""
    if name in columns.HITS:
        return int(getattr(row, name))
    if row.outcomes is None:
        return None
    if name in columns.SUMS:
        return None if row.outcomes.squares is None else row.outcomes.squares[columns.SUMS.index(name)]
    return row.outcomes.counts.get(name)


def _by_place(rows: Sequence[Row]) -> dict[Place, list[Row]]:
    found: dict[Place, list[Row]] = {}
    for row in rows:
        found.setdefault(row.place, []).append(row)
    return found


def _check_bits(run: Run) -> None:
    """Whether the counts of bits add up to those of layers."""
    of_layer = _by_place(run.bits)
    for row in run.layers if run.bits else ():
        parts = of_layer.get(row.place, [])
        for name in (*columns.HITS, *columns.KNOWN, *columns.SUMS):
            whole, found = _count(row, name), [_count(part, name) for part in parts]
            known = [count for count in found if count is not None]
            if whole is not None and len(known) == len(found) and sum(known) != whole:
                raise BadInput(
                    f"{run.files.bits}: expected bits of {row.place.named} that add up to {run.files.table.name}, "
                    f"whose {name} is {whole}, got {sum(known)}"
                )
        changes = [None if one.outcomes is None else one.outcomes.largest_change for one in (row, *parts)]
        most = max((change for change in changes[1:] if change is not None), default=changes[0])
        if parts and changes[0] is not None and None not in changes and most != changes[0]:
            raise BadInput(
                f"{run.files.bits}: expected bits of {row.place.named} with the {columns.CHANGE} of "
                f"{run.files.table.name}, {changes[0]:g}, got {most:g}"
            )


def _check_rates(run: Run) -> None:
    """Whether rates and intervals are those of their counts."""
    if not run.weighted:
        _check_alike(run, run.files.table, run.layers)
    elif _knows_sums(run, run.bits):
        of_layer = _by_place(run.bits)
        for row in run.layers:
            parts = parts_of(of_layer[row.place], run) if row.correct else []
            expected = rates.mean([parts], run.confidence) if parts else Rate()
            _compare(run, run.files.table, row, expected)
    _check_alike(run, run.files.bits, run.bits)


def _check_alike(run: Run, path: Path, rows: Sequence[Row]) -> None:
    """The same, of rows whose flips were drawn alike."""
    known = _knows_sums(run, rows)
    found = rates.of_each([sums([row], run.target) for row in rows], run.target, run.confidence)
    for row, rate in zip(rows, found, strict=True):
        _compare(run, path, row, rate if known else Rate(rate.value))


def _knows_sums(run: Run, rows: Sequence[Row]) -> bool:
    """Whether intervals can be had again: from counts alone, or from the sums over flips beside them."""
    return run.target == "neuron" or all(_squares(row) is not None for row in rows)


def _compare(run: Run, path: Path, row: Row, expected: Rate) -> None:
    where, got = f"{path}: {_name(row)}", row.rate
    if _differ(expected.value, got.value):
        of = f"{row.misclassified} of {row.correct}{', weighted by bit' if run.weighted and row.bit is None else ''}"
        raise BadInput(f"{where}: expected the rate of {of}, got {_short(got.value)}")
    if "confidence" not in run.facts or not run.has_intervals:  # of earlier versions
        return
    unlike = _differ(expected.low, got.low) or _differ(expected.high, got.high)
    if (expected.interval is not None or got.value is None) and unlike:
        raise BadInput(f"{where}: expected the interval {_ends(expected)}, got {_ends(got)}")


def _differ(expected: float | None, got: float | None) -> bool:
    if expected is None or got is None:
        return expected is not got
    return not abs(expected - got) <= ROUNDING


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _ends(rate: Rate) -> str:
    return "none" if rate.low is rate.high is None else f"{_short(rate.low)} to {_short(rate.high)}"


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _check_images(run: Run) -> None:
    """Whether the counts of layers are those of all images, or of all faults of a list."""
    facts, rows = run.facts, [row for row in run.layers if row.outcomes is not None and row.outcomes.flips]
    images, correct = _whole(facts.get("images")), _whole(facts.get("clean_correct"))
    if images is not None and correct is not None and not 0 <= correct <= images:
        raise BadInput(f"{run.files.run}: expected clean_correct <= images, got {correct} and {images}")
    if not run.complete:
        return
    if run.listed is not None:
        flips, faults = sum(_count(row, "flips") or 0 for row in rows), _whole(facts.get("faults"))
        if rows and faults is not None and flips != faults:
            raise BadInput(
                f"{run.files.table}: expected the flips of the {faults} faults of {run.files.run.name}, got {flips}"
            )
        return
    repeats = _whole(run.settings.get("repeats", 1))
    if repeats is None or run.settings.get("margin") is not None:  # there, some layers get further flips
        return
    counts = {name: count for name, count in (("injections", images), ("correct", correct)) if count is not None}
    for name, count in counts.items():
        for row in rows:
            if _count(row, name) != count * repeats:
                again = f", {repeats} times" if repeats > 1 else ""
                raise BadInput(
                    f"{run.files.table}: expected {name} of {row.place.named} to be those of the {count} images of "
                    f"{run.files.run.name}{again}, got {_count(row, name)}"
                )


def _check_means(run: Run) -> None:
    """Whether the means are those of the layers."""
    if not run.means:
        return
    rows = run.bits if run.weighted else run.layers
    parts = None
    if _knows_sums(run, rows):
        parts = {place: parts_of(of_layer, run) for place, of_layer in _by_place(rows).items()}
    expected = {(mean.of, mean.name): mean.rate for mean in means_of(run, parts)}
    got = {(mean.of, mean.name): mean.rate for mean in run.means}
    for key, rate in expected.items():
        found = got.pop(key, Rate())
        what = "all layers" if key[0] == "network" else f"layers of type {key[1]}"
        where = f"{run.files.run}: means: expected the mean of {what} of {run.files.table.name}"
        if _differ(rate.value, found.value):
            raise BadInput(f"{where}, {_short(rate.value)}, got {_short(found.value)}")
        if parts is not None and (_differ(rate.low, found.low) or _differ(rate.high, found.high)):
            raise BadInput(f"{where} with the interval {_ends(rate)}, got {_ends(found)}")
    if got:
        raise BadInput(
            f"{run.files.run}: means: expected only those of {run.files.table.name}, got {next(iter(got))[1]}"
        )


def _check_record(run: Run) -> None:
    """Whether the record of every injection counts the same."""
    found = record.counted(run.files.faults)
    if found is not None:
        _hold(run, run.files.faults, found, lambda place: (place.layer, place.parameter))


def _check_list(run: Run) -> None:
    """Whether the record of every fault of a list counts the same."""
    path = run.files.listed_faults
    _hold(run, path, record.of_list(path), lambda place: (place.path, place.call, place.parameter))


def _hold(run: Run, path: Path, found: record.Counts, where: Callable[[Place], record.Where]) -> None:
    """Hold both tables against the counts of a record; ``where`` says how that names a place."""
    by_layer: record.Counts = {}
    for (place, _), counts in found.items():
        whole = by_layer.setdefault((place, None), {})
        for name, value in counts.items():
            before = whole.get(name, 0.0)
            whole[name] = max(before, value) if name == columns.CHANGE else before + value
    for table, rows, cells in ((run.files.table, run.layers, by_layer), (run.files.bits, run.bits, found)):
        left = dict(cells)
        for row in rows:
            counts = left.pop((where(row.place), row.bit), {})
            for name in (*columns.KNOWN, *columns.HITS, *columns.SUMS):
                said, got = _count(row, name), counts.get(name, None if counts else 0)
                if said is not None and got is not None and said != got:
                    raise _unlike(path, table, f"{name} of {_name(row)} is {said}, got {got:.0f}")
            said_change = None if row.outcomes is None else row.outcomes.largest_change
            change = counts.get(columns.CHANGE)
            if said_change is not None and change is not None and abs(said_change - change) > 1e-5:
                raise _unlike(path, table, f"{columns.CHANGE} of {_name(row)} is {said_change:g}, got {change:g}")
        if left and rows:
            place, number = next(iter(left))
            what = ", ".join(str(part) for part in place if part != "")
            layer = "layer " if isinstance(place[0], int) else ""
            bit = "" if number is None else f", bit {number}"
            raise BadInput(f"{path}: expected the faults of {table.name}, which has none of {layer}{what}{bit}")


def _unlike(path: Path, table: Path, words: str) -> BadInput:
    return BadInput(f"{path}: expected the faults of {table.name}, whose {words}")
