"""A campaign as it runs: counted, logged, shown, checkpointed, and stopped when it is done or told to."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from tqdm import tqdm

from bitflip import files
from bitflip.campaign import campaign
from bitflip.campaign.checkpoint import Checkpoint, Progress
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.unfinished import damaged, writable
from bitflip.cluster.driver import Cluster
from bitflip.data import datasets
from bitflip.errors import BadInput
from bitflip.network.layers import Numbered
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.outcomes.counts import Counts
from bitflip.results import fault_table
from bitflip.results import tables as results
from bitflip.results.tracking import Tracker
from bitflip.statistics import sampling
from bitflip.statistics.intervals import Interval

RUNNING_RATE_EVERY = 10.0  # seconds between two running rates sent to vessl
SAVE_EVERY = 0.5  # seconds between two checkpoints, at least
SAVE_SHARE = 0.02  # of the time that checkpoints may take


class Logs:
    """The detailed log and the fault table of each seed, as they grow in a checkpoint's folder."""

    def __init__(self, experiment: Experiment, checkpoint: Checkpoint) -> None:
        settings = experiment.settings
        self._experiment = experiment
        self._folder = checkpoint.folder
        self._seeds = settings.all_seeds
        self._files: dict[int, BinaryIO] = {}
        self._written: dict[int, tuple[int, int]] = {}  # bytes of each detailed log that count, and their CRC-32
        self._rows: dict[int, list[pa.Table]] = {seed: [] for seed in self._seeds if settings.fault_table}
        self._begin: tuple[int, int] | None = None  # turn and image at which the rows that wait begin
        progress = checkpoint.progress
        for seed in self._seeds if settings.detailed_log else ():
            name = self._detail(seed).name
            self._files[seed] = checkpoint.log(name).open("ab")
            self._written[seed] = progress.logs.get(name, (0, 0))
        for part in self._folder.glob("faults-*.part"):
            if tuple(int(n) for n in re.findall(r"\d+", part.name)[1:]) >= (progress.turn, progress.image):
                part.unlink()  # the run died before its counts were saved

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # of a full disk, which was reported when it was written to
                file.close()

    def add(self, batch: BatchOutcomes, turn: int) -> None:
        """Log one batch.

        Raises:
            BadInput: if there is no room; then the batch was not logged.
        """
        settings, items = self._experiment.settings, self._experiment.layers
        with writable(self._folder):
            texts = {
                seed: results.detail_text(self._experiment.target, items, settings.batch_size, batch, seed).encode()
                for seed in self._files
            }
            for seed, text in texts.items():
                self._files[seed].write(text)
                self._files[seed].flush()
        for seed, text in texts.items():
            length, checksum = self._written[seed]
            self._written[seed] = length + len(text), zlib.crc32(text, checksum)
        for seed, tables in self._rows.items():
            tables.append(fault_table.rows(batch, items, seed))
        self._begin = self._begin or (turn, batch.first)

    def save(self) -> dict[str, tuple[int, int]]:
        """Bring what was logged to the disk; length in bytes and CRC-32 of each log, by file name.

        Raises:
            BadInput: if there is no room.
        """
        with writable(self._folder):
            for file in self._files.values():
                os.fsync(file.fileno())
            for seed, tables in self._rows.items():
                if tables:
                    assert self._begin is not None
                    turn, image = self._begin
                    part = self._folder / f"faults-{seed}-{turn:06d}-{image:012d}.part"
                    fault_table.write_part(part, tables)
                    tables.clear()
            self._begin = None
        return {self._detail(seed).name: written for seed, written in self._written.items()}

    def copy_detail(self, seed: int, path: Path) -> None:
        """Write the ``_detailed.txt`` of one seed."""
        files.copy(self._detail(seed), self._written[seed][0], path)

    def join_faults(self, seed: int, path: Path) -> None:
        """Write the ``_faults.parquet`` of one seed."""
        fault_table.join(self._parts(seed), path)

    def require(self, rows: Mapping[int, int]) -> None:
        """See that the parts of the fault table hold so many rows for each seed.

        Raises:
            BadInput: if they don't.
        """
        for seed in self._rows:
            with damaged(self._folder):
                if sum(map(fault_table.rows_of, self._parts(seed))) != rows[seed]:
                    raise ValueError(f"a part of the fault table of seed {seed} is missing, or there twice")

    def _parts(self, seed: int) -> list[Path]:
        return sorted(self._folder.glob(f"faults-{seed}-*.part"))

    def _detail(self, seed: int) -> Path:
        return self._folder / f"detail-{seed}.txt"


@dataclass
class Done:
    """What a campaign has done.

    Attributes:
        counts: of its outcomes.
        logs: of its outcomes.
        images: that it was to run.
        seconds: that it took, without loading, over all its starts.
        stopped: what ended it early, if anything did.
    """

    counts: Counts
    logs: Logs
    images: int
    seconds: float = 0.0
    stopped: BadInput | KeyboardInterrupt | None = None

    @property
    def complete(self) -> bool:
        """Whether all was done."""
        return self.stopped is None

    @property
    def where(self) -> str:
        """How far it came."""
        return f"{self.counts.images} of {self.images} images"


