"""The folder that an unfinished run keeps beside its results, and how a user hears of trouble with it.

One process at a time has it. What a run has done so far hangs on one file in it: without that, nothing else there
counts. Result files are made in it too, and take their places together when all of them are whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from bitflip.errors import BadInput, first_line
from bitflip.files import publish

if TYPE_CHECKING:  # not in Python 3.10
    from typing import Self

TRIES = 5  # to lock a folder that other processes finish with and remove


class Unfinished:
    """The folder of an unfinished run; locked while it is open.

    Args:
        folder: made if it is not there.
        record: name of the file on which all else in it hangs.

    Raises:
        BadInput: if another process has it, or it can't be written.

    Attributes:
        folder: removed when the run is complete, or nothing was finished.
        record: the path of the file.
    """

    def __init__(self, folder: Path, record: str) -> None:
        self.folder = folder
        self.record = folder / record
        self._results = folder / "results"
        self._discarded = False  # and perhaps another process's by now
        with writable(folder):
            self._lock = _locked(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._discarded and self.folder.is_dir() and not self.started:
                self.discard()
        finally:
            self.release()

    @property
    def started(self) -> bool:
        """Whether there is something to go on with."""
        return self.record.is_file()

    @contextlib.contextmanager
    def publishing(self, folder: Path) -> Iterator[Path]:
        """An empty folder, whose files take their places in ``folder`` when the block ends well."""
        with writable(folder):
            self.sweep()
            self._results.mkdir()
            try:
                yield self._results
                publish(self._results, folder)
            finally:
                shutil.rmtree(self._results, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder: the results are written, or there will be none."""
        self._discarded = True
        with contextlib.suppress(OSError):  # what can't be removed is no obstacle to the next run
            self.empty()
            (self.folder / "lock").unlink(missing_ok=True)
            self.folder.rmdir()

    def empty(self) -> None:
        """Forget what an earlier run left."""
        self.record.unlink(missing_ok=True)  # first: without it, the rest counts for nothing
        for path in self.folder.iterdir():
            if path.name != "lock":
                _remove(path)

    def sweep(self) -> None:
        """Remove what a run that was killed was just writing."""
        for path in (self._results, *self.folder.glob(".bitflip-*.tmp")):
            _remove(path)

    def release(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()


def _locked(folder: Path) -> FileLock:
    """The lock of a folder, which is made.

    Raises:
        BadInput: if another process has it.
    """
    for _ in range(TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        try:
            lock.acquire()
        except (Timeout, FileNotFoundError):
            if (folder / "lock").exists():
                break
            continue  # another process has just finished, and removed its folder
        return lock
    raise BadInput(
        f"output_path (--output-path): another process is at work on {folder}; wait for it, or choose another folder"
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _setting(path: Path) -> str:
    return f"output_path (--output-path): {path}"


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Name a file of a checkpoint that can't be read."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # a damaged file makes its reader raise anything
        raise BadInput(
            f"{_setting(path)} is damaged ({type(error).__name__}: {first_line(error)}); --fresh starts over"
        ) from error


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that became read-only, into a sentence."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{_setting(path)} can't be written ({error.strerror or error}); what was finished before is kept: make "
            "room and run the same command again"
        ) from error
