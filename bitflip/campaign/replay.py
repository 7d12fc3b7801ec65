"""The road of a run of a fault list: list, model and test set, tasks, outcomes of each fault, results.

A task is a block of faults on a batch of images, run in one sweep: they share the clean pass, and every fault costs
only the layers behind it. Each finished task is a record of a journal, from which all results are made: so a run
that was killed goes on, and ends in the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitflip.campaign import campaign
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.journal import Journal
from bitflip.data import datasets
from bitflip.data.datasets import TestSet
from bitflip.faults import faultlist
from bitflip.faults.faultlist import Fault, FaultList, Key
from bitflip.faults.flips import Flips
from bitflip.network.layers import Layer, Numbered
from bitflip.outcomes.batch import COUNTED, BatchOutcomes, Effect
from bitflip.outcomes.counts import COLUMNS, Counts

BLOCK_ROWS = {"cpu": 1 << 14, "cuda": 1 << 17}  # faulty images of a task: enough to share a clean pass
MOST_IN_BLOCK = 512  # faults of a task
KEPT_BYTES = 1 << 31  # test sets up to this size are decoded once

COUNTS = (
    *("images", "masked", "benign", "critical", "sdc5", "sdc10", "sdc20", "nonfinite", "correct", "misclassified"),
)


@dataclass(frozen=True)
class Slot:
    """What one slot of the outcomes holds.

    Attributes:
        faults: the number of the fault of each row, (N,).
        rows: images of the batch, (N,), each once; None for all, in order.
    """

    faults: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Task:
    """Faults that are run together.

    Attributes:
        images: of the test set, consecutive.
        slots: of the outcomes.
    """

    images: range
    slots: tuple[Slot, ...]

    def members(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Slot, image of the batch, and number of the fault, of every inference."""
        every = np.arange(len(self.images))
        rows = [every if slot.rows is None else slot.rows for slot in self.slots]
        slots = np.repeat(np.arange(len(self.slots)), [len(r) for r in rows])
        return slots, np.concatenate(rows), np.concatenate([slot.faults for slot in self.slots])

    def numbers(self) -> NDArray[np.int64]:
        """The numbers of its faults, in ascending order."""
        return np.unique(np.concatenate([slot.faults for slot in self.slots]))


