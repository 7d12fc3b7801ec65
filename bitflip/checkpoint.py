"""What an unfinished run has done so far, kept in a folder beside its results until they are written.

A run that was killed and is started again goes on where the last checkpoint was. The counts are written beside and
renamed; the logs only grow, and what is beyond the length that is saved with the counts is cut off. So whatever the
moment at which a run dies, counts and logs fit each other. Without counts, nothing else in the folder counts either.
Result files are made in the folder too, and take their places when all of them are whole.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from bitflip.errors import BadInput, first_line
from bitflip.files import publish, replacing, replacing_bytes

TRIES = 5  # to lock a folder that other processes finish with and remove
LONG = 60  # characters of a value that a sentence still quotes


@dataclass
class Progress:
    """How far a campaign is.

    Attributes:
        turn: the round through the test set.
        image: index in the test set of the next image.
        seconds: that the campaign took so far.
        together: images that are run together; a run goes on as it began.
        arrays: what was counted, by name.
        logs: length in bytes and CRC-32 of each log, by file name.
    """

    turn: int = 0
    image: int = 0
    seconds: float = 0.0
    together: int = 0
    arrays: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, tuple[int, int]] = field(default_factory=dict)


class Checkpoint:
    """The folder of an unfinished run; locked while it is open.

    Args:
        folder: made if it is not there, removed by :meth:`discard`.
        settings: those that a run must share with the one that it goes on with, by name.
        started: when the run started, if it starts now.
        fresh: whether to throw away what an earlier run left.

    Raises:
        BadInput: if another process has it, what is there is damaged, or belongs to a run with other settings.

    Attributes:
        progress: how far the run is.
        started: when it started.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], started: str, *, fresh: bool = False) -> None:
        self.folder = folder
        self.started = started
        self._identity = _plain(settings)
        self._there: dict[str, Any] = {}
        self._counts, self._run, self._written = folder / "counts.npz", folder / "run.json", folder / "results"
        with writable(folder):
            self._lock = locked(folder)
        try:
            with writable(folder):
                if fresh or not self._counts.is_file():
                    self._empty()
                self._sweep()
            self.progress = self._read()
            self.require({})
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.folder.is_dir() and not self._counts.is_file():
                self.discard()  # nothing was finished
        finally:
            self._lock.release()

    @property
    def resumed(self) -> bool:
        """Whether there is something to go on with."""
        return bool(self.progress.arrays)

    def require(self, facts: Mapping[str, Any]) -> None:
        """Share further facts, known only by now, with the run that this one goes on with.

        Raises:
            BadInput: if they are others.
        """
        self._identity |= _plain(facts)
        here, there = self._identity, self._there
        names = [name for name in here if self.resumed and there.get(name) != here[name]]
        if names:
            differ = "; ".join(_difference(name, there.get(name), here[name]) for name in names)
            raise BadInput(
                f"output_path (--output-path): {self.folder} holds an unfinished run with other settings ({differ}); "
                "go on with those, give --fresh to start over, or choose another folder"
            )

    def log(self, name: str) -> Path:
        """A file that grows with the run, cut to the length that the last checkpoint knows."""
        path = self.folder / name
        length, checksum = self.progress.logs.get(name, (0, 0))
        with writable(path), path.open("a+b") as file:
            file.seek(0)
            with damaged(path):
                _check(file, length, checksum)
            file.truncate(length)
        return path

    def save(self, progress: Progress) -> None:
        """Remember how far the run is; its logs are on the disk already."""
        with writable(self.folder):
            if not self._run.is_file():
                with replacing(self._run) as file:
                    json.dump({"identity": self._identity, "started": self.started}, file, indent=2)
            numbers = (progress.turn, progress.image, progress.together, progress.seconds)
            with replacing_bytes(self._counts) as binary:
                np.savez_compressed(
                    binary,
                    progress=np.array(numbers, dtype=np.float64),
                    logs=np.array(json.dumps(progress.logs)),
                    **{f"array_{name}": value for name, value in progress.arrays.items()},
                )

    @contextlib.contextmanager
    def publishing(self, folder: Path) -> Iterator[Path]:
        """An empty folder, whose files take their places in ``folder`` when the block ends well."""
        with writable(folder):
            self._sweep()
            self._written.mkdir()
            try:
                yield self._written
                publish(self._written, folder)
            finally:
                shutil.rmtree(self._written, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder: the results are written, or there will be none."""
        with contextlib.suppress(OSError):  # what can't be removed is no obstacle to the next run
            self._empty()
            (self.folder / "lock").unlink(missing_ok=True)
            self.folder.rmdir()

    def _empty(self) -> None:
        self._counts.unlink(missing_ok=True)  # first: without it, the rest counts for nothing
        for path in self.folder.iterdir():
            if path.name != "lock":
                _remove(path)

    def _sweep(self) -> None:
        """Remove what a run that was killed was just writing."""
        for path in (self._written, *self.folder.glob(".bitflip-*.tmp")):
            _remove(path)

    def _read(self) -> Progress:
        if not self._counts.is_file():
            return Progress()
        with damaged(self._run):
            run = json.loads(self._run.read_text())
            self._there, self.started = dict(run["identity"]), str(run["started"])
        with damaged(self._counts), np.load(self._counts, allow_pickle=False) as file:
            turn, image, together, seconds = file["progress"].tolist()
            arrays = {name.removeprefix("array_"): file[name] for name in file.files if name.startswith("array_")}
            logs = {name: (int(size), int(crc)) for name, (size, crc) in json.loads(str(file["logs"])).items()}
            return Progress(int(turn), int(image), float(seconds), int(together), arrays, logs)


def locked(folder: Path) -> FileLock:
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


def _check(file: BinaryIO, length: int, checksum: int) -> None:
    """See that a file begins with what was written to it."""
    found = 0
    while length:
        block = file.read(min(length, 1 << 20))
        if not block:
            raise EOFError("shorter than it was")
        found = zlib.crc32(block, found)
        length -= len(block)
    if found != checksum:
        raise ValueError("not what was written")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _difference(name: str, there: object, here: object) -> str:
    if max(len(str(there)), len(str(here))) > LONG:
        return f"other {name}"
    return f"{name} {there} there, {here} here"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


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
