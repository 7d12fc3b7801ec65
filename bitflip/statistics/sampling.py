"""How many faults are enough, and when to stop."""

from __future__ import annotations

import math

from bitflip.statistics.intervals import CONFIDENCE, Estimate, Interval, z_value


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
