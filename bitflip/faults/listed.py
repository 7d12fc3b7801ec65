"""Faults of a list as tasks: blocks of faults on a batch of images, which share the clean pass."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from bitflip.faults import faultlist, kinds
from bitflip.faults.faultlist import Fault, FaultList
from bitflip.faults.flips import Flips
from bitflip.faults.kinds import Change
from bitflip.faults.tasks import Cut, Task, Tasks
from bitflip.network.layers import Layer, Target

MOST_IN_BLOCK = 512  # faults of a task

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """What one slot of a task holds.

    Attributes:
        faults: the number of the fault of each row; of one fault, its only number.
        rows: images of the task, each once, in ascending order; None for all.
    """

    faults: tuple[int, ...]
    rows: tuple[int, ...] | None = None


class Listed:
    """The faults of a list, as a source of tasks.

    Args:
        listed: all of neurons, or all of parameters.
        layers: of the model, those that only hold parameters among them.
    """

    def __init__(self, listed: FaultList, layers: Sequence[Layer]) -> None:
        self.listed = listed
        self.faults = listed.faults
        self._layers = {(layer.path, layer.call): layer for layer in layers}
        self._numbers = {layer: number for number, layer in enumerate(layers)}

    @cached_property
    def targets(self) -> list[Target]:
        """What the list has faults in; layers are numbered as in all runs of the model."""
        places = dict.fromkeys((fault.path, fault.call, fault.target) for fault in self.faults)
        found = [
            Target(self._numbers[layer], layer, parameter="" if target == "neuron" else target)
            for layer, target in ((self._layers[path, call], target) for path, call, target in places)
        ]
        return sorted(found, key=lambda item: item.number)

    @property
    def digest(self) -> str:
        """SHA-256 of the list."""
        text = io.StringIO()
        faultlist.write(text, self.faults)
        return hashlib.sha256(text.getvalue().encode()).hexdigest()

    @property
    def by_bit(self) -> bool:
        """See :class:`bitflip.faults.tasks.Source`."""
        return all(fault.bits for fault in self.faults)

    def tasks(self, targets: Sequence[Target], images: int, cut: Cut, turn: int) -> Tasks:
        """See :class:`bitflip.faults.tasks.Source`; a list is run in one round.

        Faults of the same images are run in blocks, in the order of the list. Neuron faults of one image each, as a
        sampled run has them, share a batch with those of the images around it, one slot for each layer.
        """
        assert turn == 0
        found = list(outlines(self.faults, images, cut))
        return Tasks([span for span, _ in found], lambda place: self._task(*found[place]))

    def inferences(self, targets: Sequence[Target], images: int) -> int:
        """See :class:`bitflip.faults.tasks.Source`."""
        return sum(images if fault.images is None else len(fault.images) for fault in self.faults)

    def _task(self, images: range, slots: Sequence[Slot]) -> Task:
        flips = [self._flips(slot, len(images)) for slot in slots]
        return Task(images, flips, faults=tuple(np.array(slot.faults) for slot in slots))

    def _flips(self, slot: Slot, images: int) -> Flips:
        """What the engines are given: of a parameter, one flip; of neurons, one for each row."""
        one = self.faults[slot.faults[0]]
        layer = self._layers[one.path, one.call]
        place = faultlist.place_of(layer, one.target)
        assert place is not None
        held = [self.faults[number] for number in slot.faults]
        element = np.array([int(np.ravel_multi_index(f.index, place[0])) if place[0] else 0 for f in held])
        bit, change = np.array([fault.bit for fault in held]), _change(held, layer)
        repeat = np.array([fault.repeat for fault in held]) if any(fault.repeat for fault in held) else None
        if one.target != "neuron":
            return Flips(layer, element, bit, one.target, change=change, repeat=repeat)
        rows = None if slot.rows is None else np.array(slot.rows)
        count = images if rows is None else len(rows)
        if change is not None:
            change = replace(change, arrays=np.broadcast_to(change.arrays, (len(change.arrays), count)))
        element, bit = np.broadcast_to(element, count), np.broadcast_to(bit, count)
        repeat = None if repeat is None else np.broadcast_to(repeat, count)
        return Flips(layer, element, bit, "", rows=rows, change=change, repeat=repeat)


def _change(held: Sequence[Fault], layer: Layer) -> Change | None:
    """What becomes of the values that faults of one target strike; None if one bit of each flips."""
    if all(fault.kind == "flip" and not fault.more for fault in held):
        return None
    tensor = layer.parameter(held[0].target) or layer
    return kinds.join([kinds.of(fault.kind).listed(fault.bits, tensor.bits, tensor.format) for fault in held])


def outlines(faults: Sequence[Fault], images: int, cut: Cut) -> Iterator[tuple[range, Sequence[Slot]]]:
    """Put faults together into tasks: the images and the slots of each."""
    single: dict[int, list[int]] = {}
    groups: dict[range, list[int]] = {}
    for number, fault in enumerate(faults):
        if fault.target == "neuron" and fault.images is not None and len(fault.images) == 1:
            single.setdefault(fault.images[0] // cut.together, []).append(number)
        else:
            groups.setdefault(range(images) if fault.images is None else fault.images, []).append(number)
    for part in sorted(single):
        span = range(part * cut.together, min((part + 1) * cut.together, images))
        for slots in _parts(_side_by_side(faults, single[part], span), MOST_IN_BLOCK):
            yield span, slots
    for span, numbers in groups.items():
        for block in _parts(numbers, max(1, min(MOST_IN_BLOCK, cut.rows // min(cut.together, len(span))))):
            slots = [Slot((number,)) for number in block]
            for start in range(span.start, span.stop, cut.together):
                yield range(start, min(start + cut.together, span.stop)), slots


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _side_by_side(faults: Sequence[Fault], numbers: Sequence[int], span: range) -> list[Slot]:
    """Slots that each hold faults of one layer, at most one for each image."""
    slots: dict[tuple[str, int, int], dict[int, int]] = {}
    used: dict[tuple[str, int, int], int] = {}
    for number in numbers:
        fault = faults[number]
        assert fault.images is not None
        row = fault.images[0] - span.start
        place = (fault.path, fault.call, row)
        used[place] = used.get(place, 0) + 1
        slots.setdefault((fault.path, fault.call, used[place]), {})[row] = number
    found = []
    for members in slots.values():
        rows = tuple(sorted(members))
        held = tuple(members[row] for row in rows)
        found.append(Slot(held, None if len(rows) == len(span) and len(rows) > 1 else rows))
    return found
