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

from bitflip.errors import BadInput
from bitflip.unfinished import Unfinished, writable

HINT = "--fresh starts over, --output-path another folder keeps both"


class Journal(Unfinished):
    """The records of a run, in its folder.

    Args:
        folder: see :class:`bitflip.unfinished.Unfinished`.
        identity: what the run is: all that its results depend on, by the name that a user knows it by.
        fresh: whether to start over.

    Attributes:
        records: those of earlier runs, in order.

    Raises:
        BadInput: if the folder holds another run, is damaged, in use, or can't be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        super().__init__(folder, "outcomes.log")
        self.records: list[Any] = []
        first = _line({"format": 1, **identity})
        self._start = len(first)
        self._file: BinaryIO | None = None
        try:
            with writable(folder):
                self.sweep()
                known = b"" if fresh or not self.record.exists() else self.record.read_bytes()
                end = self._read(known, first)
                self._file = self.record.open("r+b" if end else "wb")
                self._file.truncate(end)
                self._file.seek(end)
            if not end:
                self._append(first)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """See :class:`bitflip.unfinished.Unfinished`."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk, which was reported when it was written to
                self._file.close()
        super().release()

    @property
    def started(self) -> bool:
        """See :class:`bitflip.unfinished.Unfinished`."""
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

    def _read(self, data: bytes, first: bytes) -> int:
        """Take the records, and return where the whole ones end."""
        lines = data.split(b"\n")
        whole = lines[:-1]  # behind the last line end is nothing, or a record that was cut short
        if not whole:
            return 0
        if whole[0] + b"\n" != first:
            raise BadInput(self._difference(whole[0], first))
        for number, line in enumerate(whole[1:], start=2):
            record = _parsed(line)
            if record is None:
                raise self.damaged(number - 2)
            self.records.append(record[0])
        return sum(len(line) + 1 for line in whole)

    def _difference(self, line: bytes, first: bytes) -> str:
        ours, theirs = _parsed(first.rstrip(b"\n")), _parsed(line)
        assert ours is not None
        if theirs is None or not isinstance(theirs[0], dict):
            return f"output_path (--output-path): {self.record} is no journal of a run, or damaged in line 1; {HINT}"
        names = [name for name in {**ours[0], **theirs[0]} if ours[0].get(name) != theirs[0].get(name)]
        differ = ", ".join(f"{n} (there {_short(theirs[0].get(n))}, now {_short(ours[0].get(n))})" for n in names)
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
