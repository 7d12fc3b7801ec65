"""A shard: a few tasks that a worker runs in a process of its own, maybe on another machine.

Tasks are a pure function of the experiment and how it is cut, so a campaign can be cut between any two of them. Driver
and worker each make the same tasks; only what came of them travels.
"""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitflip.campaign import experiment
from bitflip.campaign.executor import Here
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.patterned import Part, Patterned
from bitflip.errors import BadInput
from bitflip.faults.flips import Flips, TargetKind
from bitflip.faults.listed import Listed
from bitflip.faults.tasks import Cut
from bitflip.network import devices
from bitflip.network.calibration import Bounds
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.results import provenance
from bitflip.settings import hyperparameters
from bitflip.settings.hyperparameters import Hyperparameters

SAME_VERSIONS = ("bitflip", "torch", "torchvision", "numpy")  # on all nodes: others change no bit of a result
SHARDS_EACH = 8  # for each worker, at least, as long as a shard holds more than one batch


@dataclass(frozen=True)
class Shard:
    """Tasks ``first`` to ``stop - 1`` of one round through the test set.

    Attributes:
        cut: how the campaign is cut into tasks.
        turn: number of the round.
        targets: places, among the targets of the experiment, of those that get flips in this round.
        first, stop: numbers of tasks.
    """

    cut: Cut
    turn: int
    targets: tuple[int, ...]
    first: int
    stop: int

    def __str__(self) -> str:
        return f"tasks {self.first} to {self.stop - 1}"


@dataclass(frozen=True)
class Parcel:
    """The outcomes of B images under L flips in few bytes: 8 per fault, and the flipped values if they are wanted.

    Attributes:
        first: index in the test set of the first image.
        clean: labels and predictions without a fault, (2, B).
        top1, effects, change: as in :class:`bitflip.outcomes.batch.BatchOutcomes`, (L, B).
        types: the types of each slot's values; empty if they are not wanted.
        values: their bytes, before and after the flip, one slot after the other.
    """

    first: int
    clean: NDArray[Any]
    top1: NDArray[Any]
    effects: NDArray[np.int16]
    change: NDArray[np.float32]
    types: tuple[torch.dtype, ...]
    values: NDArray[np.uint8]

    @classmethod
    def of(cls, batch: BatchOutcomes, *, values: bool) -> Parcel:
        """Pack outcomes that are on the host."""
        pairs = list(zip(batch.original, batch.error, strict=True)) if values else []
        raw = [value.contiguous().view(torch.uint8) for pair in pairs for value in pair]
        return cls(
            batch.first,
            _narrow(torch.stack([batch.labels, batch.clean_top1])),
            _narrow(batch.top1),
            batch.effects.numpy(),
            batch.change.numpy(),
            tuple(before.dtype for before, _ in pairs),
            torch.cat(raw).numpy() if raw else np.empty(0, dtype=np.uint8),
        )

    def outcomes(self, flips: list[Flips]) -> BatchOutcomes:
        """What :meth:`of` packed, given the same flips; without values if they were not wanted."""
        labels, clean_top1 = torch.from_numpy(self.clean.astype(np.int64))
        batch = BatchOutcomes(labels, flips, self.first, lambda count: None)
        batch.clean_top1 = clean_top1
        batch.top1 = torch.from_numpy(self.top1.astype(np.int64))
        batch.effects, batch.change = torch.from_numpy(self.effects.copy()), torch.from_numpy(self.change.copy())
        raw, start = torch.from_numpy(self.values.copy()), 0
        for slot, dtype in enumerate(self.types):
            for values in (batch.original, batch.error):
                size = len(flips[slot]) * dtype.itemsize
                values[slot] = raw[start : start + size].clone().view(dtype)  # a view needs memory of its own alignment
                start += size
        return batch


def _narrow(classes: Tensor) -> NDArray[Any]:
    few = classes.numel() == 0 or int(classes.max()) < 2**15
    return classes.to(torch.int16 if few else torch.int32).numpy()


@dataclass(frozen=True)
class Facts:
    """What a worker found when it loaded the experiment; all workers and the driver must agree on ``same``.

    Attributes:
        node: name of the worker's machine.
        device: in words.
        cut: of the campaign, that suits it best.
        best: images that it runs together best.
        same: what must be the same everywhere, by name.
    """

    node: str
    device: str
    cut: Cut
    best: int
    same: dict[str, Any]

    @classmethod
    def of(cls, loaded: Experiment) -> Facts:
        """The facts of an experiment in this process."""
        versions, source = provenance.versions(), loaded.source
        return cls(
            platform.node(),
            devices.describe(loaded.network.placement.device),
            loaded.cut,
            max(loaded.network.engine.best or 0, loaded.settings.batch_size),
            {
                "the test set": f"{loaded.images.count} images, sha256 {loaded.images.sha256}",
                "the model": f"sha256 {loaded.network.classifier.sha256}",
                "the code of the model": f"sha256 {loaded.network.classifier.code}",
                "the fault list": source.digest if isinstance(source, Listed) else None,
                "layers": [(item.number, item.layer.path, item.layer.shape) for item in loaded.targets],
                **{name: versions[name].partition("+")[0] for name in SAME_VERSIONS},
            },
        )

    def differences(self, expected: Facts) -> list[str]:
        """What is not the same, in words."""
        return [
            f"{name} differs" if isinstance(value, list) else f"{name} is {self.same[name]}, expected {value}"
            for name, value in expected.same.items()
            if self.same[name] != value
        ]


