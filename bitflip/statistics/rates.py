"""Misclassification rates with their confidence intervals: one way from sums to rates, for runs and reports alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from bitflip.faults.allocation import Number, number, strata
from bitflip.statistics import intervals
from bitflip.statistics.intervals import Estimate, Sums

if TYPE_CHECKING:  # reports are made without torch, which takes seconds to import
    from bitflip.faults.flips import TargetKind
    from bitflip.network.layers import Target
    from bitflip.outcomes.counts import Counts, Totals


@dataclass(frozen=True)
class Part:
    """Faults of a layer that were drawn alike.

    Attributes:
        sums: what intervals need.
        share: of all faults that there are in the layer, for which these stand.
    """

    sums: Sums[float]
    share: float = 1.0


def parts_by_bit(of_bits: Mapping[int, Sums[float]], bits: int, kind: Number) -> list[Part]:
    """The parts of a layer whose bits were drawn unequally.

    Args:
        of_bits: sums of each bit that was hit.
        bits: width of a value.
        kind: of the values.
    """
    return [
        Part(Sums.added([of_bits[bit] for bit in group if bit in of_bits]), share)
        for group, share in strata(bits, kind)
    ]


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
    return of_each([sums], target, confidence)[0]


def of_each(sums: Sequence[Sums[float]], target: str, confidence: float) -> list[Rate]:
    """The rate of each of several groups of faults that were drawn alike.

    Those of neurons are independent images, unless a list has faults that hit several each.
    """
    if not sums:
        return []
    flips, m, n, mm, mn, nn = (np.array([getattr(one, field.name) for one in sums]) for field in fields(Sums))
    single = (nn == n) & (target == "neuron")
    alone, together = intervals.wilson(m, n, confidence), intervals.clustered(flips, m, n, mm, mn, nn, confidence)
    low, high = np.where(single, alone.low, together.low), np.where(single, alone.high, together.high)
    return [
        Rate(100 * (s.m / s.n), 100 * float(low[i]), 100 * float(high[i])) if s.n else Rate()
        for i, s in enumerate(sums)
    ]


def of_parts(layers: Sequence[Sequence[Part]], target: str, confidence: float) -> list[Rate]:
    """The rate of each of several layers, or other groups of faults, given the parts of each."""
    single = iter(of_each([parts[0].sums for parts in layers if len(parts) == 1], target, confidence))
    return [next(single) if len(parts) == 1 else mean([parts], confidence) for parts in layers]


def of_due(parts: Sequence[Part], target: str, confidence: float) -> Rate:
    """The share of inferences in which the model raises an exception, whether the clean model is right or not.

    Args:
        parts: with sums of :func:`widest`: one, or several when bits were drawn unequally.
        target: of the faults.
        confidence: of the interval.
    """
    return of_parts([parts], target, confidence)[0]


def widest(flips: float, m: float, n: float) -> Sums[float]:
    """What intervals need when it is not known how m of n images spread over the flips.

    Each of several flips is taken to break all of its images or none, which makes the interval the widest.
    """
    each = n / flips if flips else 0.0
    return Sums(flips, m, n, m * (m if flips == 1 else each), m * each, n * each)


def mean(layers: Sequence[Sequence[Part]], confidence: float) -> Rate:
    """The mean rate of layers, each of which counts the same, whatever its size and however many of its bits were hit.

    Args:
        layers: the parts of each. One without images can have any rate, which makes the interval wider; the rate of the
            layer is that of the others.
        confidence: of the interval.
    """
    found = _mean(layers, confidence)
    if math.isnan(found.rate):
        return Rate()
    seen = _mean([known for parts in layers if (known := [part for part in parts if part.sums.n])], confidence)
    return Rate(100 * seen.rate, 100 * found.low, 100 * found.high)


def _mean(layers: Sequence[Sequence[Part]], confidence: float) -> Estimate[float]:
    return intervals.mean([part.sums for parts in layers for part in parts], weights(layers), confidence)


def weights(layers: Sequence[Sequence[Part]]) -> list[float]:
    """Of each part of each layer, so that layers count the same."""
    return [part.share / sum(other.share for other in parts) for parts in layers for part in parts]


@dataclass(frozen=True)
class LayerEstimate:
    """What a campaign found out about one layer.

    Attributes:
        item: the layer.
        tally: counts over all its faults.
        rate: misclassification rate of a random fault.
        by_bit: counts, rate and share of DUE for each bit that was flipped.
        due: share of the inferences in which the model raises an exception, see :func:`of_due`.
        parts: what the rate is the mean of, see :func:`mean`; if there are several, it is no longer
            misclassified / correct.
        due_parts: the same for the share of DUE.
    """

    item: Target
    tally: Totals
    rate: Rate
    by_bit: dict[int, tuple[Totals, Rate, Rate]]
    due: Rate
    parts: list[Part]
    due_parts: list[Part]

    @property
    def weighted(self) -> bool:
        """Whether bits were drawn unequally."""
        return len(self.parts) > 1


def of_layers(
    counts: Counts, target: TargetKind, confidence: float, seed: int | None, *, weighted: bool, by_bit: bool = True
) -> list[LayerEstimate]:
    """An estimate of each layer of a campaign.

    Args:
        counts: of the campaign.
        target: of its faults.
        confidence: of the intervals, 0 to 1.
        seed: the place of the seed that drew the faults; None for all seeds together.
        weighted: whether bits were drawn unequally.
        by_bit: whether the estimates of each bit are wanted.
    """
    tallies = [counts.layer(seed, place) for place in range(len(counts.items))]
    bits = [counts.bits(seed, place) for place in range(len(counts.items))]

    def parts(place: int, sums: Callable[[Totals], Sums[float]], *, seen: int) -> list[Part]:
        if not weighted or not seen:
            return [Part(sums(tallies[place]))]
        item = counts.items[place]
        return parts_by_bit({bit: sums(one) for bit, one in bits[place].items()}, item.bits, number(item.format))

    rated = [parts(place, _sums, seen=tally.correct) for place, tally in enumerate(tallies)]
    dues = [parts(place, _of_due, seen=tally.injections) for place, tally in enumerate(tallies)]
    # All at once: a call for each of them takes longer than many a round of faults.
    cells = [one for of_layer in bits for one in of_layer.values()] if by_bit else []
    of_cells = zip(
        cells,
        of_each([_sums(one) for one in cells], target, confidence),
        of_each([_of_due(one) for one in cells], target, confidence),
        strict=True,
    )
    bit_rates = [{bit: next(of_cells) for bit in of_layer} if by_bit else {} for of_layer in bits]
    rates, due_rates = (of_parts(layers, target, confidence) for layers in (rated, dues))
    return [
        LayerEstimate(item, tallies[i], rates[i], bit_rates[i], due_rates[i], rated[i], dues[i])
        for i, item in enumerate(counts.items)
    ]


def _sums(t: Totals) -> Sums[float]:
    return Sums(t.flips, t.misclassified, t.correct, t.mm, t.mn, t.nn)


def _of_due(t: Totals) -> Sums[float]:
    return widest(t.flips, t.due, t.injections)


def means(estimates: Sequence[LayerEstimate], confidence: float) -> dict[tuple[str, str], tuple[Rate, Rate]]:
    """The mean rate and share of DUE of the whole network, ("network", "all"), and each layer type, ("type", NAME)."""
    groups: dict[tuple[str, str], list[LayerEstimate]] = {}
    for found in estimates:
        if found.rate.value is not None:
            groups.setdefault(("network", "all"), []).append(found)
            groups.setdefault(("type", found.item.layer.type), []).append(found)
    return {
        name: (
            mean([found.parts for found in layers], confidence),
            mean([found.due_parts for found in layers], confidence),
        )
        for name, layers in groups.items()
    }
