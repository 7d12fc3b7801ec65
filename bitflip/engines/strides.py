"""Rows of a tensor, taken and joined without changing the order of its dimensions in memory.

Kernels round by the form of what they get. So rows that travel alone keep the memory format of the batch that they came
from, whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; where a tensor of its own begins


def order(value: Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost."""
    if value.is_contiguous():
        return list(range(value.dim()))
    steps = value.stride()
    return sorted(range(value.dim()), key=lambda d: -steps[d])


def inverse(dims: Sequence[int]) -> list[int]:
    """The permutation that undoes a permutation."""
    return sorted(range(len(dims)), key=dims.__getitem__)


def pick(value: Tensor, dim: int, places: Tensor) -> Tensor:
    """Some entries of a dimension, which may repeat: a new tensor."""
    dims = order(value)
    return value.permute(dims).index_select(dims.index(dim), places).permute(inverse(dims))


def join(values: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors of the same form, one after the other along a dimension."""
    dims = order(values[0])
    return torch.cat([value.permute(dims) for value in values], dims.index(dim)).permute(inverse(dims))


def rows_outermost(value: Tensor, *, natural: bool = False) -> Tensor:
    """The same values with the first dimension outermost in memory, no gaps, aligned: a copy only where need be.

    The strides depend on the shape and the order of the other dimensions alone; with ``natural``, on the shape alone.
    """
    dims = list(range(value.dim())) if natural else [0, *(d for d in order(value) if d != 0)]
    steps = _steps(value, dims)
    aligned = value.data_ptr() % ALIGNMENT == 0
    if aligned and value.stride() == steps:
        return value
    if aligned and value.permute(dims).is_contiguous():  # but for dimensions of one entry, whose strides mean nothing
        return value.as_strided(value.shape, steps)
    copy = torch.empty_strided(value.shape, steps, dtype=value.dtype, device=value.device)
    return copy.copy_(value)


def _steps(value: Tensor, dims: Sequence[int]) -> tuple[int, ...]:
    """Strides without gaps for the shape of a tensor, from the outermost dimension to the innermost."""
    found, step = [0] * value.dim(), 1
    for d in reversed(dims):
        found[d] = step
        step *= max(1, value.shape[d])
    return tuple(found)


def dense(value: Tensor) -> tuple[int, ...]:
    """The strides of a tensor of this shape without gaps, its dimensions in the same order in memory."""
    return _steps(value, order(value))


def flat(value: Tensor) -> Tensor:
    """All values in the order of the memory, (N,); a view where there are no gaps."""
    return value.permute(order(value)).reshape(-1)


def like(value: Tensor, other: Tensor) -> Tensor:
    """The values with the dimensions in the same order in memory as those of another tensor."""
    dims = order(other)
    return value.permute(dims).contiguous().permute(inverse(dims))


def random(count: int, form: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """So many rows of normal values, in the form of those of another tensor; always the same without a generator."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = torch.randn(count, *form.shape[1:], generator=generator, dtype=torch.float64)
    return like(drawn.to(form.device, form.dtype), form)
