"""Bit flips of IEEE-754 values as pure tensor functions, and the text form of a value's bits.

Bits are numbered from the most significant: for float32, 0 is the sign, 1-8 the exponent, 9-31 the mantissa.
"""

from __future__ import annotations

import bitstring
import torch
from torch import Tensor, nn

_INTEGER = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def is_flippable(dtype: torch.dtype) -> bool:
    """Whether values of this type can be flipped: float64, float32, float16, bfloat16."""
    return dtype in _INTEGER


def width(dtype: torch.dtype) -> int:
    """Bits in one value: 32 for float32."""
    return torch.finfo(dtype).bits


def name(dtype: torch.dtype) -> str:
    """A type as layers name it: ``float32``."""
    return str(dtype).removeprefix("torch.")


def named(name: str) -> torch.dtype:
    """The type of a name."""
    found: torch.dtype = getattr(torch, name)
    return found


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating-point type of a model's parameters, and so of the images that it takes."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def as_integers(values: Tensor) -> Tensor:
    """The values' bits as signed integers of the same width: a view, where the values are contiguous."""
    return values.view(_INTEGER[values.dtype])


def exact(values: Tensor) -> Tensor:
    """What tells values apart bit by bit: -0 differs from 0, and a NaN equals itself. Other types are as they are."""
    return as_integers(values) if is_flippable(values.dtype) else values


def checksum(values: Tensor) -> int:
    """A sum of the values' bits; 0 of complex ones."""
    if values.is_complex():
        return 0
    whole = values.view(torch.int8) if values.element_size() == 1 else exact(values)
    return int(whole.sum(dtype=torch.int64))


def flip(values: Tensor, bits: Tensor) -> Tensor:
    """Flip one bit of each value.

    Args:
        values: floating-point values, any shape, any device; left untouched.
        bits: integers, broadcastable to the shape of ``values``, each in ``[0, width)``,
            counted from the most significant bit.

    Returns:
        New values, shape, type and device as ``values``; each differs in exactly one bit.

    Raises:
        TypeError: if ``values`` is not float64, float32, float16 or bfloat16.

    Example:
        >>> flip(torch.tensor([1.0, 1.0]), torch.tensor([0, 1]))
        tensor([-1., inf])
    """
    if values.dtype not in _INTEGER:
        raise TypeError(f"expected float64, float32, float16 or bfloat16, got {values.dtype}")
    integer = _INTEGER[values.dtype]
    shift = (width(values.dtype) - 1 - bits).to(device=values.device, dtype=integer)
    mask = torch.bitwise_left_shift(torch.ones_like(shift), shift)
    return torch.bitwise_xor(values.contiguous().view(integer), mask).view(values.dtype)


def changed(values: Tensor, masks: Tensor) -> Tensor:
    """Values whose stored bits become ``(stored & keep) ^ toggle``.

    Args:
        values: floating-point values, (N,); left untouched.
        masks: ``keep`` and ``toggle`` as signed integers of the values' width, (2, N) of int64, on the same device.
    """
    return masked(as_integers(values.contiguous()), masks).view(values.dtype)


def masked(stored: Tensor, masks: Tensor) -> Tensor:
    """Signed integers as ``(stored & keep) ^ toggle``; see :func:`changed`."""
    keep, toggle = masks.to(stored.dtype)
    return torch.bitwise_xor(torch.bitwise_and(stored, keep), toggle)


def text(value: Tensor) -> str:
    """The bits of one value, most significant first.

    Example:
        >>> text(torch.tensor(1.0))
        '00111111100000000000000000000000'
    """
    whole = not value.is_floating_point()  # a code
    integer = value if whole else value.reshape(1).view(_INTEGER[value.dtype])  # a NaN keeps its payload
    return str(bitstring.Bits(int=int(integer.item()), length=8 * value.element_size()).bin)
