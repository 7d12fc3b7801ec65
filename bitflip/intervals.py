"""Confidence intervals of misclassification rates, of their means and of their differences.

All rates are fractions, 0..1. Numbers may be floats or arrays that broadcast; arrays give arrays. docs/statistics.md
says what each interval assumes, and ``python -m benchmarks.intervals`` measures how often each holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

Array = NDArray[np.float64]
T = TypeVar("T", float, NDArray[Any])

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval(Generic[T]):
    """A confidence interval; both ends belong to it."""

    low: T
    high: T


@dataclass(frozen=True)
class Estimate(Generic[T]):
    """A rate, or a difference of two, with its confidence interval."""

    rate: T
    low: T
    high: T


def z_value(confidence: float) -> float:
    """How many standard errors a two-sided interval reaches to each side: 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(m: T, n: T, confidence: float = CONFIDENCE) -> Interval[T]:
    """The score interval of a rate m / n of independent faults; [0, 1] where n is 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> interval = wilson(0, 1000)
    >>> f"{interval.low:.4f} {interval.high:.4f}"
    '0.0000 0.0038'
    """
    hits, size = _floats(m, n)
    z2 = z_value(confidence) ** 2
    rate = hits / np.maximum(size, 1)
    centre = (hits + z2 / 2) / (size + z2)
    half = np.sqrt(z2 * (size * rate * (1 - rate) + z2 / 4)) / (size + z2)
    return _interval(np.where(hits == 0, 0.0, centre - half), np.where(hits == size, 1.0, centre + half))


def clustered(flips: T, m: T, n: T, mm: T, mn: T, nn: T, confidence: float = CONFIDENCE) -> Interval[T]:
    """The interval of a rate m / n where each fault hits n_i images, of which it breaks m_i.

    Faults are independent, the images of one are not. Nothing is assumed about how the shares m_i / n_i spread in 0..1.

    Args:
        flips: number of faults.
        m, n: sums of m_i and n_i over the faults.
        mm, mn, nn: sums of m_i**2, m_i * n_i and n_i**2.
        confidence: of the interval.

    Returns:
        [0, 1] where n is 0.

    Source: Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
    variable", with a Beta distribution of the same mean and variance for that of the bound; equal to Clopper and
    Pearson 1934 where every fault breaks all images or none.
    """
    count, hits, size, hh, hs, ss = _floats(flips, m, n, mm, mn, nn)
    tail = (1 - confidence) / 2
    none = size == 0
    rate = np.where(none, 0.0, hits / np.where(none, 1.0, size))
    # Faults with few images weigh little: so many faults of equal weight are as good (Kish 1965).
    effective = np.where(none, 0.0, np.minimum(count, size**2 / np.where(none, 1.0, ss)))
    spread = np.where(none, 0.0, (hh - 2 * rate * hs + rate**2 * ss) / np.where(none, 1.0, ss))
    spread = np.clip(spread, 0.0, rate * (1 - rate))
    high = _bound(effective, rate, spread, 1 - tail)
    low = 1 - _bound(effective, 1 - rate, spread, 1 - tail)
    return _interval(np.where(hits == 0, 0.0, low), np.where(hits == size, 1.0, high))


def _bound(count: Array, mean: Array, variance: Array, level: float) -> Array:
    """Upper bound of a mean: a quantile of the randomly weighted mean of the shares and one further share of 1."""
    centre = (count * mean + 1) / (count + 1)
    spread = ((count * (variance + mean**2) + 1) / (count + 1) - centre**2) / (count + 2)
    certain = spread <= 0
    total = centre * (1 - centre) / np.where(certain, 1.0, spread) - 1
    bound: Array = betaincinv(np.maximum(centre * total, 1e-300), np.maximum((1 - centre) * total, 1e-300), level)
    return np.where(certain, centre, bound)


def mean(parts: Sequence[Estimate[T]], weights: Sequence[float] | None = None) -> Estimate[T]:
    """The weighted mean of the rates of independent parts, such as layers; the weights are equal unless given.

    Source: Zou, Huang and Zhang 2009, "A note on confidence interval estimation for a linear function of binomial
    proportions" (MOVER).

    Raises:
        ValueError: if there is no part.
    """
    if not parts:
        raise ValueError("expected at least one part")
    share = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = share / share.sum()
    rates, lows, highs = (
        np.stack([np.asarray(getattr(part, name), dtype=np.float64) for part in parts], axis=-1)
        for name in ("rate", "low", "high")
    )
    rate = (share * rates).sum(-1)
    low = rate - np.sqrt((share**2 * (rates - lows) ** 2).sum(-1))
    high = rate + np.sqrt((share**2 * (highs - rates) ** 2).sum(-1))
    return _estimate(rate, np.maximum(low, 0.0), np.minimum(high, 1.0))


