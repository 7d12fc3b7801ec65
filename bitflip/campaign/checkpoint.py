"""What an unfinished sampled run has done so far, in a folder beside its results.

A run that was killed and is started again goes on where the last checkpoint was. The counts are written beside and
renamed; the logs only grow, and what is beyond the length that is saved with the counts is cut off. So whatever the
moment at which a run dies, counts and logs fit each other.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitflip.campaign.unfinished import Unfinished, damaged, writable
from bitflip.errors import BadInput
from bitflip.files import replacing, replacing_bytes

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


class Checkpoint(Unfinished):
    """How far a run is, in its folder.

    Args:
        folder: see :class:`bitflip.campaign.unfinished.Unfinished`.
        settings: those that a run must share with the one that it goes on with, by name.
        began: when the run began, if it begins now.
        fresh: whether to throw away what an earlier run left.

    Raises:
        BadInput: if another process has it, what is there is damaged, or belongs to a run with other settings.

    Attributes:
        progress: how far the run is.
        began: when it began.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], began: str, *, fresh: bool = False) -> None:
        super().__init__(folder, "counts.npz")
        self.began = began
        self._identity = _plain(settings)
        self._there: dict[str, Any] = {}
        self._run = folder / "run.json"
        try:
            with writable(folder):
                if fresh or not self.started:
                    self.empty()
                self.sweep()
            self.progress = self._read()
            self.require({})
        except BaseException:
            self.release()
            raise

    @property
    def resumed(self) -> bool:
        """Whether the run goes on where an earlier one was."""
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
                    json.dump({"identity": self._identity, "started": self.began}, file, indent=2)
            numbers = (progress.turn, progress.image, progress.together, progress.seconds)
            with replacing_bytes(self.record) as binary:
                np.savez_compressed(
                    binary,
                    progress=np.array(numbers, dtype=np.float64),
                    logs=np.array(json.dumps(progress.logs)),
                    **{f"array_{name}": value for name, value in progress.arrays.items()},
                )

    def _read(self) -> Progress:
        if not self.started:
            return Progress()
        with damaged(self._run):
            run = json.loads(self._run.read_text())
            self._there, self.began = dict(run["identity"]), str(run["started"])
        with damaged(self.record), np.load(self.record, allow_pickle=False) as file:
            turn, image, together, seconds = file["progress"].tolist()
            arrays = {name.removeprefix("array_"): file[name] for name in file.files if name.startswith("array_")}
            logs = {name: (int(size), int(crc)) for name, (size, crc) in json.loads(str(file["logs"])).items()}
            return Progress(int(turn), int(image), float(seconds), int(together), arrays, logs)


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


def _difference(name: str, there: object, here: object) -> str:
    if max(len(str(there)), len(str(here))) > LONG:
        return f"other {name}"
    return f"{name} {there} there, {here} here"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
