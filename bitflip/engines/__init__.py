"""Engines run the faults of one batch; all of them give the same outcome for the same fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from bitflip.faults import Flips
from bitflip.outcomes import BatchOutcomes


class Engine(Protocol):
    """Runs a batch of images clean and with each of the given flips, and reports to ``outcomes``."""

    name: str

    def neurons(self, images: Tensor, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """For each layer's flips, run the batch with one flip per image; images are (B, C, H, W)."""

    def weights(self, images: Tensor, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """For each weight flip, run the whole batch with it; images are (B, C, H, W)."""
