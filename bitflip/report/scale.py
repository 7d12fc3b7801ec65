"""How rates are drawn: one scale, one numbering of colours, one region for each bit, for pictures and page alike."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitflip.network.fields import regions
from bitflip.statistics.rates import Rate

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Colours that stay apart for colour-blind readers, less the yellow, which paper swallows.

Source: Okabe and Ito 2008, "Color Universal Design".
"""

KNOWN = ("Conv2d", "BatchNorm2d", "ReLU", "Linear", "MaxPool2d", "Identity", "AdaptiveAvgPool2d", "Dropout")
"""Layer types with a colour of their own, the same in every plot."""

SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)),
    ((0, -1), (0.92, 0.72), (-0.92, 0.72)),
    ((0, -1), (0.88, 0), (0, 1), (-0.88, 0)),
    ((0, 1), (-0.92, -0.72), (0.92, -0.72)),
    (
        *((-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3)),
        *((0.3, 0.9), (-0.3, 0.9), (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)),
    ),
    ((-1, 0), (0.72, -0.92), (0.72, 0.92)),
    ((1, 0), (-0.72, 0.92), (-0.72, -0.92)),
)
"""Markers as polygons, x to the right and y downwards; the one without a corner is a circle of radius 0.8."""

CROSSES = "\N{MULTIPLICATION SIGN}: DUE, the model raised an exception"  # what they mean in plots

CROWDED = 25  # times the median that the largest rate may be before a linear scale hides the rest


def slots(types: Iterable[str]) -> dict[str, int]:
    """A number for each layer type, for its colour and its marker: known ones keep theirs, others take free ones."""
    names = list(dict.fromkeys(types))
    taken = {name: KNOWN.index(name) for name in names if name in KNOWN}
    free = (n for n in range(len(names) + len(KNOWN)) if n not in taken.values())
    return {name: taken[name] if name in taken else next(free) for name in names}


def shape(slot: int) -> int:
    """The place in :data:`SHAPES` of a type's marker; colours repeat after eight types, so then the marker moves on."""
    return (slot + slot // len(OKABE_ITO)) % len(SHAPES)


@dataclass(frozen=True)
class Scale:
    """An axis of rates in percent from 0: linear, or logarithmic from ``linear_to`` up and linear below.

    Attributes:
        top: end of the axis.
        linear_to: None for a linear axis.
    """

    top: float
    linear_to: float | None = None

    def place(self, rate: float) -> float:
        """Where a rate lies on the axis, 0 to 1."""
        rate = min(rate, self.top)
        if self.linear_to is None:
            return rate / self.top
        decades = math.log10(self.top / self.linear_to)
        if rate <= self.linear_to:
            return rate / self.linear_to / (1 + decades)
        return (1 + math.log10(rate / self.linear_to)) / (1 + decades)

    @property
    def ticks(self) -> list[float]:
        """Round numbers, about five."""
        if self.linear_to is not None:
            first = round(math.log10(self.linear_to))
            return [0.0, *(10.0**n for n in range(first, math.floor(math.log10(self.top) + 1e-9) + 1))]
        step = _round_step(self.top / 5)
        return [step * n for n in range(math.floor(self.top / step + 1e-9) + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-9))


def scale_of(rates: Sequence[Rate], *, linear: bool = False) -> Scale:
    """The scale on which all rates and their intervals can be seen."""
    values = [rate.value for rate in rates if rate.value is not None]
    top = max([*values, *(rate.high for rate in rates if rate.high is not None)], default=0.0)
    if top == 0:
        return Scale(1.0)
    positive = [value for value in values if value > 0]
    if not linear and len(positive) > 2 and max(positive) > CROWDED * max(statistics.median(values), min(positive)):
        low = 10.0 ** math.floor(math.log10(min(positive)))
        low = min(max(low, top / 1e4), top / 2)
        low = 10.0 ** math.floor(math.log10(low) + 1e-9)
        return Scale(min(100.0, top * 1.15), low)
    return Scale(min(100.0, top * 1.05))


def percent(value: float | None) -> str:
    """A rate with as many digits as it is worth: ``12.6``, ``3.34``, ``0.167``, ``0.0003``, ``0``."""
    if value is None:
        return "\N{EN DASH}"
    if value < 5e-7 or value == 100:
        return f"{value:.0f}"
    if value < 5e-4:
        return f"{float(f'{value:.0e}'):.7f}".rstrip("0")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def number(value: float) -> str:
    """A tick's label: 0.05, 20."""
    return f"{value:g}" if value < 1e6 else f"{value:.0f}"


def bit_ticks(count: int, step: int, form: object = None) -> list[int]:
    """Bits to number: every so many, the last one, and where exponent and mantissa begin."""
    marked = [first for _, first, _ in regions(count, form)] or [0]
    marked = [*marked[1:], count - 1] if len(marked) > 1 else [*marked, count - 1]
    return sorted({*marked, *(bit for bit in range(0, count, step) if all(abs(bit - m) > 1 for m in marked))})


def plain(text: str, longest: int | None = None) -> str:
    """A name as it can be shown: nothing invisible in it, and no more than ``longest`` characters, the middle cut."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if longest is None or len(shown) <= longest:
        return shown
    tail = (longest - 1) * 2 // 3
    return f"{shown[: longest - 1 - tail]}…{shown[-tail:]}"


def short(path: str, longest: int) -> str:
    """A module path in no more than ``longest`` characters: its parts from the left become initials and numbers.

    >>> short("encoder.layers.encoder_layer_11.self_attention.out_proj", 26)
    'e.l.el11.sa.out_proj'
    """
    parts = plain(path).split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= longest:
            break
        parts[i] = "".join(re.findall(r"(?:(?<![^\W\d_])[^\W\d_])|\d+", part)) or part
    return plain(".".join(parts), longest)
