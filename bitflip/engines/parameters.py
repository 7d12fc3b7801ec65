"""Striking values of a parameter: in its tensor, in the scales of its codes, or in those of a layer's output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bitflip.faults.flips import Flips
from bitflip.network.formats import CODE, Rounding, Stored
from bitflip.network.layers import SCALE

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
        shape, stored = self.tensor.shape, self.stored
        index = *map(torch.from_numpy, np.unravel_index(flips.element, shape)), *[None] * (not shape)
        with torch.no_grad():
            original = self.tensor[index].clone()
            if stored is not None:
                stored = stored.at(torch.from_numpy(flips.element // shape[1:].numel()))
            error = _after(flips, safe, original, stored)
            try:
                self.tensor[index] = error
                yield Injected(original, error)
            finally:
                self.tensor[index] = original


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
            original = torch.tensor([float(before.zero)])
            error = _after(flips, safe, original, CODE)
            after = replace(before, zero=int(error))
        try:
            self.rounding.stored = after
            yield Injected(original, error)
        finally:
            self.rounding.stored = before


def _after(flips: Flips, safe: Safe, original: Tensor, stored: Stored | None = None) -> Tensor:
    """The values after a fault, and after those were corrected that can be."""
    change = flips.changes
    error = change(original, torch.from_numpy(change.arrays).to(original.device), stored)
    if not safe:
        return error
    return torch.where(torch.from_numpy(np.isin(flips.bit, [*safe])).to(error.device), original, error)
