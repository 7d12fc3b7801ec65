"""A campaign: batches of images, each run clean and with its flips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitflip.engines import Engine
from bitflip.engines.memory import Portions
from bitflip.faults.faultlist import Fault
from bitflip.faults.flips import BitShares, Flips, Target, neuron_flips, parameter_flip
from bitflip.network.devices import Placement
from bitflip.network.inputs import Inputs
from bitflip.network.layers import Layer, Numbered
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.statistics.sampling import allocation


@dataclass(frozen=True)
class Sampling:
    """Which faults a campaign samples.

    Attributes:
        target: ``neuron`` (one flip per image and layer) or ``weight`` (one flip per batch and parameter tensor).
        seeds: each draws faults of its own.
        batch_size: images that one weight flip hits.
        repeats: flips per image (or batch), layer and seed in one round through the test set.
        bit: the bit to flip; None for a random one per fault.
        importance: whether random bits are drawn as :func:`bitflip.statistics.sampling.allocation` says.
    """

    target: Target
    seeds: tuple[int, ...]
    batch_size: int
    repeats: int
    bit: int | None
    importance: bool = False

    def flips(self, items: Sequence[Numbered], first: int, count: int, turn: int = 0) -> list[Flips]:
        """The flips of a batch, one slot each: by seed, then layer, then repeat.

        Args:
            items: layers; with ``weight``, each with one of its parameters.
            first: index in the test set of the batch's first image.
            count: images in the batch; for neurons it changes no fault.
            turn: number of the round through the test set, which draws further flips.
        """
        number = first // self.batch_size
        return [
            neuron_flips(seed, item.layer, first, count, self.bit, repeat, self._shares(item.bits))
            if self.target == "neuron"
            else parameter_flip(
                seed, item.layer, number, self.bit, repeat, self._shares(item.bits), parameter=item.parameter
            )
            for seed in self.seeds
            for item in items
            for repeat in range(turn * self.repeats, (turn + 1) * self.repeats)
        ]

    def listed(self, items: Sequence[Numbered], images: int) -> Iterator[Fault]:
        """All faults of one round through so many images, as rows of a fault list."""
        for first in range(0, images, self.batch_size):
            batch = range(first, min(first + self.batch_size, images))
            again: Counter[tuple[Layer, str]] = Counter()
            for flips in self.flips(items, first, len(batch)):
                for i in range(len(flips)):
                    place = (flips.layer.path, flips.layer.call, flips.coordinates(i))
                    hit = batch[i : i + 1] if self.target == "neuron" else batch
                    yield Fault(flips.parameter or "neuron", *place, int(flips.bit[i]), hit, again[flips.where])
                again[flips.where] += 1

    def _shares(self, width: int) -> BitShares | None:
        return tuple(allocation(width).tolist()) if self.importance else None


def run(
    engine: Engine,
    batches: Iterable[tuple[Inputs, Tensor]],
    flips: Callable[[int, int], list[Flips]],
    *,
    placement: Placement,
    progress: Callable[[int], None],
    first: int = 0,
) -> Iterator[BatchOutcomes]:
    """Run every batch and yield its outcomes, on the host, as soon as they are known.

    Args:
        engine: what runs the faults.
        batches: images, such as (B, C, H, W), and labels (B,), in the order of the test set.
        flips: gives the flips of a batch from the index of its first image and its size, when its turn comes.
        placement: where to run.
        progress: called with the number of further faulty images whose outcome is known; with a negative one, if they
            have to be run again in smaller portions.
        first: index in the test set of the first batch's first image.

    Raises:
        BadInput: if the memory does not suffice for a single image.
    """
    fitting = portions(engine, placement)
    for images, labels in batches:
        yield fitting.run(images, labels, flips(first, len(labels)), first, progress)
        first += len(labels)


def portions(engine: Engine, placement: Placement) -> Portions:
    """What runs batches on an engine, whole or as many images at a time as fit the memory."""

    def attempt(
        images: Inputs, labels: Tensor, flips: list[Flips], first: int, progress: Callable[[int], None]
    ) -> BatchOutcomes:
        outcomes = BatchOutcomes(labels.to(placement.device), flips, first, progress)
        with torch.no_grad():
            engine.run(placement.inputs(images), outcomes.flips, outcomes)
        outcomes.to_host()
        return outcomes

    return Portions(attempt, engine.most)
