"""The slow and obvious engine: hook the layer, run the whole model, for one layer after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines.injection import Injector
from bitflip.engines.invariance import Invariant
from bitflip.faults.flips import Flips
from bitflip.outcomes.batch import BatchOutcomes


class Reference:
    """Stock forward passes of the whole model under PyTorchFI's injector.

    Args:
        injector: of the model.
        most: images that may be run together; None for any number.
    """

    name = "reference"
    best: int | None = None

    def __init__(self, injector: Injector, most: int | None = None) -> None:
        self.injector = injector
        self.most = most
        self._mode = Invariant()

    def run(self, images: Inputs, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """See :class:`bitflip.engines.Engine`."""
        outcomes.clean(self._logits(images))
        for slot, one in enumerate(flips):
            if len(one):
                self.run_slot(images, slot, one, outcomes)

    def _logits(self, images: Inputs) -> Tensor:
        with self._mode:
            logits: Tensor = inputs.call(self.injector.original_model, inputs.clone(images))  # some change their input
        return logits

    def run_slot(self, images: Inputs, slot: int, flips: Flips, outcomes: BatchOutcomes) -> None:
        """Run the flips of one slot; the outcomes have to know the clean logits, or to be told."""
        with self.injector.injected(flips) as injected:
            logits = self._logits(images)
        outcomes.struck(slot, injected.original, injected.error)
        rows = flips.rows
        count = inputs.count(images)
        image = torch.arange(count) if rows is None else torch.from_numpy(rows)
        image = image.to(logits.device)
        outcomes.finished(image + slot * count, logits if rows is None else logits[image])
