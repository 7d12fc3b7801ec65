"""Carrying out an operation that PyTorch dispatches, and telling whether rows of its output have the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from bitflip.network import bits

aten = torch.ops.aten


def execute(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Carry out an operation as PyTorch does."""
    return op(*args, **kwargs)


def is_tensor(leaf: object) -> bool:
    """Whether it is one."""
    return isinstance(leaf, Tensor)


def equal(rows: Tensor, one: Tensor) -> bool:
    """Whether all rows, (R, ...), have the bits of one, (1, ...)."""
    return torch.equal(bits.exact(rows), bits.exact(one).expand_as(rows))


def cycled(values: Tensor, count: int) -> Tensor:
    """So many values, (count,): the given ones, (N,), over and over."""
    return values.repeat(-(-count // len(values)))[:count]
