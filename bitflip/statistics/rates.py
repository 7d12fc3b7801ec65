"""Misclassification rates with their confidence intervals: one way from sums to rates, for runs and reports alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitflip.statistics import intervals
from bitflip.statistics.intervals import Estimate, Interval, Sums

if TYPE_CHECKING:  # reports are made without torch, which takes seconds to import
    from bitflip.faults.flips import TargetKind
    from bitflip.network.layers import Target
    from bitflip.outcomes.counts import Counts, Totals


@dataclass(frozen=True)
class Rate:
    """A rate in percent, with the ends of its confidence interval; None with nothing to divide by, or where not known.

    >>> Rate().value is None
    True
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def of(sums: Sums[float], target: str, confidence: float) -> Rate:
    """The rate of some faults that were drawn alike."""
    s = sums
    if not s.n:
        return Rate()
    found: Interval[float]
    if target == "neuron":
        found = intervals.wilson(s.m, s.n, confidence)
    else:
        found = intervals.clustered(s.flips, s.m, s.n, s.mm, s.mn, s.nn, confidence)
    return Rate(100 * (s.m / s.n), 100 * found.low, 100 * found.high)


def mean(layers: Sequence[Sequence[Sums[float]]], confidence: float) -> Rate:
    """The mean rate of layers, each of which counts the same, whatever its size and however many of its bits were hit.

    Args:
        layers: the parts of each, of equal weight: one, or one per bit when bits were drawn unequally. One without
            images can have any rate, which makes the interval wider; the rate of the layer is that of the others.
        confidence: of the interval.
    """
    found = _mean(layers, confidence)
    if math.isnan(found.rate):
        return Rate()
    seen = _mean([known for parts in layers if (known := [part for part in parts if part.n])], confidence)
    return Rate(100 * seen.rate, 100 * found.low, 100 * found.high)


def _mean(layers: Sequence[Sequence[Sums[float]]], confidence: float) -> Estimate[float]:
    weights = [1 / len(parts) for parts in layers for _ in parts]
    return intervals.mean([part for parts in layers for part in parts], weights, confidence)


@dataclass(frozen=True)
class LayerEstimate:
    """What a campaign found out about one layer.

    Attributes:
        item: the layer.
        tally: counts over all its faults.
        rate: misclassification rate of a random fault.
        by_bit: the same for each bit that was flipped.
        parts: what the rate is the mean of, see :func:`mean`; if there are several, it is no longer
            misclassified / correct.
    """

    item: Target
    tally: Totals
    rate: Rate
    by_bit: dict[int, tuple[Totals, Rate]]
    parts: list[Sums[float]]

    @property
    def weighted(self) -> bool:
        """Whether bits were drawn unequally."""
        return len(self.parts) > 1


def of_layers(
    counts: Counts, target: TargetKind, confidence: float, seed: int | None, *, weighted: bool
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
        tally, bits = counts.layer(seed, place), counts.bits(seed, place)
        by_bit = {bit: (one, of(_sums(one), target, confidence)) for bit, one in bits.items()}
        parts = [_sums(tally)]
        if weighted and tally.correct:
            parts = [_sums(bits[bit]) if bit in bits else Sums.single(0.0, 0.0) for bit in range(item.bits)]
        rate = mean([parts], confidence) if len(parts) > 1 else of(parts[0], target, confidence)
        found.append(LayerEstimate(item, tally, rate, by_bit, parts))
    return found


def _sums(t: Totals) -> Sums[float]:
    return Sums(t.flips, t.misclassified, t.correct, t.mm, t.mn, t.nn)


def means(estimates: Sequence[LayerEstimate], confidence: float) -> dict[tuple[str, str], Rate]:
    """The mean rate of the whole network, ("network", "all"), and of each layer type, ("type", NAME)."""
    parts: dict[tuple[str, str], list[list[Sums[float]]]] = {}
    for found in estimates:
        if found.rate.value is not None:
            parts.setdefault(("network", "all"), []).append(found.parts)
            parts.setdefault(("type", found.item.layer.type), []).append(found.parts)
    return {name: mean(layers, confidence) for name, layers in parts.items()}
