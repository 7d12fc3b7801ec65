"""What a campaign writes down of every task: the detailed log, and the fault table."""

from __future__ import annotations

import contextlib
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitflip import files
from bitflip.campaign.unfinished import damaged, writable
from bitflip.faults.tasks import Task
from bitflip.network.layers import Target
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.results import detail, fault_table


class Log(ABC):
    """A file that grows; what counts of it has the length and the checksum that were saved.

    What is added waits in memory until the state is asked for: so a full disk, or a run that dies, can't leave more in
    the file than the other tallies know of.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._checksum = 0
        with writable(path):
            self._file = path.open("a+b")

    @abstractmethod
    def add(self, task: Task, batch: BatchOutcomes) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`."""

    @abstractmethod
    def _take(self) -> bytes:
        """What waits, which then waits no more."""

    @abstractmethod
    def copy(self, path: Path) -> None:
        """Write what was saved as a result file."""

    def state(self) -> dict[str, NDArray[Any]]:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        data = self._take()
        with writable(self.path.parent):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self.size += len(data)
        self._checksum = zlib.crc32(data, self._checksum)
        return {"length": np.array([self.size, self._checksum], dtype=np.int64)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`; what is beyond the length is cut off.

        Raises:
            BadInput: if what was written is not there any more.
        """
        self.size, self._checksum = (int(number) for number in state["length"])
        with writable(self.path), damaged(self.path):
            left, found = self.size, 0
            self._file.seek(0)
            while left:
                block = self._file.read(min(left, 1 << 20))
                if not block:
                    raise EOFError("shorter than it was")
                found = zlib.crc32(block, found)
                left -= len(block)
            if found != self._checksum:
                raise ValueError("not what was written")
            self._file.truncate(self.size)

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):  # of a full disk, which was reported when it was written to
            self._file.close()


class DetailLog(Log):
    """The ``_detailed.txt`` of one seed.

    Args:
        folder: for the file.
        items: what faults strike.
        batch_size: of the batches that positions are counted in.
        seed: of the faults.
        stored_of: how values are stored, see :func:`bitflip.results.detail.text`.
    """

    def __init__(
        self, folder: Path, items: Sequence[Target], batch_size: int, seed: int, stored_of: detail.StoredOf
    ) -> None:
        super().__init__(folder / f"detail-{seed}.txt")
        self._items, self._batch_size, self._seed, self._stored_of = items, batch_size, seed, stored_of
        self._waiting: list[str] = []

    def add(self, task: Task, batch: BatchOutcomes) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        self._waiting.append(detail.text(self._items, self._batch_size, batch, self._seed, self._stored_of))

    def _take(self) -> bytes:
        text = "".join(self._waiting)
        self._waiting.clear()
        return text.encode()

    def copy(self, path: Path) -> None:
        """See :class:`Log`."""
        files.copy(self.path, self.size, path)


class FaultTable(Log):
    """The ``_faults.parquet`` of one seed.

    Args:
        folder: for the file that grows.
        items: what faults strike.
        seed: of the faults.
    """

    def __init__(self, folder: Path, items: Sequence[Target], seed: int) -> None:
        super().__init__(folder / f"faults-{seed}.parts")
        self._items, self._seed = items, seed
        self._waiting: list[pa.Table] = []

    def add(self, task: Task, batch: BatchOutcomes) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        if batch.flips:
            self._waiting.append(fault_table.rows(batch, self._items, self._seed))

    def _take(self) -> bytes:
        part = fault_table.part(self._waiting) if self._waiting else b""
        self._waiting.clear()
        return part

    def copy(self, path: Path) -> None:
        """See :class:`Log`."""
        fault_table.join(self.path, self.size, path)
