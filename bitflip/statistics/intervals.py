"""Confidence intervals of misclassification rates, of their means and of their differences.

All rates are fractions, 0..1. Counts may be numbers or arrays of one shape; arrays give arrays. docs/statistics.md says
what each interval assumes, and ``python -m benchmarks.intervals`` measures how often each holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    """A rate, or a difference of two, with its confidence interval; the rate is NaN where nothing was counted."""

    rate: T
    low: T
    high: T


@dataclass(frozen=True)
class Sums(Generic[T]):
    """What is summed over the faults of a part of a campaign: fault i hits n_i images, of which it breaks m_i.

    Attributes:
        flips: number of faults.
        m, n: sums of m_i and n_i.
        mm, mn, nn: sums of m_i**2, m_i * n_i and n_i**2.
    """

    flips: T
    m: T
    n: T
    mm: T
    mn: T
    nn: T

    @classmethod
    def single(cls, m: T, n: T) -> Sums[T]:
        """Those of n faults that hit one image each, of which m break it."""
        return cls(n, m, n, m, m, n)

    @classmethod
    def added(cls, parts: Sequence[Sums[float]]) -> Sums[float]:
        """Those of all faults of some parts; zeros of none."""
        return Sums(*(float(sum(getattr(part, name.name) for part in parts)) for name in fields(cls)))


def z_value(confidence: float) -> float:
    """How many standard errors a two-sided interval reaches to each side: 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


FEW = 3  # so many hits, or fewer, get an exact limit in `wilson`


def wilson(m: T, n: T, confidence: float = CONFIDENCE) -> Interval[T]:
    """The score interval of a rate m / n of independent faults that hit one image each; [0, 1] where n is 0.

    The plain score interval of a rate near 0 holds as rarely as 84 times in 100, since one hit lifts its lower end too
    far. So with up to three hits that end is the exact one-sided limit where it is lower; the same at the other end.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", with the modification
    of Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion", section 4.1.1.

    >>> interval = wilson(0, 1000)
    >>> f"{interval.low:.4f} {interval.high:.4f}"
    '0.0000 0.0038'
    """
    hits, size = _floats(m, n)
    z2 = z_value(confidence) ** 2
    rate = hits / np.maximum(size, 1)
    centre = (hits + z2 / 2) / (size + z2)
    half = np.sqrt(z2 * (size * rate * (1 - rate) + z2 / 4)) / (size + z2)
    low = np.minimum(centre - half, _few(hits, size, confidence))
    high = np.maximum(centre + half, 1 - _few(size - hits, size, confidence))
    return _interval(np.where(hits == 0, 0.0, low), np.where(hits == size, 1.0, high))


def _few(hits: Array, size: Array, confidence: float) -> Array:
    """The exact one-sided lower limit of a rate with few hits, else 1."""
    few = (hits >= 1) & (hits <= FEW)
    some = np.where(few, hits, 1.0)
    return np.where(few, betaincinv(some, np.where(few, size - some + 1, 1.0), 1 - confidence), 1.0)


def clustered(flips: T, m: T, n: T, mm: T, mn: T, nn: T, confidence: float = CONFIDENCE) -> Interval[T]:
    """The interval of a rate m / n where each fault hits many images: :func:`mean` of one part.

    The arguments are those of :class:`Sums`. It is as wide as a few faults deserve: [0, 0.71] after three that broke
    nothing, however many images they hit.

    >>> interval = clustered(3, 0, 768, 0, 0, 3 * 256**2)
    >>> f"{interval.low:.2f} {interval.high:.2f}"
    '0.00 0.71'
    """
    whole = mean([Sums(flips, m, n, mm, mn, nn)], confidence=confidence)
    return Interval(whole.low, whole.high)


