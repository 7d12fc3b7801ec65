"""Whether two engines give the same outcome for the same faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.faults.flips import Flips
from bitflip.network import bits
from bitflip.outcomes.batch import BatchOutcomes

if TYPE_CHECKING:
    from bitflip.engines import Engine


class Recorder(BatchOutcomes):
    """Keeps the logits of every fault; those of masked faults are the clean ones."""

    def __init__(self, labels: Tensor, flips: list[Flips], first: int, progress: Callable[[int], None]) -> None:
        super().__init__(labels, flips, first, progress)
        self.found: dict[int, Tensor] = {}

    def clean(self, logits: Tensor) -> None:
        """See :class:`bitflip.outcomes.batch.BatchOutcomes`; the wave calls it once for each part of its pool."""
        super().clean(logits)
        self.clean_logits = logits

    def finished(self, faults: Tensor, logits: Tensor) -> None:
        """See :class:`bitflip.outcomes.batch.BatchOutcomes`."""
        super().finished(faults, logits)
        for fault, row in zip(faults.tolist(), logits, strict=True):
            assert fault not in self.found, "a fault was reported twice"
            self.found[fault] = row

    def logits(self) -> Tensor:
        """Of all faults, (slots, images, classes)."""
        slots, images = self.top1.shape
        rows = [self.found.get(s * images + i, self.clean_logits[i]) for s in range(slots) for i in range(images)]
        return torch.stack(rows).reshape(slots, images, -1)


def record(engine: Engine, images: Inputs, flips: Sequence[Flips]) -> tuple[Recorder, int]:
    """Run flips on a batch; return the logits of all faults, and the number of faults that the engine reported."""
    done: list[int] = []
    labels = torch.zeros(inputs.count(images), dtype=torch.int64, device=inputs.device(images))
    recorder = Recorder(labels, list(flips), 0, done.append)
    with torch.no_grad():
        engine.run(images, flips, recorder)
    return recorder, sum(done)


def differing(expected: Recorder, got: Recorder) -> Tensor:
    """Which faults end otherwise, (slots, images) of bool: in a bit of a logit that is no NaN, or in an effect."""
    pairs = (expected.logits(), got.logits()), (expected.clean_logits, got.clean_logits)
    faulty, clean = (
        ((bits.as_integers(a) != bits.as_integers(b)) & ~(a.isnan() & b.isnan())).any(-1) for a, b in pairs
    )
    return faulty | clean | (expected.effects != got.effects)
