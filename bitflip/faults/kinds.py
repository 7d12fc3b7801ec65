"""Kinds of fault: what happens to the stored bits of a value that is struck.

=============  =========================================================================================
``flip``       one bit flips
``stuck0``     one bit is 0, whatever it was; if it was, the fault is masked
``stuck1``     one bit is 1
``flips:K``    K different bits flip, any K of them equally likely
``burst:K``    K neighbouring bits flip
``random``     all bits are random
``zero``       the value is 0
``value:X``    the value is X: a number, or its bits in hexadecimal, such as ``value:0x7fc00000``
=============  =========================================================================================

Each of them is ``(stored & keep) ^ toggle``, which is what the engines are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitflip.errors import BadInput
from bitflip.network import bits
from bitflip.network.formats import NARROW, UNSIGNED, Stored
from bitflip.settings.kind import kind_of_fault

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Rule = Callable[[Tensor, Tensor], Tensor]
Own = Callable[[Tensor, Tensor], Tensor]  # (values (N,), random words (N,) of int64) -> values (N,)
Pick = Callable[[Words, int], Ints]  # bits of values from random words, given how many there are to choose from

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"


@dataclass(frozen=True)
class Change:
    """What becomes of the values that are struck.

    Attributes:
        arrays: what the rule needs to know of each of N values, (M, N) of int64.
        rule: (values (N,), arrays (M, N)) -> values (N,) of the same type, on the same device; None for
            :func:`bitflip.network.bits.changed`.
    """

    arrays: Ints
    rule: Rule | None = None

    def __call__(self, values: Tensor, arrays: Tensor, stored: Stored | None = None) -> Tensor:
        """The values after the fault, (N,), given the arrays on their device, and how the values are stored."""
        if stored is None:
            return bits.changed(values, arrays) if self.rule is None else self.rule(values, arrays)
        if self.rule is None:
            return stored.decode(bits.masked(stored.encode(values), arrays))
        return stored.decode(stored.encode(self.rule(values, arrays)))

    def codes(self, codes: Tensor, arrays: Tensor, stored: Stored) -> Tensor:
        """The codes after the fault, (N,) of int8, where these are what is kept."""
        if self.rule is None:
            return bits.masked(codes, arrays)
        return stored.encode(self.rule(stored.decode(codes), arrays))

    def of(self, rows: slice | NDArray[np.bool_]) -> Change:
        """That of some of the values."""
        return replace(self, arrays=self.arrays[:, rows])


@dataclass(frozen=True)
class Kind:
    """A kind of fault; see the module.

    Attributes:
        name: ``flip``, ``stuck0``, ``stuck1``, ``flips``, ``burst``, ``random``, ``zero``, ``value``, or ``own``.
        count: bits that it changes, of ``flips`` and ``burst``.
        value: the text of X.
        own: what a user's own kind does.
    """

    name: str = "flip"
    count: int = 1
    value: str = ""
    own: Own | None = None

    @property
    def whole(self) -> bool:
        """Whether it replaces a value, whatever its bits are."""
        return self.name in ("random", "zero", "value", "own")

    @property
    def of_one_bit(self) -> bool:
        """Whether it changes one bit, which can be drawn or given."""
        return self.name in ("flip", "stuck0", "stuck1")

    def check(self, width: int, bit: int | None, form: str) -> list[str]:
        """One sentence if it does not fit values of a width in bits and a number format, or a bit that is given."""
        if self.own is not None:
            return _Rule(self.own).check(form)
        if self.name in ("flips", "burst") and (bit or 0) + self.count > width:
            start = "" if bit is None else f" from bit {bit} on"
            return [f"fault (--fault): expected a kind that fits {width} bits, got {self.name}:{self.count}{start}"]
        if self.value.startswith("0x") and int(self.value, 16) >= (1 << width):
            return [f"fault (--fault): expected at most {width // 4} hexadecimal digits of a value of {width} bits"]
        return []

    def patterns(self, width: int, bit: int | None) -> int:
        """How many different faults of this kind a value of a width can have, with a given bit or any."""
        if self.name == "flips":
            return math.comb(width, self.count)
        if self.name == "random":
            return 1 << width
        if self.whole or bit is not None:
            return 1
        return width - self.count + 1

    def draw(self, pick: Pick, words: Words, width: int, form: str) -> tuple[Ints, Change | None]:
        """What happens to N values of a number format, by four random words of each, (N, 4).

        The first of them has chosen the element.

        Returns:
            The bit of each, of several the most significant, 0 of a whole value; and the change, None for ``flip``.
        """
        size, full = len(words), np.uint64((1 << width) - 1)
        if self.own is not None:
            return np.zeros(size, np.int64), Change(words[None, :, 2].view(np.int64), _Rule(self.own))
        if (given := self._given(form)) is not None:
            return np.zeros(size, np.int64), Change(np.zeros((1, size), np.int64), given)
        if self.whole:
            kept = np.zeros(size, np.uint64)
            toggled = words[:, 2] & full if self.name == "random" else np.full(size, self._stored(form), np.uint64)
            return np.zeros(size, np.int64), masks(kept, toggled, width)
        if self.name == "flips":
            chosen = _different(words[:, 2], self.count, width)
        else:
            chosen = pick(words[:, 1], width - self.count + 1)[:, None] + np.arange(self.count)
        bit = chosen.min(axis=1)
        return bit, None if self.name == "flip" else self.at(chosen, width)

    def at(self, chosen: Ints, width: int) -> Change:
        """What it does to bits of N values that are given, (N, K), counted from the most significant."""
        mask = np.bitwise_or.reduce(np.uint64(1) << (width - 1 - chosen).astype(np.uint64), axis=1)
        kept = ~mask if self.name in ("stuck0", "stuck1") else np.full_like(mask, 2**64 - 1)
        return masks(kept, np.zeros_like(mask) if self.name == "stuck0" else mask, width)

    def listed(self, struck: Sequence[int], width: int, form: str) -> Change:
        """What it does to one value, whose bits are given; none of a whole value."""
        if (given := self._given(form)) is not None:
            return Change(np.zeros((1, 1), np.int64), given)
        if self.whole:
            return masks(np.zeros(1, np.uint64), np.full(1, self._stored(form), np.uint64), width)
        return self.at(np.array([struck]), width)

    def _given(self, form: str) -> _Given | None:
        if form not in (*NARROW, UNSIGNED) or self.name not in ("zero", "value") or self.value.startswith("0x"):
            return None
        return _Given(self.value or "0")

    def _stored(self, form: str) -> int:
        return 0 if self.name == "zero" else stored(self.value, form)


@dataclass(frozen=True)
class _Given:
    """The rule of a value in a format that it has no bits in before it is known where it is stored."""

    text: str

    def __call__(self, values: Tensor, arrays: Tensor) -> Tensor:
        return torch.full_like(values, float(self.text))


@dataclass(frozen=True)
class _Rule:
    """The rule of a user's own kind."""

    function: Own

    def __call__(self, values: Tensor, arrays: Tensor) -> Tensor:
        return self.function(values.clone(), arrays[0].clone())

    def check(self, form: str) -> list[str]:
        """One sentence if the function is none for values of a number format."""
        values = torch.linspace(-1, 1, 5).to(bits.named(form))
        expected = f"{values.dtype} of shape {tuple(values.shape)}"
        try:
            found = self(values, torch.arange(5)[None])
        except Exception as error:  # the user's own code can raise anything
            return [f"fault: expected a function that takes values and words, {expected}; it raises {error!r}"]
        if isinstance(found, Tensor) and found.shape == values.shape and found.dtype == values.dtype:
            return []
        got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        return [f"fault: expected a function that returns {expected} for such values, got {got}"]


