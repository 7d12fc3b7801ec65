"""The most damaging single faults of a run, from its record of every injection or its log of misclassifications."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitflip.errors import BadInput, first_line
from bitflip.report import record
from bitflip.report.runs import Place, Run, parameters_of
from bitflip.results import detail

COUNT = 12  # faults that are shown
COLUMNS = (
    "layer",
    "parameter",
    "image",
    "element",
    "bit",
    "original",
    "error",
    "label",
    "clean_top1",
    "top1",
    "change",
)


@dataclass(frozen=True)
class Damage:
    """One fault that changed the class of at least one image.

    Attributes:
        place: the layer.
        where: which value was struck, such as ``[2, 5, 0]``.
        bit: that was flipped.
        original, error: the value before and after.
        broken: images whose class it changed.
        effect: what happened: the image and its classes.
        change: of the clean class's probability, 0 to 1, the largest over the images; None where it is not known.
    """

    place: Place
    where: str
    bit: int
    original: str
    error: str
    broken: int
    effect: str
    change: float | None


@dataclass(frozen=True)
class Worst:
    """The most damaging faults, and in words what they are sorted by or why there are none."""

    faults: tuple[Damage, ...]
    words: str


def worst(run: Run) -> Worst:
    """The most damaging faults of a run.

    Raises:
        BadInput: if the file that names them is damaged.
    """
    if run.files.faults.exists():
        return _from_record(run)
    if run.files.detail.exists():
        return _from_log(run)
    if len(run.seeds) > 1:
        return Worst((), "Single faults are in the reports of the runs that were joined here.")
    return Worst((), "This run did not record single faults; --detailed-log or --fault-table makes it do so.")


BY_IMAGES = "One flip hits a whole batch: by the number of images whose class it changed."
BY_CHANGE = "By the change in the probability of the class that the network gave without the fault."
BY_VALUE = "Each of these changed the class of its image; by how far the value moved."


# --- the record, in columns ---


def _from_record(run: Run) -> Worst:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        return Worst(
            (), f"{run.files.faults.name} holds every injection; reading it needs pyarrow, which is not installed."
        )
    places = {(row.place.layer, row.place.parameter): row.place for row in run.layers}
    shapes = _shapes(run)
    found: list[tuple[float, int, Damage]] = []
    flips: dict[tuple[Any, ...], Damage] = {}
    try:
        with pq.ParquetFile(run.files.faults) as file:
            for batch in file.iter_batches(columns=list(COLUMNS)):
                columns = {name: batch.column(name) for name in COLUMNS}
                for i in _broken(columns, None if run.target == "weight" else COUNT):
                    row = {name: column[i].as_py() for name, column in columns.items()}
                    fault = _recorded(row, places, shapes)
                    if run.target == "weight":
                        key = (row["layer"], row["parameter"], fault.where, fault.bit, fault.original, fault.error)
                        flips[key] = _both(flips[key], fault) if key in flips else fault
                    else:
                        found.append((-(fault.change or 0.0), len(found), fault))
                found = heapq.nsmallest(COUNT, found)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors and KeyErrors
        raise BadInput(
            f"{run.files.faults}: expected the injections of a run in columns ({first_line(error)})"
        ) from error
    if run.target == "weight":
        faults = sorted(flips.values(), key=lambda fault: -fault.broken)[:COUNT]
        return Worst(tuple(faults), BY_IMAGES if faults else "No fault changed a class.")
    faults = [fault for *_, fault in found]
    return Worst(tuple(faults), BY_CHANGE if faults else "No fault changed a class.")


def _broken(columns: Mapping[str, Any], most: int | None) -> list[int]:
    """Indices of the rows that misclassify what is right without the fault; with ``most``, of the largest changes."""
    label, clean, top1, change = (
        columns[name].to_numpy(zero_copy_only=False) for name in ("label", "clean_top1", "top1", "change")
    )
    at: list[int] = record.misclassified(label, clean, top1).nonzero()[0].tolist()
    return at if most is None else heapq.nsmallest(most, at, key=lambda i: (-change[i], i))


def _shapes(run: Run) -> dict[tuple[int, str], list[int]]:
    """Shape of what is struck, by layer number and parameter (empty for neurons), where it is known."""
    items = [item for item in run.facts.get("layers", []) if isinstance(item, dict) and "number" in item]
    found = {(item["number"], ""): item.get("shape") for item in items}
    if run.target == "weight":
        found = {(item["number"], it.get("name", "")): it.get("shape") for item in items for it in parameters_of(item)}
    return {place: shape for place, shape in found.items() if isinstance(shape, list)}


def _where(element: int, shape: Sequence[int] | None) -> str:
    """A flat index as coordinates."""
    if not shape or not 0 <= element < math.prod(shape):
        return f"element {element}"
    return str([int(i) for i in np.unravel_index(element, shape)])


def _recorded(
    row: Mapping[str, Any], places: Mapping[tuple[int, str], Place], shapes: Mapping[tuple[int, str], list[int]]
) -> Damage:
    layer, parameter = int(row["layer"]), str(row["parameter"] or "")
    place = places.get((layer, parameter)) or Place(layer, "", f"layer {layer}", 0, parameter)
    effect = f"image {row['image']}: {row['clean_top1']} → {row['top1']}"
    values = (_value(row["original"]), _value(row["error"]))
    change = row["change"]
    known = change is not None and math.isfinite(change)
    where = _where(int(row["element"]), shapes.get((layer, parameter)))
    return Damage(place, where, int(row["bit"]), *values, 1, effect, float(change) if known else None)


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _both(one: Damage, two: Damage) -> Damage:
    """One fault that broke the images of both."""
    broken = one.broken + two.broken
    change = max(one.change or 0.0, two.change or 0.0)
    return Damage(one.place, one.where, one.bit, one.original, one.error, broken, f"{broken} images", change)


# --- the log, as text ---


def _from_log(run: Run) -> Worst:
    path = run.files.detail
    try:
        with path.open(encoding="utf-8") as file:
            if ", " in file.readline():
                return Worst((), f"{path.name} is of an earlier version, which wrote a fault in a line.")
            file.seek(0)
            faults = heapq.nsmallest(COUNT, _logged(run, file), key=_log_order)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise BadInput(f"{path}: expected a file that can be read ({error.strerror})") from error
    by = BY_IMAGES if run.target == "weight" else BY_VALUE
    return Worst(tuple(faults), by if faults else "No fault changed a class.")


def _log_order(fault: Damage) -> tuple[int, float]:
    moved = abs(float(fault.error) - float(fault.original))
    return -fault.broken, -(moved if math.isfinite(moved) else math.inf)


def _logged(run: Run, lines: Iterable[str]) -> Iterator[Damage]:
    """A fault for each flip that broke an image; the images of a weight flip follow in blocks of their own."""
    places = {row.place.layer: row.place for row in run.layers}
    flip: Damage | None = None
    for number, block in detail.blocks(lines):
        try:
            if "Layer" not in block and flip is not None:
                flip = _breaking(flip, block)
                continue
            if flip is not None and flip.broken:
                yield flip
            flip = _fault(block, places)
            if run.target != "weight":
                flip = replace(_breaking(flip, block), effect=f"{block['Label']} → {block['Model output']}")
        except (ValueError, KeyError) as error:
            raise BadInput(f"{run.files.detail}, line {number}: expected a misclassification of a run") from error
    if flip is not None and flip.broken:
        yield flip


def _fault(block: Mapping[str, str], places: Mapping[int, Place]) -> Damage:
    """A fault that has broken no image yet."""
    layer = int(block["Layer"])
    place = places.get(layer) or Place(layer, block["Layer type"], f"layer {layer}", 0, "")
    coordinates = [part for part in block["Position"].strip("()").split(", ") if part != "None"]
    bit = block["Flip bit"].partition(";")[0]
    values = (_short(block["Original value"]), _short(block["Error value"]))
    return Damage(place, f"[{', '.join(coordinates)}]", 0 if bit == "all" else int(bit), *values, 0, "", None)


def _breaking(flip: Damage, block: Mapping[str, str]) -> Damage:
    """The fault with one more image that it broke."""
    where = flip.where if flip.broken else f"batch {block['Batch']}, {flip.where}"
    broken = flip.broken + 1
    return replace(flip, where=where, broken=broken, effect=f"{broken} image{'s' * (broken > 1)}")


def _short(value: str) -> str:
    """The shortest text that gives a float32 back; the value as it is where it is none."""
    with np.errstate(over="ignore"):
        short = np.float32(value)
    return str(short if np.isfinite(short) else float(value))
