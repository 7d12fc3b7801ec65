"""What every tally of outcomes can do, whatever it keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from bitflip.faults.tasks import Task
from bitflip.outcomes.batch import BatchOutcomes


class Kept(Protocol):
    """Can be put aside and gone on with."""

    def state(self) -> dict[str, NDArray[Any]]:
        """All that was taken, for :meth:`restore`; what is kept in a file is on the disk when this returns."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on with what was taken before.

        Raises:
            ValueError, LookupError, EOFError: if it is something else's.
        """


class Tally(Kept, Protocol):
    """Takes the outcomes of every task, in order."""

    def add(self, task: Task, batch: BatchOutcomes) -> None:
        """Take the outcomes of one task, on the host."""
