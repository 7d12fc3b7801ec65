"""Bit error rates: the test set under patterns of faults in all chosen layers at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.meter import Meter
from bitflip.data.inputs import Inputs
from bitflip.engines.simultaneous import Simultaneous
from bitflip.faults import patterns
from bitflip.faults.patterns import Hits
from bitflip.faults.tasks import Cut
from bitflip.network.layers import Target
from bitflip.outcomes.error_rates import ErrorRates
from bitflip.statistics import falls
from bitflip.statistics.falls import Point

NETWORK = "network"


@dataclass
class ErrorRateCampaign:
    """Patterns of faults, run on the whole test set.

    Args:
        experiment: what is struck, and by which settings.
        checkpoint: where it was, and is.

    Attributes:
        seconds: that it took.
    """

    experiment: Experiment
    checkpoint: Checkpoint
    seconds: float = 0.0
    _parameters: dict[tuple[int, int], Hits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.experiment.settings
        self.rates = settings.bit_error_rates
        self.scopes: list[Target | None] = [None, *(self.experiment.targets if settings.by_layer else ())]
        self.patterns = [(seed, repeat) for seed in settings.all_seeds for repeat in range(settings.repeats)]
        self.counts = ErrorRates(len(self.scopes), len(self.rates), len(self.patterns))

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
        engine = Simultaneous(self.experiment.network.injector)
        each = len(self.scopes) * len(self.rates) * len(self.patterns)
        spans = self._spans[progress.task :]
        count = self.experiment.images.count
        before = min(progress.task * self.experiment.settings.batch_size, count)
        with Meter(each * count, each * before, bar=bar) as shown:
            for span, (images, labels) in zip(spans, self.experiment.images.batches(spans), strict=True):
                self._batch(engine, span, self.experiment.network.placement.inputs(images), labels, shown.advance)
                progress.task += 1
                progress.seconds += time.monotonic() - began
                began = time.monotonic()
                checkpoint.save({"rates": self.counts})
                most = self.counts.of(0, -1)  # rates ascend
                if correct := most["clean_correct"].sum():
                    share = 100 * most["misclassified"].sum() / correct
                    shown.rate(f"misclassified {share:.3f} % at {self.rates[-1]:g}")
        self.seconds = progress.seconds

    def _batch(
        self, engine: Simultaneous, span: range, images: Inputs, labels: Tensor, advance: Callable[[int], object]
    ) -> None:
        clean = engine.classes(images)
        before = self.counts.table.copy()
        try:
            for place in range(len(self.patterns)):
                hits = {target: self._hits(target, place, span) for target in self.experiment.targets}
                for number, scope in enumerate(self.scopes):
                    struck = [hits[target] for target in ([scope] if scope else hits)]
                    for rate, flips, found in self._found(engine, images, struck, clean):
                        self.counts.add((number, rate, place), flips, found, clean[0], labels)
                        advance(len(span))
        except BaseException:
            self.counts.table = before  # a batch counts as a whole
            raise

    def _found(
        self, engine: Simultaneous, images: Inputs, struck: list[Hits], clean: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[int, int, tuple[Tensor, Tensor]]]:
        """What becomes of a batch at each rate: the rate's place, bits that flip, and see ``Simultaneous.classes``.

        Rates at which no other bits flip than at a lower one are not run again.
        """
        found, last = clean, 0
        for place, rate in enumerate(self.rates):
            now = [one.at(rate) for one in struck]
            flips = sum(map(len, now))
            if flips > last:  # patterns are nested
                found, last = engine.classes(images, [one.flips() for one in now if len(one)]), flips
            yield place, flips, found

    def _hits(self, target: Target, place: int, span: range) -> Hits:
        seed, repeat = self.patterns[place]
        most = self.rates[-1]
        if not target.parameter:
            return patterns.of_outputs(seed, target, span.start, len(span), repeat, most)
        key = place, self.experiment.targets.index(target)
        if key not in self._parameters:
            self._parameters[key] = patterns.of_parameter(seed, target, repeat, most)
        return self._parameters[key]

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
