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

import copy
import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bitflip import bits
from bitflip.engines import strides, verdicts
from bitflip.engines.verdicts import Verdicts
from bitflip.layers import is_leaf

aten = torch.ops.aten

TILES = (48, 24, 16, 12, 8, 4, 2, 1)
TILES_ON_A_GPU = (1024, 512, 256, 128, *TILES)
FILLED = (2, 4, 8, 12, 16, 24, 48, 128, 256, 512)  # numbers of rows to fill up to
TILE_BYTES = 1 << 24
FACTOR = 1.2345678  # of all products of a probe that cancels: they too are rounded then
DRAWN = 1 << 20  # values of a probe; larger ones repeat them
TILE_VALUES = 1 << 14  # few enough for one thread, a multiple of every vector
PROBED_VALUES = 1024


def execute(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Carry out an operation as PyTorch does."""
    return op(*args, **kwargs)


class Invariant(TorchDispatchMode):
    """While open, what runs is batch invariant, as far as its operations are known here.

    Attributes:
        met: how many operations went by that may need it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's own
        self.met = 0
        self._known: dict[torch.device, Verdicts] = {}

    def __torch_dispatch__(
        self, op: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if op in _ROWS:
            return self._by_rows(op, args, kwargs)
        if _is_on_values(op):
            return self._by_value(op, args, kwargs)
        return execute(op, args, kwargs)

    def _by_rows(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if op is aten.bmm.default and args[1].stride(0) == 0 < len(args[1]):
            # The same weight for all: a linear layer on an input with gaps. Its rows may be images, too.
            done = self._by_rows(aten.mm.default, (args[0].flatten(0, 1), args[1][0]), {})
            return done.unflatten(0, args[0].shape[:2])
        call = [*args, *kwargs.values()]
        places = _ROWS[op](call)
        if not places or not bits.is_flippable(call[places[0]].dtype) or not len(call[places[0]]):
            return execute(op, args, kwargs)
        self.met += 1
        rows = max(len(call[i]) for i in places)
        for i in places:  # what is one row for all is a row for each: a batch of one can't be told apart
            every = call[i] if len(call[i]) == rows else call[i].expand(rows, *call[i].shape[1:])
            call[i] = strides.rows_outermost(every, natural=op not in _OF_ANY_FORMAT)
        known = self._on(call[places[0]].device)
        key = (known, op, places, tuple(kwargs), *(_described(value, i in places) for i, value in enumerate(call)))
        form = _forms.get(key)
        if form is None:
            form = _forms[key] = Form(known, op, call, tuple(kwargs), places)
        return form.carried_out(call)

    def _by_value(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value: Any = args[0] if args else None
        others = [*args[1:], *kwargs.values()]
        if not _is(value) or not bits.is_flippable(value.dtype) or any(map(_is, others)) or not value.numel():
            return execute(op, args, kwargs)
        known = self._on(value.device)
        key = (known, op, value.dtype, *(_described(other, False) for other in others))
        loops = _loops.get(key)
        if loops is None:
            loops = _loops[key] = Loops(known, op, value, args[1:], kwargs)
        if not loops.differ:
            return execute(op, args, kwargs)
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


# --- operations on rows ---


def _first(call: Sequence[Any]) -> tuple[int, ...]:
    return (0,)


def _second(call: Sequence[Any]) -> tuple[int, ...]:
    return (0, 1) if call[0].dim() == 2 else (1,)


def _both(call: Sequence[Any]) -> tuple[int, ...]:
    return (0, 1)


def _all(call: Sequence[Any]) -> tuple[int, ...]:
    return (0, 1, 2)


def _attention(call: Sequence[Any]) -> tuple[int, ...]:
    masks = (i for i, value in enumerate(call[3:], 3) if _is(value) and value.dim() == 4)
    return (0, 1, 2, *masks)


def _along(call: Sequence[Any]) -> tuple[int, ...]:
    """Along one or several dimensions, the first of which must not be among them."""
    value, along = call[0], call[1]
    dims = [along] if isinstance(along, int) else along
    return (0,) if dims and all(d % value.dim() for d in dims) else ()


def _normalised(call: Sequence[Any]) -> tuple[int, ...]:
    return (0,) if call[0].dim() > len(call[1]) else ()


_ROWS: dict[OpOverload, Callable[[Sequence[Any]], tuple[int, ...]]] = {
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

_OF_ANY_FORMAT = {
    *(aten.convolution.default, aten.mean.dim, aten.sum.dim_IntList),
    *(aten._softmax.default, aten._log_softmax.default, aten.native_layer_norm.default),
}
"""Which take their input in any memory format. The others get theirs in one, since what calls them now copies, now
only views what it hands to them, by the number of rows.
"""

_SUMS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}


_forms: dict[tuple[object, ...], Form] = {}


def _described(value: Any, rows: bool) -> object:
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
        described = [_described(value, i in places) for i, value in enumerate(call)]
        self._key = f"{op} {places} {names} {described}"
        # Without values: what is kept as long as the process lives must not keep tensors.
        self._like = [_Like(value, i in places) if isinstance(value, Tensor) else value for i, value in enumerate(call)]
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
            done.append(_head(self.run(some), size, count))
        return _joined(done, [count for _, count, _ in parts])

    def run(self, call: Sequence[Any]) -> Any:
        """Carry out the operation on just these rows."""
        count = len(call) - len(self._names)
        return execute(self._op, call[:count], dict(zip(self._names, call[count:], strict=True)))

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
        size = sum(leaf.nbytes for leaf in [*tree_leaves(self.run(one)), *(one[i] for i in self._places)] if _is(leaf))
        on_cpu = self._like[self._places[0]].device.type == "cpu"
        tiles = [n for n in (TILES if on_cpu else TILES_ON_A_GPU) if n * size <= TILE_BYTES]
        return next((n for n in tiles if all(_alike(_rows(self.run(probe), n)) for probe in self._probes(n))), 1)

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
            if not all(_equal(leaf, one) for leaf, one in zip(got, expected, strict=True)):
                return False
        return True

    def _probes(self, rows: int) -> Iterator[list[Any]]:
        """Inputs of so many copies of one row, in several variants, always the same ones."""
        if not self._rows_of:
            self._rows_of = [self._drawn(variant) for variant in range(self._variants())]
        for drawn in self._rows_of:
            made = list(drawn)
            for i in self._places:
                made[i] = self._like[i].made(drawn[i], rows)
            yield made

    def _variants(self) -> int:
        """Sums that cancel show other ways of adding up, other values show them if there are enough of them."""
        if self._op in _SUMS:
            return 2
        return min(16, max(1, PROBED_VALUES // math.prod(self._like[self._places[0]].shape)))

    def _drawn(self, variant: int) -> list[Any]:
        """What a probe consists of: one row of the inputs that hold rows; other tensors as the kernel gets them."""
        generator = torch.Generator().manual_seed(zlib.crc32(self._key.encode()) + variant)
        if variant == 0 and self._op in _SUMS:
            values = _cancelling(self._op, self._like, generator)
        else:
            values = [like.random(generator) if isinstance(like, _Like) else like for like in self._like]
        for i, like in enumerate(self._like):
            if isinstance(like, _Like) and not like.rows:
                values[i] = like.made(values[i], 0)
        return values


class _Like:
    """A tensor without its values."""

    def __init__(self, value: Tensor, rows: bool) -> None:
        self.dtype, self.device, self.rows = value.dtype, value.device, rows
        self.shape = value.shape[1:] if rows else value.shape
        self.strides = value.stride()[1:] if rows else value.stride()
        self.offset = 0 if rows else value.data_ptr() % strides.ALIGNMENT // value.element_size()

    def of_shape(self, shape: tuple[int, ...]) -> _Like:
        """The same with another shape, of which only shape and type count."""
        other = copy.copy(self)
        other.shape = torch.Size(shape)
        return other

    def random(self, generator: torch.Generator) -> Tensor:
        """Normal values of its shape, of one row; large ones repeat."""
        count = math.prod(self.shape)
        drawn = torch.randn(min(count, DRAWN), generator=generator, dtype=_drawn_as(self.dtype))
        return _cycled(drawn, count).reshape(self.shape)

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


def _cancelling(op: OpOverload, like: list[Any], generator: torch.Generator) -> list[Any]:
    """Inputs whose sums are 0 but for rounding: every product has its opposite at a random place."""
    values = [one.random(generator) if isinstance(one, _Like) else one for one in like]
    if op is not aten.convolution.default:
        last = 1 if op in (aten.mm.default, aten.bmm.default) else 2  # the second factor; the others add something
        sign = _signs(like[last].shape[-2], generator)
        values[last - 1] = (FACTOR * sign).expand(like[last - 1].shape)
        values[last] = _opposites(sign, like[last], generator)
        added = last - 2
    elif like[6]:  # transposed
        return values
    else:
        added = 2
        outputs, of_group, *kernel = like[1].shape
        sign = _signs(of_group, generator)
        groups = like[0].shape[0] // of_group
        values[0] = (FACTOR * sign).repeat(groups).reshape(-1, *[1] * len(kernel)).expand(like[0].shape)
        flat = like[1].of_shape((of_group * math.prod(kernel), outputs))
        weight = _opposites(sign.repeat_interleave(math.prod(kernel)), flat, generator)
        values[1] = weight.t().reshape(like[1].shape)
    if added >= 0 and isinstance(values[added], Tensor):
        values[added] = values[added] * torch.finfo(like[added].dtype).eps  # as small as what is left
    return values


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator).float() * 2 - 1


def _opposites(signs: Tensor, like: _Like, generator: torch.Generator) -> Tensor:
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


def _is(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def _rows(output: Any, rows: int) -> list[Tensor]:
    """The tensors of an output that have so many rows; the first one always has."""
    first, *others = tree_leaves(output)
    return [first, *(leaf for leaf in others if _is(leaf) and leaf.dim() > 0 and len(leaf) == rows)]


def _alike(leaves: Sequence[Tensor]) -> bool:
    """Whether all rows have the bits of the first one."""
    return all(_equal(leaf, leaf[:1]) for leaf in leaves)


def _equal(rows: Tensor, one: Tensor) -> bool:
    """Whether all rows, (R, ...), have the bits of one, (1, ...)."""
    return torch.equal(bits.exact(rows), bits.exact(one).expand_as(rows))


def _filled(rows: Tensor, size: int) -> Tensor:
    """Rows in a tensor of their own, filled up with copies of the first."""
    if len(rows) == size:
        return strides.rows_outermost(rows)
    filled = torch.empty_strided((size, *rows.shape[1:]), rows.stride(), dtype=rows.dtype, device=rows.device)
    filled[: len(rows)] = rows
    filled[len(rows) :] = rows[:1]
    return filled


def _head(output: Any, size: int, count: int) -> Any:
    """The first rows of an output."""
    leaves, tree = tree_flatten(output)
    has = [i == 0 or (_is(leaf) and leaf.dim() > 0 and len(leaf) == size) for i, leaf in enumerate(leaves)]
    return tree_unflatten([leaf[:count] if h else leaf for leaf, h in zip(leaves, has, strict=True)], tree)


def _joined(outputs: Sequence[Any], counts: Sequence[int]) -> Any:
    """The outputs of all parts as one."""
    flat = [tree_flatten(output)[0] for output in outputs]
    tree = tree_flatten(outputs[0])[1]
    leaves = []
    for i, parts in enumerate(zip(*flat, strict=True)):
        has = i == 0 or all(_is(p) and p.dim() > 0 and len(p) == n for p, n in zip(parts, counts, strict=True))
        leaves.append(strides.join(parts, 0) if has else parts[0])
    return tree_unflatten(leaves, tree)


# --- operations on single values ---

_ON_VALUES = {aten.hardswish.default, aten.hardswish_.default}
"""Operations on single values that PyTorch does not say it of."""

_COPIES = {aten.clone.default, aten._to_copy.default}


@functools.cache
def _is_on_values(op: OpOverload) -> bool:
    if op in _COPIES or torch.Tag.nondeterministic_seeded in op.tags or len(op._schema.returns) != 1:
        return False
    return op in _ON_VALUES or torch.Tag.pointwise in op.tags


_loops: dict[tuple[object, ...], Loops] = {}


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
        done: Tensor = execute(self._op, (values, *self._args), self._kwargs)
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
            tile = self._tried(_cycled(values, TILE_VALUES)).reshape(-1, len(values))
            expected = tile[0]
            whole = values.reshape(-1, 16, 2, 2)
            differs = torch.cat([self._tried(one) for one in torch.split(values, 1)]) != expected
            differs |= self._tried(whole.contiguous(memory_format=torch.channels_last)).flatten() != expected
            for count in (len(values) - 1, 40_001):
                got = self._tried(_cycled(values, count))[: len(values)]
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
        return torch.equal(self._tried(_cycled(values, count)), _cycled(expected, count))

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


def _cycled(values: Tensor, count: int) -> Tensor:
    return values.repeat(-(-count // len(values)))[:count]


# --- whole models ---


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for a kernel's rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    tolerance = 1e-3 if torch.finfo(a.dtype).bits >= 32 else 5e-2
    a, b = a.double(), b.double()
    scale = max(1e-6, float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0)
    return torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def uneven(model: nn.Module, images: Tensor) -> str | None:
    """The first module whose rows are rounded otherwise in other company even so, or None if there is none.

    What differs by more than rounding, since it mixes images or chooses its way by them, is not looked for here.

    Args:
        model: in eval mode.
        images: at least three, (B, ...).

    Returns:
        Its path, or the type of the model if it is in no leaf module.
    """
    together = _watched(model, images)
    for start, stop in ((0, 1), (1, 2), (1, len(images))):
        for (path, whole), (_, some) in zip(together, _watched(model, images[start:stop]), strict=False):
            fold, rest = divmod(len(whole), len(images)) if whole.dim() else (0, 1)
            if rest or len(some) != fold * (stop - start):
                continue  # its first dimension is not that of the images
            expected = whole[fold * start : fold * stop]
            if not close(some, expected):
                return None
            if not torch.equal(bits.exact(some), bits.exact(expected)):
                return path or type(model).__name__
    return None


def _watched(model: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    """The outputs of all leaf modules, and of the model."""
    seen: list[tuple[str, Tensor]] = []

    def watch(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: object, output: Any) -> None:
            seen.extend((path, leaf.clone()) for leaf in tree_leaves(output) if _is(leaf))

        return note

    leaves = [(path, module) for path, module in model.named_modules() if path and is_leaf(module)]
    handles = [module.register_forward_hook(watch(path)) for path, module in leaves]
    try:
        with torch.no_grad(), Invariant():
            output = model(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    watch("")(model, (), output)
    return seen
