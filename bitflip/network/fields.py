"""What the bits of a number format are. Reports are made without torch, which takes seconds to import."""

from __future__ import annotations

REGIONS = {
    "float32": (1, 8, 23),
    "float64": (1, 11, 52),
    "float16": (1, 5, 10),
    "bfloat16": (1, 8, 7),
    "float8_e4m3fn": (1, 4, 3),
    "float8_e5m2": (1, 5, 2),
    "int8": (1, 7),
    "uint8": (8,),
}
"""Bits of sign, exponent and mantissa of each number format, or of sign and magnitude, or of the latter."""

PARTS = {3: ("sign", "exponent", "mantissa"), 2: ("sign", "magnitude"), 1: ("magnitude",)}
SEVERAL = "several"  # stands for the format of values that are of different ones, whose bits have no parts in common
USUAL = {32: "float32", 64: "float64"}  # formats of a width that stands for no other


def regions(width: int, form: object = None) -> list[tuple[str, int, int]]:
    """Name, first and last bit of each part of a number of this many bits, as far as it is known.

    Args:
        width: of the number.
        form: its number format; None for the usual one of the width; :data:`SEVERAL` for none.
    """
    found: list[tuple[str, int, int]] = []
    first = 0
    if form == SEVERAL:
        return found
    sizes = REGIONS.get(str(form), ())
    if sum(sizes) != width:
        sizes = REGIONS.get(USUAL.get(width, ""), ())
    for name, bits in zip(PARTS.get(len(sizes), ()), sizes, strict=True):
        found.append((name, first, first + bits - 1))
        first += bits
    return found
