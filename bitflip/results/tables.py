"""The files of a run: one writer per file, each written beside and renamed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitflip import csvs
from bitflip.files import replacing
from bitflip.network import bits
from bitflip.network.formats import Stored
from bitflip.network.layers import Layer, Target
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.outcomes.counts import Totals
from bitflip.results import columns
from bitflip.statistics.rates import LayerEstimate, Rate
from bitflip.terminal import NOTHING


def check_folder(folder: Path) -> list[str]:
    """One sentence if files can't be written to the folder; it is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [
            f"output_path (--output-path): expected a folder that can be written to, got {folder} ({error.strerror})"
        ]


def result_lines(chosen: Sequence[Target], estimates: Sequence[LayerEstimate], sought: str) -> list[str]:
    """One line per chosen layer, or parameter of it: ``Layer #7: 931 / 7375 = 12.6237%, MaxPool2d``.

    Args:
        chosen: the layers.
        estimates: of those that were struck.
        sought: what the others have none of, in words.
    """
    lines = []
    by_number: dict[int, list[LayerEstimate]] = {}
    for found in estimates:
        by_number.setdefault(found.item.number, []).append(found)
    for item in chosen:
        if item.number not in by_number:
            lines.append(f"Layer #{item.number} has no {sought}")
        for found in by_number.get(item.number, ()):
            name = item.layer.type
            if found.item.parameter not in ("", "weight"):
                name += f" {found.item.parameter}"
            if found.rate.value is None:
                lines.append(f"Layer #{item.number}: 0 / 0, {NOTHING}, {name}{_due(found)}")
                continue
            count = f"{found.tally.misclassified} / {found.tally.correct}"
            if found.weighted:
                count += ", weighted by bit"
            lines.append(f"Layer #{item.number}: {count} = {found.rate.value:.4f}%, {name}{_due(found)}")
    return lines


def _due(found: LayerEstimate) -> str:
    if not found.tally.due:
        return ""
    return f"; DUE {found.tally.due} / {found.tally.injections} = {found.due.value:.4f}%"


def write_summary(path: Path, heading: str, seed: int, bit: int | None, lines: Sequence[str]) -> None:
    """Write the ``.txt``: PyTorchFI's layer summary and the run in words (``heading``), then a line per layer."""
    with replacing(path) as file:
        file.write(f"{heading}\n\n===== Result =====\nSeed: {seed}\nSpecific bit flip position: {bit}\n")
        file.writelines(f"{line}\n" for line in lines)


def write_table(path: Path, seed: int | str, estimates: Sequence[LayerEstimate], *, bounded: bool = False) -> None:
    """Write the ``.csv``: one row per layer that was run; ``bounded`` if it was with bounds."""
    rate = columns.rate_of(seed)
    rows = (
        {"index": i, **_cells(found.item, found.tally, found.rate, found.due, rate)}
        for i, found in enumerate(estimates)
    )
    _write(path, columns.of_layers(seed, bounded=bounded), rows)


def write_bits(path: Path, estimates: Sequence[LayerEstimate], *, bounded: bool = False) -> None:
    """Write the ``_bits.csv``: one row per layer and bit that was flipped in it."""
    rows = (
        {"bit": bit, **_cells(found.item, tally, rate, due, "rate")}
        for found in estimates
        for bit, (tally, rate, due) in found.by_bit.items()
    )
    _write(path, columns.of_bits(bounded=bounded), rows)


