"""Who runs the tasks of a campaign: this process, or others behind the same interface."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bitflip.campaign.experiment import Experiment
from bitflip.data.images import Batch
from bitflip.data.inputs import Inputs
from bitflip.engines import Engine
from bitflip.engines.memory import Portions
from bitflip.faults.flips import Flips
from bitflip.faults.listed import Listed
from bitflip.faults.tasks import Cut, Task
from bitflip.network import devices
from bitflip.network.devices import Placement
from bitflip.network.layers import Target
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.terminal import duration

if TYPE_CHECKING:  # not in Python 3.10
    from typing import Self

log = logging.getLogger(__name__)

Progress = Callable[[int], None]

PORTION = 20.0  # seconds of a task, at most: what is under way when a run is interrupted is lost
LEAST = 64  # images of a task; with fewer, what each task costs by itself would show
TRIED = 8  # images, which fit any memory, whose clean pass tells how long faulty ones take
SHARE = {"wave": 0.4, "reference": 1.0}  # of the time of a clean image that a faulty one takes, roughly
PROVED = 0.1  # the same where bounds spare most of them, and their computation is in the clean pass


class Executor(Protocol):
    """Runs tasks and gives their outcomes in order; a context, which it may need to keep processes in.

    Attributes:
        device: what computes, in words.
        arithmetic: kind of device, and what chooses its kernels.
    """

    @property
    def device(self) -> str:
        """See the class."""

    @property
    def arithmetic(self) -> str:
        """See the class."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def cut(self, experiment: Experiment) -> Cut:
        """How the campaign is best cut into tasks, unless it was begun with another cut."""

    def run(
        self,
        experiment: Experiment,
        cut: Cut,
        turn: int,
        targets: list[Target],
        start: int,
        progress: Progress,
    ) -> Iterator[tuple[Task, BatchOutcomes]]:
        """The tasks of one round through the test set, in order, and their outcomes, on the host.

        Args:
            experiment: that is run.
            cut: how it is cut into tasks.
            turn: number of the round.
            targets: those of the experiment's that get faults in it.
            start: number of the first task to run.
            progress: called with the number of further faulty images whose outcome is known; with a negative one, if
                they have to be run again.

        Raises:
            BadInput: if an image can't be read, or no one can go on; what comes before was yielded.
        """


class Here:
    """This process.

    Args:
        experiment: that it runs.
    """

    def __init__(self, experiment: Experiment) -> None:
        network = experiment.network
        self._portions = portions(network.engine, network.placement)
        self.device = experiment.device
        self.arithmetic = devices.arithmetic(network.placement.device.type)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was begun."""

    def cut(self, experiment: Experiment) -> Cut:
        """See :class:`Executor`; tasks take seconds, where they can be cut so, and otherwise it is said how long.

        Sampled weight faults hit whole batches, and the detailed log holds the layers of a batch one after the other.
        """
        cut, count = experiment.cut, experiment.images.count
        if isinstance(experiment.source, Listed):  # its blocks are of a size of their own
            return cut
        together, inferences = cut.together, experiment.source.inferences(experiment.targets, 1)
        each = self._seconds(experiment, PORTION / (min(together, count) * inferences)) * inferences
        if experiment.target == "neuron" and not experiment.settings.detailed_log:
            while together > LEAST and min(together, count) * each > PORTION:
                together = -(-together // 2)
        first = min(together, count)
        if first * each > PORTION:
            log.info(f"the first {first} images take about {duration(first * each)}; only then is anything kept")
        return replace(cut, together=together)

    def _seconds(self, experiment: Experiment, most: float) -> float:
        """What a faulty image takes, roughly, or anything below ``most``, below which it makes no difference."""
        share = PROVED if experiment.settings.prove else SHARE[experiment.network.engine.name]
        [(images, labels)] = experiment.images.batches([range(min(TRIED, experiment.images.count))])
        seconds = []
        for _ in range(3):  # the first is slow, and any may be disturbed
            began = time.monotonic()
            self._portions.run(images, labels, [], 0, lambda faulty: None)
            seconds.append(share * (time.monotonic() - began) / len(labels))
            if seconds[-1] < most:
                break
        return min(seconds)

    def run(
        self,
        experiment: Experiment,
        cut: Cut,
        turn: int,
        targets: list[Target],
        start: int,
        progress: Progress,
    ) -> Iterator[tuple[Task, BatchOutcomes]]:
        """See :class:`Executor`."""
        tasks = experiment.tasks(cut, turn, targets)[start:]
        for task, batch in zip(tasks, experiment.images.batches(tasks.spans), strict=True):
            yield task, self.outcomes(task, batch, progress)

    def outcomes(self, task: Task, batch: Batch, progress: Progress) -> BatchOutcomes:
        """The outcomes of one task, given its images and labels."""
        images, labels = batch
        return self._portions.run(images, labels, task.flips, task.images.start, progress)


def portions(engine: Engine, placement: Placement) -> Portions:
    """What runs batches on an engine, whole or as many images at a time as fit the memory."""

    def attempt(images: Inputs, labels: Tensor, flips: list[Flips], first: int, progress: Progress) -> BatchOutcomes:
        outcomes = BatchOutcomes(labels.to(placement.device), flips, first, progress)
        with torch.no_grad():
            engine.run(placement.inputs(images), outcomes.flips, outcomes)
        outcomes.to_host()
        return outcomes

    return Portions(attempt, engine.most)
