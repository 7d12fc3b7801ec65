"""The slow and obvious engine: hook the layer, run the whole model, for one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from bitflip.faults import Flips
from bitflip.injection import Injected, Injector
from bitflip.outcomes import BatchOutcomes


class Reference:
    """Stock forward passes of the whole model under PyTorchFI's injector."""

    name = "reference"

    def __init__(self, injector: Injector) -> None:
        self.injector = injector

    def neurons(self, images: Tensor, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """See :class:`bitflip.engines.Engine`."""
        self._run(images, flips, outcomes, self.injector.neurons)

    def weights(self, images: Tensor, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """See :class:`bitflip.engines.Engine`."""
        self._run(images, flips, outcomes, self.injector.weight)

    def _run(
        self,
        images: Tensor,
        flips: Sequence[Flips],
        outcomes: BatchOutcomes,
        inject: Callable[[Flips], AbstractContextManager[Injected]],
    ) -> None:
        model = self.injector.original_model
        outcomes.clean(model(images))
        for slot, layer_flips in enumerate(flips):
            with inject(layer_flips) as injected:
                logits = model(images)
            assert injected.original is not None
            assert injected.error is not None
            outcomes.struck(slot, injected.original, injected.error)
            outcomes.finished(slot, logits)
