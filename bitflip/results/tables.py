"""The files of a run: one writer per file, each written beside and renamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitflip import csvs
from bitflip.files import replacing
from bitflip.network.layers import Target
from bitflip.outcomes.counts import Totals
from bitflip.results import columns
from bitflip.statistics.rates import LayerEstimate, Rate
from bitflip.terminal import NOTHING


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
