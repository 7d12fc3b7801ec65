"""Faults: which element is struck and which of its bits, as a pure function of seed, layer and image (or batch).

Random numbers are counter-based (Philox 4x64, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
the key holds the seed and the layer's position, the counter the image's index in the test set (or the batch's number),
the target, the repeat, and a word for the parameter tensor: 0 for neurons and for ``weight``, 2**32 + the CRC-32 of its
name for any other. So a fault depends on neither the batch size, the device, the choice of layers and parameters, nor
on where a run was split or resumed.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitflip.faults import kinds
from bitflip.faults.kinds import Change, Kind, Pick
from bitflip.network.layers import Layer, Parameter

TargetKind = Literal["neuron", "weight"]
BitShares = tuple[float, ...]  # of each bit among the flips, by bit from the most significant; sums to 1
_TARGET_WORD: dict[str, int] = {"neuron": 0, "weight": 1}


@dataclass(frozen=True)
class Flips:
    """Faults in one layer: of neurons, or of a parameter. Unless ``change`` says otherwise, each flips a bit.

    For neurons there is one flip per image of a batch: image ``images[i]`` gets bit ``bit[i]`` of element
    ``element[i]`` of its own output flipped. For weights there is one flip: ``element`` and ``bit`` have length 1. A
    weight is a value of any of the layer's parameter tensors. Only :mod:`bitflip.faults.patterns` puts several in one
    image, or parameter, at a time.

    Attributes:
        layer: where.
        element: flat index into one image's output, or into the parameter tensor; int64, shape (N,).
        bit: counted from the most significant bit; int64, shape (N,). Of several, the first; 0 of a whole value.
        parameter: name of the parameter tensor; empty for neurons.
        seed: that drew the flips; 0 for flips that were not drawn.
        rows: the images of the batch that neurons flip for, each once unless several flip in one; int64, shape (N,).
            None for all, in order.
        change: what becomes of each value; None if its bit flips.
        repeat: number of the flip, where an image or batch gets several; int64, shape (N,). None for 0.
    """

    layer: Layer
    element: NDArray[np.int64]
    bit: NDArray[np.int64]
    parameter: str
    seed: int = 0
    rows: NDArray[np.int64] | None = None
    change: Change | None = None
    repeat: NDArray[np.int64] | None = None

    @property
    def where(self) -> tuple[Layer, str]:
        """What the flips hit: the layer's output, or one of its parameter tensors."""
        return self.layer, self.parameter

    def __len__(self) -> int:
        return len(self.element)

    @property
    def images(self) -> NDArray[np.int64]:
        """The images of the batch that neurons flip for, (N,)."""
        return np.arange(len(self)) if self.rows is None else self.rows

    @property
    def hit(self) -> NDArray[np.int64] | None:
        """The images of the batch that neurons flip for, each once; None for all."""
        if self.rows is None:
            return None
        every = np.unique(self.rows)
        return every if len(every) < len(self.rows) else self.rows

    def of(self, images: slice) -> Flips:
        """Those of some images of the batch: their own, if any, or the one that hits all."""
        if self.parameter:
            return self
        if self.rows is None:
            return self._only(images)
        inside = (self.rows >= images.start) & (self.rows < images.stop)
        return replace(self._only(inside), rows=self.rows[inside] - images.start)

    @property
    def changes(self) -> Change:
        """What becomes of each value."""
        return kinds.FLIP.at(self.bit[:, None], self._width) if self.change is None else self.change

    def written(self, i: int) -> tuple[str, tuple[int, ...]]:
        """What happens to value ``i`` as in a fault list; see :func:`bitflip.faults.kinds.written`."""
        return kinds.written(self.changes, i, self._width)

    def kind_and_bits(self, i: int) -> tuple[str, str]:
        """Of value ``i``, the kind of fault and the bits that are struck, in words: ``("flip", "1;7")``."""
        if self.change is None:
            return "flip", str(self.bit[i])
        return kinds.kind_and_bits(self.change, i, self._width)

    def repeat_of(self, i: int) -> int:
        """Number of the flip of value ``i``, from 0, where an image or batch gets several in this layer."""
        return 0 if self.repeat is None else int(self.repeat[i])

    @property
    def _width(self) -> int:
        return _parameter(self.layer, self.parameter).bits if self.parameter else self.layer.bits

    def _only(self, chosen: slice | NDArray[np.bool_]) -> Flips:
        change = None if self.change is None else self.change.of(chosen)
        repeat = None if self.repeat is None else self.repeat[chosen]
        return replace(self, element=self.element[chosen], bit=self.bit[chosen], change=change, repeat=repeat)

    def coordinates(self, i: int) -> tuple[int, ...]:
        """Index of element ``i`` along each dimension of one image's output, or of the parameter tensor."""
        shape = _parameter(self.layer, self.parameter).shape if self.parameter else self.layer.shape
        return tuple(int(c) for c in np.unravel_index(int(self.element[i]), shape)) if shape else ()


