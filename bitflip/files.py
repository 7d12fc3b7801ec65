"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from bitflip.errors import BadInput


def unlike_a_file(path: Path) -> str:
    """What is at a path and no file, a folder or a device, in words; empty if nothing is, or a file."""
    if path.is_file() or not path.exists():
        return ""
    return "it is a folder" if path.is_dir() else "it is no regular file"


def check_place(setting: str, path: Path) -> list[str]:
    """One sentence if no file can be written at a path, found out without touching what is there.

    Args:
        setting: that names the file.
        path: of the file.
    """
    try:
        reason = unlike_a_file(path)
        if not reason and not path.parent.is_dir():
            reason = f"there is no folder {path.parent}"
        if not reason:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        reason = error.strerror or str(error)
    return [f"{setting}: expected a file that can be written, got {path} ({reason})"] if reason else []


def check_folder(setting: str, folder: Path) -> list[str]:
    """One sentence if files can't be written to the folder that a setting names; it is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [f"{setting}: expected a folder that can be written to, got {folder} ({error.strerror})"]


@contextlib.contextmanager
def written_for(setting: str, path: Path) -> Iterator[TextIO]:
    """As :func:`replacing`, for a file that a user names.

    Raises:
        BadInput: if it can't be written.
    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"{setting}: expected a file that can be written, got {path} ({reason})") from error


@contextlib.contextmanager
def replacing_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        OSError: if it can't be written, or if something else than a file is there, which stays as it is.
    """
    if other := unlike_a_file(path):
        raise OSError(errno.EEXIST, other, str(path))
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