def execute(experiment: Experiment, checkpoint: Checkpoint, tracker: Tracker, workers: Cluster | None = None) -> Done:
    """Run the campaign, or what is left of it, here or by workers.

    Ctrl-C, a full disk or an image that can't be read ends it after the batches that were finished.

    Raises:
        KeyboardInterrupt, BadInput: if not even one batch was finished.
    """
    settings, progress = experiment.settings, checkpoint.progress
    counts = Counts(settings.all_seeds, experiment.layers)
    if checkpoint.resumed:
        with damaged(checkpoint.folder):
            counts.restore(progress.arrays)
            if not 0 <= progress.image <= experiment.images:
                raise ValueError(f"{progress.image} of {experiment.images} images")
    else:
        progress.together = experiment.together
    began = time.monotonic() - progress.seconds
    with ExitStack() as stack:
        logs = stack.enter_context(Logs(experiment, checkpoint))
        logs.require({seed: counts.injections(place) for place, seed in enumerate(settings.all_seeds)})
        done = Done(counts, logs, experiment.images)
        saver = _Saver(checkpoint, logs, counts, began)
        each = len(experiment.layers) * settings.repeats * len(settings.all_seeds)
        total = None if settings.margin else experiment.images * each
        start = progress.image * each if total else 0
        bar = stack.enter_context(tqdm(total=total, initial=start, unit="img", unit_scale=True, disable=None))
        if checkpoint.resumed:
            print(f"going on after {done.where}", file=sys.stderr)
        reported = time.monotonic()

        def advance(faulty: int) -> None:
            bar.update(faulty)

        try:
            for turn, batch in _batches(experiment, counts, progress, advance, workers):
                with _uninterrupted():
                    logs.add(batch, turn)
                    counts.add(batch, again=turn > 0)
                    saver.at(turn, batch.first + len(batch.labels))
                rate = counts.rate
                if rate is not None:
                    bar.set_postfix_str(f"misclassified {rate:.3f} %")
                    if time.monotonic() - reported > RUNNING_RATE_EVERY:
                        reported = time.monotonic()
                        tracker.log({"running/Misclassification_rate": rate}, step=counts.images)
        except (KeyboardInterrupt, BadInput) as stop:
            if counts.images == 0:
                raise
            done.stopped = stop
        saver.save()
        done.seconds = time.monotonic() - began
    return done


def _batches(
    experiment: Experiment,
    counts: Counts,
    progress: Progress,
    advance: Callable[[int], None],
    workers: Cluster | None,
) -> Iterator[tuple[int, BatchOutcomes]]:
    """The outcomes of what is left of a campaign, with the number of the round through the test set."""
    turn, first = progress.turn, progress.image
    if first >= experiment.images and experiment.settings.margin is not None:
        turn, first = turn + 1, 0
    while (items := _open(experiment, counts, turn, first)) or turn == 0:  # without a layer, one clean round
        if workers is not None:
            ran = workers.run(experiment, items, turn, first, advance)
        else:
            ran = campaign.run(
                experiment.engine,
                experiment.target,
                datasets.batches(experiment.test_set, progress.together, experiment.images, first),
                partial(experiment.sampling.flips, items, turn=turn),
                placement=experiment.placement,
                progress=advance,
                first=first,
            )
        for batch in ran:
            yield turn, batch
        if experiment.settings.margin is None:
            return
        turn, first = turn + 1, 0


def _open(experiment: Experiment, counts: Counts, turn: int, first: int) -> list[Numbered]:
    """The layers that get flips in a round through the test set, of which ``first`` images are over.

    With a margin, a layer is left out from the first round on that finds its interval narrow enough.
    """
    if turn == 0:
        return experiment.layers
    before = turn * experiment.flips_per_round
    if first > 0:  # it was decided when the round began
        return [found.item for found in experiment.estimates(counts) if found.tally.flips > before]
    margin = experiment.settings.margin
    assert margin is not None
    return [
        found.item
        for found in experiment.estimates(counts)
        if found.tally.flips == before
        and found.rate.interval is not None
        and not sampling.enough(Interval(*found.rate.interval), margin)
    ]


class _Saver:
    """Saves how far a run is, neither all the time nor too late."""

    def __init__(self, checkpoint: Checkpoint, logs: Logs, counts: Counts, began: float) -> None:
        self._checkpoint, self._logs, self._counts, self._began = checkpoint, logs, counts, began
        self._progress = checkpoint.progress
        self._due = 0.0
        self._saved = True

    def at(self, turn: int, image: int) -> None:
        """Take note of where the run is, and save it when the time has come."""
        self._progress.turn, self._progress.image = turn, image
        self._saved = False
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Save now, unless nothing was done since."""
        if self._saved:
            return
        before = time.monotonic()
        self._progress.seconds = before - self._began
        self._progress.arrays, self._progress.logs = self._counts.arrays(), self._logs.save()
        self._checkpoint.save(self._progress)
        self._saved = True
        now = time.monotonic()
        self._due = now + max(SAVE_EVERY, (now - before) / SAVE_SHARE)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done, so that counts and logs fit each other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
