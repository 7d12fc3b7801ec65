"""Tasks: what a campaign is cut into, whoever runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from bitflip.faults.flips import Flips
from bitflip.network.layers import Target


@dataclass(frozen=True)
class Cut:
    """How a campaign is cut into tasks, which a run that is gone on with has to keep.

    Attributes:
        together: images of a task, at most.
        rows: faulty images of a task that holds faults of a list, if it holds more than one.
    """

    together: int
    rows: int


@dataclass(frozen=True)
class Task:
    """Flips that are run together on a few consecutive images.

    Attributes:
        images: places in the test set, B of them.
        flips: of each of L slots.
        turn: number of the round through the test set.
        faults: with a list, the number of the fault of each flip of each slot, (N,) each; None if faults are sampled.
    """

    images: range
    flips: list[Flips]
    turn: int = 0
    faults: tuple[NDArray[np.int64], ...] | None = None

    def members(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Slot, image of the task, and number of the fault in the list, of every inference."""
        assert self.faults is not None
        every = np.arange(len(self.images))
        rows = [every if one.parameter else one.images for one in self.flips]
        slots = np.repeat(np.arange(len(self.flips)), [len(some) for some in rows])
        held = [np.broadcast_to(number, len(some)) for number, some in zip(self.faults, rows, strict=True)]
        return slots, np.concatenate(rows), np.concatenate(held)


class Tasks(Sequence[Task]):
    """Tasks that are made when they are asked for, and always the same.

    Args:
        spans: the images of each task.
        make: makes the task of a place.
        places: of the tasks; None for all.

    Attributes:
        spans: the images of each task, without the task.
    """

    def __init__(self, spans: Sequence[range], make: Callable[[int], Task], places: range | None = None) -> None:
        self.spans, self._make = spans, make
        self._places = range(len(spans)) if places is None else places

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> Tasks: ...

    def __getitem__(self, place: int | slice) -> Task | Tasks:
        """The task at a place, or those of a slice, which are not made yet."""
        if isinstance(place, slice):
            return Tasks(self.spans[place], self._make, self._places[place])
        return self._make(self._places[place])


class Source(Protocol):
    """Where faults come from: sampled, or from a list."""

    @property
    def by_bit(self) -> bool:
        """Whether each fault is of bits, and not of a whole value."""

    def tasks(self, targets: Sequence[Target], images: int, cut: Cut, turn: int) -> Tasks:
        """The tasks of a round through the test set.

        Args:
            targets: what gets faults in this round.
            images: in the test set.
            cut: how to cut it.
            turn: number of the round, from 0.
        """

    def inferences(self, targets: Sequence[Target], images: int) -> int:
        """Faulty images of one round."""