@dataclass(frozen=True)
class Refusal:
    """Why a worker can't go on: the sentences of a :class:`~bitflip.errors.BadInput`, and on which machine."""

    node: str
    problems: tuple[str, ...]

    def error(self) -> BadInput:
        """For the driver to raise."""
        hint = "" if self.node == platform.node() else " (every node reads the same paths: use a shared file system)"
        return BadInput(*(f"{problem}, on node {self.node}{hint}" for problem in self.problems))


class Worker:
    """An experiment in a process of its own, loaded once, and run shard by shard.

    Two shards may be under way: one is read while the other one runs.

    Args:
        settings: as the driver has them, see :func:`portable`.
        target: what the flips hit.
        threads: of the CPU; the last bits of a matrix product can depend on their number.
        bounds: of the protection, as the driver measured them, if it did.
    """

    def __init__(
        self, settings: Hyperparameters, target: TargetKind, threads: int, bounds: Bounds | None = None
    ) -> None:
        self._settings, self._target, self._threads, self._bounds = settings, target, threads, bounds
        self._loaded: tuple[Experiment, Here] | None = None
        self._patterned: Patterned | None = None
        self._running = threading.Lock()

    def load(self) -> Facts | Refusal:
        """Load model and test set."""
        torch.set_num_threads(self._threads)
        if problems := devices.check_precision(self._settings.precision, self._settings.device):
            return Refusal(platform.node(), tuple(problems))
        try:
            loaded = experiment.prepare(self._settings, self._target, self._bounds)
            facts = Facts.of(loaded)
        except BadInput as error:
            return Refusal(platform.node(), error.problems)
        self._loaded = loaded, Here(loaded)
        return facts

    def run(self, shard: Shard) -> tuple[list[Parcel], Refusal | None]:
        """Run a shard; what an image that can't be read leaves of it, and why."""
        assert self._loaded is not None
        loaded, here = self._loaded
        wanted = loaded.settings.detailed_log or loaded.settings.fault_table
        targets = [loaded.targets[place] for place in shard.targets]
        tasks = loaded.tasks(shard.cut, shard.turn, targets)[shard.first : shard.stop]
        batches, refusal = [], None
        try:
            for batch in loaded.images.batches(tasks.spans):
                batches.append(batch)
        except BadInput as error:
            refusal = Refusal(platform.node(), error.problems)
        with self._running:
            torch.set_num_threads(self._threads)  # each thread of a process has a number of its own
            ran = (here.outcomes(task, batch, lambda count: None) for task, batch in zip(tasks, batches, strict=False))
            return [Parcel.of(outcomes, values=wanted) for outcomes in ran], refusal

    def patterns(self, part: Part) -> tuple[NDArray[np.int64] | None, Refusal | None]:
        """Run part of a run with bit error rates: its counts; none, and why, if an image can't be read."""
        assert self._loaded is not None
        loaded, _ = self._loaded
        try:
            (batch,) = loaded.images.batches([part.images])
        except BadInput as error:
            return None, Refusal(platform.node(), error.problems)
        with self._running:
            torch.set_num_threads(self._threads)
            self._patterned = self._patterned or Patterned(loaded)
            return self._patterned.counted(part, batch, lambda count: None), None


TASKS, PATTERNS = Worker.run.__name__, Worker.patterns.__name__


def portable(settings: Hyperparameters, device: str) -> Hyperparameters:
    """The settings for a worker: with absolute paths, and the kind of device that all workers have."""
    update: dict[str, Any] = {"device": device, "ray": None, "rerun": None}
    for name in ("faults", *hyperparameters.names(lambda role: role.path)):
        if (path := getattr(settings, name)) is not None:
            update[name] = path.absolute()
    file, colon, factory = str(settings.model_name).rpartition(":")
    if file.endswith(".py"):
        update["model_name"] = f"{Path(file).absolute()}{colon}{factory}"
    if settings.protection is not None:
        update["protect"] = str(settings.protection.absolute)
    return settings.model_copy(update=update)


def together(images: int, batch_size: int, best: int, workers: int) -> int:
    """Images of a task: whole batches, not more than what is best for a worker.

    With few images tasks are smaller, so that each worker gets several and they end at about the same time.
    """
    fair = images // (workers * SHARDS_EACH)
    return max(1, min(best, fair) // batch_size) * batch_size


def patterns_each(patterns: int, batches: int, workers: int) -> int:
    """Patterns of a part of a run with bit error rates: all of a batch's, but so few that each gets several parts."""
    return min(patterns, max(1, patterns * batches // (workers * SHARDS_EACH)))


def tasks_each(tasks: int, cut: Cut, best: int, workers: int) -> int:
    """Tasks of a shard: as many images as are best for a worker, but so few that each gets several shards."""
    return max(1, min(best // cut.together, tasks // (workers * SHARDS_EACH)))
