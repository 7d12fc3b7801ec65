"""Faults in many places at a time: whole passes of the model with all of them in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines import memory
from bitflip.engines.injection import Injector
from bitflip.engines.invariance import Invariant
from bitflip.faults.flips import Flips
from bitflip.outcomes.batch import NO_CLASS, top1


class Simultaneous:
    """Runs a model with all of some flips in it.

    Args:
        injector: of the model.
        most: images that may be run together; None for any number.
    """

    def __init__(self, injector: Injector, most: int | None = None) -> None:
        self._injector = injector
        self._most = most
        self._mode = Invariant()

    def classes(self, images: Inputs, flips: Sequence[Flips] = ()) -> tuple[Tensor, Tensor]:
        """The predicted class of each of B images, and whether a logit is not finite; on the host.

        Returns:
            (B,) of int64, :data:`bitflip.outcomes.batch.NO_CLASS` where the model raises an exception; (B,) of bool.
        """
        count = inputs.count(images)
        if self._most is not None and count > self._most:
            return self._in_parts(images, flips, self._most)
        try:
            logits = self._logits(images, flips)
        except Exception as error:  # the model's own code can raise anything
            if not memory.may_be_due(error) or not flips:
                raise
            if count == 1:
                return torch.tensor([NO_CLASS]), torch.tensor([False])
            return self._in_parts(images, flips, 1)
        return top1(logits).cpu(), (~logits.isfinite().all(dim=1)).cpu()

    def _in_parts(self, images: Inputs, flips: Sequence[Flips], size: int) -> tuple[Tensor, Tensor]:
        """The same, so many images at a time; one, where the model raises an exception for one of them."""
        parts = []
        for first in range(0, inputs.count(images), size):
            part = slice(first, first + size)
            own = [one.of(part) for one in flips]
            parts.append(self.classes(inputs.rows(images, part), [one for one in own if len(one)]))
        return torch.cat([top for top, _ in parts]), torch.cat([odd for _, odd in parts])

    def _logits(self, images: Inputs, flips: Sequence[Flips]) -> Tensor:
        with torch.no_grad(), ExitStack() as stack:
            for one in flips:
                stack.enter_context(self._injector.injected(one))
            with self._mode:
                logits: Tensor = self._injector.logits(images)
        return logits
