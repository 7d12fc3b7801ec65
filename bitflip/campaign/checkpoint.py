"""What an unfinished run has done so far, in a folder beside its results.

A run that was killed and is started again goes on where the last checkpoint was. All that was counted is one file,
which is written beside and renamed; the logs only grow, and what is beyond the length that is saved with the counts is
cut off. So whatever the moment at which a run dies, counts and logs fit each other; and as counts, logs and what the
run is are held together by checksums, a part of one checkpoint can't pass for that of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bitflip.campaign import identity as identities
from bitflip.campaign.finished import Finished
from bitflip.campaign.unfinished import Unfinished, damaged, writable
from bitflip.errors import BadInput
from bitflip.faults.tasks import Cut
from bitflip.files import replacing, replacing_bytes
from bitflip.outcomes.tally import Kept
from bitflip.results.paths import Paths

log = logging.getLogger(__name__)

FORMAT = 2
EARLIER = ("counts.npz", "outcomes.log")  # files of folders in an earlier form


@dataclass
class Progress:
    """How far a campaign is.

    Attributes:
        turn: the round through the test set.
        task: number, in this round, of the next task.
        seconds: that the campaign took so far.
        cut: how it is cut into tasks; a run goes on as it began. None before it has begun.
    """

    turn: int = 0
    task: int = 0
    seconds: float = 0.0
    cut: Cut | None = None


@dataclass
class _Saved:
    """What a folder holds: of which run, how far it is, and the states of its tallies."""

    identity: dict[str, Any] = field(default_factory=dict)
    states: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)


class Checkpoint(Unfinished):
    """How far a run is, in its folder.

    Args:
        folder: see :class:`bitflip.campaign.unfinished.Unfinished`.
        identity: what the run must share with the one that it goes on with, by name.
        began: when the run began, if it begins now.
        finals: where its results will be, of each seed or of a list; what is there is only replaced by those of the
            very same run.
        fresh: whether to throw away what an earlier run left, and to replace results whatever they are of.

    Raises:
        BadInput: if another process has it, what is there is damaged, of an earlier form, or belongs to another run, or
            so do the results.

    Attributes:
        progress: how far the run is.
        began: when it began.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        began: str,
        finals: Sequence[Paths] = (),
        *,
        fresh: bool = False,
    ) -> None:
        super().__init__(folder, "progress.npz")
        self.began = began
        self.progress = Progress()
        self._finished = Finished(finals)
        self._fresh = fresh
        self._identity = identities.plain(identity)
        self._device: dict[str, str] = {}
        self._saved = _Saved()
        self._run = folder / "run.json"
        try:
            with writable(folder):
                if not fresh and any((folder / name).exists() for name in EARLIER):
                    raise BadInput(
                        f"output_path (--output-path): {folder} holds an unfinished run of an earlier version, which "
                        "can't be gone on with; give --fresh to start over, or choose another folder"
                    )
                if fresh or not self.started:
                    self.empty()
                self.sweep()
            self._read()
            try:
                self._compare()
            except BadInput:
                if not self.started:
                    self.discard()
                raise
        except BaseException:
            self.release()
            raise

    @property
    def resumed(self) -> bool:
        """Whether the run goes on where an earlier one was."""
        return bool(self._saved.states)

    def require(self, facts: Mapping[str, Any], device: str) -> None:
        """Share further facts, known only by now, with the run that this one goes on with, and those it replaces.

        Args:
            facts: by name.
            device: what computes, in words.

        Raises:
            BadInput: if they are others.
        """
        self._identity |= identities.plain(facts)
        self._device = {"device": identities.kind_of(device)}
        self._compare()
        if not self._decided and (there := self._finished.there):
            more = f" (and {len(there) - 1} more like it)" if len(there) > 1 else ""
            log.info(f"{there[0]}{more} is of this very run, which is made again; its files will be replaced")

    @property
    def _decided(self) -> bool:
        """Whether it was decided before, or by the user, that results which were there when the run began may go."""
        return self._fresh or self.resumed

    def _compare(self) -> None:
        names = identities.differing(self._saved.identity, self._identity) if self.resumed else []
        if names:
            differ = identities.difference(self._saved.identity, self._identity, names)
            raise BadInput(
                f"output_path (--output-path): {self.folder} holds an unfinished run with other settings ({differ}); "
                "go on with those, give --fresh to start over, or choose another folder"
            )
        self._require_finished(self.began if self._decided else "")

    def _require_finished(self, after: str) -> None:
        self._finished.require({**self._identity, **self._device}, after)

    @contextlib.contextmanager
    def publishing(self, folder: Path) -> Iterator[Path]:
        """See :meth:`Unfinished.publishing`; results of other runs that came meanwhile are not replaced."""
        self._require_finished(self.began)
        with super().publishing(folder) as results:
            yield results

    def restore(self, tallies: Mapping[str, Kept]) -> None:
        """Give tallies, by name, the states that they had.

        Raises:
            BadInput: if these are not theirs.
        """
        for name, tally in tallies.items():
            with damaged(self.record):
                tally.restore(self._saved.states[name])

    def save(self, tallies: Mapping[str, Kept]) -> None:
        """Remember how far the run is, and the states of its tallies."""
        states = {name: tally.state() for name, tally in tallies.items()}
        with writable(self.folder):
            if not self._run.is_file():
                with replacing(self._run) as file:
                    run = {"format": FORMAT, "identity": self._identity, "started": self.began}
                    json.dump(run, file, indent=2)
            with replacing_bytes(self.record) as binary:
                progress = {**asdict(self.progress), "run": _sha256(self._run)}
                arrays = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
                arrays["progress"] = np.array(json.dumps(progress))
                np.savez_compressed(binary, **cast("dict[str, Any]", arrays))

    def _read(self) -> None:
        if not self.started:
            return
        with damaged(self._run):
            run = json.loads(self._run.read_text())
            if run["format"] != FORMAT:
                raise ValueError(f"format {run['format']}")
            self._saved.identity, self.began = dict(run["identity"]), str(run["started"])
        with damaged(self.record), np.load(self.record, allow_pickle=False) as file:
            progress = json.loads(str(file["progress"]))
            if progress.pop("run") != _sha256(self._run):
                raise ValueError(f"not of the run of {self._run.name}")
            self.progress = Progress(**{**progress, "cut": Cut(**progress["cut"])})
            for name in file.files:
                tally, _, key = name.partition("/")
                if key:
                    self._saved.states.setdefault(tally, {})[key] = file[name]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
