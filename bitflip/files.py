"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast


@contextlib.contextmanager
def replacing_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of ``path`` when the block ends well, and vanishes otherwise."""
    beside = tempfile.NamedTemporaryFile(  # noqa: SIM115 - it has to be closed before it is renamed
        "wb", dir=path.parent, prefix=".bitflip-", suffix=".tmp", delete=False
    )
    try:
        with beside:
            yield cast(BinaryIO, beside)
            beside.flush()
            os.fsync(beside.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside.name, 0o666 & ~umask)  # temporary files are private, results are not
        os.replace(beside.name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside.name)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """As :func:`replacing_bytes`, for text."""
    with replacing_bytes(path) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        yield text
        text.flush()
        text.detach()


def copy(source: Path, size: int, path: Path) -> None:
    """Let a copy of the first ``size`` bytes of a file take the place of ``path``.

    Raises:
        EOFError: if the file is shorter.
    """
    with source.open("rb") as file, replacing_bytes(path) as target:
        while size:
            block = file.read(min(size, 1 << 20))
            if not block:
                raise EOFError(f"{source} is shorter than it was")
            target.write(block)
            size -= len(block)


def publish(written: Path, folder: Path) -> None:
    """Let all files of one folder, each of them whole, take their places in another one of the same file system."""
    for path in sorted(written.iterdir()):
        os.replace(path, folder / path.name)
    with contextlib.suppress(OSError):  # not every file system can bring renames to the disk
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