def plan(faults: Sequence[Fault], images: int, batch: int, rows: int = BLOCK_ROWS["cpu"]) -> Iterator[Task]:
    """Put faults together into tasks.

    Faults of the same images are run in blocks, in the order of the list. Neuron faults of one image each, as a
    sampled run has them, share a batch with those of the images around it, one slot for each layer.

    Args:
        faults: all of neurons, or all of parameters.
        images: in the test set.
        batch: images that are run together.
        rows: faulty images of a task, if it has more than one fault.
    """
    single: dict[int, list[int]] = {}
    groups: dict[range, list[int]] = {}
    for number, fault in enumerate(faults):
        if fault.target == "neuron" and fault.images is not None and len(fault.images) == 1:
            single.setdefault(fault.images[0] // batch, []).append(number)
        else:
            groups.setdefault(range(images) if fault.images is None else fault.images, []).append(number)
    for part in sorted(single):
        span = range(part * batch, min((part + 1) * batch, images))
        yield from _blocks(span, batch, _side_by_side(faults, single[part], span))
    for span, numbers in groups.items():
        for block in _parts(numbers, max(1, min(MOST_IN_BLOCK, rows // min(batch, len(span))))):
            for start in range(span.start, span.stop, batch):
                some = range(start, min(start + batch, span.stop))
                yield Task(some, tuple(Slot(np.full(len(some), number)) for number in block))


def _blocks(span: range, batch: int, slots: Sequence[Slot]) -> Iterator[Task]:
    for block in _parts(slots, MOST_IN_BLOCK):
        yield Task(span, tuple(block))


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
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
        rows = np.array(sorted(members))
        held = np.array([members[row] for row in sorted(members)])
        found.append(Slot(held, None if len(rows) == len(span) else rows))
    return found


def flips_of(task: Task, faults: Sequence[Fault], layers: dict[tuple[str, int], Layer]) -> list[Flips]:
    """What the engines are given: the flips of each slot."""
    flips = []
    for slot in task.slots:
        one = faults[slot.faults[0]]
        layer = layers[one.path, one.call]
        place = faultlist.place_of(layer, one.target)
        assert place is not None
        whole = one.target == "neuron"
        held = [faults[number] for number in slot.faults] if whole else [one]
        element = [int(np.ravel_multi_index(fault.index, place[0])) if place[0] else 0 for fault in held]
        bit, parameter = np.array([fault.bit for fault in held]), "" if whole else one.target
        flips.append(Flips(layer, np.array(element), bit, parameter, rows=slot.rows))
    return flips


EFFECTS = {"critical" if effect is Effect.SDC1 else name: effect for name, effect in COUNTED.items()}
"""The effects that the tables of a list count, by the names of their columns."""


@dataclass(frozen=True)
class Outcome:
    """What was found in a task.

    Attributes:
        effects: of each slot and image, the bits of :class:`Effect`, (L, B) of uint8.
        correct: which images the clean model classifies correctly, (B,).
        change: of each fault of :meth:`Task.numbers`, the largest of the clean top-1 class's probability, float32.
    """

    effects: NDArray[np.uint8]
    correct: NDArray[np.bool_]
    change: NDArray[np.float32]

    @classmethod
    def of(cls, task: Task, batch: BatchOutcomes) -> Outcome:
        """From a batch's outcomes on the host."""
        slot, image, fault = task.members()
        numbers = task.numbers()
        change = np.zeros(len(numbers), dtype=np.float32)
        np.maximum.at(change, np.searchsorted(numbers, fault), batch.change.numpy()[slot, image])
        return cls(batch.effects.numpy(), batch.correct.numpy(), change)

    @property
    def record(self) -> dict[str, str]:
        """Itself as a record of the journal."""
        parts = {"effects": self.effects, "correct": np.packbits(self.correct), "change": self.change.astype("<f4")}
        return {name: base64.b64encode(zlib.compress(part.tobytes())).decode() for name, part in parts.items()}

    @classmethod
    def read(cls, record: Mapping[str, str], task: Task) -> Outcome:
        """From a record of the journal."""
        data = {name: zlib.decompress(base64.b64decode(text)) for name, text in record.items()}
        effects = np.frombuffer(data["effects"], dtype=np.uint8).reshape(len(task.slots), len(task.images))
        correct = np.unpackbits(np.frombuffer(data["correct"], dtype=np.uint8), count=len(task.images))
        return cls(effects, correct.astype(bool), np.frombuffer(data["change"], dtype="<f4").astype(np.float32))


class Found:
    """What a list of faults did, added up task by task.

    Args:
        faults: the list.
        size: images in the test set.

    Attributes:
        counts: inferences of each fault by what became of them, (F,) each: ``images`` (all), ``masked``, ``benign``,
            ``critical``, ``sdc5``, ``sdc10``, ``sdc20``, ``nonfinite``; ``correct`` (the clean model is right) and
            ``misclassified`` (critical among those).
        change: the largest change of the clean top-1 class's probability under each fault, (F,).
        by_image: critical inferences of each image, (size,), by what :attr:`Fault.key` is; what is not there is 0.
        seen, seen_correct: images of the test set that were run, and that are classified correctly, (size,).
    """

    def __init__(self, faults: Sequence[Fault], size: int) -> None:
        self.faults, self.size = faults, size
        self.counts = {name: np.zeros(len(faults), dtype=np.int64) for name in COUNTS}
        self.change = np.zeros(len(faults), dtype=np.float32)
        self.by_image: dict[Key, NDArray[np.int32]] = {}
        self.seen, self.seen_correct = (np.zeros(size, dtype=bool) for _ in range(2))
        groups: dict[Key, int] = {}
        self._group = np.array([groups.setdefault(fault.key, len(groups)) for fault in faults])
        self._groups = list(groups)

    def add(self, task: Task, outcome: Outcome) -> None:
        """Take what was found in a task."""
        slot, image, fault = task.members()
        effects, right = outcome.effects[slot, image], outcome.correct[image]
        critical = (effects & int(Effect.SDC1)) != 0
        found = {
            "images": np.ones(len(effects), dtype=bool),
            "masked": (effects & int(Effect.CHANGED)) == 0,
            **{name: (effects & int(effect)) != 0 for name, effect in EFFECTS.items()},
            "correct": right,
            "misclassified": critical & right,
        }
        for name, true in found.items():
            np.add.at(self.counts[name], fault[true], 1)
        self.counts["benign"] = self.counts["images"] - self.counts["masked"] - self.counts["critical"]
        np.maximum.at(self.change, task.numbers(), outcome.change)
        group, where = self._group[fault[critical]], image[critical] + task.images.start
        for g in np.unique(group):
            counted = self.by_image.setdefault(self._groups[g], np.zeros(self.size, dtype=np.int32))
            np.add.at(counted, where[group == g], 1)
        span = slice(task.images.start, task.images.stop)
        self.seen[span], self.seen_correct[span] = True, outcome.correct

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which faults have been run on all their images, (F,)."""
        wanted = [self.size if fault.images is None else len(fault.images) for fault in self.faults]
        done: NDArray[np.bool_] = self.counts["images"] == np.array(wanted)
        return done

    def tallied(self, seed: int, items: Sequence[Numbered]) -> Counts:
        """The same as counts by layer and bit."""
        counts = Counts((seed,), items)
        counts.images, counts.correct = int(self.seen.sum()), int(self.seen_correct.sum())
        place = {(item.layer.path, item.layer.call, item.parameter or "neuron"): i for i, item in enumerate(items)}
        where = np.array([place[fault.path, fault.call, fault.target] for fault in self.faults])
        bit = np.array([fault.bit for fault in self.faults])
        m, n = self.counts["misclassified"], self.counts["correct"]
        columns = {"injections": self.counts["images"], "sdc1": self.counts["critical"], "flips": np.ones_like(m)}
        columns |= {"mm": m * m, "mn": m * n, "nn": n * n}
        for column, name in enumerate(COLUMNS):
            values = columns[name] if name in columns else self.counts[name]
            np.add.at(counts.table[0, :, :, column], (where, bit), values)
        np.maximum.at(counts.largest[0], (where, bit), self.change)
        return counts


class Images:
    """Batches of a test set, decoded once if they fit the memory.

    Args:
        test_set: the images.
        count: how many of them are run.
        batch: how many are read together.
    """

    def __init__(self, test_set: TestSet, count: int, batch: int) -> None:
        self._test_set = test_set
        self._kept: tuple[Tensor, Tensor] | None = None
        self._count = count
        image = test_set[0][0]
        if image.numel() * image.element_size() * count <= KEPT_BYTES:
            parts = list(datasets.batches(test_set, batch, count))
            self._kept = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

    def __getitem__(self, span: range) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a range of the test set."""
        if self._kept is not None:
            return self._kept[0][span.start : span.stop], self._kept[1][span.start : span.stop]
        ((images, labels),) = datasets.batches(self._test_set, len(span), span.stop, span.start)
        return images, labels

    def digest(self) -> str:
        """Of the first images, or of all that are kept, to tell test sets apart."""
        images, labels = self[range(min(self._count, 64))] if self._kept is None else self._kept
        sha = hashlib.sha256(labels.numpy().tobytes())
        sha.update(images.contiguous().numpy().tobytes())
        return sha.hexdigest()


def identity(experiment: Experiment, listed: FaultList, images: Images) -> dict[str, Any]:
    """All that the outcomes of a list depend on, by the name that a user knows it by."""
    settings = experiment.settings
    text = io.StringIO()
    faultlist.write(text, listed.faults)
    return {
        "faults": hashlib.sha256(text.getvalue().encode()).hexdigest(),
        "model_name": settings.model_name,
        "weights": experiment.classifier.sha256,
        "dataset": settings.dataset,
        "number of images": experiment.images,
        "images": images.digest(),
        "batch_size": settings.batch_size,
        "device": experiment.device,
        "precision": settings.precision,
        "engine": experiment.engine.name,
        "torch": torch.__version__,
    }


def choices(experiment: Experiment) -> dict[str, int]:
    """How a list is cut into tasks, which a run that is gone on with has to keep: images and rows of each."""
    kind = experiment.placement.device.type
    return {"images": experiment.together, "rows": BLOCK_ROWS.get(kind, BLOCK_ROWS["cpu"])}


def run(
    experiment: Experiment,
    listed: FaultList,
    images: Images,
    journal: Journal,
    found: Found,
    progress: Callable[[int], None],
) -> float:
    """Run the tasks that are not in the journal, adding the outcomes of all to ``found``.

    Returns:
        The seconds that it took.

    Raises:
        BadInput: if the memory does not suffice for a single image.
    """
    began = time.monotonic()
    layers = {(layer.path, layer.call): layer for layer in experiment.injector.everything}
    portions = campaign.portions(experiment.engine, experiment.placement)
    tasks = plan(listed.faults, experiment.images, journal.choices["images"], journal.choices["rows"])
    for number, task in enumerate(tasks):
        if number < len(journal.records):
            try:
                outcome = Outcome.read(journal.records[number], task)
            except (ValueError, LookupError, TypeError, AttributeError, zlib.error) as error:
                raise journal.damaged(number) from error
            progress(sum(len(slot.faults) for slot in task.slots))
        else:
            batch, labels = images[task.images]
            flips = flips_of(task, listed.faults, layers)
            outcome = Outcome.of(task, portions.run(batch, labels, flips, task.images.start, progress))
            journal.add(outcome.record)
        found.add(task, outcome)
    return time.monotonic() - began
