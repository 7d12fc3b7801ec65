"""How many faults are enough, when to stop, and which bits to take them from."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitflip.statistics.intervals import CONFIDENCE, Estimate, Interval, z_value

Number = Literal["float", "integer"]

TOP_SHARE = 1 / 3  # of the faults for the bit that matters most; docs/statistics.md says why


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


def allocation(bits: int, kind: Number = "float") -> NDArray[np.float64]:
    """The share of a layer's faults that each bit gets when the bits that matter get more of them, (bits,).

    A third goes to the bit that nearly all critical faults come from: the top bit of the exponent, or the sign of a
    whole number. The others share the rest equally, so that none is left out.
    :func:`bitflip.statistics.intervals.stratified` makes up for it.

    Args:
        bits: width of a value; bit 0 is the most significant.
        kind: of the value.
    """
    shares = np.full(bits, (1 - TOP_SHARE) / max(bits - 1, 1))
    shares[1 if kind == "float" and bits > 1 else 0] = TOP_SHARE if bits > 1 else 1.0
    return shares
