"""What layers are called where people read; without torch, so that reports need none."""

from __future__ import annotations


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
