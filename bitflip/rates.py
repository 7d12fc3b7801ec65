"""Misclassification rates with their confidence intervals, from counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bitflip import intervals
from bitflip.counts import Counts, Tally
from bitflip.faults import Target
from bitflip.intervals import Interval, Sums
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
        estimate = LayerEstimate(item, tally, of_tally(tally, target, confidence), by_bit, weighted)
        if weighted and tally.correct:
            estimate = replace(estimate, rate=_mean(_strata(estimate, target), confidence))
        found.append(estimate)
    return found


def of_tally(tally: Tally, target: Target, confidence: float) -> Rate | None:
    """The rate of some faults that were drawn alike; None with no image that could be misclassified."""
    if tally.correct == 0:
        return None
    t = tally
    interval: Interval[float]
    if target == "neuron":
        interval = intervals.wilson(t.misclassified, t.correct, confidence)
    else:
        interval = intervals.clustered(t.flips, t.misclassified, t.correct, t.mm, t.mn, t.nn, confidence)
    return Rate(*(100.0 * value for value in (t.misclassified / t.correct, interval.low, interval.high)))


def means(estimates: Sequence[LayerEstimate], target: Target, confidence: float) -> dict[tuple[str, str], Rate]:
    """The mean rate of the whole network, ("network", "all"), and of each layer type, ("type", NAME).

    Each layer that has a rate counts the same.
    """
    parts: dict[tuple[str, str], list[Sums[float]]] = {}
    for found in estimates:
        if found.rate is not None:
            sums = _strata(found, target) if found.weighted else [_sums(found.tally)]
            for name in (("network", "all"), ("type", found.item.layer.type)):
                parts.setdefault(name, []).extend(sums)
    return {name: _mean(sums, confidence) for name, sums in parts.items()}


def _strata(estimate: LayerEstimate, target: Target) -> list[Sums[float]]:
    """The sums of each bit of a layer, also of those that were not flipped."""
    layer = estimate.item.layer
    width = layer.bits if target == "neuron" else layer.weight_bits
    return [_sums(estimate.by_bit[bit][0] if bit in estimate.by_bit else Tally()) for bit in range(width)]


def _sums(tally: Tally) -> Sums[float]:
    return Sums(tally.flips, tally.misclassified, tally.correct, tally.mm, tally.mn, tally.nn)


def _mean(parts: Sequence[Sums[float]], confidence: float) -> Rate:
    estimate = intervals.mean(parts, None, confidence)
    return Rate(100.0 * estimate.rate, 100.0 * estimate.low, 100.0 * estimate.high)
