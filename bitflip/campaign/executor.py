"""Who runs the tasks of a campaign: this process, or others behind the same interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from bitflip.faults.tasks import Cut, Task
from bitflip.network import devices
from bitflip.network.devices import Placement
from bitflip.network.layers import Target
from bitflip.outcomes.batch import BatchOutcomes

if TYPE_CHECKING:  # not in Python 3.10
    from typing import Self

Progress = Callable[[int], None]


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
        """See :class:`Executor`."""
        return experiment.cut

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
