"""Which rows need not be run, since a bound shows that they can't change their class."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines.bounds import Bounds, Reach, distance
from bitflip.engines.capture import Untraceable
from bitflip.engines.graph import Program, Rows, Step
from bitflip.engines.injection import Injector
from bitflip.engines.parameters import Injected
from bitflip.engines.passes import Passes, Results
from bitflip.engines.pool import Chunk
from bitflip.engines.striking import Struck
from bitflip.engines.windows import Window
from bitflip.errors import first_line
from bitflip.outcomes.batch import BatchOutcomes

IMAGES = 8  # random ones, beside those that are given, that are also run in float64
_SPREAD = 0x9E3779B97F4A7C15 - 2**64  # spreads consecutive numbers, as a signed number


class Prover:
    """Bounds of a model, for one batch after the other.

    Args:
        injector: of the model.
        program: its steps.
        images: a few of those that will be run.
        passes: the clean ones.
        audit: share of the rows that need not be run, and are run all the same.

    Attributes:
        bounds: of the model.
        clean: gives the results of a clean pass; see :meth:`bitflip.engines.passes.Passes.of`.

    Raises:
        Untraceable: if there are none for this model.
    """

    def __init__(
        self, injector: Injector, program: Program, images: Inputs, passes: Passes, audit: float = 0.0
    ) -> None:
        self._program, self._audit = program, audit
        self.clean = passes.of
        injector.kept.restore()
        try:
            tried = inputs.join([images, inputs.random(IMAGES, images)])
            device = inputs.device(images)
            with torch.no_grad():
                exact = copy.deepcopy(injector.original_model).double()
                expected: Tensor = inputs.call(exact, inputs.to(tried, device, torch.float64))
            got = self.clean(tried)[program.logits].double()
            self._rounding = float(((got - expected).abs().amax(1) / expected.abs().amax(1)).nan_to_num(0.0).max())
        except Exception as error:  # the model's own code can raise anything
            raise Untraceable(f"it does not run in float64 ({first_line(error)})") from error
        self.bounds = Bounds(program, inputs.random(2, images))

    def of_batch(self, clean: Results, outcomes: BatchOutcomes) -> Proof:
        """What is known about a batch before it is run, by the results of its clean pass."""
        return Proof(self.bounds, self.reach(clean), outcomes, self._audit)

    def reach(self, clean: Results) -> Reach:
        """How far the images of a batch are from another class, by the results of a clean pass."""
        return self.bounds.reach(clean[self._program.logits], self._rounding)


class Proof:
    """Bounds of one batch's images.

    Args:
        bounds: of the model.
        reach: of the images.
        outcomes: that take what is proved.
        audit: share of what is proved that is run all the same.
    """

    def __init__(self, bounds: Bounds, reach: Reach, outcomes: BatchOutcomes, audit: float) -> None:
        self._bounds, self._reach, self._outcomes = bounds, reach, outcomes
        self._audit = audit
        self._audited = torch.zeros(outcomes.top1.numel(), dtype=torch.bool, device=outcomes.top1.device)

    def left_at_fork(self, slot: int, step: Step, struck: Struck, image: Tensor) -> Tensor:
        """Which faults of a slot have to be run, by the change of the one value that they strike: places, (N,)."""
        change = (struck.error.double() - struck.original.double()).abs()
        each = None
        if step.layout == Rows(0, 1) and len(struck.index) > 1:
            each = self._bounds.onward(step.node).at(struck.index[1], number=True)
        return self._left(step, change, image + slot * len(self._outcomes.labels), image, each, before=True)

    def left_at_parameter(self, slot: int, step: Step, injected: Injected, read: Tensor, image: Tensor) -> Tensor:
        """The same for the flip of a layer's weight or bias, by what the layer reads, (B, ...)."""
        flips = self._outcomes.flips[slot]
        change = (injected.error.double() - injected.original.double()).abs()
        apart = self._bounds.moved(step, flips.parameter, flips.coordinates(0), read)
        if apart is None:
            return torch.arange(len(image), device=image.device)
        fault = image + slot * len(self._outcomes.labels)
        each = self._of_channel(step, flips.coordinates(0)[0])
        return self._left(step, change * apart[image], fault, image, each, before=True)

    def left(self, step: Step, chunk: Chunk, value: Tensor, clean: Tensor, rows: Tensor) -> Tensor:
        """Which of some rows of a chunk, (N,), have to be run further.

        Args:
            step: that made the one value in which they differ from clean.
            chunk: of the rows.
            value: what they have there, or the part of it that may differ, (S, ...).
            clean: what their images have there.
            rows: places in the chunk.
        """
        if step.layout != Rows(0, 1):  # there is no distance
            return rows
        apart, whole = distance(value, clean), chunk.values[step.node]
        channel = whole.channel if isinstance(whole, Window) else None
        each = None if channel is None else self._of_channel(step, channel)
        return rows[self._left(step, apart[rows], chunk.fault[rows], chunk.image[rows], each, before=False)]

    def _of_channel(self, step: Step, channel: int) -> Tensor:
        found = self._bounds.onward(step.node).channel
        return found[min(channel, len(found) - 1)]

    def _left(
        self, step: Step, apart: Tensor, fault: Tensor, image: Tensor, each: Tensor | None, *, before: bool
    ) -> Tensor:
        harmless = self._bounds.harmless(apart, step, image, self._reach, each)
        if not self._audit:  # each number that the host asks a GPU for is a wait
            left, gone = (~harmless).nonzero().squeeze(1), harmless.nonzero().squeeze(1)
            if len(gone):
                self._outcomes.let_go(fault[gone], before=before)
            return left
        harmless &= ~self._audited[fault]
        if harmless.any():
            found = fault[harmless]
            audited = self._chosen(found)
            self._audited[found] = audited
            self._outcomes.let_go(found, audited, before=before)
            harmless[harmless.clone()] = ~audited
        return (~harmless).nonzero().squeeze(1)

    def _chosen(self, fault: Tensor) -> Tensor:
        """Which faults are audited: a random share of them, the same in every run."""
        images = len(self._outcomes.labels)
        number = fault // images * 1_000_003 + self._outcomes.first + fault % images
        mixed = (number + 1) * _SPREAD
        mixed = (mixed ^ (mixed >> 29)) * _SPREAD
        return ((mixed >> 11) & (2**40 - 1)).double() < self._audit * 2**40