def mean(
    parts: Sequence[Sums[T]], weights: Sequence[float] | Sequence[T] | None = None, confidence: float = CONFIDENCE
) -> Estimate[T]:
    """The weighted mean of the rates of independent parts, such as layers, or the bits of one.

    Faults are independent, the images of one are not, and nothing is assumed about how the shares m_i / n_i spread over
    0..1. The bound for a single part is Gaffke's: a quantile of the shares' mean under random weights (uniform on the
    simplex), one share of 1 added to those seen for the upper bound, one of 0 for the lower. Its distribution is
    replaced by the Beta distribution of the same mean and variance, which the sums give. Where each fault breaks all of
    its images or none, that is exact, and the interval is that of Clopper and Pearson 1934. With several parts
    the share is added to the part in which it does the most, and the parts' variances add up.

    Args:
        parts: at least one.
        weights: of the parts; equal unless given. A part without images counts as a rate of anything from 0 to 1, with
            a weight of 0 as nothing.
        confidence: of the interval.

    Raises:
        ValueError: if there is no part.

    Source: Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
    variable"; Learned-Miller and Thomas 2019, "A new confidence interval for the mean of a bounded random variable".
    """
    if not parts:
        raise ValueError("expected at least one part")
    names = ("flips", "m", "n", "mm", "mn", "nn")
    flips, m, n, mm, mn, nn = (np.stack(_floats(*(getattr(part, name) for part in parts)), axis=-1) for name in names)
    share = np.ones(len(parts)) if weights is None else np.stack(_floats(*weights), axis=-1)
    seen = n > 0
    share = np.where(seen, share / share.sum(-1, keepdims=True), 0.0)
    known = np.minimum(share.sum(-1), 1.0)
    share = share / np.where(known > 0, known, 1.0)[..., None]
    rates = m / np.where(seen, n, 1.0)
    # Faults with few images weigh less: so many of equal weight are as good (Kish 1965, "Survey sampling").
    count = np.where(seen, np.clip(n**2 / np.where(seen, nn, 1.0), 1.0, np.maximum(flips, 1.0)), 1.0)
    spread = np.clip((mm - 2 * rates * mn + rates**2 * nn) / np.where(seen, nn, 1.0), 0.0, rates * (1 - rates))
    tail = (1 - confidence) / 2
    rate = (share * rates).sum(-1)
    high = _upper(share, rates, spread, count, 1 - tail)
    low = 1 - _upper(share, 1 - rates, spread, count, 1 - tail)
    low = known * np.clip(np.where((m == 0).all(-1), 0.0, low), 0.0, 1.0)
    high = 1 - known * np.clip(1 - np.where((m == n).all(-1), 1.0, high), 0.0, 1.0)
    return _estimate(np.where(known > 0, rate, np.nan), low, high)


def _upper(share: Array, rates: Array, spread: Array, count: Array, level: float) -> Array:
    """The upper bound of :func:`mean`; all arrays are (..., parts), the result (...)."""
    lift = share * (1 - rates) / (count + 1)  # of the mean, if the share of 1 is added to this part
    worst = lift.argmax(-1)[..., None]
    # The variance of a part's mean as in a survey; where there is but one fault, the largest that it can have.
    usual = np.where(count > 1.5, spread / np.maximum(count - 1, 0.5), rates * (1 - rates))
    lifted = (count * spread + count * (1 - rates) ** 2 / (count + 1)) / ((count + 1) * (count + 2))
    variances = share**2 * np.where(np.arange(share.shape[-1]) == worst, lifted, usual)
    centre = (share * rates).sum(-1) + np.take_along_axis(lift, worst, -1)[..., 0]
    variance = variances.sum(-1)
    certain = variance <= 0
    total = np.maximum(centre * (1 - centre) / np.where(certain, 1.0, variance) - 1, 1e-9)
    tiny = np.finfo(np.float64).tiny
    bound = betaincinv(np.maximum(centre * total, tiny), np.maximum((1 - centre) * total, tiny), level)
    upper: Array = np.where(certain, centre, bound)
    return upper


def stratified(
    m: Sequence[T], n: Sequence[T], weights: Sequence[float] | None = None, confidence: float = CONFIDENCE
) -> Estimate[T]:
    """The rate of a layer whose bits, or other strata, got faults in other shares than they have in the layer.

    Args:
        m, n: misclassified and all images per stratum, of faults that hit one image each; for those that hit a batch,
            call :func:`mean` with the sums of each stratum.
        weights: share of each stratum in the layer; equal, as for the bits of a value, unless given.
        confidence: of the interval.
    """
    return mean([Sums.single(hits, size) for hits, size in zip(m, n, strict=True)], weights, confidence)


def difference(a: Estimate[T], b: Estimate[T]) -> Estimate[T]:
    """The rate of ``a`` less that of ``b``, which has other faults.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures: a general approach" (MOVER).
    """
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
    a = Estimate(h1 / np.maximum(s1, 1), *_floats(first.low, first.high))
    b = Estimate(h2 / np.maximum(s2, 1), *_floats(second.low, second.high))
    less = difference(a, b)
    return _difference(less.rate, less.low, less.high, (s1 > 0) & (s2 > 0))


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
    low, high = -_tango(second, first, size, z), _tango(first, second, size, z)
    return _difference(rate, low, high, size > 0)


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


def _difference(rate: Array, low: Array, high: Array, known: NDArray[np.bool_]) -> Estimate[Any]:
    """The estimate of a difference; anything from -1 to 1 where nothing is known."""
    return _estimate(np.where(known, rate, np.nan), np.where(known, low, -1.0), np.where(known, high, 1.0))


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
