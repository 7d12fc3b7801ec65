"""Misclassification rates with their confidence intervals, from counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitflip.faults.flips import Target
from bitflip.network.layers import Numbered
from bitflip.outcomes.counts import Counts, Tally
from bitflip.statistics import intervals
from bitflip.statistics.intervals import Estimate, Interval, Sums


@dataclass(frozen=True)
class Rate:
    """A rate in percent, with the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LayerEstimate:
    """What a campaign found out about one layer.

    Attributes:
        item: the layer.
        tally: counts over all its faults.
        rate: misclassification rate of a random fault; None with no image that could be misclassified.
        by_bit: the same for each bit that was flipped.
        parts: the tallies that make up the rate, each with its weight: one, or one per bit when bits were drawn
            unequally, so that the rate is no longer misclassified / correct.
    """

    item: Numbered
    tally: Tally
    rate: Rate | None
    by_bit: dict[int, tuple[Tally, Rate | None]]
    parts: list[tuple[Tally, float]]

    @property
    def weighted(self) -> bool:
        """Whether bits were drawn unequally."""
        return len(self.parts) > 1


def of_layers(
    counts: Counts, target: Target, confidence: float, seed: int | None, *, weighted: bool
) -> list[LayerEstimate]:
    """An estimate of each layer of a campaign.

    Args:
        counts: of the campaign.
        target: of its faults.
        confidence: of the intervals, 0 to 1.
        seed: the place of the seed that drew the faults; None for all seeds together.
        weighted: whether bits were drawn unequally.
    """
    found = []
    for place, item in enumerate(counts.items):
        tally = counts.layer(seed, place)
        by_bit = {bit: (one, of_tally(one, target, confidence)) for bit, one in counts.bits(seed, place).items()}
        rate = of_tally(tally, target, confidence)
        parts = [(tally, 1.0)]
        if weighted and rate is not None:
            parts = [(by_bit[bit][0] if bit in by_bit else Tally(), 1 / item.bits) for bit in range(item.bits)]
            rate = mean(parts, confidence)
        found.append(LayerEstimate(item, tally, rate, by_bit, parts))
    return found


def of_tally(tally: Tally, target: Target, confidence: float) -> Rate | None:
    """The rate of some faults that were drawn alike; None with no image that could be misclassified."""
    if tally.correct == 0:
        return None
    interval: Interval[float]
    if target == "neuron":
        interval = intervals.wilson(tally.misclassified, tally.correct, confidence)
    else:
        t = tally
        interval = intervals.clustered(t.flips, t.misclassified, t.correct, t.mm, t.mn, t.nn, confidence)
    value = tally.misclassified / tally.correct
    return _percent(Estimate(value, interval.low, interval.high))


def mean(parts: Sequence[tuple[Tally, float]], confidence: float) -> Rate:
    """The weighted mean of the rates of tallies; one that is empty can have any rate."""
    sums = [Sums(t.flips, t.misclassified, t.correct, t.mm, t.mn, t.nn) for t, _ in parts]
    return _percent(intervals.mean(sums, [weight for _, weight in parts], confidence))


def means(estimates: Sequence[LayerEstimate], confidence: float) -> dict[tuple[str, str], Rate]:
    """The mean rate of the whole network, ("network", "all"), and of each layer type, ("type", NAME).

    Each layer counts the same, whatever its size.
    """
    parts: dict[tuple[str, str], list[tuple[Tally, float]]] = {}
    for found in estimates:
        if found.rate is not None:
            parts.setdefault(("network", "all"), []).extend(found.parts)
            parts.setdefault(("type", found.item.layer.type), []).extend(found.parts)
    return {name: mean(tallies, confidence) for name, tallies in parts.items()}


def _percent(estimate: Estimate[float]) -> Rate:
    return Rate(100.0 * estimate.rate, 100.0 * estimate.low, 100.0 * estimate.high)
