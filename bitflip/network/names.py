"""What layers are called where people read; without torch, so that reports need none."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def label(path: str, call: int = 0, parameter: str = "") -> str:
    """A layer's output, or one of its parameters, for people; the weight is the layer's, and is not named.

    Args:
        path: of the module in the model.
        call: of the module in a forward pass, from 0.
        parameter: that is struck; empty for the output.

    >>> label("layer1.0.relu", 1), label("conv1", 0, "bias"), label("conv1", 0, "weight")
    ('layer1.0.relu (2nd call)', 'conv1.bias', 'conv1')
    """
    name = path if parameter in ("", "weight") else f"{path}.{parameter}"
    return f"{name} ({ordinal(call + 1)} call)" if call else name


def named(number: int, kind: str, path: str, call: int = 0, parameter: str = "") -> str:
    """A layer as a reader finds it again in a plot, a table or the model: by number, type and path.

    Args:
        number: of the layer.
        kind: type of its module.
        path: of the module in the model.
        call: of the module in a forward pass, from 0.
        parameter: that is struck; empty for the output.

    >>> named(5, "Linear", "4"), named(7, "ReLU", "layer1.0.relu", 1), named(0, "Conv2d", "conv1", parameter="bias")
    ('#5 Linear (path 4)', '#7 ReLU (path layer1.0.relu, 2nd call)', '#0 Conv2d (path conv1.bias)')
    """
    again = f", {ordinal(call + 1)} call" if call else ""
    return f"#{number} {kind} (path {label(path, 0, parameter)}{again})"


def ranges(numbers: Iterable[int]) -> list[str]:
    """Ascending numbers, those that follow each other as one.

    >>> ranges([1, 2, 3, 7])
    ['1-3', '7']
    """
    found = []
    for _, members in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        first, *more = [number for _, number in members]
        found.append(f"{first}-{more[-1]}" if more else str(first))
    return found


def ordinal(number: int) -> str:
    """Such as 1st, 2nd, 11th, 22nd."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def printable(name: str) -> str:
    r"""A name that can't end its line, nor pass for something else on a terminal; a path or class name can be anything.

    >>> print(printable("conv1\nLayer #0: 0 / 100"))
    conv1\nLayer #0: 0 / 100
    """
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name)