FLIP = Kind()


def of(text: str) -> Kind:
    """The kind that is written so, as :func:`bitflip.settings.kind.kind_of_fault` says."""
    name, more = kind_of_fault(text)
    return Kind(name, value=more) if name == "value" else Kind(name, int(more or 1))


def is_listed(text: str) -> bool:
    """Whether a fault list can say so: not a kind that is drawn."""
    try:
        return of(text).name in ("flip", "stuck0", "stuck1", "zero", "value")
    except ValueError:
        return False


def join(parts: Sequence[Change]) -> Change:
    """The changes of several values as one.

    Raises:
        BadInput: if they are of different rules.
    """
    if len({part.rule for part in parts}) > 1:
        raise BadInput(
            "faults (--faults): expected a list without zero or value:X among other kinds of fault in one layer, in "
            "this number format; value:0x gives the stored bits"
        )
    return Change(np.concatenate([part.arrays for part in parts], axis=1), parts[0].rule)


def written(change: Change, place: int, width: int) -> tuple[str, tuple[int, ...]]:
    """How a fault list names what becomes of a value, given by its place: the kind, and its bits; 0 of a whole value.

    Raises:
        BadInput: for a user's own kind, of which it is not known before the value is.
    """
    if isinstance(change.rule, _Given):
        return ("zero" if change.rule.text == "0" else f"value:{change.rule.text}"), (0,)
    if change.rule is not None:
        raise BadInput("save_faults (--save-faults): expected a kind of fault with a name, not a function")
    full = (1 << width) - 1
    keep, toggle = (int(mask) & full for mask in change.arrays[:, place])
    if keep == 0 and width > 1:
        return ("zero" if toggle == 0 else f"value:0x{toggle:0{width // 4}x}"), (0,)
    name, mask = ("flip", toggle) if keep == full else ("stuck1" if toggle else "stuck0", keep ^ full)
    return name, tuple(bit for bit in range(width) if mask >> (width - 1 - bit) & 1)


