"""The pool of the wave: faulty rows in chunks, and how they are cut, filled up and joined."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from bitflip.engines.graph import Layout, bytes_of, first, join, take
from bitflip.engines.windows import Window
from bitflip.engines.windows import join as join_windows
from bitflip.network.layers import Layer

WINDOWS_PER_ROW = 4  # windows that go through a step together, for each whole row that does
TINY = 4  # a chunk with less than one in so many of the rows that go through a step together
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
        return frozenset(
            (node, (v.size, v.channel) if isinstance(v, Window) else None) for node, v in self.values.items()
        )

    def __len__(self) -> int:
        return len(self.fault)

    def bytes(self, node: fx.Node) -> int:
        """Memory of one of the values."""
        value = self.values[node]
        return bytes_of(value.contents if isinstance(value, Window) else value)


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
        largest = max((math.prod(layer.shape) * layer.bits // 8 for layer in layers), default=1)
        return min(self.rows, self.bytes // (8 * largest))

    def size(self, rows: int) -> int:
        """The size that so many rows are filled up to: CPU kernels are compiled anew for every batch size."""
        step = max(1, self.rows // (8 if rows <= self.rows else 2))
        return 1 << (rows - 1).bit_length() if rows < step else -(-rows // step) * step

    def filled(self, rows: Tensor) -> Tensor:
        """Places of rows, (R,), filled up with the first to such a size."""
        return torch.cat([rows, rows[:1].expand(self.size(len(rows)) - len(rows))]) if len(rows) else rows


class Packer:
    """Cuts and joins chunks.

    Args:
        layouts: of all results, by the operation that makes them.
        budget: how much travels at once.
    """

    def __init__(self, layouts: Mapping[fx.Node, Layout], budget: Budget) -> None:
        self.layouts = layouts
        self.budget = budget

    def only(self, chunk: Chunk, rows: Tensor) -> Chunk:
        """Some rows of a chunk, filled up."""
        filled = self.budget.filled(rows)
        values = {node: self._pick(node, value, filled) for node, value in chunk.values.items()}
        return replace(chunk, fault=chunk.fault[rows], image=chunk.image[filled], values=values)

    def split(self, chunk: Chunk, most: int | None = None) -> list[Chunk]:
        """A chunk in parts of at most ``most`` rows, or as many as go through a step together."""
        most = self._capacity(chunk) if most is None else most
        if len(chunk) <= most:
            return [chunk]
        rows = torch.arange(len(chunk), device=chunk.fault.device)
        return [self.only(chunk, part) for part in torch.split(rows, most)]

    def merged(self, pool: list[Chunk]) -> list[Chunk]:
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
            if not windowed:  # so are a few rows
                tiny = [chunk for chunk in group if TINY * len(chunk) <= most]
                group = [chunk for chunk in group if TINY * len(chunk) > most]
                while tiny:
                    group.append(self._filled(tiny, most))
            while len(group) > 1 and (windowed or sum(map(len, group)) >= most):
                kept.append(self._filled(group, most))
            kept += group
        return kept

    def _filled(self, group: list[Chunk], most: int) -> Chunk:
        """The last chunks of a group, which they leave, as one of at most ``most`` rows, or the last alone."""
        taken = [group.pop()]
        while group and sum(map(len, taken)) + len(group[-1]) <= most:
            taken.append(group.pop())
        return self._joined(taken)

    def _pick(self, node: fx.Node, value: Any, rows: Tensor) -> Any:
        return value.pick(rows) if isinstance(value, Window) else take(value, self.layouts[node], rows)

    def _capacity(self, chunk: Chunk) -> int:
        whole = any(not isinstance(value, Window) for value in chunk.values.values())
        return self.budget.rows if whole else WINDOWS_PER_ROW * self.budget.rows

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
            layout = self.layouts[node]
            parts = [first(chunk.values[node], layout, len(chunk)) for chunk in chunks]
            values[node] = join([*parts, take(parts[0], layout, filler)] if len(filler) else parts, layout)
        return Chunk(fault, image, values, min(c.patience for c in chunks), min(c.checks_to_skip for c in chunks))
