"""How a kind of fault is written; :mod:`bitflip.faults.kinds` says what it does."""

from __future__ import annotations

import functools
import re


@functools.cache
def kind_of_fault(text: str) -> tuple[str, str]:
    """The name of a kind of fault, and what is written behind its colon; ``burst:3`` is burst and 3.

    Raises:
        ValueError: if there is no such kind.
    """
    name, colon, more = text.partition(":")
    if name in ("flips", "burst") and re.fullmatch(r"[0-9]{1,2}", more) and 2 <= int(more) <= 64:
        return name, more
    if name == "value":
        if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", more):
            float(more)  # also nan and inf
        return name, more
    if name in ("flip", "stuck0", "stuck1", "random", "zero") and not colon:
        return name, ""
    raise ValueError(f"no kind of fault: {text!r}")
