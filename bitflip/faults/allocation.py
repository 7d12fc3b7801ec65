"""How often each bit is drawn when the bits that matter get more of the faults, and what makes up for it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitflip.network.fields import regions

Number = Literal["float", "integer"]
Stratum = tuple[tuple[int, ...], float]  # bits that are drawn equally often, and their share of all bits

TOP_SHARE = 1 / 3  # of the faults for the bit that matters most; docs/statistics.md says why


def allocation(bits: int, kind: Number = "float") -> NDArray[np.float64]:
    """The share of a layer's faults that each bit gets, (bits,).

    A third goes to the bit that nearly all critical faults come from: the top bit of the exponent, or the sign of a
    whole number. The others share the rest equally, so that none is left out. :func:`strata` make up for it.

    Args:
        bits: width of a value; bit 0 is the most significant.
        kind: of the value.
    """
    shares = np.full(bits, (1 - TOP_SHARE) / max(bits - 1, 1))
    shares[_top(bits, kind)] = TOP_SHARE if bits > 1 else 1.0
    return shares


def strata(bits: int, kind: Number = "float") -> list[Stratum]:
    """The bit that gets more of the faults, and all the others, which get equally many.

    The rate of a random bit is the mean of the strata's rates, weighted by their shares. Each bit a stratum of its own
    would be another such mean, but one in which each that was not hit could have any rate.

    >>> strata(4)
    [((1,), 0.25), ((0, 2, 3), 0.75)]
    """
    top = _top(bits, kind)
    groups = ((top,), tuple(bit for bit in range(bits) if bit != top))
    return [(group, len(group) / bits) for group in groups if group]


def _top(bits: int, kind: Number) -> int:
    return 1 if kind == "float" and bits > 1 else 0


def number(form: object) -> Number:
    """The kind of the values of a number format, such as ``float32``."""
    return "integer" if form in ("int8", "uint8") else "float"


def by_effect(bits: int, form: object = None) -> list[int]:
    """Bits in the order of what a flip does to a value: exponent, sign, mantissa, each from its most significant bit.

    A flip of the exponent's bit 2^k scales by 2^(2^k), one of the sign by -1, and one of the mantissa adds half of the
    value at most. Of a whole number, bits come in their order. That misclassifications come from the high bits
    of the exponent was found by Li et al. 2017, "Understanding error propagation in deep learning neural network (DNN)
    accelerators and applications".

    >>> by_effect(8, "float8_e4m3fn"), by_effect(8, "int8")
    ([1, 2, 3, 4, 0, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7])

    Args:
        bits: width of a value.
        form: its number format; None for the usual one of the width.
    """
    first, last = next(((first, last) for name, first, last in regions(bits, form) if name == "exponent"), (0, -1))
    return sorted(range(bits), key=lambda bit: (not first <= bit <= last, bit))
