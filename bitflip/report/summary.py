"""What rows add up to: intervals, means over layer types, rates by bit, the spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitflip import intervals
from bitflip.intervals import Estimate
from bitflip.report.runs import Mean, Outcomes, Rate, Row, Run


@dataclass(frozen=True)
class Bit:
    """One bit position over all layers; see :class:`bitflip.report.runs.Row`."""

    bit: int
    misclassified: int
    correct: int
    rate: Rate
    outcomes: Outcomes | None


def by_bit(run: Run) -> list[Bit]:
    """The rate of all images whose flip hit a bit, for each bit that was hit, with all layers together."""
    found = []
    for bit in sorted({row.bit for row in run.bits if row.bit is not None}):
        rows = [row for row in run.bits if row.bit == bit]
        wrong, correct = sum(row.misclassified for row in rows), sum(row.correct for row in rows)
        rate = Rate(None)
        if correct:
            rate = Rate(100 * wrong / correct, *interval(rows, run.target, run.confidence))
        found.append(Bit(bit, wrong, correct, rate, total(row.outcomes for row in rows if row.outcomes)))
    return found


def means(run: Run) -> list[Mean]:
    """The means that the run wrote, or those of its layers."""
    return list(run.means) or means_of(run)


def interval(rows: Sequence[Row], target: str, confidence: float) -> tuple[float, float]:
    """The interval, in percent, of the rate of all images of some rows."""
    wrong, correct = sum(row.misclassified for row in rows), sum(row.correct for row in rows)
    if target == "neuron":
        found = intervals.wilson(float(wrong), float(correct), confidence)
        return 100 * found.low, 100 * found.high
    flips = mm = mn = nn = 0.0
    for row in rows:
        count = row.outcomes.flips if row.outcomes else 1  # without a count, a run's flips are taken as one
        if count == 0:
            continue
        flips += count
        # Where the flips of a row are not known apart, each breaks all of its images or none: the widest interval.
        mm += row.misclassified**2 if count == 1 else row.misclassified * row.correct / count
        mn += row.misclassified * row.correct / count
        nn += row.correct**2 / count
    found = intervals.clustered(flips, float(wrong), float(correct), mm, mn, nn, confidence)
    return 100 * found.low, 100 * found.high


def weighted(rows: Sequence[Row], run: Run) -> Rate:
    """The rate of a random bit of a layer whose bits were not drawn alike, from its rows by bit.

    Nothing is known about a bit that was not flipped, so its rate is 50 % +- 50 %.
    """
    parts = []
    for bit in range(run.width_of(rows[0].place)):
        of_bit = [row for row in rows if row.bit == bit]
        correct = sum(row.correct for row in of_bit)
        low, high = interval(of_bit, run.target, run.confidence) if correct else (0.0, 100.0)
        share = sum(row.misclassified for row in of_bit) / correct if correct else 0.5
        parts.append(Estimate(share, low / 100, high / 100))
    mean = intervals.mean(parts)
    return Rate(100 * mean.rate, 100 * mean.low, 100 * mean.high)


def total(outcomes: Iterable[Outcomes]) -> Outcomes | None:
    """The sum, None of nothing."""
    whole: Outcomes | None = None
    for part in outcomes:
        whole = part if whole is None else whole + part
    return whole


def means_of(run: Run) -> list[Mean]:
    """The mean rate of each layer type and of the network, over the layers that have a rate."""
    groups = [("network", "all", run.layers)]
    groups += [("type", name, tuple(row for row in run.layers if row.place.type == name)) for name in run.types]
    means = []
    for of, name, rows in groups:
        rates = [row.rate for row in rows if row.rate.value is not None]
        if not rates:
            means.append(Mean(of, name, Rate(None)))
            continue
        parts = [
            Estimate(r.value / 100, r.low / 100, r.high / 100)
            for r in rates
            if r.value is not None and r.low is not None and r.high is not None
        ]
        if len(parts) == len(rates):
            mean = intervals.mean(parts)
            means.append(Mean(of, name, Rate(100 * mean.rate, 100 * mean.low, 100 * mean.high)))
        else:
            means.append(Mean(of, name, Rate(statistics.fmean(r.value for r in rates if r.value is not None))))
    return means


def spread(values: Iterable[float | None]) -> tuple[float | None, float | None, float | None]:
    """Standard deviation (of a sample), smallest and largest of those that are there."""
    have = [value for value in values if value is not None]
    deviation = statistics.stdev(have) if len(have) > 1 else None
    return deviation, min(have, default=None), max(have, default=None)
