"""What happened to each image, and the counts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitflip.faults import Flips
from bitflip.layers import Numbered


def top1(logits: Tensor) -> Tensor:
    """The predicted class, (B, classes) -> (B,). A NaN beats every number, and the first of several NaNs counts."""
    return torch.argmax(logits, dim=1)


class BatchOutcomes:
    """The outcomes of one batch: engines write them, everybody else reads them.

    A fault's number is slot * B + image: the slot is the place of its flips among those of the batch. A fault that no
    engine reports as finished is masked: its logits are bit-identical to clean.

    All tensors stay on the device that they were made on until :meth:`to_host`.

    Args:
        labels: true classes, (B,).
        flips: the flips of each of L chosen layers.
        first: index in the test set of the batch's first image.
        progress: called with the number of further faulty images whose outcome is known.

    Attributes:
        clean_top1: predictions without a fault, (B,).
        top1: predictions under each layer's fault, (L, B).
        original, error: per layer the values before and after the flip: (B,) for neurons, (1,) for weights.
    """

    def __init__(self, labels: Tensor, flips: list[Flips], first: int, progress: Callable[[int], None]) -> None:
        self.labels = labels
        self.flips = flips
        self.first = first
        self._progress = progress
        self.clean_top1 = labels  # until clean() is called
        self.top1 = torch.full((len(flips), len(labels)), -1, dtype=torch.int64, device=labels.device)
        self.original: list[Tensor] = [torch.empty(0)] * len(flips)
        self.error: list[Tensor] = [torch.empty(0)] * len(flips)

    def clean(self, logits: Tensor) -> None:
        """Take the logits of the batch without a fault, (B, classes)."""
        self.clean_top1 = top1(logits)

    def struck(self, slot: int, original: Tensor, error: Tensor) -> None:
        """Take the values before and after the flips of one slot."""
        self.original[slot], self.error[slot] = original, error

    def finished(self, faults: Tensor, logits: Tensor) -> None:
        """Take the logits, (N, classes), of N faults, given by their numbers, (N,)."""
        self.top1.view(-1)[faults] = top1(logits)
        self._progress(len(logits))

    def masked(self, count: int) -> None:
        """Take note that so many faults can't change any logit."""
        self._progress(count)

    def to_host(self) -> None:
        """Bring the predictions to the host, in one transfer."""
        found = torch.where(self.top1 < 0, self.clean_top1, self.top1)
        predictions = torch.cat([self.labels[None], self.clean_top1[None], found]).cpu()
        self.labels, self.clean_top1, self.top1 = predictions[0], predictions[1], predictions[2:]

    @property
    def correct(self) -> Tensor:
        """Which images the clean model classifies correctly, (B,) of bool."""
        return self.clean_top1 == self.labels

    @property
    def misclassified(self) -> Tensor:
        """Which clean-correct images a fault makes the model misclassify, (L, B) of bool."""
        return self.correct & (self.top1 != self.clean_top1)


@dataclass
class Tally:
    """Counts of one layer over the batches so far.

    Attributes:
        chosen: the layer.
        misclassified: clean-correct images whose top-1 changed.
        correct: clean-correct images.
    """

    chosen: Numbered
    misclassified: int = 0
    correct: int = 0

    @property
    def rate(self) -> float | None:
        """Misclassification rate in percent, or None when there is nothing to divide by."""
        return 100.0 * self.misclassified / self.correct if self.correct else None


def mean_rates(tallies: list[Tally]) -> dict[str, float]:
    """The mean misclassification rate in percent of each layer type, over its layers that have a rate."""
    rates: dict[str, list[float]] = {}
    for tally in tallies:
        if tally.rate is not None:
            rates.setdefault(tally.chosen.layer.type, []).append(tally.rate)
    return {name: sum(values) / len(values) for name, values in rates.items()}