def stratified(
    m: Sequence[T], n: Sequence[T], weights: Sequence[float] | None = None, confidence: float = CONFIDENCE
) -> Estimate[T]:
    """The rate of a layer from independent faults of which each bit, or other stratum, got its own number.

    Args:
        m, n: per stratum the misclassified and all images; a stratum without images counts as [0, 1] around 1 / 2.
        weights: share of each stratum in the population; equal for the bits of a value.
        confidence: of the interval.
    """
    parts = []
    for hits, size in zip(m, n, strict=True):
        interval = wilson(hits, size, confidence)
        (h, s) = _floats(hits, size)
        rate = _back(np.where(s == 0, 0.5, h / np.maximum(s, 1)))
        parts.append(Estimate(rate, interval.low, interval.high))
    return mean(parts, weights)


def difference(a: Estimate[T], b: Estimate[T]) -> Estimate[T]:
    """The rate of ``a`` less that of ``b``, which has other faults; source as for :func:`mean`."""
    rate, low, high = _floats(a.rate, a.low, a.high)
    rate_b, low_b, high_b = _floats(b.rate, b.low, b.high)
    less = rate - rate_b
    return _estimate(less, less - np.hypot(rate - low, high_b - rate_b), less + np.hypot(high - rate, rate_b - low_b))


def unpaired(m1: T, n1: T, m2: T, n2: T, confidence: float = CONFIDENCE) -> Estimate[T]:
    """The rate m1 / n1 less m2 / n2, of independent faults each.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    first, second = wilson(m1, n1, confidence), wilson(m2, n2, confidence)
    h1, s1, h2, s2 = _floats(m1, n1, m2, n2)
    rate1, rate2 = _back(h1 / np.maximum(s1, 1)), _back(h2 / np.maximum(s2, 1))
    return difference(Estimate(rate1, first.low, first.high), Estimate(rate2, second.low, second.high))


def paired(b: T, c: T, n: T, confidence: float = CONFIDENCE) -> Estimate[T]:
    """The rate of a first run less that of a second on the same n faults.

    Args:
        b: faults that were misclassified in the first run only.
        c: faults that were misclassified in the second run only.
        n: all faults.
        confidence: of the interval.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design".
    """
    first, second, size = _floats(b, c, n)
    z = z_value(confidence)
    rate = (first - second) / np.maximum(size, 1)
    low = -_tango(second, first, size, z)
    high = _tango(first, second, size, z)
    return _estimate(rate, np.where(size == 0, -1.0, low), np.where(size == 0, 1.0, high))


def _tango(first: Array, second: Array, size: Array, z: float) -> Array:
    """The largest difference that the score test does not reject, by bisection."""
    size = np.maximum(size, 1)
    below, above = (first - second) / size, np.ones_like(size)
    for _ in range(60):
        middle = (below + above) / 2
        b = (2 * size - first + second) * middle - first - second
        root = np.sqrt(np.maximum(b**2 + 8 * size * second * middle * (1 - middle), 0))
        second_only = (root - b) / (4 * size)
        variance = size * (2 * second_only + middle * (1 - middle))
        kept = size * middle - (first - second) <= z * np.sqrt(np.maximum(variance, 0))
        below, above = np.where(kept, middle, below), np.where(kept, above, middle)
    return above


def _floats(*values: Any) -> list[Array]:
    """The values as float64 arrays of one shape."""
    return list(np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values)))


def _back(values: Array) -> Any:
    """A float for an array without dimensions."""
    return float(values) if np.ndim(values) == 0 else values


def _interval(low: Array, high: Array) -> Interval[Any]:
    return Interval(_back(np.maximum(low, 0.0)), _back(np.minimum(high, 1.0)))


def _estimate(rate: Array, low: Array, high: Array) -> Estimate[Any]:
    return Estimate(_back(rate), _back(low), _back(high))