def _write(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with replacing(path) as file:
        writer = csvs.Writer(file)
        writer.writerow(header)
        for row in rows:
            assert row.keys() >= set(header) - {"index", "bit"}
            writer.writerow([row.get(column, "") for column in header])


def _cells(item: Target, tally: Totals, rate: Rate, due: Rate, column: str) -> dict[str, object]:
    """What both tables have in a row, by column; ``column`` is that of the rate."""
    layer = item.layer
    return {
        **dict(zip(columns.PLACE, (item.number, layer.type, layer.path, layer.call), strict=True)),
        "parameter": item.parameter,
        **{name: getattr(tally, name) for name in (*columns.HITS, *columns.KNOWN, *columns.SUMS)},
        **dict(zip((column, *columns.INTERVAL), map(decimal, (rate.value, rate.low, rate.high)), strict=True)),
        **dict(zip(columns.DUE, map(decimal, (due.low, due.high)), strict=True)),
        columns.CHANGE: decimal(tally.largest_change),
    }


def decimal(value: float | None) -> str:
    """A number as tables hold it; empty where there is none."""
    return "" if value is None else f"{value:.6f}"


def write_run(path: Path, run: Mapping[str, Any]) -> None:
    """Write the ``.json``."""
    with replacing(path) as file:
        json.dump(run, file, indent=2, default=str)
        file.write("\n")


StoredOf = Callable[[Layer, str, int], Stored | None]  # of an element


def detail_text(chosen: Sequence[Target], batch_size: int, batch: BatchOutcomes, seed: int, stored_of: StoredOf) -> str:
    """The misclassifications of one batch of outcomes, by the flips of one seed, for the ``_detailed.txt``.

    Batches and positions in them are those of ``batch_size``, however many images were run together.

    Args:
        chosen: what faults strike.
        batch_size: of the batches that are meant.
        batch: the outcomes.
        seed: of the flips.
        stored_of: how a value of a layer's output, or of a parameter of it, is stored; None as it is.

    Neurons: a line per misclassified image. Weights: a line per flip, and one for each image that it broke.
    """
    lines: list[str] = []
    items = {item.where: item for item in chosen}
    count = len(batch.labels)
    start = 0
    while start < count:
        number = (batch.first + start) // batch_size
        end = min(count, (number + 1) * batch_size - batch.first)
        misclassified = batch.misclassified[:, start:end]
        for slot, place in misclassified.nonzero().tolist():
            flips, image = batch.flips[slot], start + place
            if flips.seed != seed:
                continue
            position = batch.first + image - number * batch_size
            broken = f"Label: {int(batch.labels[image])}, Model output: {int(batch.top1[slot, image])}"
            if flips.parameter:
                first = not misclassified[slot, :place].any()
                flip = f"{_flip_text(items[flips.where], number, [], batch, slot, 0, stored_of)}\n" if first else ""
                lines.append(f"{flip}    Image: {position}, {broken}\n")
            else:
                row = int(np.searchsorted(flips.images, image))
                lines.append(
                    f"{_flip_text(items[flips.where], number, [position], batch, slot, row, stored_of)}, {broken}\n"
                )
        start = end
    return "".join(lines)


def _flip_text(
    item: Target, number: int, image: list[int], batch: BatchOutcomes, slot: int, row: int, stored_of: StoredOf
) -> str:
    flips, original, error = batch.flips[slot], batch.original[slot][row], batch.error[slot][row]
    parameter = "" if item.parameter in ("", "weight") else f"Parameter: {item.parameter}, "
    stored, coordinates = stored_of(*flips.where, int(flips.element[row])), flips.coordinates(row)
    before, after = original, error
    if stored is not None:
        change = flips.changes.of(slice(row, row + 1))
        before = stored.encode(original)
        # Codes that are no number can't be told from each other by their value.
        known = change.rule is None
        after = bits.masked(before, torch.from_numpy(change.arrays[:, 0])) if known else stored.encode(error)
    return (
        f"Layer: {item.number}, Layer type: {item.layer.type}, {parameter}Batch: {number}, "
        f"Position: {[*image, *coordinates]}, "
        f"Original value: {bits.decimal(original)}, Original binary: {bits.text(before)}, "
        f"Flip bit: {flips.bit_text(row)}, Error value: {bits.decimal(error)}, Error binary: {bits.text(after)}"
    )
