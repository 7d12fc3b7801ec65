"""What each fault of a list did, and to which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitflip.faults.faultlist import Fault, Key
from bitflip.faults.tasks import Task
from bitflip.network.layers import Target
from bitflip.outcomes import NAMES, counts
from bitflip.outcomes import batch as outcomes
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.outcomes.counts import Counts

COUNTS = ("images", *(NAMES.get(name, name) for name in outcomes.COLUMNS))
BOUNDED = (
    "images",
    "harmless",
    "proved",
    "audited",
    "critical",
    "sdc5",
    "nonfinite",
    "due",
    "correct",
    "misclassified",
)
"""Of a run with bounds, which does not tell masked from benign, instead."""


class PerFault:
    """What a list of faults did, added up task by task.

    Args:
        faults: the list.
        size: images in the test set.
        bounded: whether the run is one with bounds.

    Attributes:
        counts: inferences of each fault by what became of them, (F,) each, by the names of :data:`COUNTS`, or
            :data:`BOUNDED`: ``images`` are all of them, ``critical`` those of sdc1, ``harmless`` those that are neither
            that nor ``due``; the others see :data:`bitflip.outcomes.batch.COLUMNS`.
        change: the largest change of the clean top-1 class's probability under each fault, (F,).
        by_image: critical inferences of each image, (size,), by what :attr:`Fault.key` is; what is not there is 0.
        seen, seen_correct: images of the test set that were run, and that are classified correctly, (size,).
    """

    def __init__(self, faults: Sequence[Fault], size: int, *, bounded: bool = False) -> None:
        self.faults, self.size = faults, size
        self.counts = {name: np.zeros(len(faults), dtype=np.int64) for name in (BOUNDED if bounded else COUNTS)}
        self.change = np.zeros(len(faults), dtype=np.float32)
        self.by_image: dict[Key, NDArray[np.int32]] = {}
        self.seen, self.seen_correct = (np.zeros(size, dtype=bool) for _ in range(2))
        groups: dict[Key, int] = {}
        self._group = np.array([groups.setdefault(fault.key, len(groups)) for fault in faults])
        self._groups = list(groups)

    def add(self, task: Task, batch: BatchOutcomes) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        slot, image, fault = task.members()
        found = {NAMES.get(name, name): true[slot, image] for name, true in batch.columns().items()}
        found |= {"images": np.ones(len(fault), dtype=bool), "harmless": ~found["critical"] & ~found["due"]}
        for name, counted in self.counts.items():
            np.add.at(counted, fault[found[name]], 1)
        np.maximum.at(self.change, fault, batch.change.numpy()[slot, image])
        critical = found["critical"]
        group, where = self._group[fault[critical]], image[critical] + task.images.start
        for g in np.unique(group):
            hit = self.by_image.setdefault(self._groups[g], np.zeros(self.size, dtype=np.int32))
            np.add.at(hit, where[group == g], 1)
        span = slice(task.images.start, task.images.stop)
        self.seen[span], self.seen_correct[span] = True, batch.correct.numpy()

    def state(self) -> dict[str, NDArray[Any]]:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        hit = [place for place, key in enumerate(self._groups) if key in self.by_image]
        critical = [self.by_image[self._groups[place]] for place in hit]
        return {
            **self.counts,
            "change": self.change,
            "hit": np.array(hit, dtype=np.int64),
            "by_image": np.array(critical, dtype=np.int32).reshape(len(hit), self.size),
            "seen": np.stack([self.seen, self.seen_correct]),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        expected = {name: value.shape for name, value in self.state().items() if name not in ("hit", "by_image")}
        expected["by_image"] = (len(state["hit"]), self.size)
        if any(state[name].shape != shape for name, shape in expected.items()):
            raise ValueError("outcomes of another list, or of other images")
        self.counts = {name: state[name].astype(np.int64) for name in self.counts}
        self.change = state["change"].astype(np.float32)
        self.by_image = {
            self._groups[place]: counted.astype(np.int32)
            for place, counted in zip(state["hit"].tolist(), state["by_image"], strict=True)
        }
        self.seen, self.seen_correct = state["seen"].astype(bool)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which faults have been run on all their images, (F,)."""
        wanted = [self.size if fault.images is None else len(fault.images) for fault in self.faults]
        done: NDArray[np.bool_] = self.counts["images"] == np.array(wanted)
        return done

    @property
    def images(self) -> int:
        """Images that were run."""
        return int(self.seen.sum())

    @property
    def inferences(self) -> int:
        """Images that were run with a fault."""
        return int(self.counts["images"].sum())

    @property
    def due(self) -> int:
        """Those of them in which the model raised an exception."""
        return int(self.counts["due"].sum())

    @property
    def rate(self) -> float | None:
        """Misclassifications so far, in percent of the faulty images that could be misclassified."""
        faulty, wrong = (int(self.counts[name].sum()) for name in ("correct", "misclassified"))
        return 100.0 * wrong / faulty if faulty else None

    def tallied(self, seed: int, items: Sequence[Target]) -> Counts:
        """The same as counts by layer and bit: all images of a fault are of one flip."""
        found = Counts((seed,), items)
        found.images, found.correct = self.images, int(self.seen_correct.sum())
        place = {(item.layer.path, item.layer.call, item.parameter or "neuron"): i for i, item in enumerate(items)}
        where = np.array([place[fault.path, fault.call, fault.target] for fault in self.faults])
        bit = np.array([fault.bit for fault in self.faults])
        m, n = self.counts["misclassified"], self.counts["correct"]
        derived = {"flips": np.ones_like(m), "mm": m * m, "mn": m * n, "nn": n * n}
        for column, name in enumerate(counts.COLUMNS):
            values = derived[name] if name in derived else self.counts.get(NAMES.get(name, name))
            if values is not None:
                np.add.at(found.table[0, :, :, column], (where, bit), values)
        np.maximum.at(found.largest[0], (where, bit), self.change)
        return found
