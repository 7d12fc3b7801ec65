"""Batch invariance: the bits of a row do not depend on which rows travel with it, or on how many.

A kernel chooses its way by the size of what it gets: a matrix product of 7 rows adds up in another order than one of
128, the last few values of a tensor go through a scalar loop that rounds otherwise than the vector loop before them,
two threads share the rows out otherwise than one. Where that happens depends on the processor, the library and the
number of threads, so it is found out here and now, operation by operation, and not written down:

- an operation on **rows** (a matrix product, a convolution, attention, a softmax) is tried on copies of one row. The
  largest tile all of whose places give the row the same bits defines them. Any other number of rows is left as it is
  where it gives these bits, otherwise filled up to one that does, or cut into tiles. A tile of one row always does.
- an operation on **single values** (an activation) is tried on values that its scalar and its vector loop round
  differently, if there are any. What does not come out as from the vector loop is filled up until it does.

Probes of sums are made to cancel: what is left of them is nothing but rounding, so that another order of adding up
shows in nearly every value. The operations are those that PyTorch itself dispatches, so it makes no difference by which
module, function or engine they are called, and both engines get the same bits. "Batch invariance" is the word of
Horace He et al. 2025, "Defeating nondeterminism in LLM inference", who write kernels that have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from bitflip.engines import kernels, strides, verdicts
from bitflip.engines.kernels import aten, is_tensor
from bitflip.engines.loops import Loops, is_on_values
from bitflip.engines.modes import Mode
from bitflip.engines.rows import OF_ANY_FORMAT, ROWS, Form, described
from bitflip.engines.verdicts import Verdicts
from bitflip.network import bits, layouts

_forms: dict[tuple[object, ...], Form] = {}
_loops: dict[tuple[object, ...], Loops] = {}


class Invariant(Mode):
    """While open, what runs is batch invariant, as far as its operations are known here.

    Attributes:
        met: how many operations went by that may need it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = 0
        self._known: dict[torch.device, Verdicts] = {}

    def __torch_dispatch__(
        self, op: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if op in ROWS:
            return self._by_rows(op, args, kwargs)
        if is_on_values(op):
            return self._by_value(op, args, kwargs)
        return kernels.execute(op, args, kwargs)

    def _by_rows(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if op is aten.bmm.default and args[1].stride(0) == 0 < len(args[1]):
            # The same weight for all: a linear layer on an input with gaps. Its rows may be images, too.
            done = self._by_rows(aten.mm.default, (args[0].flatten(0, 1), args[1][0]), {})
            return done.unflatten(0, args[0].shape[:2])
        call = [*args, *kwargs.values()]
        places = ROWS[op](call)
        if not places or not bits.is_flippable(call[places[0]].dtype) or not len(call[places[0]]):
            return kernels.execute(op, args, kwargs)
        self.met += 1
        if op is aten.convolution.default and layouts.is_default(call[1]):
            call[0] = call[0].contiguous()  # the weight chooses the kernel, in whatever format the images come
        rows = max(len(call[i]) for i in places)
        for i in places:  # what is one row for all is a row for each: a batch of one can't be told apart
            every = call[i] if len(call[i]) == rows else call[i].expand(rows, *call[i].shape[1:])
            call[i] = strides.rows_outermost(every, natural=op not in OF_ANY_FORMAT)
        known = self._on(call[places[0]].device)
        key = (known, op, places, tuple(kwargs), *(described(value, i in places) for i, value in enumerate(call)))
        form = _forms.get(key)
        if form is None:
            form = _forms[key] = Form(known, op, call, tuple(kwargs), places)
        return form.carried_out(call)

    def _by_value(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value: Any = args[0] if args else None
        others = [*args[1:], *kwargs.values()]
        if (
            not is_tensor(value)
            or not bits.is_flippable(value.dtype)
            or any(map(is_tensor, others))
            or not value.numel()
        ):
            return kernels.execute(op, args, kwargs)
        known = self._on(value.device)
        key = (known, op, value.dtype, *(described(other, False) for other in others))
        loops = _loops.get(key)
        if loops is None:
            loops = _loops[key] = Loops(known, op, value, args[1:], kwargs)
        if not loops.differ:
            return kernels.execute(op, args, kwargs)
        self.met += 1
        done = loops.carried_out(strides.flat(value))
        if op._schema.is_mutable and done.data_ptr() == value.data_ptr():
            return value
        done = done.as_strided(value.shape, strides.dense(value))
        return value.copy_(done) if op._schema.is_mutable else done

    def _on(self, device: torch.device) -> Verdicts:
        if device not in self._known:
            self._known[device] = verdicts.of(device)
        return self._known[device]


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for a kernel's rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    if not a.is_floating_point():
        return False
    tolerance = 1e-3 if torch.finfo(a.dtype).bits >= 32 else 5e-2
    a, b = a.double(), b.double()
    scale = max(1e-6, float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0)
    return torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True)
