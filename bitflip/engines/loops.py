"""Operations on single values, such as activations, whose scalar and vector loops round differently."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from bitflip.engines import kernels
from bitflip.engines.kernels import aten, cycled
from bitflip.engines.verdicts import Verdicts
from bitflip.network import bits

TILE_VALUES = 1 << 14  # few enough for one thread, a multiple of every vector
PROBED_VALUES = 1024


_ON_VALUES = {aten.hardswish.default, aten.hardswish_.default}
"""Operations on single values that PyTorch does not say it of."""

_COPIES = {aten.clone.default, aten._to_copy.default}


@functools.cache
def is_on_values(op: OpOverload) -> bool:
    """Whether an operation works value by value, always the same way."""
    if op in _COPIES or torch.Tag.nondeterministic_seeded in op.tags or len(op._schema.returns) != 1:
        return False
    return op in _ON_VALUES or torch.Tag.pointwise in op.tags


class Loops:
    """An operation on single values, and what was found out about its scalar and its vector loop."""

    def __init__(
        self, known: Verdicts, op: OpOverload, like: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._known, self._op, self._args, self._kwargs = known, op, args, kwargs
        self._dtype, self._device = like.dtype, like.device
        self._key = f"{op} {like.dtype} {args} {kwargs}"
        self._found: tuple[Tensor, Tensor] | None = None
        self._holds: dict[int, bool] = {}

    def _run(self, values: Tensor) -> Tensor:
        done: Tensor = kernels.execute(self._op, (values, *self._args), self._kwargs)
        return done

    def _tried(self, values: Tensor) -> Tensor:
        return bits.as_integers(self._run(values.clone()))

    @property
    def differ(self) -> bool:
        """Whether there are values that come out differently in other places, and the same in all places of a tile."""
        return self._known.holds(self._key, "differ", lambda: len(self._sensitive()[0]) > 0)

    def _sensitive(self) -> tuple[Tensor, Tensor]:
        """Values that come out differently in other places, and the bits that they come out as in a tile."""
        if self._found is None:
            generator = torch.Generator().manual_seed(0)
            values = 3 * torch.randn(PROBED_VALUES, generator=generator, dtype=torch.float64)
            values = values.to(self._dtype).to(self._device)
            if self._run(values.clone()).dtype != self._dtype:  # a comparison
                self._found = values[:0], values[:0]
                return self._found
            tile = self._tried(cycled(values, TILE_VALUES)).reshape(-1, len(values))
            expected = tile[0]
            whole = values.reshape(-1, 16, 2, 2)
            differs = torch.cat([self._tried(one) for one in torch.split(values, 1)]) != expected
            differs |= self._tried(whole.contiguous(memory_format=torch.channels_last)).flatten() != expected
            for count in (len(values) - 1, 40_001):
                got = self._tried(cycled(values, count))[: len(values)]
                differs[: len(got)] |= got != expected[: len(got)]
            if not torch.equal(tile, expected.expand_as(tile)):
                differs[:] = False  # not even in a tile are they all the same: then nothing is gained
            self._found = values[differs], expected[differs]
        return self._found

    def holds(self, count: int) -> bool:
        """Whether so many values come out as in a tile, wherever they are."""
        if count not in self._holds:
            self._holds[count] = self._known.holds(self._key, str(count), lambda: self._try(count))
        return self._holds[count]

    def _try(self, count: int) -> bool:
        values, expected = self._sensitive()
        return torch.equal(self._tried(cycled(values, count)), cycled(expected, count))

    def carried_out(self, flat: Tensor) -> Tensor:
        """The output for values, (N,): as they are, filled up to a number that holds, or in tiles."""
        count = len(flat)
        step = 64 * torch.get_num_threads()
        for size in (count, -(-count // step) * step):
            if self.holds(size):
                return self._run(_filled_with_ones(flat, size))[:count]
        whole = _filled_with_ones(flat, -(-count // TILE_VALUES) * TILE_VALUES)
        return torch.cat([self._run(tile) for tile in torch.split(whole, TILE_VALUES)])[:count]


def _filled_with_ones(values: Tensor, count: int) -> Tensor:
    return values if len(values) == count else torch.cat([values, values.new_ones(count - len(values))])
