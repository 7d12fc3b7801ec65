"""Counts of outcomes per seed, layer and bit: they add up over batches, shards and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitflip.faults.tasks import Task
from bitflip.network.layers import Target
from bitflip.outcomes.batch import BatchOutcomes

BITS = 64  # of the widest value


@dataclass(frozen=True)
class Totals:
    """Counts over some faults, all of one target.

    Attributes:
        flips: flips that were made: one per image (neurons) or per batch (weights).
        injections: images that were run with a flip.
        correct: those of them that the clean model classifies correctly.
        misclassified: those of them whose top-1 class changed.
        masked, sdc1, sdc5, sdc10, sdc20, nonfinite, due, proved, audited: injections by what happened, see
            :class:`bitflip.outcomes.batch.Effect`.
        mm, mn, nn: sums over flips of misclassified squared, misclassified x correct, correct squared: images hit by
            one flip are not independent, and intervals need to know how much they are not.
        largest_change: of the clean top-1 class's probability, 0 to 1.
    """

    flips: int = 0
    injections: int = 0
    correct: int = 0
    misclassified: int = 0
    masked: int = 0
    sdc1: int = 0
    sdc5: int = 0
    sdc10: int = 0
    sdc20: int = 0
    nonfinite: int = 0
    due: int = 0
    proved: int = 0
    audited: int = 0
    mm: int = 0
    mn: int = 0
    nn: int = 0
    largest_change: float = 0.0

    @property
    def benign(self) -> int:
        """Injections that changed a logit, but not the top-1 class."""
        return self.injections - self.masked - self.sdc1 - self.due - self.proved

    @property
    def harmless(self) -> int:
        """Injections that did not change the top-1 class: masked, benign, or proved to be one of them."""
        return self.injections - self.sdc1 - self.due

    @property
    def rate(self) -> float | None:
        """Misclassification rate in percent, or None when there is nothing to divide by."""
        return 100.0 * self.misclassified / self.correct if self.correct else None


COLUMNS = tuple(field.name for field in fields(Totals))[:-1]


class Counts:
    """What a campaign counted so far.

    Args:
        seeds: of the campaign.
        items: its layers.

    Attributes:
        images: images that were run.
        correct: those of them that the clean model classifies correctly.
        table: counts by seed, layer, bit and column (:data:`COLUMNS`), int64.
        largest: change of the clean top-1 class's probability by seed, layer and bit, float64.
    """

    def __init__(self, seeds: Sequence[int], items: Sequence[Target]) -> None:
        self.seeds = tuple(seeds)
        self.items = tuple(items)
        self.images = 0
        self.correct = 0
        self.table = np.zeros((len(seeds), len(items), BITS, len(COLUMNS)), dtype=np.int64)
        self.largest = np.zeros((len(seeds), len(items), BITS))
        self._first_cell = {
            (seed, *item.where): (i * len(items) + j) * BITS
            for i, seed in enumerate(seeds)
            for j, item in enumerate(items)
        }

    def add(self, task: Task, batch: BatchOutcomes) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`; images count once, in the first round."""
        slots, count = batch.top1.shape
        if task.turn == 0:
            self.images += count
            self.correct += int(batch.correct.sum())
        if slots == 0:
            return
        struck = np.stack([np.broadcast_to(flips.bit, count) for flips in batch.flips])  # (L, B)
        first = [self._first_cell[(flips.seed, *flips.where)] for flips in batch.flips]
        where = np.array(first)[:, None] + struck  # of each injection's cell
        found = batch.columns()
        correct, misclassified = found["correct"], found["misclassified"]
        table = self.table.reshape(-1, len(COLUMNS))
        for name, true in {**found, "injections": np.ones_like(correct)}.items():
            if name in COLUMNS:
                table[:, COLUMNS.index(name)] += np.bincount(where[true], minlength=len(table))
        # One flip is one image of a slot (neurons), or the whole slot (weights).
        each = [len(flips) == count for flips in batch.flips]
        for chosen, axis in ((np.array(each), None), (~np.array(each), 1)):
            if not chosen.any():
                continue
            m = _per_flip(misclassified[chosen], axis)
            n = _per_flip(correct[chosen], axis)
            cell = where[chosen].ravel() if axis is None else where[chosen, 0]
            for name, values in {"flips": np.ones_like(m), "mm": m * m, "mn": m * n, "nn": n * n}.items():
                np.add.at(table[:, COLUMNS.index(name)], cell, values)
        np.maximum.at(self.largest.reshape(-1), where, batch.change.numpy())

    def layer(self, seed: int | None, item: int) -> Totals:
        """The counts of one layer, given the place of a seed (None for all seeds together) and that of the layer."""
        table, largest = self._of(seed, item)
        return _tally(table.sum(axis=0), largest.max())

    @property
    def inferences(self) -> int:
        """Images that were run with a fault."""
        return int(self.table[..., COLUMNS.index("injections")].sum())

    @property
    def due(self) -> int:
        """Those of them in which the model raised an exception."""
        return int(self.table[..., COLUMNS.index("due")].sum())

    def bits(self, seed: int | None, item: int) -> dict[int, Totals]:
        """The counts of one layer by bit, for the bits that were flipped."""
        table, largest = self._of(seed, item)
        struck = np.flatnonzero(table[:, COLUMNS.index("flips")])
        return {int(bit): _tally(table[bit], largest[bit]) for bit in struck}

    def _of(self, seed: int | None, item: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        chosen = slice(None) if seed is None else slice(seed, seed + 1)
        return self.table[chosen, item].sum(axis=0), self.largest[chosen, item].max(axis=0)

    def state(self) -> dict[str, NDArray[Any]]:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        return {"table": self.table, "largest": self.largest, "images": np.array([self.images, self.correct])}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        if any(state[name].shape != value.shape for name, value in self.state().items()):
            raise ValueError("counts of other layers or seeds")
        self.table, self.largest = state["table"].astype(np.int64), state["largest"].astype(np.float64)
        self.images, self.correct = (int(value) for value in state["images"])

    @property
    def rate(self) -> float | None:
        """Misclassifications so far, in percent of the faulty images that could be misclassified."""
        faulty, wrong = (int(self.table[..., COLUMNS.index(name)].sum()) for name in ("correct", "misclassified"))
        return 100.0 * wrong / faulty if faulty else None


def _tally(row: NDArray[np.int64], largest: np.float64) -> Totals:
    return Totals(**dict(zip(COLUMNS, map(int, row), strict=True)), largest_change=float(largest))


def _per_flip(true: NDArray[np.bool_], axis: int | None) -> NDArray[np.int64]:
    return (true.ravel() if axis is None else true.sum(axis=axis)).astype(np.int64)
