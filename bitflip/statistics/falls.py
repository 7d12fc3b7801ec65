"""Accuracy against the bit error rate: intervals, and where it has fallen by so much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bitflip.statistics import rates
from bitflip.statistics.intervals import Sums
from bitflip.statistics.rates import Rate

if TYPE_CHECKING:  # reports are made without torch, which takes seconds to import
    from bitflip.network.layers import Target

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """What a bit error rate does.

    Attributes:
        scope: where bits flip: the layer or parameter; None for all that were chosen.
        rate: probability that a bit flips.
        flips: bits that flipped on average: in the network (of ``weight``), or for one image (of ``neuron``).
        patterns: that were drawn.
        images: inferences under faults.
        due: of them, those in which the model raised an exception.
        sdc1: of them, those that get another class than without faults.
        nonfinite: of them, those with a logit that is not finite.
        accuracy: of the network with the faults, in percent.
        clean_correct, misclassified: images that the clean model classifies correctly, and those of them that get
            another class under the faults.
        misclassification: their share in percent.
    """

    scope: Target | None
    rate: float
    flips: float
    patterns: int
    images: int
    due: int
    sdc1: int
    nonfinite: int
    accuracy: Rate
    clean_correct: int
    misclassified: int
    misclassification: Rate


def share(m: Ints, n: Ints, target: str, confidence: float) -> Rate:
    """The share m / n over some patterns, in percent.

    Args:
        m, n: of each pattern, (patterns,).
        target: of the faults: all images of a pattern share the faults of ``weight``; those of ``neuron`` are each
            image's own, so that images are independent.
        confidence: of the interval.
    """
    if target == "neuron":
        return rates.of(Sums.single(float(m.sum()), float(n.sum())), target, confidence)
    mm, mn, nn = (float(one.sum()) for one in (m * m, m * n, n * n))
    used = int((n > 0).sum())
    return rates.of(Sums(used, float(m.sum()), float(n.sum()), mm, mn, nn), target, confidence)


def complement(rate: Rate) -> Rate:
    """The share of all others."""
    low, high = (None if end is None else 100 - end for end in (rate.high, rate.low))
    return Rate(None if rate.value is None else 100 - rate.value, low, high)


def falls(at: Sequence[float], accuracy: Sequence[float], clean: float, points: float) -> float | None:
    """The bit error rate at which accuracy is so many points below that of the clean model, on the line between two
    neighbouring rates, on a logarithmic axis.

    Args:
        at: bit error rates, ascending.
        accuracy: at each, in percent.
        clean: accuracy without a fault.
        points: of a fall.

    Returns:
        None if it has not fallen so far at the highest rate; the lowest rate if it has at that.

    >>> falls([1e-6, 1e-4], [100.0, 90.0], 100.0, 5.0)
    1e-05
    """
    below = [value <= clean - points for value in accuracy]
    if True not in below:
        return None
    place = below.index(True)
    if place == 0:
        return at[0]
    before, after = accuracy[place - 1], accuracy[place]
    part = (before - (clean - points)) / (before - after)
    found = math.log10(at[place - 1]) + part * (math.log10(at[place]) - math.log10(at[place - 1]))
    return float(f"{10**found:.6g}")