def neuron_flips(
    seed: int,
    layer: Layer,
    first: int,
    count: int,
    bit: int | None = None,
    repeat: int = 0,
    shares: BitShares | None = None,
    kind: Kind = kinds.FLIP,
) -> Flips:
    """One flip for each of ``count`` images, the first of which is image ``first`` of the test set.

    Args:
        seed: of the run, not negative.
        layer: where to flip.
        first: index in the test set of the first image.
        count: number of images.
        bit: the bit to flip, or None for a random one per fault.
        repeat: number of the flip, when an image gets several in this layer.
        shares: how often each bit is drawn when it is random; None for equally often.
        kind: of fault.
    """
    words = _words(seed, layer, (first, _TARGET_WORD["neuron"], repeat, 0), count)
    element = _below(words[:, 0], math.prod(layer.shape))
    struck, change = kind.draw(_pick(bit, shares), words, layer.bits, layer.format)
    return Flips(layer, element, struck, "", seed, change=change, repeat=_repeats(repeat, count))


def parameter_flip(
    seed: int,
    layer: Layer,
    batch: int,
    bit: int | None = None,
    repeat: int = 0,
    shares: BitShares | None = None,
    kind: Kind = kinds.FLIP,
    *,
    parameter: str,
) -> Flips:
    """The flip of batch number ``batch`` in a tensor that ``layer`` must have; see :func:`neuron_flips`."""
    tensor = _parameter(layer, parameter)
    words = _words(seed, layer, (batch, _TARGET_WORD["weight"], repeat, parameter_word(parameter)), 1)
    element = _below(words[:, 0], math.prod(tensor.shape))
    first, change = kind.draw(_pick(bit, shares), words, tensor.bits, tensor.format)
    return Flips(layer, element, first, parameter, seed, change=change, repeat=_repeats(repeat, 1))


def parameter_word(parameter: str) -> int:
    """What stands for a parameter tensor in the counter."""
    return 0 if parameter == "weight" else 2**32 + zlib.crc32(parameter.encode())


def _parameter(layer: Layer, name: str) -> Parameter:
    found = layer.parameter(name)
    assert found is not None, f"{layer.path} has no parameter {name}"
    return found


def _repeats(repeat: int, count: int) -> NDArray[np.int64] | None:
    return np.full(count, repeat, dtype=np.int64) if repeat else None


def _words(seed: int, layer: Layer, counter: tuple[int, int, int, int], count: int) -> NDArray[np.uint64]:
    """Four random words for each of ``count`` values of the counter, from the given one on, (count, 4)."""
    # One counter value yields one block of four 64-bit words; block i belongs to image first + i and nothing else.
    philox = np.random.Philox(
        key=np.array([seed, layer.position], dtype=np.uint64),
        counter=np.array(counter, dtype=np.uint64),
    )
    return philox.random_raw(4 * count).reshape(count, 4)


def _pick(bit: int | None, shares: BitShares | None) -> Pick:
    """How one of a number of bits is chosen by random words: a given one, or random ones."""

    def pick(words: NDArray[np.uint64], number: int) -> NDArray[np.int64]:
        if bit is not None:
            return np.full(len(words), bit, dtype=np.int64)
        if shares is None:
            return _below(words, number)
        assert len(shares) == number
        return np.searchsorted(np.cumsum(shares)[:-1], uniform(words), side="right").astype(np.int64)

    return pick


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from 64-bit words."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(words: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Whole numbers in [0, n), uniform to within n / 2**53, from 64-bit words."""
    return np.minimum((uniform(words) * n).astype(np.int64), n - 1)  # the product of the largest two can round up to n
