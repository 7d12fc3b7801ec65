"""The fast engine: every layer's faults in one sweep through the network.

The obvious loop runs the clean pass anew for each layer, runs the layers before the fault, whose values are known, and
runs rows on that have become identical to clean. The wave walks the model once per batch. At each chosen layer it forks
rows: a copy of the clean output, one flip per image. Forked rows of all earlier layers travel along in a pool and go
through each following step together, whatever layer they came from. A row whose only live value has become
bit-identical to clean can't differ any more, and leaves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from bitflip import bits
from bitflip.engines.graph import Program, Rows, Step, by_image, first, is_data, join, take
from bitflip.engines.reference import Reference
from bitflip.engines.windows import WIDEST, Kind, Spread, Window, overlay, padded, unpadded
from bitflip.engines.windows import join as join_windows
from bitflip.faults import Flips
from bitflip.injection import Injector, flip_rows, strike
from bitflip.layers import Layer
from bitflip.outcomes import BatchOutcomes

Fork = Callable[[int, Step, Mapping[fx.Node, Any]], Any]  # (slot, step, clean values) -> the layer's faulty output

FEW = 20  # a check that frees less than one row in so many was not worth its time
MAX_PATIENCE = 7
WINDOWS_PER_ROW = 4  # windows that go through a step together, for each whole row that does
CHUNK_ROWS = {"cpu": 128, "cuda": 2048}
CPU_POOL_BYTES = 1 << 30


@dataclass
class Chunk:
    """Faulty rows that travel together.

    Attributes:
        fault: the fault of each row: slot * batch size + image, (R,).
        image: the image of each row, (S,) with S >= R: rows beyond R are filler, there to keep to a few sizes.
        values: the results in which the rows may differ from clean, S rows each; all others are clean.
        patience: how many checks to skip after one.
        checks_to_skip: how many are left to skip.
    """

    fault: Tensor
    image: Tensor
    values: dict[fx.Node, Any]
    patience: int = 0
    checks_to_skip: int = 0

    @property
    def form(self) -> Hashable:
        """Chunks of one form can be joined."""
        return frozenset((node, v.size if isinstance(v, Window) else None) for node, v in self.values.items())

    def __len__(self) -> int:
        return len(self.fault)


@dataclass(frozen=True)
class Budget:
    """How much travels at once.

    Attributes:
        rows: rows that go through a step together.
        bytes: of the whole pool; beyond it, the pool is swept to the end before more rows are forked.
    """

    rows: int
    bytes: int

    @classmethod
    def of(cls, device: torch.device, pool_bytes: int | None = None) -> Budget:
        """The default for a device: on a GPU, a quarter of the memory that is free."""
        if pool_bytes is None:
            pool_bytes = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CPU_POOL_BYTES
        return cls(CHUNK_ROWS.get(device.type, CHUNK_ROWS["cpu"]), pool_bytes)

    def images(self, layers: Sequence[Layer]) -> int:
        """Images that are best run together: as many as rows, if their largest layer leaves most of the pool free."""
        largest = max(math.prod(layer.shape) * layer.bits // 8 for layer in layers)
        return min(self.rows, self.bytes // (8 * largest))

    def size(self, rows: int) -> int:
        """The size that so many rows are filled up to: CPU kernels are compiled anew for every batch size."""
        step = max(1, self.rows // (8 if rows <= self.rows else 2))
        return 1 << (rows - 1).bit_length() if rows < step else -(-rows // step) * step


class Wave:
    """All layers in one sweep.

    Args:
        injector: of the model.
        program: its steps.
        budget: how much travels at once.
        windows: whether faults travel as windows as long as they are small.

    Attributes:
        alive: rows that left each step so far, by the step's place in the program.
    """

    name = "wave"

    def __init__(self, injector: Injector, program: Program, budget: Budget, *, windows: bool = True) -> None:
        self.injector = injector
        self.program = program
        self.budget = budget
        self.windows = windows
        self.alive: Counter[int] = Counter()
        self._exact: dict[tuple[fx.Node, int, int], bool] = {}
        self._step_of = {step.layer: i for i, step in enumerate(program.steps) if step.layer is not None}
        self._reference = Reference(injector)

    def neurons(self, images: Tensor, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """See :class:`bitflip.engines.Engine`."""

        def fork(slot: int, step: Step, clean: Mapping[fx.Node, Any]) -> Any:
            output = clean[step.node]
            struck = strike(output, flips[slot])
            outcomes.struck(slot, struck.original, struck.error)
            if self.windows and step.layout == Rows(0, 1) and output.dim() == 4 and output.shape[2:].numel() > 1:
                return Window.around(output, struck)
            return flip_rows(output, struck)

        self._sweep(images, flips, range(len(flips)), outcomes, fork)

    def weights(self, images: Tensor, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """See :class:`bitflip.engines.Engine`."""

        def fork(slot: int, step: Step, clean: Mapping[fx.Node, Any]) -> Any:
            with self.injector.weight(flips[slot]) as injected:
                output = self.program.run(step.node, clean.__getitem__)
            outcomes.struck(slot, injected.original, injected.error)
            return output

        # A weight that several steps read changes all of them; those few faults take the obvious way.
        alone = [slot for slot, f in enumerate(flips) if self.program.readers(self.injector.weight_of(f.layer)) == 1]
        self._sweep(images, flips, alone, outcomes, fork)
        for slot in sorted(set(range(len(flips))) - set(alone)):
            self._reference.weight(images, slot, flips[slot], outcomes)

    def _sweep(
        self, images: Tensor, flips: Sequence[Flips], slots: Sequence[int], outcomes: BatchOutcomes, fork: Fork
    ) -> None:
        forks: dict[int, list[int]] = {}
        for slot in slots:
            forks.setdefault(self._step_of[flips[slot].layer.path, flips[slot].layer.call], []).append(slot)
        _Sweep(self.program, self.budget, outcomes, forks, fork, self._exact, self.alive).walk(
            0, {self.program.placeholder: images}, []
        )


class _Sweep:
    """One batch's way through the steps."""

    def __init__(
        self,
        program: Program,
        budget: Budget,
        outcomes: BatchOutcomes,
        forks: dict[int, list[int]],
        fork: Fork,
        exact: dict[tuple[fx.Node, int, int], bool],
        alive: Counter[int],
    ) -> None:
        self.program = program
        self.budget = budget
        self.outcomes = outcomes
        self.forks = forks
        self.fork = fork
        self.exact = exact
        self.alive = alive
        self.padded: tuple[Step, Tensor] | None = None
        self.last_fork = max(forks, default=-1)

    def walk(self, start: int, clean: dict[fx.Node, Any], pool: list[Chunk], *, forking: bool = True) -> None:
        """Take the clean values and the pool from step ``start`` to the end, forking on the way."""
        for i, step in enumerate(self.program.steps[start:], start=start):
            # The pool goes first: a step that works in place changes the clean values that rows still have to read.
            # But windows that spread are held against the clean output.
            if step.kind is Kind.SPREAD:
                clean[step.node] = self.program.run(step.node, clean.__getitem__)
            pool = [part for chunk in pool for part in self._advance(step, chunk, clean)]
            if step.kind is not Kind.SPREAD:
                clean[step.node] = self.program.run(step.node, clean.__getitem__)
            pool = self._merged([left for chunk in pool for left in self._leave(step, chunk, clean[step.node])])
            self.alive[i] += sum(map(len, pool))
            if forking:
                for slot in self.forks.get(i, ()):
                    chunk = self._forked(slot, step, clean)
                    pool += self._split(chunk, self._capacity(chunk))
            for node in step.dead:
                del clean[node]
            if forking and i < self.last_fork and sum(map(_bytes, pool)) > self.budget.bytes:
                # Sweep the pool to the end on a clean pass of its own, and go on with an empty one.
                self.walk(i + 1, {node: _copy(value) for node, value in clean.items()}, pool, forking=False)
                pool = []
        self.outcomes.clean(clean[self.program.logits])
        for chunk in pool:
            self.outcomes.finished(chunk.fault, chunk.values[self.program.logits][: len(chunk)])

    def _forked(self, slot: int, step: Step, clean: dict[fx.Node, Any]) -> Chunk:
        value = self.fork(slot, step, clean)
        count = len(self.outcomes.labels)
        image = torch.arange(count, device=self.outcomes.labels.device)
        return Chunk(image + slot * count, image, {step.node: value})

    def _advance(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> list[Chunk]:
        """Carry out a step on a chunk, in halves where it does not fit the memory."""
        if any(node in chunk.values for node in step.inputs):
            if any(isinstance(chunk.values.get(node), Window) for node in step.inputs) and is_data(step.layout):
                output = self._on_windows(step, chunk, clean)
                if output is None and len(chunk) > self.budget.rows:  # whole maps need more room
                    return [
                        done
                        for part in self._split(chunk, self.budget.rows)
                        for done in self._advance(step, part, clean)
                    ]
            else:
                output = None
            try:
                if output is None:
                    output = self.program.run(step.node, lambda node: self._load(node, chunk, clean))
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                torch.cuda.empty_cache()
                halves = self._split(chunk, -(-len(chunk) // 2))
                return [done for part in halves for done in self._advance(step, part, clean)]
            if is_data(step.layout):
                chunk.values[step.node] = output
        for node in step.dead:
            chunk.values.pop(node, None)
        return [chunk] if chunk.values else self._gone(chunk)

    def _load(self, node: fx.Node, chunk: Chunk, clean: dict[fx.Node, Any]) -> Any:
        """What a step reads: the rows' own values, as whole maps, or the clean ones of their images."""
        value = chunk.values.get(node)
        if value is None or isinstance(value, Window):
            rows = take(clean[node], self.program.layouts[node], chunk.image)
            if value is None:
                return rows
            chunk.values[node] = value.paste(rows)
        return chunk.values[node]

    def _on_windows(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> Window | None:
        """The step's output as a window, or None if the whole map is needed."""
        if step.kind is Kind.POINTWISE:
            window: Window = chunk.values[step.inputs[0]]
            return window.having(self.program.run(step.node, lambda _: window.contents))
        if step.kind is Kind.SUM:
            return self._sum(step, chunk, clean)
        if step.kind is Kind.SPREAD:
            return self._spread(step, chunk, clean)
        return None

    def _sum(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> Window | None:
        if any(clean[node].shape != clean[step.inputs[0]].shape for node in step.inputs):
            return None
        inputs = {node: chunk.values.get(node) for node in step.inputs}
        windows = [value for value in inputs.values() if isinstance(value, Window)]
        outer = max(windows, key=lambda window: window.size)
        operands = {}
        for node, value in inputs.items():
            if value is not None and not isinstance(value, Window):
                return None
            if value is outer:
                operands[node] = value.contents
                continue
            operands[node] = outer.crop(clean[node], chunk.image)
            if value is not None:
                if value.size[1] > outer.size[1]:
                    return None
                operands[node] = overlay(operands[node], value.seen_from(outer))
        return outer.having(self.program.run(step.node, operands.__getitem__))

    def _spread(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> Window | None:
        (node,) = step.inputs
        window: Window = chunk.values[node]
        module = self.program.module(step.node)
        spread, output = Spread.of(module), clean[step.node]
        assert spread is not None
        height, width = spread.size(window.size, output.shape)
        if height * width > WIDEST * output.shape[2] * output.shape[3]:
            return None
        if self.padded is None or self.padded[0] is not step:
            self.padded = step, padded(clean[node], spread)
        surroundings = self.padded[1]
        patch, found = spread.patches(window, surroundings, chunk.image, output.shape)
        found = found.having(unpadded(module, patch))
        # Does the kernel round a window as it rounds the whole map? If not, a window counts as changed only where it
        # differs from the clean window that the same kernel makes.
        exact = self.exact.get((step.node, height, width))
        if exact is not True:
            again = unpadded(module, spread.clean_patches(found, surroundings, chunk.image))
            expected = found.crop(output, chunk.image)
            if exact is None:
                exact = self.exact[step.node, height, width] = torch.equal(_bits(again), _bits(expected))
            if not exact:
                found = found.having(torch.where(_bits(found.contents) == _bits(again), expected, found.contents))
        return found

    def _leave(self, step: Step, chunk: Chunk, clean: Any) -> list[Chunk]:
        """Let rows go that have become bit-identical to clean."""
        if not step.masks or chunk.values.keys() != {step.node}:
            return [chunk]
        if chunk.checks_to_skip:
            chunk.checks_to_skip -= 1
            return [chunk]
        value = chunk.values[step.node]
        assert isinstance(step.layout, Rows)
        if isinstance(value, Window):
            differs = _bits(value.contents) != _bits(value.crop(clean, chunk.image))
        else:
            differs = _bits(value) != _bits(take(clean, step.layout, chunk.image))
        rows = by_image(differs, step.layout)[: len(chunk)].any(dim=1).nonzero().squeeze(1)
        gone = len(chunk) - len(rows)
        if gone * FEW < len(chunk):  # rows that have come so far rarely become identical later: look less often
            chunk.patience = min(2 * chunk.patience + 1, MAX_PATIENCE)
        chunk.checks_to_skip = chunk.patience
        if gone == 0:
            return [chunk]
        if gone == len(chunk):
            return self._gone(chunk)
        self.outcomes.masked(gone)
        return [self._only(chunk, rows)]

    def _gone(self, chunk: Chunk) -> list[Chunk]:
        self.outcomes.masked(len(chunk))
        return []

    def _only(self, chunk: Chunk, rows: Tensor) -> Chunk:
        filled = torch.cat([rows, rows[:1].expand(self.budget.size(len(rows)) - len(rows))])
        values = {node: self._pick(node, value, filled) for node, value in chunk.values.items()}
        return replace(chunk, fault=chunk.fault[rows], image=chunk.image[filled], values=values)

    def _pick(self, node: fx.Node, value: Any, rows: Tensor) -> Any:
        return value.pick(rows) if isinstance(value, Window) else take(value, self.program.layouts[node], rows)

    def _split(self, chunk: Chunk, most: int) -> list[Chunk]:
        if len(chunk) <= most:
            return [chunk]
        rows = torch.arange(len(chunk), device=chunk.fault.device)
        return [self._only(chunk, part) for part in torch.split(rows, most)]

    def _capacity(self, chunk: Chunk) -> int:
        whole = any(not isinstance(value, Window) for value in chunk.values.values())
        return self.budget.rows if whole else WINDOWS_PER_ROW * self.budget.rows

    def _merged(self, pool: list[Chunk]) -> list[Chunk]:
        """Join small chunks, once there are enough to fill one: kernels like one size, and copying costs."""
        small: dict[Hashable, list[Chunk]] = {}
        kept = []
        for chunk in pool:
            if 2 * len(chunk) <= self._capacity(chunk):
                small.setdefault(chunk.form, []).append(chunk)
            else:
                kept.append(chunk)
        for group in small.values():
            most = self._capacity(group[0])
            windowed = most > self.budget.rows  # cheap to copy, and never many
            while len(group) > 1 and (windowed or sum(map(len, group)) >= most):
                taken = [group.pop()]
                while group and sum(map(len, taken)) + len(group[-1]) <= most:
                    taken.append(group.pop())
                kept.append(self._joined(taken))
            kept += group
        return kept

    def _joined(self, chunks: list[Chunk]) -> Chunk:
        if len(chunks) == 1:
            return chunks[0]
        fault = torch.cat([chunk.fault for chunk in chunks])
        filler = torch.zeros(self.budget.size(len(fault)) - len(fault), dtype=torch.int64, device=fault.device)
        image = torch.cat([*(chunk.image[: len(chunk)] for chunk in chunks), chunks[0].image[filler]])
        values: dict[fx.Node, Any] = {}
        for node, value in chunks[0].values.items():
            if isinstance(value, Window):
                windows = [chunk.values[node].head(len(chunk)) for chunk in chunks]
                values[node] = join_windows([*windows, value.pick(filler)])
                continue
            layout = self.program.layouts[node]
            parts = [first(chunk.values[node], layout, len(chunk)) for chunk in chunks]
            values[node] = join([*parts, take(parts[0], layout, filler)] if len(filler) else parts, layout)
        return Chunk(fault, image, values, min(c.patience for c in chunks), min(c.checks_to_skip for c in chunks))


def _bits(value: Tensor) -> Tensor:
    """The values as integers, so that -0 differs from 0 and a NaN equals itself."""
    return bits.as_integers(value) if bits.is_flippable(value.dtype) else value


def _bytes(chunk: Chunk) -> int:
    values = [value.contents if isinstance(value, Window) else value for value in chunk.values.values()]
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _copy(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
