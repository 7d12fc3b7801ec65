"""Faults that are drawn at random, as a pure function of seed, layer and image (or batch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitflip.faults import kinds
from bitflip.faults.allocation import allocation, number
from bitflip.faults.faultlist import Fault
from bitflip.faults.flips import BitShares, Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.faults.kinds import Kind
from bitflip.faults.tasks import Cut, Task, Tasks
from bitflip.network.layers import Layer, Target


@dataclass(frozen=True)
class Sampling:
    """Which faults a campaign samples.

    Attributes:
        target: ``neuron`` (one flip per image and layer) or ``weight`` (one flip per batch and parameter tensor).
        seeds: each draws faults of its own.
        batch_size: images that one weight flip hits.
        repeats: flips per image (or batch), layer and seed in one round through the test set.
        bit: the bit to flip; None for a random one per fault.
        importance: whether random bits are drawn as :func:`bitflip.faults.allocation.allocation` says.
        kind: what happens to the bits.
    """

    target: TargetKind
    seeds: tuple[int, ...]
    batch_size: int
    repeats: int
    bit: int | None
    importance: bool = False
    kind: Kind = kinds.FLIP

    def tasks(self, targets: Sequence[Target], images: int, cut: Cut, turn: int) -> Tasks:
        """See :class:`bitflip.faults.tasks.Source`; a task has the flips of all targets in ``cut.together`` images.

        Sampled weight faults hit a batch, and so are run batch by batch.
        """

        spans = [range(first, min(first + cut.together, images)) for first in range(0, images, cut.together)]

        def make(place: int) -> Task:
            span = spans[place]
            return Task(span, self.flips(targets, span.start, len(span), turn), turn)

        return Tasks(spans, make)

    def inferences(self, targets: Sequence[Target], images: int) -> int:
        """See :class:`bitflip.faults.tasks.Source`."""
        return images * len(targets) * self.repeats * len(self.seeds)

    def flips(self, items: Sequence[Target], first: int, count: int, turn: int = 0) -> list[Flips]:
        """The flips of a batch, one slot each: by seed, then layer, then repeat.

        Args:
            items: layers; with ``weight``, each with one of its parameters.
            first: index in the test set of the batch's first image.
            count: images in the batch; for neurons it changes no fault.
            turn: number of the round through the test set, which draws further flips.
        """
        batch = first // self.batch_size
        return [
            neuron_flips(seed, item.layer, first, count, self.bit, repeat, self._shares(item), self.kind)
            if self.target == "neuron"
            else parameter_flip(
                seed,
                item.layer,
                batch,
                self.bit,
                repeat,
                self._shares(item),
                self.kind,
                parameter=item.parameter,
            )
            for seed in self.seeds
            for item in items
            for repeat in range(turn * self.repeats, (turn + 1) * self.repeats)
        ]

    def listed(self, items: Sequence[Target], images: int) -> Iterator[Fault]:
        """All faults of one round through so many images, as rows of a fault list."""
        for first in range(0, images, self.batch_size):
            batch = range(first, min(first + self.batch_size, images))
            again: Counter[tuple[Layer, str]] = Counter()
            for flips in self.flips(items, first, len(batch)):
                for i in range(len(flips)):
                    place = (flips.layer.path, flips.layer.call, flips.coordinates(i))
                    hit = batch if flips.parameter else batch[i : i + 1]
                    kind, (bit, *more) = flips.written(i)
                    repeat = again[flips.where]
                    yield Fault(flips.parameter or "neuron", *place, bit, hit, repeat, kind, tuple(more))
                again[flips.where] += 1

    @property
    def by_bit(self) -> bool:
        """See :class:`bitflip.faults.tasks.Source`."""
        return not self.kind.whole

    def _shares(self, item: Target) -> BitShares | None:
        return tuple(allocation(item.bits, number(item.format)).tolist()) if self.importance else None
