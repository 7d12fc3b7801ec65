"""Bit error rates: patterns of bits of which each flips with the same probability.

A bit flips at a rate p if something happens to it before the time -ln(1 - p), where what happens to each bit is a
Poisson process of rate 1. What happens to any of M bits is one such process of rate M, whose gaps are exponential and
whose bits are uniform, so a pattern takes random numbers for the bits that flip and for no other (Devroye 1986,
"Non-uniform random variate generation", ch. X.4). The probability is exactly p for each bit, independently of the
others, but for the rounding of random numbers to 53 bits; and patterns are nested: a bit that flips at a rate flips at
every higher one.

The process of a layer's output is a pure function of seed, layer, image and pattern, that of a parameter of seed,
layer, parameter and pattern, by the same counter-based generator as single faults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitflip.faults import kinds
from bitflip.faults.flips import Flips, parameter_word, uniform
from bitflip.network.layers import Target

_NEURON, _PARAMETER = 2, 3  # words of the counter; those of single faults are 0 and 1


@dataclass(frozen=True)
class Hits:
    """What happens to the bits of a target, in order of time.

    Attributes:
        target: whose bits.
        seed: that drew it.
        image: of the batch, of each hit, (K,); of a parameter, 0.
        element: flat index into one image's output, or into the parameter, (K,).
        bit: from the most significant one, (K,).
        time: (K,).
    """

    target: Target
    seed: int
    image: NDArray[np.int64]
    element: NDArray[np.int64]
    bit: NDArray[np.int64]
    time: NDArray[np.float64]

    def at(self, rate: float) -> Hits:
        """What happens up to a bit error rate; of a bit to which something happens twice, the first."""
        chosen = np.flatnonzero(self.time < until(rate))
        keys = np.stack([self.image[chosen], self.element[chosen], self.bit[chosen]])
        _, first = np.unique(keys, axis=1, return_index=True)
        kept = np.sort(chosen[first])
        return replace(self, **{name: getattr(self, name)[kept] for name in ("image", "element", "bit", "time")})

    def __len__(self) -> int:
        return len(self.time)

    def flips(self) -> Flips:
        """The same as faults that are there at the same time: all bits of a value in one."""
        keys, place = np.unique(np.stack([self.image, self.element]), axis=1, return_inverse=True)
        mask = np.zeros(keys.shape[1], dtype=np.uint64)
        width = self.target.bits
        np.bitwise_or.at(mask, place.ravel(), np.uint64(1) << (width - 1 - self.bit).astype(np.uint64))
        change = kinds.masks(np.full_like(mask, 2**64 - 1), mask, width)
        rows = None if self.target.parameter else keys[0]
        none = np.zeros(len(mask), dtype=np.int64)
        return Flips(self.target.layer, keys[1], none, self.target.parameter, self.seed, rows, change)


def until(rate: float) -> float:
    """The time before which something happens to a bit with a probability."""
    return -math.log1p(-rate)


def of_outputs(seed: int, target: Target, first: int, count: int, repeat: int, rate: float) -> Hits:
    """The hits of a layer's outputs, of each image its own, up to a rate.

    Args:
        seed: of the run.
        target: the layer.
        first: index in the test set of the first image.
        count: images.
        repeat: number of the pattern.
        rate: highest bit error rate.
    """
    drawn = [_drawn(seed, target, (_NEURON, repeat, first + i), rate) for i in range(count)]
    image = np.repeat(np.arange(count), [len(times) for _, times in drawn])
    return _hits(target, seed, image, drawn)


def of_parameter(seed: int, target: Target, repeat: int, rate: float) -> Hits:
    """The hits of a parameter, up to a rate; see :func:`of_outputs`."""
    drawn = [_drawn(seed, target, (_PARAMETER, repeat, parameter_word(target.parameter)), rate)]
    return _hits(target, seed, np.zeros(len(drawn[0][1]), dtype=np.int64), drawn)


Drawn = tuple[NDArray[np.int64], NDArray[np.float64]]  # place of each bit among all, and its time


def _drawn(seed: int, target: Target, counter: tuple[int, int, int], rate: float) -> Drawn:
    size, last = math.prod(target.shape) * target.bits, until(rate)
    philox = np.random.Philox(
        key=np.array([seed, target.layer.position], dtype=np.uint64),
        counter=np.array([0, *counter], dtype=np.uint64),
    )
    expected = size * last
    places, times, now = [], [], 0.0
    while now < last:
        more = int(expected + 4 * math.sqrt(expected) + 4)
        numbers = uniform(philox.random_raw(2 * more)).reshape(more, 2)
        when = now + np.cumsum(-np.log1p(-numbers[:, 0])) / size
        times.append(when)
        places.append(np.minimum((numbers[:, 1] * size).astype(np.int64), size - 1))
        now = float(when[-1])
        expected = size * max(last - now, 0.0)
    found = np.concatenate(times)
    kept = found < last
    return np.concatenate(places)[kept], found[kept]


def _hits(target: Target, seed: int, image: NDArray[np.int64], drawn: Sequence[Drawn]) -> Hits:
    places = np.concatenate([place for place, _ in drawn])
    times = np.concatenate([time for _, time in drawn])
    return Hits(target, seed, image, places // target.bits, places % target.bits, times)
