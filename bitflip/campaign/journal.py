"""A file that grows by one record per finished piece of work, so that a killed run goes on where it was.

Line by line: what the run is, then the records, each with a checksum. A last line that was cut short is left out; any
other damage is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bitflip.campaign.unfinished import Unfinished, writable
from bitflip.errors import BadInput

FORMAT, CHOICES = 2, "choices"
HINT = "--fresh starts over, --output-path another folder keeps both"


class Journal(Unfinished):
    """The records of a run, in its folder.

    Args:
        folder: see :class:`bitflip.campaign.unfinished.Unfinished`.
        identity: what the run is: all that its results depend on, by the name that a user knows it by.
        choices: what the first start may choose, such as by the memory that is free, and later ones keep.
        fresh: whether to start over.

    Attributes:
        choices: those of the first start.
        records: those of earlier starts, in order.

    Raises:
        BadInput: if the folder holds another run, is damaged, in use, or can't be written.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], choices: Mapping[str, int], *, fresh: bool = False
    ) -> None:
        super().__init__(folder, "outcomes.log")
        self.choices = dict(choices)
        self.records: list[Any] = []
        self._identity = {"format": FORMAT, **identity}
        self._start = 0  # where the records start
        self._file: BinaryIO | None = None
        try:
            with writable(folder):
                self.sweep()
                known = b"" if fresh or not self.record.exists() else self.record.read_bytes()
                end = self._read(known)
                self._file = self.record.open("r+b" if end else "wb")
                self._file.truncate(end)
                self._file.seek(end)
            if not end:
                first = _line({**self._identity, CHOICES: self.choices})
                self._append(first)
                self._start = len(first)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """See :class:`bitflip.campaign.unfinished.Unfinished`."""
        self._close()
        super().release()

    def discard(self) -> None:
        """See :class:`bitflip.campaign.unfinished.Unfinished`."""
        self._close()  # some systems remove no file that is open
        super().discard()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk, which was reported when it was written to
                self._file.close()

    @property
    def started(self) -> bool:
        """See :class:`bitflip.campaign.unfinished.Unfinished`."""
        return self.record.is_file() and self.record.stat().st_size > self._start

    def add(self, record: Any) -> None:
        """Append one record; it is on the disk when this returns."""
        self._append(_line(record))

    def damaged(self, record: int) -> BadInput:
        """What to raise if a record, given by its place, is not what it should be."""
        return BadInput(f"output_path (--output-path): {self.record} is damaged in line {record + 2}; {HINT}")

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        with writable(self.folder):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self, data: bytes) -> int:
        """Take the records, and return where the whole ones end."""
        lines = data.split(b"\n")
        whole = lines[:-1]  # behind the last line end is nothing, or a record that was cut short
        if not whole:
            return 0
        first = _parsed(whole[0])
        if first is None or not isinstance(first[0], dict):
            what = f"{self.record} is no journal of a run, or damaged in line 1"
            raise BadInput(f"output_path (--output-path): {what}; {HINT}")
        theirs = dict(first[0])
        choices = theirs.pop(CHOICES, {})
        if theirs != self._identity:
            if len(whole) == 1:
                return 0  # of a run that finished nothing
            raise BadInput(self._difference(theirs))
        self.choices = {name: int(value) for name, value in choices.items()}
        self._start = len(whole[0]) + 1
        for number, line in enumerate(whole[1:], start=2):
            record = _parsed(line)
            if record is None:
                raise self.damaged(number - 2)
            self.records.append(record[0])
        return sum(len(line) + 1 for line in whole)

    def _difference(self, theirs: Mapping[str, Any]) -> str:
        ours = self._identity
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        differ = ", ".join(f"{n} (there {_short(theirs.get(n))}, now {_short(ours.get(n))})" for n in names)
        return f"output_path (--output-path): {self.record} is of an unfinished run with another {differ}; {HINT}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _line(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> tuple[Any] | None:
    """The value of a line, in a tuple; None if the line is damaged."""
    checksum, _, text = line.partition(b" ")
    try:
        return (json.loads(text),) if int(checksum, 16) == zlib.crc32(text) else None
    except (ValueError, RecursionError):
        return None