def kind_and_bits(change: Change, place: int, width: int) -> tuple[str, str]:
    """Of a value, the kind of fault as lists name it, or ``own``, and its bits: ``1``, ``1;7``, or ``all``."""
    if isinstance(change.rule, _Rule):
        return "own", "all"
    name, struck = written(change, place, width)
    return name, "all" if kind_of_fault(name)[0] in ("zero", "value") else ";".join(map(str, struck))


def stored(text: str, form: str) -> int:
    """The bits of a value of a number format, as a number from 0, given the X of ``value:X``."""
    dtype = bits.named(form)
    if text.startswith("0x"):
        return int(text, 16)
    value = torch.tensor(float(text), dtype=torch.float64).to(dtype)
    return int(bits.as_integers(value.reshape(1)).item()) % (1 << bits.width(dtype))


def masks(keep: Words, toggle: Words, width: int) -> Change:
    """``(stored & keep) ^ toggle`` of N values of a width, (N,) each."""
    signed = np.dtype(f"int{width}")
    both = np.stack([keep, toggle]).astype(f"uint{width}")
    return Change(both.view(signed).astype(np.int64))


def _different(words: Words, count: int, width: int) -> Ints:
    """``count`` different bits of ``width`` for each random word, any set equally likely, (N, count).

    Fisher and Yates' shuffle, stopped early, with numbers of a generator (SplitMix64) that each word starts.
    """
    found = np.broadcast_to(np.arange(width), (len(words), width)).copy()
    every = np.arange(len(words))
    for place in range(count):
        word = _mixed(words + np.uint64((int(_SPREAD) * (place + 1)) % 2**64))
        other = place + ((word >> np.uint64(11)).astype(np.float64) * 2.0**-53 * (width - place)).astype(np.int64)
        found[every, place], found[every, other] = found[every, other], found[every, place].copy()
    return found[:, :count]


def _mixed(words: Words) -> Words:
    """SplitMix64's output function."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
