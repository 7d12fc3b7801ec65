"""How many faults are enough, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

from bitflip.statistics import rates
from bitflip.statistics.intervals import CONFIDENCE, Estimate, Interval, Sums, z_value
from bitflip.statistics.rates import Part


def sample_size(population: int, margin: float, confidence: float = CONFIDENCE, p: float = 0.5) -> int:
    """The number of faults after which a rate is known to within ``margin`` on either side.

    Args:
        population: number of all faults that there are, such as elements x bits.
        margin: half the width of the confidence interval, as a fraction: 0.01 for one percentage point.
        confidence: of that interval.
        p: the rate, when it is known; 0.5 needs the most faults.

    Source: Leveugle, Calvez, Maistri and Vanhauwaert 2009, "Statistical fault injection: quantified error and
    confidence", DATE, equation 1.

    >>> sample_size(10**9, margin=0.01)
    9604
    """
    assert population >= 1
    assert margin > 0
    assert 0 < p < 1
    exact = population / (1 + margin**2 * (population - 1) / (z_value(confidence) ** 2 * p * (1 - p)))
    return min(population, math.ceil(exact))


def enough(interval: Interval[float] | Estimate[float], margin: float) -> bool:
    """Whether to stop: half the interval's width is at most ``margin``, a fraction.

    Ask after each whole pass over the test set, so that every image counts equally often. The interval that is reported
    then needs no correction for having looked several times: docs/statistics.md shows its coverage after stopping.
    """
    return interval.high - interval.low <= 2 * margin


def times(layers: Sequence[Sequence[Part]], target: str, confidence: float, margin: float) -> int | None:
    """How many times as many faults narrow every layer's interval to a margin, as far as rates are known.

    Few faults without a hit are no sign of a rate of 0: each rate is taken to be what it is with half a hit and half a
    miss more, which is its mean under the prior of Jeffreys.

    Args:
        layers: the parts of each layer that has faults, see :class:`bitflip.statistics.rates.Part`.
        target: ``neuron`` or ``weight``.
        confidence: of the intervals.
        margin: half the width that an interval may have, in percentage points.

    Returns:
        That number; None if a part has had no fault, so that nothing is known of it.

    Source of the prior: Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion", Statistical
    Science 16.

    >>> times([[Part(Sums.single(0.0, 30.0))]], "neuron", 0.95, 5.0)
    2
    """

    def narrow(factor: int) -> bool:
        found = rates.of_parts([[_scaled(part, factor) for part in parts] for parts in layers], target, confidence)
        return all(rate.interval is not None and rate.interval[1] - rate.interval[0] <= 2 * margin for rate in found)

    if not all(part.sums.n for parts in layers for part in parts):
        return None
    high = 1
    while not narrow(high):
        high *= 2
    low = high // 2  # is not enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if narrow(middle) else (middle, high)
    return high


def _scaled(part: Part, factor: int) -> Part:
    """So many times as many faults, at the rate that is expected."""
    sums, each = part.sums, part.sums.n / part.sums.flips
    prior = Sums(1.0, each / 2, each, each * each / 2, each * each / 2, each * each)
    share = factor * sums.flips / (sums.flips + 1)
    whole = Sums.added([sums, prior])
    return replace(part, sums=Sums(*(share * getattr(whole, field.name) for field in fields(Sums))))
