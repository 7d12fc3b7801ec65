"""Whether two engines give the same outcome for the same faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitflip.faults import Flips, Target
from bitflip.outcomes import BatchOutcomes

if TYPE_CHECKING:
    from bitflip.engines import Engine

# Where a kernel rounds differently for another batch size, logits may differ by so much of the largest clean logit.
TOLERANCE = 1e-4


class Recorder(BatchOutcomes):
    """Keeps the logits of every fault; those of masked faults are the clean ones."""

    def __init__(self, labels: Tensor, flips: list[Flips], first: int, progress: Callable[[int], None]) -> None:
        super().__init__(labels, flips, first, progress)
        self.found: dict[int, Tensor] = {}

    def clean(self, logits: Tensor) -> None:
        """See :class:`bitflip.outcomes.BatchOutcomes`; the wave calls it once for each part of its pool."""
        super().clean(logits)
        self.clean_logits = logits

    def finished(self, faults: Tensor, logits: Tensor) -> None:
        """See :class:`bitflip.outcomes.BatchOutcomes`."""
        super().finished(faults, logits)
        for fault, row in zip(faults.tolist(), logits, strict=True):
            assert fault not in self.found, "a fault was reported twice"
            self.found[fault] = row

    def logits(self) -> Tensor:
        """Of all faults, (slots, images, classes)."""
        slots, images = self.top1.shape
        rows = [self.found.get(s * images + i, self.clean_logits[i]) for s in range(slots) for i in range(images)]
        return torch.stack(rows).reshape(slots, images, -1)


def record(engine: Engine, target: Target, images: Tensor, flips: Sequence[Flips]) -> tuple[Recorder, int]:
    """Run flips on a batch; return the logits of all faults, and the number of faults that the engine reported."""
    done: list[int] = []
    recorder = Recorder(torch.zeros(len(images), dtype=torch.int64), list(flips), 0, done.append)
    with torch.no_grad():
        (engine.neurons if target == "neuron" else engine.weights)(images, flips, recorder)
    return recorder, sum(done)


def differing(expected: Recorder, got: Recorder) -> Tensor:
    """Which faults end otherwise, (slots, images) of bool.

    Two runs agree on a fault if the top-1 is the same, or tied within the rounding of a kernel, NaNs are in the same
    places, and the logits are close, measured by the largest logit of the image: a small one that is the difference of
    large ones carries their rounding. Logits far larger than the clean ones multiply the rounding of what they were
    made from, and are not held against each other.
    """
    clean, a, b = expected.clean_logits.double(), expected.logits().double(), got.logits().double()
    scale = float(clean.abs().max())
    rounding = TOLERANCE * max(1.0, torch.finfo(expected.clean_logits.dtype).eps / torch.finfo(torch.float32).eps)
    tolerance = rounding * a.nan_to_num(0, 0, 0).abs().amax(dim=2).clamp(min=scale)  # (slots, images)
    top2 = a.nan_to_num().topk(2, dim=2).values
    near_tie = (top2[..., 0] - top2[..., 1]).abs() <= 2 * tolerance
    top1 = (a.argmax(dim=2) != b.argmax(dim=2)) & ~near_tie
    nan = (a.isnan() != b.isnan()).any(dim=2)
    small = (a - clean).abs() <= 100 * scale
    far = small & ~((a - b).abs() <= 10 * rounding * a.abs() + 100 * tolerance[..., None])
    return top1 | nan | far.any(dim=2)
