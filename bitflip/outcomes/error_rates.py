"""What bit error rates did: counts by scope, rate and pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitflip.outcomes.batch import NO_CLASS

COLUMNS = ("flips", "images", "correct", "clean_correct", "misclassified", "sdc1", "nonfinite", "due")
"""flips: bits that flipped, of all images together where each has its own; images; correct: of them with faults in the
network; clean_correct: without; misclassified: of these, those that get another class; sdc1: of all; nonfinite: a logit
is not finite; due: the model raised an exception."""


class ErrorRates:
    """Counts of all scopes (the network, or a layer), rates and patterns; one of the tallies of a checkpoint.

    Args:
        scopes, rates, patterns: how many there are.

    Attributes:
        table: (scopes, rates, patterns, columns) of int64.
    """

    def __init__(self, scopes: int, rates: int, patterns: int) -> None:
        self.table = np.zeros((scopes, rates, patterns, len(COLUMNS)), dtype=np.int64)

    def add(
        self, cell: tuple[int, int, int], flips: int, found: tuple[Tensor, Tensor], clean: Tensor, labels: Tensor
    ) -> None:
        """Take what became of some images.

        Args:
            cell: scope, rate, pattern.
            flips: bits that flipped.
            found: predicted classes, and whether a logit is not finite, (B,) each.
            clean: predicted classes without a fault, (B,).
            labels: true ones, (B,).
        """
        top1, nonfinite = found
        due, right = top1 == NO_CLASS, clean == labels
        other = (top1 != clean) & ~due
        counted = (top1 == labels, right, right & other, other, nonfinite, due)
        self.table[cell] += [flips, len(labels), *(int(true.sum()) for true in counted)]

    def state(self) -> dict[str, NDArray[Any]]:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        return {"table": self.table}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See :class:`bitflip.outcomes.tally.Tally`."""
        if state["table"].shape != self.table.shape:
            raise ValueError("other scopes, rates or patterns")
        self.table = state["table"].astype(np.int64)

    def of(self, scope: int, rate: int) -> dict[str, NDArray[np.int64]]:
        """The counts of a scope and a rate by column, of each pattern, (patterns,)."""
        return dict(zip(COLUMNS, self.table[scope, rate].T, strict=True))
