"""Inferences under patterns of faults: some images, with some of the patterns of a run with bit error rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitflip.campaign.executor import portions
from bitflip.campaign.experiment import Experiment
from bitflip.data.images import Batch
from bitflip.data.inputs import Inputs
from bitflip.engines.simultaneous import Simultaneous
from bitflip.engines.wave import Wave
from bitflip.faults import patterns
from bitflip.faults.flips import Flips
from bitflip.faults.patterns import Hits
from bitflip.network.layers import Target
from bitflip.outcomes.batch import Effect
from bitflip.outcomes.error_rates import ErrorRates

Found = tuple[Tensor, Tensor]  # of each image: its class, and whether a logit is not finite
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Part:
    """Part of a run with bit error rates.

    Attributes:
        images: of a batch.
        patterns: places of those that they are run with.
    """

    images: range
    patterns: range

    def __str__(self) -> str:
        return f"images {self.images.start} to {self.images.stop - 1}"


class Grid:
    """What a run with bit error rates counts: in scopes (the network, and layers), at rates, under patterns.

    Args:
        experiment: what is struck, and by which settings.
    """

    def __init__(self, experiment: Experiment) -> None:
        settings = experiment.settings
        self.rates = settings.bit_error_rates
        self.scopes: list[Target | None] = [None, *(experiment.targets if settings.by_layer else ())]
        self.patterns = [(seed, repeat) for seed in settings.all_seeds for repeat in range(settings.repeats)]

    def counts(self, patterns: int) -> ErrorRates:
        """Counts of so many patterns, none yet."""
        return ErrorRates(len(self.scopes), len(self.rates), patterns)

    @property
    def cells(self) -> int:
        """Inferences of one image under one pattern."""
        return len(self.scopes) * len(self.rates)


class Patterned:
    """This process, as what runs parts.

    Args:
        experiment: of which they are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._grid = Grid(experiment)
        network = experiment.network
        self._whole = Simultaneous(network.injector, network.engine.most)
        # Where one layer is struck, the wave shares what comes before it.
        self._portions = portions(network.engine, network.placement) if isinstance(network.engine, Wave) else None
        self._parameters: dict[tuple[int, int], Hits] = {}

    def parts(self, batches: Sequence[range]) -> list[list[Part]]:
        """How batches are best cut here: not at all."""
        return [[Part(span, range(len(self._grid.patterns)))] for span in batches]

    def run(self, parts: Sequence[Part], advance: Advance) -> Iterator[NDArray[np.int64]]:
        """The counts of parts, one after the other; see :meth:`counted`.

        Raises:
            BadInput: if an image can't be read.
        """
        spans = (part.images for part in parts)
        for part, batch in zip(parts, self._experiment.images.batches(spans), strict=True):
            yield self.counted(part, batch, advance)

    def counted(self, part: Part, batch: Batch, advance: Advance) -> NDArray[np.int64]:
        """What became of a part: the table of :class:`~bitflip.outcomes.error_rates.ErrorRates` of its patterns.

        Args:
            part: of the run.
            batch: its images and labels.
            advance: called with the number of further inferences.
        """
        images, labels = batch
        clean = self._whole.classes(self._placed(images))
        counts = self._grid.counts(len(part.patterns))
        for place, pattern in enumerate(part.patterns):
            hits = {target: self._hits(target, pattern, part.images) for target in self._experiment.targets}
            found: list[Found] = []
            alone: dict[int, Flips] = {}  # where one layer is struck: those go through the wave together
            cells = []
            for scope, target in enumerate(self._grid.scopes):
                bits, run = 0, -1
                for rate, value in enumerate(self._grid.rates):
                    now = [one.at(value) for one in ([hits[target]] if target else hits.values())]
                    if sum(map(len, now)) > bits:  # patterns are nested: as many are the same ones
                        bits, run = sum(map(len, now)), len(found)
                        flips = [one.flips() for one in now if len(one)]
                        if self._portions is not None and len(flips) == 1:
                            alone[run] = flips[0]
                            found.append(clean)
                        else:
                            found.append(self._whole.classes(self._placed(images), flips))
                    cells.append((scope, rate, bits, run))
            for run, one in zip(alone, self._shared(list(alone.values()), batch, part.images.start), strict=True):
                found[run] = one
            found.append(clean)
            for scope, rate, bits, run in cells:
                counts.add((scope, rate, place), bits, found[run], clean[0], labels)
                advance(len(labels))
        return counts.table

    def _shared(self, flips: list[Flips], batch: Batch, first: int) -> list[Found]:
        """What becomes of a batch with each of some flips, which share all that comes before them."""
        if self._portions is None or not flips:
            return []
        images, labels = batch
        outcomes = self._portions.run(images, labels, flips, first, lambda count: None)
        same = ~outcomes.having(Effect.CHANGED | Effect.DUE)  # its logits are the clean ones
        nonfinite = outcomes.having(Effect.NONFINITE) | (same & outcomes.clean_nonfinite)
        return list(zip(outcomes.top1, nonfinite, strict=True))

    def _placed(self, images: Inputs) -> Inputs:
        return self._experiment.network.placement.inputs(images)

    def _hits(self, target: Target, place: int, images: range) -> Hits:
        seed, repeat = self._grid.patterns[place]
        most = self._grid.rates[-1]
        if not target.parameter:
            return patterns.of_outputs(seed, target, images.start, len(images), repeat, most)
        key = place, self._experiment.targets.index(target)
        if key not in self._parameters:
            self._parameters[key] = patterns.of_parameter(seed, target, repeat, most)
        return self._parameters[key]
