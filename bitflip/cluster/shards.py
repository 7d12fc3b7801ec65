"""A shard: a range of images that a worker runs in a process of its own, maybe on another machine.

Faults are keyed by layer and image (weights: by layer and batch), so a campaign can be cut between any two batches.
The driver draws the same flips again from the shard's range; only what came of them travels.
"""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitflip.campaign import campaign, experiment
from bitflip.campaign.experiment import Experiment
from bitflip.data import datasets
from bitflip.errors import BadInput
from bitflip.faults.flips import Flips, Target
from bitflip.network import devices
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.results import provenance
from bitflip.settings.hyperparameters import Hyperparameters

SAME_VERSIONS = ("bitflip", "torch", "torchvision", "numpy")  # on all nodes: others change no bit of a result
SHARDS_EACH = 8  # for each worker, at least, as long as a shard holds more than one batch
PATHS = ("input_path", "weights", "hub_path")  # settings that every node reads for itself


@dataclass(frozen=True)
class Shard:
    """Images ``first`` to ``first + count - 1`` of the test set, in one round through it.

    Attributes:
        turn: number of the round.
        layers: places, among the layers of the experiment, of those that get flips in this round.
    """

    first: int
    count: int
    turn: int
    layers: tuple[int, ...]

    def __str__(self) -> str:
        return f"images {self.first} to {self.first + self.count - 1}"


@dataclass(frozen=True)
class Parcel:
    """The outcomes of B images under L flips in few bytes: 7 per fault, and the flipped values if they are wanted.

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
    effects: NDArray[np.uint8]
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

    @property
    def images(self) -> int:
        """B."""
        return int(self.clean.shape[1])

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
        together: images that it runs together.
        same: what must be the same everywhere, by name.
    """

    node: str
    device: str
    together: int
    same: dict[str, Any]

    @classmethod
    def of(cls, loaded: Experiment) -> Facts:
        """The facts of an experiment in this process."""
        versions = provenance.versions()
        return cls(
            platform.node(),
            devices.describe(loaded.placement.device),
            loaded.together,
            {
                "the test set": f"{loaded.images} images",
                "the model": f"sha256 {loaded.classifier.sha256}",
                "layers": [(item.number, item.layer.path, item.layer.shape) for item in loaded.layers],
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
    """

    def __init__(self, settings: Hyperparameters, target: Target, threads: int) -> None:
        self._settings, self._target, self._threads = settings, target, threads
        self._experiment: Experiment | None = None
        self._running = threading.Lock()

    def load(self) -> Facts | Refusal:
        """Load model and test set."""
        torch.set_num_threads(self._threads)
        if problems := devices.check_precision(self._settings.precision, self._settings.device):
            return Refusal(platform.node(), tuple(problems))
        try:
            self._experiment = experiment.prepare(self._settings, self._target)
        except BadInput as error:
            return Refusal(platform.node(), error.problems)
        return Facts.of(self._experiment)

    def run(self, shard: Shard) -> tuple[list[Parcel], Refusal | None]:
        """Run a shard; what an image that can't be read leaves of it, and why."""
        loaded = self._experiment
        assert loaded is not None
        settings, images, refusal = loaded.settings, [], None
        together = min(loaded.together, shard.count)
        try:
            for batch in datasets.batches(loaded.test_set, together, shard.first + shard.count, shard.first):
                images.append(batch)
        except BadInput as error:
            refusal = Refusal(platform.node(), error.problems)

        items = [loaded.layers[place] for place in shard.layers]
        with self._running:
            torch.set_num_threads(self._threads)  # each thread of a process has a number of its own
            ran = campaign.run(
                loaded.engine,
                images,
                partial(loaded.sampling.flips, items, turn=shard.turn),
                placement=loaded.placement,
                progress=lambda count: None,
                first=shard.first,
            )
            wanted = settings.detailed_log or settings.fault_table
            return [Parcel.of(batch, values=wanted) for batch in ran], refusal


def portable(settings: Hyperparameters, device: str) -> Hyperparameters:
    """The settings for a worker: with absolute paths, and the kind of device that all workers have."""
    update: dict[str, Any] = {"device": device, "ray": None, "rerun": None}
    for name in PATHS:
        if (path := getattr(settings, name)) is not None:
            update[name] = path.absolute()
    file, colon, factory = str(settings.model_name).rpartition(":")
    if file.endswith(".py"):
        update["model_name"] = f"{Path(file).absolute()}{colon}{factory}"
    return settings.model_copy(update=update)


def size(images: int, batch_size: int, together: int, workers: int) -> int:
    """Images of a shard: whole batches, not more than what a worker runs together.

    With few images shards are smaller, so that each worker gets several and they end at about the same time.
    """
    fair = images // (workers * SHARDS_EACH)
    return max(1, min(together, fair) // batch_size) * batch_size
