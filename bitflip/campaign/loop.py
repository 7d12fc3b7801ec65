"""A campaign as it runs: counted, logged, shown, checkpointed, and stopped when it is done or told to."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.executor import Executor, Progress
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.meter import Meter
from bitflip.campaign.tallies import Tallies
from bitflip.errors import BadInput
from bitflip.faults.listed import Listed
from bitflip.faults.tasks import Cut, Task
from bitflip.network.layers import Target
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.outcomes.per_fault import PerFault
from bitflip.results.tracking import Tracker
from bitflip.statistics import sampling
from bitflip.statistics.intervals import Interval

log = logging.getLogger(__name__)

RUNNING_RATE_EVERY = 10.0  # seconds between two running rates sent to vessl
SAVE_EVERY = 0.5  # seconds between two checkpoints, at least
SAVE_SHARE = 0.02  # of the time that checkpoints may take


@dataclass
class Done:
    """What a campaign has done.

    Attributes:
        experiment: that was run.
        tallies: of its outcomes.
        seconds: that it took, without loading, over all its starts.
        stopped: what ended it early, if anything did.
    """

    experiment: Experiment
    tallies: Tallies
    seconds: float = 0.0
    stopped: BadInput | KeyboardInterrupt | None = None

    @property
    def complete(self) -> bool:
        """Whether all was done."""
        return self.stopped is None

    @property
    def where(self) -> str:
        """How far it came."""
        main = self.tallies.main
        if isinstance(main, PerFault):
            return f"{int(main.complete.sum())} of {len(main.faults)} faults"
        return f"{main.images} of {self.experiment.images.count} images"


def execute(
    experiment: Experiment, checkpoint: Checkpoint, tracker: Tracker, executor: Executor, *, bar: bool | None = None
) -> Done:
    """Run the campaign, or what is left of it.

    Ctrl-C, a full disk or an image that can't be read ends it after the tasks that were finished.

    Args:
        experiment: that is run.
        checkpoint: where it was, and is.
        tracker: for running rates.
        executor: that runs the tasks.
        bar: whether to show a progress bar; None for one on a terminal, and lines in the log elsewhere.

    Raises:
        KeyboardInterrupt, BadInput: if not even one task was finished.
    """
    progress = checkpoint.progress
    tallies = Tallies(experiment, checkpoint.folder)
    done = Done(experiment, tallies)
    with ExitStack() as stack:
        stack.callback(tallies.close)
        if checkpoint.resumed:
            checkpoint.restore(tallies.by_name)
        cut = progress.cut = progress.cut or executor.cut(experiment)
        saver = _Saver(checkpoint, tallies)
        total = None
        if _margin(experiment) is None:
            total = experiment.source.inferences(experiment.targets, experiment.images.count)
        before = tallies.main.inferences if total else 0
        shown = stack.enter_context(Meter(total, before, bar=bar))
        if checkpoint.resumed:
            log.info("going on after %s", done.where)
        reported = time.monotonic()

        try:
            for task, batch in _outcomes(experiment, tallies, checkpoint, executor, cut, shown.advance):
                with uninterrupted():
                    tallies.add(task, batch)
                    saver.after(task.turn)
                rate = tallies.main.rate
                if rate is not None:
                    shown.rate(f"misclassified {rate:.3f} %")
                    if time.monotonic() - reported > RUNNING_RATE_EVERY:
                        reported = time.monotonic()
                        tracker.log({"running/Misclassification_rate": rate}, step=tallies.main.images)
        except (KeyboardInterrupt, BadInput) as stop:
            if tallies.main.images == 0:
                raise
            done.stopped = stop
        saver.save()
        done.seconds = progress.seconds
    return done


def _margin(experiment: Experiment) -> float | None:
    return None if isinstance(experiment.source, Listed) else experiment.settings.margin


def _outcomes(
    experiment: Experiment,
    tallies: Tallies,
    checkpoint: Checkpoint,
    executor: Executor,
    cut: Cut,
    advance: Progress,
) -> Iterator[tuple[Task, BatchOutcomes]]:
    """The tasks that are left of a campaign, with their outcomes."""
    turn, start = checkpoint.progress.turn, checkpoint.progress.task
    margin = _margin(experiment)
    if margin is not None and start >= len(experiment.tasks(cut, turn, [])):
        turn, start = turn + 1, 0
    while targets := _open(experiment, tallies, turn, start):
        yield from executor.run(experiment, cut, turn, targets, start, advance)
        if margin is None:
            return
        turn, start = turn + 1, 0


def _open(experiment: Experiment, tallies: Tallies, turn: int, start: int) -> list[Target]:
    """What gets flips in a round through the test set, of which ``start`` tasks are over.

    With a margin, a layer is left out from the first round on that finds its interval narrow enough.
    """
    if turn == 0:
        return experiment.targets
    before = turn * experiment.flips_per_round
    estimates = experiment.estimates(tallies.counts, by_bit=False)
    if start > 0:  # it was decided when the round began
        return [found.item for found in estimates if found.tally.flips > before]
    margin = experiment.settings.margin
    assert margin is not None
    return [
        found.item
        for found in estimates
        if found.tally.flips == before
        and found.rate.interval is not None
        and not sampling.enough(Interval(*found.rate.interval), margin)
    ]


class _Saver:
    """Saves how far a run is, neither all the time nor too late."""

    def __init__(self, checkpoint: Checkpoint, tallies: Tallies) -> None:
        self._checkpoint, self._tallies = checkpoint, tallies
        self._progress = checkpoint.progress
        self._began = time.monotonic() - self._progress.seconds
        self._due = 0.0
        self._saved = True

    def after(self, turn: int) -> None:
        """Take note of a task of a round that is finished, and save it when the time has come."""
        progress = self._progress
        progress.task = progress.task + 1 if turn == progress.turn else 1
        progress.turn = turn
        self._saved = False
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Save now, unless nothing was done since."""
        if self._saved:
            return
        before = time.monotonic()
        self._progress.seconds = before - self._began
        self._checkpoint.save(self._tallies.by_name)
        self._saved = True
        now = time.monotonic()
        self._due = now + max(SAVE_EVERY, (now - before) / SAVE_SHARE)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C, and what ends the process in the same way, wait until the block is done.

    So that counts and logs fit each other.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    alike = signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    numbers = (signal.SIGINT, signal.SIGTERM) if alike else (signal.SIGINT,)
    before = {number: signal.signal(number, lambda number, frame: pressed.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pressed:
        raise KeyboardInterrupt
