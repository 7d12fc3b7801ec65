"""Bit error rates: the test set under patterns of faults in all chosen layers at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.meter import Meter
from bitflip.campaign.patterned import Advance, Grid, Part, Patterned
from bitflip.faults.tasks import Cut
from bitflip.network.layers import Target
from bitflip.statistics import falls
from bitflip.statistics.falls import Point

NETWORK = "network"


class Runner(Protocol):
    """Who runs parts: this process, :class:`~bitflip.campaign.patterned.Patterned`, or workers."""

    def parts(self, batches: Sequence[range]) -> list[list[Part]]:
        """How each of some batches is best cut."""

    def run(self, parts: Sequence[Part], advance: Advance) -> Iterator[NDArray[np.int64]]:
        """The counts of parts, in their order; see :meth:`bitflip.campaign.patterned.Patterned.counted`."""


@dataclass
class ErrorRateCampaign:
    """Patterns of faults, run on the whole test set.

    Args:
        experiment: what is struck, and by which settings.
        checkpoint: where it was, and is.
        runner: who runs it; None for this process.

    Attributes:
        seconds: that it took.
    """

    experiment: Experiment
    checkpoint: Checkpoint
    runner: Runner | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        grid = self._grid = Grid(self.experiment)
        self.rates, self.scopes, self.patterns = grid.rates, grid.scopes, grid.patterns
        self.counts = grid.counts(len(grid.patterns))

    @property
    def _spans(self) -> list[range]:
        return self.experiment.images.spans(self.experiment.settings.batch_size)

    def run(self, *, bar: bool | None = None) -> None:
        """Run all patterns, or what is left of them; batch by batch, so that images are read once.

        Args:
            bar: whether to show a progress bar; None for one on a terminal, and lines in the log elsewhere.

        Raises:
            KeyboardInterrupt, BadInput: what stopped it; what was finished is saved.
        """
        began = time.monotonic()
        progress, checkpoint = self.checkpoint.progress, self.checkpoint
        if checkpoint.resumed:
            checkpoint.restore({"rates": self.counts})
        progress.cut = Cut(self.experiment.settings.batch_size, 0)
        runner = Patterned(self.experiment) if self.runner is None else self.runner
        each = self._grid.cells * len(self.patterns)
        count = self.experiment.images.count
        before = min(progress.task * self.experiment.settings.batch_size, count)
        batches = runner.parts(self._spans[progress.task :])
        with Meter(each * count, each * before, bar=bar) as shown:
            tables = runner.run([part for batch in batches for part in batch], shown.advance)
            for batch in batches:
                found = [(part, next(tables)) for part in batch]  # a batch counts as a whole
                for part, table in found:
                    self.counts.table[:, :, part.patterns] += table
                progress.task += 1
                progress.seconds += time.monotonic() - began
                began = time.monotonic()
                checkpoint.save({"rates": self.counts})
                most = self.counts.of(0, -1)  # rates ascend
                if correct := most["clean_correct"].sum():
                    share = 100 * most["misclassified"].sum() / correct
                    shown.rate(f"misclassified {share:.3f} % at {self.rates[-1]:g}")
        self.seconds = progress.seconds

    @property
    def clean(self) -> float:
        """Accuracy without a fault, in percent."""
        found = self.counts.of(0, 0)
        return 100 * float(found["clean_correct"].sum() / max(1, found["images"].sum()))

    def points(self) -> list[Point]:
        """What was found: of each scope, each rate."""
        return [
            self._point(number, scope, place, rate)
            for number, scope in enumerate(self.scopes)
            for place, rate in enumerate(self.rates)
        ]

    def _point(self, number: int, scope: Target | None, place: int, rate: float) -> Point:
        found, target = self.counts.of(number, place), self.experiment.target
        confidence = self.experiment.settings.confidence
        total = {name: int(values.sum()) for name, values in found.items()}
        wrong = falls.share(found["images"] - found["correct"], found["images"], target, confidence)
        # A parameter's pattern is the same for all batches, each of which counted it.
        each = len(self.patterns) * (len(self._spans) if target == "weight" else self.experiment.images.count)
        return Point(
            scope,
            rate,
            total["flips"] / each,
            len(self.patterns),
            total["images"],
            total["due"],
            total["sdc1"],
            total["nonfinite"],
            falls.complement(wrong),
            total["clean_correct"],
            total["misclassified"],
            falls.share(found["misclassified"], found["clean_correct"], target, confidence),
        )

    def falls(self, points: float) -> dict[str, float | None]:
        """The bit error rate at which accuracy has fallen by so many points, by the label of each scope."""
        accuracy: dict[str, list[float]] = {}
        for point in self.points():
            name = NETWORK if point.scope is None else point.scope.label
            accuracy.setdefault(name, []).append(point.accuracy.value or 0.0)
        return {name: falls.falls(self.rates, found, self.clean, points) for name, found in accuracy.items()}
