"""What rows add up to: means over layer types, rates by bit, the spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bitflip.report.runs import Mean, Outcomes, Place, Row, Run
from bitflip.statistics import rates
from bitflip.statistics.intervals import Sums
from bitflip.statistics.rates import Part, Rate


@dataclass(frozen=True)
class Bit:
    """One bit position over all layers; see :class:`bitflip.report.runs.Row`, and for DUE :func:`due`."""

    bit: int
    misclassified: int
    correct: int
    rate: Rate
    outcomes: Outcomes | None
    due: Rate


def by_bit(run: Run) -> list[Bit]:
    """The rate of all images whose flip hit a bit, for each bit that was hit, with all layers together."""
    found = []
    for bit in sorted({row.bit for row in run.bits if row.bit is not None}):
        rows = [row for row in run.bits if row.bit == bit]
        wrong, correct = sum(row.misclassified for row in rows), sum(row.correct for row in rows)
        rate = rates.of(sums(rows, run.target), run.target, run.confidence)
        outcomes = total(row.outcomes for row in rows if row.outcomes)
        found.append(Bit(bit, wrong, correct, rate, outcomes, due_of_all(rows, run)))
    return found


def due_by_layer(run: Run) -> list[Rate]:
    """:func:`due` of each layer; empty if the model never raised an exception."""
    return [due(row, run) for row in run.layers] if run.any_due else []


def means(run: Run) -> list[Mean]:
    """The means that the run wrote, or those of its layers."""
    return list(run.means) or means_of(run)


def sums(rows: Sequence[Row], target: str) -> Sums[float]:
    """What intervals need to know about all faults of some rows.

    Where a file does not say how the images of a row spread over its flips, see :func:`rates.widest`.
    """
    wrong, correct = (float(sum(getattr(row, name) for row in rows)) for name in ("misclassified", "correct"))
    if target == "neuron" and not all(row.outcomes and row.outcomes.squares for row in rows):
        return Sums.single(wrong, correct)  # unless a list has faults of many images, which newer files tell
    parts = []
    for row in rows:
        count = row.outcomes.flips if row.outcomes else 1  # without a count, a run's flips are taken as one
        part = rates.widest(count, row.misclassified, row.correct)
        if row.outcomes and row.outcomes.squares:
            part = Sums(count, part.m, part.n, *row.outcomes.squares)
        parts.append(part)
    return Sums.added(parts)


def due(row: Row, run: Run) -> Rate:
    """The share of inferences in which the model raised an exception; see :func:`bitflip.statistics.rates.of_due`.

    Args:
        row: of a layer, or of a bit of it.
        run: that the row is of.
    """
    parts = [Part(_due([row]))]
    if run.weighted and row.bit is None and parts[0].sums.n:
        parts = _by_bit([cell for cell in run.bits if cell.place == row.place], run, _due)
    return rates.of_due(parts, run.target, run.confidence)


def due_of_all(rows: Sequence[Row], run: Run) -> Rate:
    """:func:`due` of all inferences of some rows together."""
    return rates.of_due([Part(_due(rows))], run.target, run.confidence)


def _due(rows: Sequence[Row]) -> Sums[float]:
    known = [row.outcomes for row in rows if row.outcomes]
    return Sums.added([rates.widest(found.flips, found["due"] or 0, found.injections) for found in known])


def parts_of(rows: Sequence[Row], run: Run) -> list[Part]:
    """The parts that the rate of a layer is the mean of: one, or several where bits were not drawn alike.

    Args:
        rows: of the layer: by bit where bits were not drawn alike, of several seeds where they are joined.
        run: that the layer is of.
    """
    if not run.weighted:
        return [Part(sums(rows, run.target))]
    return _by_bit(rows, run, lambda cells: sums(cells, run.target))


def _by_bit(rows: Sequence[Row], run: Run, summed: Callable[[Sequence[Row]], Sums[float]]) -> list[Part]:
    of_bits: dict[int, list[Row]] = {}
    for row in rows:
        if row.bit is not None:
            of_bits.setdefault(row.bit, []).append(row)
    width = run.width_of(rows[0].place)
    return rates.parts_by_bit(
        {bit: summed(cells) for bit, cells in of_bits.items()}, width, run.number_of(rows[0].place)
    )


def total(outcomes: Iterable[Outcomes]) -> Outcomes | None:
    """The sum, None of nothing."""
    whole: Outcomes | None = None
    for part in outcomes:
        whole = part if whole is None else whole + part
    return whole


def means_of(run: Run, parts: Mapping[Place, Sequence[Part]] | None = None) -> list[Mean]:
    """The mean rate of the network, and of each layer type, over the layers that have a rate.

    Args:
        run: that the layers are of.
        parts: what their rates are means of, for intervals; see :func:`parts_of`.
    """
    groups = [("network", "all", run.layers)]
    groups += [("type", name, tuple(row for row in run.layers if row.place.type == name)) for name in run.types]
    found = []
    for of, name, rows in groups:
        known = [row for row in rows if row.rate.value is not None]
        rate = Rate(statistics.fmean(row.rate.value or 0.0 for row in known) if known else None)
        if known and parts is not None:
            rate = replace(rates.mean([parts[row.place] for row in known], run.confidence), value=rate.value)
        found.append(Mean(of, name, rate))
    return found


def spread(values: Iterable[float | None]) -> tuple[float | None, float | None, float | None]:
    """Standard deviation (of a sample), smallest and largest of those that are there."""
    have = [value for value in values if value is not None]
    deviation = statistics.stdev(have) if len(have) > 1 else None
    return deviation, min(have, default=None), max(have, default=None)
