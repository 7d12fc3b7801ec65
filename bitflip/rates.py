"""Misclassification rates with their confidence intervals, from counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitflip import intervals
from bitflip.counts import Counts, Tally
from bitflip.faults import Target
from bitflip.intervals import Estimate, Interval
from bitflip.layers import Numbered


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
        weighted: whether bits were drawn unequally, so that the rate is no longer misclassified / correct.
    """

    item: Numbered
    tally: Tally
    rate: Rate | None
    by_bit: dict[int, tuple[Tally, Rate | None]]
    weighted: bool


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
        if weighted and rate is not None:
            width = item.layer.bits if target == "neuron" else item.layer.weight_bits
            rate = _weighted([by_bit[bit][1] if bit in by_bit else None for bit in range(width)])
        found.append(LayerEstimate(item, tally, rate, by_bit, weighted))
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


def mean(rates: Sequence[Rate]) -> Rate:
    """The mean of the rates of several layers, each of which counts the same."""
    return _percent(intervals.mean([_fraction(rate) for rate in rates]))


def means(estimates: Sequence[LayerEstimate]) -> dict[tuple[str, str], Rate]:
    """The mean rate of the whole network, ("network", "all"), and of each layer type, ("type", NAME)."""
    rates: dict[tuple[str, str], list[Rate]] = {}
    for found in estimates:
        if found.rate is not None:
            rates.setdefault(("network", "all"), []).append(found.rate)
            rates.setdefault(("type", found.item.layer.type), []).append(found.rate)
    return {name: mean(values) for name, values in rates.items()}


def _weighted(by_bit: Sequence[Rate | None]) -> Rate:
    """The rate of a random bit; nothing is known about a bit that was not flipped, so its rate is 50 % +- 50 %."""
    return mean([rate or Rate(50.0, 0.0, 100.0) for rate in by_bit])


def _fraction(rate: Rate) -> Estimate[float]:
    return Estimate(rate.value / 100.0, rate.low / 100.0, rate.high / 100.0)


def _percent(estimate: Estimate[float]) -> Rate:
    return Rate(100.0 * estimate.rate, 100.0 * estimate.low, 100.0 * estimate.high)
