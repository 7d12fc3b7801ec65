"""Faults: which element and which bit flips, as a pure function of seed, layer and image (or batch).

Random numbers are counter-based (Philox 4x64, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
the key holds the seed and the layer's position, the counter the image's index in the test set. So a fault depends on
neither the batch size, the device, the choice of layers, nor on where a run was split or resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitflip.layers import Layer

Target = Literal["neuron", "weight"]
_TARGET_WORD: dict[str, int] = {"neuron": 0, "weight": 1}


@dataclass(frozen=True)
class Flips:
    """Single-bit flips in one layer.

    For neurons there is one flip per image of a batch: image i gets bit ``bit[i]`` of element ``element[i]`` of its
    own output flipped. For weights there is one flip: ``element`` and ``bit`` have length 1.

    Attributes:
        layer: where.
        element: flat index into one image's output, or into the weight; int64, shape (N,).
        bit: counted from the most significant bit; int64, shape (N,).
    """

    layer: Layer
    element: NDArray[np.int64]
    bit: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.element)

    def coordinates(self, i: int, target: Target) -> tuple[int, ...]:
        """Index of element ``i`` along each dimension of one image's output, or of the weight."""
        shape = self.layer.shape if target == "neuron" else self.layer.weight_shape
        assert shape is not None
        return tuple(int(c) for c in np.unravel_index(int(self.element[i]), shape)) if shape else ()


def neurons(seed: int, layer: Layer, first: int, count: int, bit: int | None = None, repeat: int = 0) -> Flips:
    """One flip for each of ``count`` images, the first of which is image ``first`` of the test set.

    Args:
        seed: of the run, not negative.
        layer: where to flip.
        first: index in the test set of the first image.
        count: number of images.
        bit: the bit to flip, or None for a random one per fault.
        repeat: number of the flip, when an image gets several in this layer.
    """
    return _sample(seed, layer, "neuron", repeat, first, count, math.prod(layer.shape), layer.bits, bit)


def weight(seed: int, layer: Layer, batch: int, bit: int | None = None, repeat: int = 0) -> Flips:
    """The flip of batch number ``batch`` in the weight of ``layer``, which must have one."""
    assert layer.weight_shape is not None
    return _sample(seed, layer, "weight", repeat, batch, 1, math.prod(layer.weight_shape), layer.weight_bits, bit)


def _sample(
    seed: int,
    layer: Layer,
    target: Target,
    repeat: int,
    first: int,
    count: int,
    elements: int,
    bits: int,
    bit: int | None,
) -> Flips:
    # One counter value yields one block of four 64-bit words; block i belongs to image first + i and nothing else.
    philox = np.random.Philox(
        key=np.array([seed, layer.position], dtype=np.uint64),
        counter=np.array([first, _TARGET_WORD[target], repeat, 0], dtype=np.uint64),
    )
    words = philox.random_raw(4 * count).reshape(count, 4)
    chosen = _below(words[:, 1], bits) if bit is None else np.full(count, bit, dtype=np.int64)
    return Flips(layer, _below(words[:, 0], elements), chosen)


def _below(words: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Whole numbers in [0, n), uniform to within n / 2**53, from 64-bit words."""
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.minimum((uniform * n).astype(np.int64), n - 1)  # the product of the largest two can round up to n
