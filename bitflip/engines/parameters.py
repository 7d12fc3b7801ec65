"""Striking values of a parameter: in its tensor, its codes or their scales, or in the scale of a layer's output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bitflip.faults.flips import Flips
from bitflip.network import formats
from bitflip.network.formats import CODE, Rounding, Stored
from bitflip.network.layers import SCALE, ZERO_POINT, Parameter
from bitflip.network.quantised import Quantised

Safe = frozenset[int]  # bits of which a flip is corrected when the value is read


@dataclass
class Injected:
    """The flipped values, filled in when the fault strikes: shape (N,), before and after."""

    original: Tensor
    error: Tensor


class Values(Protocol):
    """The values of a parameter that faults strike."""

    def struck(self, flips: Flips, safe: Safe = frozenset()) -> contextlib.AbstractContextManager[Injected]:
        """While open, forward passes have them struck, but for flips of ``safe`` bits; they are always restored."""

    def at(self, element: Tensor) -> Stored | None:
        """How some of them are stored, given their flat places, (N,); None as they are."""


@dataclass
class InTensor:
    """Those of a tensor.

    Attributes:
        tensor: that the network computes with.
        stored: how its values are stored; None as they are.
    """

    tensor: Tensor
    stored: Stored | None = None

    @contextlib.contextmanager
    def struck(self, flips: Flips, safe: Safe = frozenset()) -> Iterator[Injected]:
        """See :class:`Values`."""
        shape = self.tensor.shape
        index = *map(torch.from_numpy, np.unravel_index(flips.element, shape)), *[None] * (not shape)
        with torch.no_grad():
            original = self.tensor[index].clone()
            error = _after(flips, safe, original, self.at(torch.from_numpy(flips.element)))
            try:
                self.tensor[index] = error
                yield Injected(original, error)
            finally:
                self.tensor[index] = original

    def at(self, element: Tensor) -> Stored | None:
        """See :class:`Values`."""
        return None if self.stored is None else self.stored.at(element // self.tensor.shape[1:].numel())


@dataclass
class InCodes:
    """Those of codes that the network computes with.

    Attributes:
        codes: (...) of int8.
        how: they are stored, given their flat places, (N,).
    """

    codes: Tensor
    how: Callable[[Tensor], Stored]

    @contextlib.contextmanager
    def struck(self, flips: Flips, safe: Safe = frozenset()) -> Iterator[Injected]:
        """See :class:`Values`."""
        element = torch.from_numpy(flips.element).to(self.codes.device)
        place, stored, change = torch.unravel_index(element, self.codes.shape), self.how(element), flips.changes
        before = self.codes[place].clone()
        after = change.codes(before, torch.from_numpy(change.arrays).to(before.device), stored)
        after = _corrected(flips, safe, before, after)
        injected = Injected(stored.decode(before), stored.decode(after))
        try:
            self.codes[place] = after
            yield injected
        finally:
            self.codes[place] = before

    def at(self, element: Tensor) -> Stored:
        """See :class:`Values`."""
        return self.how(element)


@dataclass
class Scales:
    """The scales of a tensor that is kept as the values that its codes stand for.

    Attributes:
        tensor: whose channels, along its first dimension, have a scale each.
        stored: how.
    """

    tensor: Tensor
    stored: Stored

    @contextlib.contextmanager
    def struck(self, flips: Flips, safe: Safe = frozenset()) -> Iterator[Injected]:
        """See :class:`Values`: all values of the scale's channel become others."""
        channel = torch.from_numpy(flips.element).to(self.tensor.device)
        with torch.no_grad():
            original = self.stored.scale[channel]
            error = _after(flips, safe, original)
            before = self.tensor[channel].clone()
            beside = (-1, *[1] * (before.dim() - 1))
            codes = replace(self.stored, scale=original.view(beside)).encode(before)
            numbers = replace(self.stored, scale=torch.ones_like(original[0])).decode(codes)
            numbers = torch.where(before.isfinite(), numbers, before)  # a code that another fault made
            try:
                self.tensor[channel] = numbers * error.view(beside)
                yield Injected(original, error)
            finally:
                self.tensor[channel] = before

    def at(self, element: Tensor) -> None:
        """See :class:`Values`."""


@dataclass
class OfOutput:
    """The static scale, or zero point, of a layer's output: what rounds it has another one.

    Attributes:
        rounding: what rounds it.
        name: ``scale`` or ``zero_point``.
    """

    rounding: Rounding
    name: str

    @contextlib.contextmanager
    def struck(self, flips: Flips, safe: Safe = frozenset()) -> Iterator[Injected]:
        """See :class:`Values`."""
        before = self.rounding.stored
        if self.name == SCALE:
            original = before.scale.reshape(1)
            error = _after(flips, safe, original)
            after = replace(before, scale=error[0])
        else:
            original = torch.tensor([float(before.zero)], device=before.scale.device)
            error = _after(flips, safe, original, CODE)
            after = replace(before, zero=int(error))
        try:
            self.rounding.stored = after
            yield Injected(original, error)
        finally:
            self.rounding.stored = before

    def at(self, element: Tensor) -> Stored | None:
        """See :class:`Values`."""
        return None if self.name == SCALE else CODE


def of(tensor: Tensor, kind: str, stored: Stored | None, found: Quantised | None) -> Values:
    """The values of a parameter tensor, or of what its codes are read with.

    Args:
        tensor: of the network.
        kind: ``.scale`` or ``.zero_point`` for those; empty for its own.
        stored: how its values are stored, where it is kept as what codes stand for.
        found: what is stored of it, where codes are kept.
    """
    if found is None:
        if not kind:
            return InTensor(tensor, stored)
        assert stored is not None
        return Scales(tensor, stored)
    if kind == SCALE:
        return InTensor(found.scale)
    if kind == ZERO_POINT:
        assert found.zero is not None
        return InCodes(found.zero, lambda _: CODE)

    def how(element: Tensor) -> Stored:
        where = found.block(element)
        return Stored(found.form, found.scale[where], 0 if found.zero is None else found.zero[where])

    return InCodes(found.codes, how)


def of_output(module: nn.Module, kind: str) -> Values:
    """The scale, or the zero point, to which a module's output is rounded."""
    (rounding,) = (hook for hook in module._forward_hooks.values() if isinstance(hook, Rounding))
    return OfOutput(rounding, kind)


def listed(name: str, tensor: Tensor, stored: Stored | None, found: Quantised | None) -> list[Parameter]:
    """What of a parameter tensor of a name can be struck, given how it is stored; see :func:`of`."""
    if found is None:
        return formats.of_parameter(name, tensor, stored)
    own = [Parameter(name, tuple(found.codes.shape), formats.WIDTH, found.form), formats.scale_of(name, found.scale)]
    return own if found.zero is None else [*own, formats.zero_point_of(name, found.zero)]


def _after(flips: Flips, safe: Safe, original: Tensor, stored: Stored | None = None) -> Tensor:
    """The values after a fault, and after those were corrected that can be."""
    change = flips.changes
    error = change(original, torch.from_numpy(change.arrays).to(original.device), stored)
    return _corrected(flips, safe, original, error)


def _corrected(flips: Flips, safe: Safe, before: Tensor, after: Tensor) -> Tensor:
    if not safe:
        return after
    return torch.where(torch.from_numpy(np.isin(flips.bit, [*safe])).to(after.device), before, after)
