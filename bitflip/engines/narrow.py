"""Constants of what a fault moves first: one channel of a value, or one number of it.

An operator norm is about the direction in which a layer moves its output the most. A fault does not choose one: a
struck neuron is one number, a struck weight moves one channel. What is beside them is clean, so only a column of the
next convolution or linear layer counts, which is shorter; and a channel has its own scale of a batch normalisation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from bitflip.engines import constants, norms
from bitflip.engines.constants import ADDS, SCALE, SLOPES
from bitflip.engines.windows import function_name
from bitflip.network.protections import Guard

MOST = 64.0
"""How much smaller than the constant of the whole value others are taken to be, at most. A channel that nothing reads
has none; but what is moved as far as that allows may overflow on its way, and is then no number."""

_RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "clone", "detach"}
_JOINS = {"cat", "concat", "concatenate"}
_POINTWISE = (*(set(SLOPES) - {nn.Flatten, nn.Unflatten}), nn.LeakyReLU, nn.ELU, nn.CELU, Guard)


@dataclass(frozen=True)
class Constants:
    """By how much the value before the last layer moves, at most, for each unit that a value moves (L2).

    Attributes:
        whole: wherever it moves.
        channel: if it moves in one channel alone, (C,); a channel is a place along dimension 1. (1,) if that makes no
            difference.
        number: if one number of a channel moves, (C,) or (1,).
    """

    whole: float
    channel: Tensor
    number: Tensor

    @classmethod
    def everywhere(cls, whole: float) -> Constants:
        """The same, whatever moves."""
        one = torch.full((1,), whole, dtype=torch.float64)
        return cls(whole, one, one)

    def __add__(self, other: Constants) -> Constants:
        """Along two ways."""
        return Constants(self.whole + other.whole, self.channel + other.channel, self.number + other.number)

    def times(self, factor: float | Tensor, of_number: float | Tensor | None = None) -> Constants:
        """Before something that multiplies channels, and single numbers by another factor if one is given."""
        each = factor if of_number is None else of_number
        return Constants(self.whole, self.channel * factor, self.number * each)

    def within(self, whole: float) -> Constants:
        """With a constant of the whole value, which holds for all parts of it."""
        if not math.isfinite(whole):
            return Constants.everywhere(whole)
        channel = self.channel.clamp(whole / MOST, whole)
        return Constants(whole, channel, torch.minimum(self.number.clamp(min=whole / MOST), channel))

    def at(self, channels: Tensor, *, number: bool) -> Tensor:
        """Those of some channels, (R,), if one number of them moves, or of a whole channel."""
        found = self.number if number else self.channel
        return found[channels.clamp(max=len(found) - 1)]

    def to(self, device: torch.device) -> Constants:
        """The same on a device."""
        return Constants(self.whole, self.channel.to(device), self.number.to(device))


def before(
    call: fx.Node,
    module: nn.Module | None,
    node: fx.Node,
    shapes: Mapping[fx.Node, torch.Size],
    factor: float,
    behind: Constants,
    scales: Tensor | None = None,
) -> Constants | None:
    """The constants of what a step reads, by channel; None where they are not known.

    Args:
        call: the step.
        module: that it calls; None if it calls a function.
        node: what it reads.
        shapes: of all values.
        factor: the step's constant.
        behind: those of its output; if there are scales, of the output of the batch normalisation.
        scales: of the batch normalisation behind a convolution, that are part of the factor.
    """
    shape, after = shapes.get(node), shapes.get(call)
    if shape is None or after is None or len(shape) < 2 or len(after) < 2 or shape[0] != after[0]:
        return None
    name, kind = function_name(call), type(module)
    if module is not None and kind is nn.Conv2d:
        channel, number = norms.of_columns(**constants.convolution(module, shape, scales))  # type: ignore[arg-type]
        return Constants(behind.whole, channel * behind.whole, number * behind.whole)
    if module is not None and kind is nn.Linear:
        return _linear(module.weight, shape, behind)  # type: ignore[arg-type]
    if module is not None and kind in (nn.BatchNorm2d, nn.BatchNorm1d):
        own = norms.scales_of(module)  # type: ignore[arg-type]
        return None if own is None else behind.times(own.abs())
    pooling = constants.pooling(call if module is None else module, shape)
    if pooling is not None:
        each = factor**2 if pooling.apart else factor
        found = behind if pooling.apart else Constants(behind.whole, behind.channel, behind.channel)
        return found.times(factor, each) if shape[1] == after[1] else None
    if kind in _POINTWISE or name in constants.FUNCTION_SLOPES.keys() - constants.MOVES or name in SCALE | ADDS:
        return behind.times(factor) if shape == after else None
    if kind is nn.Flatten or name in _RESHAPES:
        return _reshaped(shape, after, behind)
    return _placed(name, call, node, shapes, behind)


def _linear(weight: Tensor, shape: torch.Size, behind: Constants) -> Constants | None:
    if len(shape) != 2:
        return None
    columns = torch.linalg.vector_norm(weight.detach().double().cpu(), dim=0) * behind.whole * norms.ROUNDING
    return Constants(behind.whole, columns, columns)


def _reshaped(shape: torch.Size, after: torch.Size, behind: Constants) -> Constants | None:
    """Values in their order: a channel stays one, or becomes several features."""
    if after[1] == shape[1] or len(behind.number) == 1:
        return behind
    if len(after) != 2:
        return None
    features = behind.number.view(shape[1], -1)
    return Constants(behind.whole, torch.linalg.vector_norm(features, dim=1), features.amax(1))


def _placed(
    name: str, call: fx.Node, node: fx.Node, shapes: Mapping[fx.Node, torch.Size], behind: Constants
) -> Constants | None:
    """What becomes part of a larger value, or of which a part is taken, with all of its channels."""
    first, given = 0, (*call.args, None)[0 if name in _JOINS else 1]
    if not isinstance(given, tuple | list):
        return None
    if name == "getitem":
        if any(part != slice(None) for part in given[:2]) or not all(isinstance(part, slice) for part in given):
            return None
    elif name == "pad":
        around = [part for part in given if isinstance(part, int) and part >= 0]
        if not 4 <= len(around) == len(given) <= 6 or len(shapes[call]) != 4:
            return None
        first = (*around, 0)[4]
    elif name in _JOINS:
        ahead = [shapes.get(part) for part in itertools.takewhile(lambda part: part is not node, given)]
        known = all(shape is not None for shape in ahead) and sum(part is node for part in given) == 1
        if not known or (*call.args[1:], *call.kwargs.values()) != (1,):
            return None
        first = sum(shape[1] for shape in ahead if shape is not None)
    else:
        return None
    if len(behind.number) == 1:
        return behind
    ours = slice(first, first + shapes[node][1])
    return Constants(behind.whole, behind.channel[ours], behind.number[ours])
