"""Operations on rows, such as matrix products, in forms in which a row has the same bits in any company."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bitflip.engines import kernels, strides
from bitflip.engines.kernels import aten, equal, is_tensor
from bitflip.engines.probes import Like, cancelling, far_from_one_pixel
from bitflip.engines.verdicts import Verdicts

TILES = (48, 24, 16, 12, 8, 4, 2, 1)
TILES_ON_A_GPU = (2048, 1024, 512, 256, 128, *TILES)
FEWEST_ON_A_GPU = 32  # rows of a tile, below which a launch costs more than what it computes
FILLED = (2, 4, 8, 12, 16, 24, 48, 128, 256, 512, 1024)  # numbers of rows to fill up to
TILE_BYTES = 1 << 24
TILE_BYTES_ON_A_GPU = 1 << 30
PROBED_VALUES = 1024  # of the input, at least, where a row has few


def _first(call: Sequence[Any]) -> tuple[int, ...]:
    return (0,)


def _second(call: Sequence[Any]) -> tuple[int, ...]:
    return (0, 1) if call[0].dim() == 2 else (1,)


def _both(call: Sequence[Any]) -> tuple[int, ...]:
    return (0, 1)


def _all(call: Sequence[Any]) -> tuple[int, ...]:
    return (0, 1, 2)


def _attention(call: Sequence[Any]) -> tuple[int, ...]:
    masks = (i for i, value in enumerate(call[3:], 3) if is_tensor(value) and value.dim() == 4)
    return (0, 1, 2, *masks)


def _along(call: Sequence[Any]) -> tuple[int, ...]:
    """Along one or several dimensions, the first of which must not be among them."""
    value, along = call[0], call[1]
    dims = [along] if isinstance(along, int) else along
    return (0,) if dims and all(d % value.dim() for d in dims) else ()


def _normalised(call: Sequence[Any]) -> tuple[int, ...]:
    return (0,) if call[0].dim() > len(call[1]) else ()


ROWS: dict[OpOverload, Callable[[Sequence[Any]], tuple[int, ...]]] = {
    aten.mm.default: _first,
    aten.addmm.default: _second,
    aten.bmm.default: _both,
    aten.baddbmm.default: _all,
    aten.convolution.default: _first,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention.default: _attention,
    aten._scaled_dot_product_efficient_attention.default: _attention,
    aten._scaled_dot_product_cudnn_attention.default: _attention,
    aten._softmax.default: _along,
    aten._log_softmax.default: _along,
    aten.mean.dim: _along,
    aten.sum.dim_IntList: _along,
    aten.native_layer_norm.default: _normalised,
}
"""Which inputs hold the rows in their first dimension."""

OF_ANY_FORMAT = {
    *(aten.convolution.default, aten.mean.dim, aten.sum.dim_IntList),
    *(aten._softmax.default, aten._log_softmax.default, aten.native_layer_norm.default),
}
"""Which take their input in any memory format. The others get theirs in one, since what calls them now copies, now
only views what it hands to them, by the number of rows.
"""

_SUMS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}


def described(value: Any, rows: bool) -> object:
    """All that an input has to do with how a kernel rounds, but for its values and the number of its rows."""
    if not isinstance(value, Tensor):
        return tuple(value) if isinstance(value, list) else value
    if rows:
        return value.dtype, value.shape[1:], value.stride()[1:]
    return value.dtype, value.shape, value.stride(), value.data_ptr() % strides.ALIGNMENT


class Form:
    """An operation on rows of one form, and what was found out about it.

    Args:
        known: verdicts.
        op: the operation.
        call: its inputs; the first tensor of rows decides their number.
        names: of the last inputs, which are given by name.
        places: of the inputs that hold the rows.
    """

    def __init__(
        self, known: Verdicts, op: OpOverload, call: Sequence[Any], names: tuple[str, ...], places: tuple[int, ...]
    ) -> None:
        self._known = known
        self._op, self._names, self._places = op, names, places
        self._key = f"{op} {places} {names} {[described(value, i in places) for i, value in enumerate(call)]}"
        # Without values: what is kept as long as the process lives must not keep tensors.
        self._like = [Like(value, i in places) if isinstance(value, Tensor) else value for i, value in enumerate(call)]
        self._expected: list[list[Tensor]] = []
        self._rows_of: list[list[Any]] = []  # values of the probes; only while some are run
        self._parts: dict[int, list[tuple[int, int, int]] | None] = {}

    def carried_out(self, call: Sequence[Any]) -> Any:
        """The operation's output, the same bits for a row in any company."""
        parts = self.parts(len(call[self._places[0]]))
        if parts is None:
            return self.run(call)
        done = []
        for start, count, size in parts:
            some = list(call)
            for i in self._places:
                some[i] = _filled(call[i].narrow(0, start, count), size)
            done.append(self.run(some))
        return _joined(done, parts)

    def run(self, call: Sequence[Any]) -> Any:
        """Carry out the operation on just these rows."""
        count = len(call) - len(self._names)
        return kernels.execute(self._op, call[:count], dict(zip(self._names, call[count:], strict=True)))

    def parts(self, rows: int) -> list[tuple[int, int, int]] | None:
        """How to cut so many rows: (first, number, filled up to); None to leave them as they are."""
        if rows not in self._parts:
            try:
                self._parts[rows] = self._cut(rows)
            finally:
                self._rows_of.clear()
        return self._parts[rows]

    def _cut(self, rows: int) -> list[tuple[int, int, int]] | None:
        if self._holds(rows):
            return None
        tile = self.tile
        starts = range(0, rows, tile)
        counts = [min(tile, rows - start) for start in starts]
        size = next((n for n in (counts[-1], *FILLED) if counts[-1] <= n < tile and self._holds(n)), tile)
        sizes = [*[tile] * (len(counts) - 1), size]
        return list(zip(starts, counts, sizes, strict=True))

    @property
    def tile(self) -> int:
        """The number of rows whose bits count."""
        found: int = self._known.find(self._key, "tile", self._find_tile)
        return found

    def _find_tile(self) -> int:
        one = next(self._probes(1))
        size = sum(
            leaf.nbytes for leaf in [*tree_leaves(self.run(one)), *(one[i] for i in self._places)] if is_tensor(leaf)
        )
        on_cpu = self._like[self._places[0]].device.type == "cpu"
        most = TILE_BYTES if on_cpu else TILE_BYTES_ON_A_GPU
        tiles = [n for n in (TILES if on_cpu else TILES_ON_A_GPU) if n * size <= most]
        if self._op is aten.convolution.default and transforms(self._like[0].device):
            large = (n for n in tiles if n >= FEWEST_ON_A_GPU and self._keeps_pixels_apart(n))
            if found := next((n for n in large if self._fits(n)), None):
                return found
        return next((n for n in tiles if self._fits(n)), 1)

    def _fits(self, rows: int) -> bool:
        """Whether all places of a tile of so many rows give a row the same bits."""
        return all(_alike(_rows(self.run(probe), rows)) for probe in self._probes(rows))

    def _keeps_pixels_apart(self, rows: int) -> bool:
        """Whether a convolution of so many rows adds up products, and does not transform maps, or tiles of them.

        A transform, such as FFT or Winograd, rounds a whole tile as its largest value has it: one huge value, which a
        fault makes, changes pixels that do not read it.
        """
        clean, struck, apart = far_from_one_pixel(self._op, self._like, torch.Generator().manual_seed(0))
        before, after = (self.run(self._made(self._placed(call), rows)) for call in (clean, struck))
        same = (before == after).flatten(2).all(dim=1).all(dim=0).cpu()  # of each pixel, in all channels and rows
        return bool(same[apart].all())

    def _holds(self, rows: int) -> bool:
        """Whether so many rows get the bits that they have in a tile."""
        return self._known.holds(self._key, str(rows), lambda: self._try(rows))

    def _try(self, rows: int) -> bool:
        if rows == self.tile:
            return True
        if not self._expected:
            tiles = [_rows(self.run(probe), self.tile) for probe in self._probes(self.tile)]
            self._expected = [[leaf[:1].clone() for leaf in leaves] for leaves in tiles]
        for probe, expected in zip(self._probes(rows), self._expected, strict=True):
            got = _rows(self.run(probe), rows)
            if not all(equal(leaf, one) for leaf, one in zip(got, expected, strict=True)):
                return False
        return True

    def _probes(self, rows: int) -> Iterator[list[Any]]:
        """Inputs of so many copies of one row, in several variants, always the same ones."""
        if not self._rows_of:
            self._rows_of = [self._drawn(variant) for variant in range(self._variants())]
        for drawn in self._rows_of:
            yield self._made(drawn, rows)

    def _made(self, drawn: Sequence[Any], rows: int) -> list[Any]:
        """A call of so many rows with these values."""
        made = list(drawn)
        for i in self._places:
            made[i] = self._like[i].made(drawn[i], rows)
        return made

    def _variants(self) -> int:
        """Sums that cancel show other ways of adding up, other values show them if there are enough of them."""
        if self._op in _SUMS:
            return 2
        return min(16, max(1, PROBED_VALUES // math.prod(self._like[self._places[0]].shape)))

    def _drawn(self, variant: int) -> list[Any]:
        """What a probe consists of: one row of the inputs that hold rows; other tensors as the kernel gets them."""
        generator = torch.Generator().manual_seed(zlib.crc32(self._key.encode()) + variant)
        if variant == 0 and self._op in _SUMS:
            values = cancelling(self._op, self._like, generator)
        else:
            values = [like.random(generator) if isinstance(like, Like) else like for like in self._like]
        return self._placed(values)

    def _placed(self, values: list[Any]) -> list[Any]:
        """The values with those that are the same for all rows in the form in which the kernel gets them."""
        for i, like in enumerate(self._like):
            if isinstance(like, Like) and not like.rows:
                values[i] = like.made(values[i], 0)
        return values


def transforms(device: torch.device) -> bool:
    """Whether convolutions may take transforms there: cuDNN's do, and those of the CPU are told not to."""
    return device.type == "cuda"


def _have_rows(leaves: Sequence[Any], rows: int) -> list[bool]:
    """Which parts of an output have so many rows; the first one always has."""
    return [i == 0 or (is_tensor(leaf) and leaf.dim() > 0 and len(leaf) == rows) for i, leaf in enumerate(leaves)]


def _rows(output: Any, rows: int) -> list[Tensor]:
    """The tensors of an output that have so many rows."""
    leaves = tree_leaves(output)
    return [leaf for leaf, has in zip(leaves, _have_rows(leaves, rows), strict=True) if has]


def _alike(leaves: Sequence[Tensor]) -> bool:
    """Whether all rows have the bits of the first one."""
    return all(equal(leaf, leaf[:1]) for leaf in leaves)


def _filled(rows: Tensor, size: int) -> Tensor:
    """Rows in a tensor of their own, filled up with copies of the first."""
    if len(rows) == size:
        return strides.rows_outermost(rows)
    filled = torch.empty_strided((size, *rows.shape[1:]), rows.stride(), dtype=rows.dtype, device=rows.device)
    filled[: len(rows)] = rows
    filled[len(rows) :] = rows[:1]
    return filled


def _joined(outputs: Sequence[Any], parts: Sequence[tuple[int, int, int]]) -> Any:
    """The outputs of all parts as one, without what was filled up."""
    flat = [tree_leaves(output) for output in outputs]
    leaves, tree = tree_flatten(outputs[0])
    for i, has in enumerate(_have_rows(leaves, parts[0][2])):
        if has:
            leaves[i] = strides.join([one[i][:count] for one, (_, count, _) in zip(flat, parts, strict=True)], 0)
    return tree_unflatten(leaves, tree)
