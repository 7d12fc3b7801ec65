"""Inputs on which an operation is tried: like those that it got, with values that show how it rounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from bitflip.engines import kernels, strides
from bitflip.engines.kernels import aten, cycled

FACTOR = 1.2345678  # of all products of a probe that cancels: they too are rounded then
DRAWN = 1 << 20  # values of a probe; larger ones repeat them


class Like:
    """A tensor without its values."""

    def __init__(self, value: Tensor, rows: bool) -> None:
        self.dtype, self.device, self.rows = value.dtype, value.device, rows
        self.shape = value.shape[1:] if rows else value.shape
        self.strides = value.stride()[1:] if rows else value.stride()
        self.offset = 0 if rows else value.data_ptr() % strides.ALIGNMENT // value.element_size()

    def of_shape(self, shape: tuple[int, ...]) -> Like:
        """The same with another shape, of which only shape and type count."""
        other = copy.copy(self)
        other.shape = torch.Size(shape)
        return other

    def random(self, generator: torch.Generator) -> Tensor:
        """Normal values of its shape, of one row; large ones repeat."""
        count = math.prod(self.shape)
        drawn = torch.randn(min(count, DRAWN), generator=generator, dtype=_drawn_as(self.dtype))
        return cycled(drawn, count).reshape(self.shape)

    def made(self, values: Tensor, rows: int) -> Tensor:
        """A tensor like this one, of so many rows, each with these values."""
        shape, steps = tuple(self.shape), tuple(self.strides)
        if self.rows:
            shape, steps = (rows, *shape), (math.prod(shape), *steps)
        own = [1 if step == 0 else n for n, step in zip(shape, steps, strict=True)]  # what is expanded is there once
        span = 1 + sum((n - 1) * step for n, step in zip(own, steps, strict=True)) if math.prod(own) else 0
        memory = torch.empty(self.offset + span, dtype=self.dtype, device=self.device)
        made = memory.as_strided(own, steps, self.offset)
        return made.copy_(values.expand(shape)[tuple(slice(n) for n in own)]).expand(shape)


def cancelling(op: OpOverload, like: list[Any], generator: torch.Generator) -> list[Any]:
    """Inputs whose sums are 0 but for rounding: every product has its opposite at a random place."""
    values = [one.random(generator) if isinstance(one, Like) else one for one in like]
    if op is not aten.convolution.default:
        last = 1 if op in (aten.mm.default, aten.bmm.default) else 2  # the second factor; the others add something
        sign = _signs(like[last].shape[-2], generator)
        values[last - 1] = (FACTOR * sign).expand(like[last - 1].shape)
        values[last] = _opposites(sign, like[last], generator)
        added = last - 2
    else:
        added, transposed, groups = 2, like[6], like[8]
        of_group = like[0].shape[0] // groups
        kernel = like[1].shape[2:]
        sign = _signs(of_group, generator)
        values[0] = (FACTOR * sign).repeat(groups).reshape(-1, *[1] * len(kernel)).expand(like[0].shape)
        if transposed:  # what is added up has the same place in the kernel
            flat = like[1].of_shape((groups, of_group, math.prod(like[1].shape[1:])))
            weight = _opposites(sign, flat, generator)
        else:
            flat = like[1].of_shape((of_group * math.prod(kernel), like[1].shape[0]))
            weight = _opposites(sign.repeat_interleave(math.prod(kernel)), flat, generator).t()
        values[1] = weight.reshape(like[1].shape)
    if added >= 0 and isinstance(values[added], Tensor):
        values[added] = values[added] * torch.finfo(like[added].dtype).eps  # as small as what is left
    return values


def far_from_one_pixel(
    op: OpOverload, like: Sequence[Any], generator: torch.Generator
) -> tuple[list[Any], list[Any], Tensor]:
    """A convolution of one row, the same with one huge pixel, and the pixels of the output that do not read it.

    All of a kernel is 0 but for one place, so that a pixel of the output reads at most one, also on a small map.

    Returns:
        The inputs of both, and which pixels those are, flat.
    """
    values = [one.random(generator) if isinstance(one, Like) else one for one in like]
    one_place, one_pixel = (_middle(like[i].shape[start:]) for i, start in ((1, 2), (0, 1)))
    values[1] = values[1] * one_place
    read = kernels.execute(op, [one_pixel[None, None], one_place[None, None], None, *like[3:8], 1], {}) != 0
    struck = list(values)
    huge = torch.finfo(like[0].dtype).max ** 0.75
    struck[0] = torch.where(one_pixel != 0, huge, values[0])
    return values, struck, ~read.flatten()


def _middle(shape: Sequence[int]) -> Tensor:
    """Zeros with a one in the middle."""
    found = torch.zeros(*shape, dtype=torch.float64)
    found[tuple(n // 2 for n in shape)] = 1
    return found


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator).float() * 2 - 1


def _opposites(signs: Tensor, like: Like, generator: torch.Generator) -> Tensor:
    """Factors (..., K, N) of values that are ``signs``, (K,), each product with its opposite among the K."""
    *groups, depth, width = like.shape
    width_drawn = min(width, max(1, DRAWN // (math.prod(groups) * depth)))
    one, other = torch.randperm(depth, generator=generator)[: depth // 2 * 2].reshape(2, -1)
    drawn = torch.randn(*groups, len(one), width_drawn, generator=generator, dtype=_drawn_as(like.dtype))
    spread = 8 if torch.finfo(like.dtype).bits == 16 else 4  # sums of values that differ much are rounded more
    drawn *= 2.0 ** torch.randint(-spread, spread + 1, drawn.shape, generator=generator)
    drawn = drawn.to(like.dtype).to(drawn.dtype)  # so that opposites are exact
    factors = torch.zeros(*groups, depth, width_drawn, dtype=drawn.dtype)
    factors[..., one, :] = drawn * signs[one][:, None]
    factors[..., other, :] = -drawn * signs[other][:, None]
    return factors.repeat(*[1] * (len(groups) + 1), -(-width // width_drawn))[..., :width]


def _drawn_as(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
