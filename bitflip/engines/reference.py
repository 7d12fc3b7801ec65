"""The slow and obvious engine: hook the layer, run the whole model, for one layer after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines import memory
from bitflip.engines.injection import Injector
from bitflip.engines.invariance import Invariant
from bitflip.engines.parameters import Injected
from bitflip.errors import BadInput
from bitflip.faults.flips import Flips
from bitflip.network.names import label
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
            logits: Tensor = self.injector.logits(images)
        return logits

    def run_slot(self, images: Inputs, slot: int, flips: Flips, outcomes: BatchOutcomes) -> None:
        """Run the flips of one slot; the outcomes have to know the clean logits, or to be told."""
        count = inputs.count(images)
        try:
            with self.injector.injected(flips) as injected:
                logits = self._logits(images)
        except Exception as error:  # the model's own code can raise anything
            if not memory.may_be_due(error):
                raise
            self._run_alone(images, slot, flips, outcomes)
            return
        _called(flips, injected, outcomes.first)
        outcomes.struck(slot, injected.original, injected.error)
        rows = flips.rows
        image = torch.arange(count) if rows is None else torch.from_numpy(rows)
        image = image.to(logits.device)
        outcomes.finished(image + slot * count, logits if rows is None else logits[image])

    def _run_alone(self, images: Inputs, slot: int, flips: Flips, outcomes: BatchOutcomes) -> None:
        """Run the flips of one slot an image at a time, as the model raises an exception under one of them."""
        struck: list[Injected] = []
        for image in range(inputs.count(images)) if flips.rows is None else flips.rows.tolist():
            struck.append(self.run_alone(images, slot, flips, image, outcomes))
        if flips.parameter:
            struck = struck[:1]
        outcomes.struck(slot, torch.cat([one.original for one in struck]), torch.cat([one.error for one in struck]))

    def run_alone(self, images: Inputs, slot: int, flips: Flips, image: int, outcomes: BatchOutcomes) -> Injected:
        """Run the flip of one slot that hits one image of the batch; the values before and after."""
        part = slice(image, image + 1)
        fault = torch.tensor([slot * inputs.count(images) + image], device=inputs.device(images))
        injected = Injected(torch.empty(0), torch.empty(0))
        try:
            with self.injector.injected(flips.of(part)) as injected:
                logits = self._logits(inputs.rows(images, part))
        except Exception as error:  # the model's own code can raise anything
            if not memory.may_be_due(error):
                raise
            outcomes.raised(fault)
        else:
            _called(flips, injected, outcomes.first + image)
            outcomes.finished(fault, logits)
        return injected


def _called(flips: Flips, injected: Injected, image: int) -> None:
    """Refuse a pass that did not call the layer that it was to strike."""
    if not flips.parameter and not len(injected.original):
        raise BadInput(
            "model_name (--model-name): expected a model that calls the same layers for all images; "
            f"{label(flips.layer.path, flips.layer.call)} is not called for image {image} of the test set"
        )
