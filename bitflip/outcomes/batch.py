"""What happened to each image: the class of each fault's outcome.

The classes are after Li et al. 2017, "Understanding error propagation in deep learning neural network (DNN)
accelerators and applications", SC '17: SDC-1, SDC-5, SDC-10 % and SDC-20 % (SDC: silent data corruption). Their SDC-5
asks whether the faulty top-1 is among the clean top 5; this one asks whether the clean top-1 is still among the top 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntFlag

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitflip.errors import BadInput
from bitflip.faults.flips import Flips
from bitflip.network import bits


class Effect(IntFlag):
    """What a fault did to one image; none of it: the fault was masked, all logits are bit-identical to clean.

    A fault that changed a logit but not the top-1 class is benign: ``CHANGED`` without ``SDC1``. ``DUE`` comes alone.
    """

    CHANGED = 1  # a logit differs from clean in at least one bit
    SDC1 = 2  # the top-1 class differs from the clean one
    SDC5 = 4  # the clean top-1 class is not among the top 5
    SDC10 = 8  # the probability of the clean top-1 class changed by more than 10 % of its clean value
    SDC20 = 16  # by more than 20 %
    NONFINITE = 32  # a logit is NaN or infinite
    DUE = 64  # a detected unrecoverable error: the model itself raised an exception, and there are no logits
    PROVED = 128  # before it was run, a bound showed that the top-1 class stays; it may be masked or benign
    AUDITED = 256  # a bound showed that the top-1 class stays, and it was run all the same


_BESIDE = Effect.PROVED | Effect.AUDITED


COUNTED = {
    effect.name.lower(): effect
    for effect in Effect
    if effect.name and effect not in (Effect.CHANGED, Effect.PROVED, Effect.AUDITED)
}
"""The effects that tables count, by the names of their columns: ``sdc1`` to ``nonfinite``."""

COLUMNS = ("masked", "benign", *COUNTED, "correct", "misclassified")
"""What tables count: ``masked`` (bit-identical to clean), ``benign`` (top-1 the same), ``sdc1`` and ``due`` (the model
raised an exception) exclude each other.

``sdc5`` to ``nonfinite`` are counted beside, see :class:`Effect`. ``misclassified`` are those of ``sdc1`` among the
``correct``, whose image the clean model classifies correctly.
"""


AS_CLEAN, NO_CLASS = -2, -1  # in place of a class: that of the clean pass, or none


def top1(logits: Tensor) -> Tensor:
    """The predicted class, (B, classes) -> (B,). A NaN beats every number, and the first of several NaNs counts."""
    return torch.argmax(logits, dim=1)


def probability(logits: Tensor, classes: Tensor) -> Tensor:
    """Softmax probability of one class per row, (N, C) and (N,) -> (N,) of float64; 0 where a logit is not finite."""
    chosen = torch.softmax(logits.double(), dim=1).gather(1, classes[:, None]).squeeze(1)
    return torch.where(logits.isfinite().all(dim=1), chosen, 0.0)


def rank(logits: Tensor, classes: Tensor) -> Tensor:
    """Place of one class per row among all classes, 0 for the top-1, in the order of :func:`top1`: (N,)."""
    own = logits.gather(1, classes[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]
    nan, own_nan = logits.isnan(), own.isnan()
    before = (logits > own) | (nan & ~own_nan) | (((logits == own) | (nan & own_nan)) & earlier)
    return before.sum(dim=1)


class BatchOutcomes:
    """The outcomes of one batch: engines write them, everybody else reads them.

    A fault's number is slot * B + image: the slot is the place of its flips among those of the batch. A fault that no
    engine reports as finished is masked: its logits are bit-identical to clean.

    All tensors stay on the device that they were made on until :meth:`to_host`.

    Args:
        labels: true classes, (B,).
        flips: the flips of each of L slots.
        first: index in the test set of the batch's first image.
        progress: called with the number of further faulty images that are through, as far as the work on them goes.

    Attributes:
        clean_top1: predictions without a fault, (B,).
        clean_nonfinite: whether a logit is not finite without a fault, (B,) of bool.
        top1: predictions under each slot's fault, (L, B); -1 where there is none.
        effects: what each fault did, the bits of :class:`Effect`, (L, B) of int16.
        change: by how much the probability of the clean top-1 class changed, 0 to 1, (L, B) of float32.
        original, error: per slot the values before and after the flip: (B,) for neurons, (1,) for weights.
    """

    def __init__(self, labels: Tensor, flips: list[Flips], first: int, progress: Callable[[int], None]) -> None:
        shape, device = (len(flips), len(labels)), labels.device
        self.labels = labels
        self.flips = flips
        self.first = first
        self._progress = progress
        self._known, self._told = 0, 0
        self._every = sum(len(labels) if one.hit is None else len(one.hit) for one in flips if len(one))
        self.clean_top1 = labels  # until clean() is called
        self.clean_nonfinite = torch.zeros_like(labels, dtype=torch.bool)
        self._clean_logits = torch.empty(0)
        self._clean_probability = torch.empty(0)
        self.top1 = torch.full(shape, AS_CLEAN, dtype=torch.int64, device=device)
        self.effects = torch.zeros(shape, dtype=torch.int16, device=device)
        self.change = torch.zeros(shape, dtype=torch.float32, device=device)
        self.original: list[Tensor] = [torch.empty(0)] * len(flips)
        self.error: list[Tensor] = [torch.empty(0)] * len(flips)

    def clean(self, logits: Tensor) -> None:
        """Take the logits of the batch without a fault, (B, classes); comes before any fault is finished."""
        self.clean_top1 = top1(logits)
        self.clean_nonfinite = ~logits.isfinite().all(dim=1)
        self._clean_logits = logits
        self._clean_probability = probability(logits, self.clean_top1)

    def struck(self, slot: int, original: Tensor, error: Tensor) -> None:
        """Take the values before and after the flips of one slot."""
        self.original[slot], self.error[slot] = original, error

    def finished(self, faults: Tensor, logits: Tensor) -> None:
        """Take the logits, (N, classes), of N faults, given by their numbers, (N,)."""
        image = faults % len(self.labels)
        expected, clean_logits = self.clean_top1[image], self._clean_logits[image]
        before = self._clean_probability[image]
        change = (probability(logits, expected) - before).abs()
        place = rank(logits, expected)
        found = {
            Effect.CHANGED: (bits.as_integers(logits) != bits.as_integers(clean_logits)).any(dim=1),
            Effect.SDC1: place >= 1,
            Effect.SDC5: place >= 5,
            Effect.SDC10: change > 0.1 * before,
            Effect.SDC20: change > 0.2 * before,
            Effect.NONFINITE: ~logits.isfinite().all(dim=1),
        }
        effects = torch.stack([true * int(effect) for effect, true in found.items()]).sum(dim=0, dtype=torch.int16)
        self.top1.view(-1)[faults] = top1(logits)
        self.effects.view(-1)[faults] &= int(_BESIDE)
        self.effects.view(-1)[faults] |= effects
        self.change.view(-1)[faults] = change.float()
        self._ended(len(logits))

    def raised(self, faults: Tensor) -> None:
        """Take note that the model raises an exception under some faults, given by their numbers, (N,)."""
        self.top1.view(-1)[faults] = NO_CLASS
        self.effects.view(-1)[faults] = int(Effect.DUE)
        self._ended(len(faults))

    def masked(self, count: int) -> None:
        """Take note that so many faults can't change any logit."""
        self._ended(count)

    def under_way(self, share: float) -> None:
        """Take note that so much of the work on all faults is done, 0 to 1: progress counts it before they end."""
        self._tell(int(share * self._every))

    def _ended(self, count: int) -> None:
        self._known += count
        self._tell(self._known)

    def _tell(self, count: int) -> None:
        if count > self._told:
            self._progress(count - self._told)
            self._told = count

    def let_go(self, faults: Tensor, audited: Tensor | None = None, *, before: bool) -> None:
        """Take note that some faults, given by their numbers, (N,), can't change the top-1 class, as a bound shows.

        Args:
            faults: which.
            audited: those that are run all the same, and reported like others, (N,) of bool; None for none of them.
            before: whether it was shown before they were run, and not on the way, where it depends on their company.
        """
        if before:
            self.effects.view(-1)[faults] |= int(Effect.PROVED)
        if audited is not None:
            self.effects.view(-1)[faults[audited]] |= int(Effect.AUDITED)
        self._ended(len(faults) - (0 if audited is None else int(audited.sum())))

    def to_host(self) -> None:
        """Bring what was found to the host, and let go of what only engines need.

        Raises:
            BadInput: if the class changed under a fault of which a bound showed that it could not.
        """
        found = torch.where(self.top1 == AS_CLEAN, self.clean_top1, self.top1)
        predictions = torch.cat([self.labels[None], self.clean_top1[None], found]).cpu()
        self.labels, self.clean_top1, self.top1 = predictions[0], predictions[1], predictions[2:]
        self.effects, self.change = self.effects.cpu(), self.change.cpu()
        self.clean_nonfinite = self.clean_nonfinite.cpu()
        self.original, self.error = _on_host(self.original), _on_host(self.error)
        wrong = (self.having(Effect.AUDITED) & self.having(Effect.SDC1)).nonzero().tolist()
        if wrong:
            slot, image = wrong[0]
            layer = self.flips[slot].layer
            raise BadInput(
                f"prove (--prove): a fault in {layer.path} changes the class of image {self.first + image}, though a "
                "bound showed that it could not: rounding is larger than the bound allows for; run without"
            )
        self._clean_logits = self._clean_probability = torch.empty(0)
        self._progress = _nothing  # so that outcomes can be sent to another process

    @property
    def correct(self) -> Tensor:
        """Which images the clean model classifies correctly, (B,) of bool."""
        return self.clean_top1 == self.labels

    @property
    def misclassified(self) -> Tensor:
        """Which clean-correct images a fault makes the model misclassify, (L, B) of bool."""
        return self.correct & (self.top1 != self.clean_top1) & (self.top1 != NO_CLASS)

    def having(self, effect: Effect) -> Tensor:
        """Which faults had an effect, (L, B) of bool."""
        return (self.effects & int(effect)) != 0

    def columns(self) -> dict[str, NDArray[np.bool_]]:
        """What became of each faulty inference, on the host, (L, B) each: the columns :data:`COLUMNS` of all tables.

        And those of a run with bounds: ``proved`` and ``audited``.
        """
        masked = ~self.having(Effect.CHANGED | Effect.DUE | Effect.PROVED)
        sdc1, proved = self.having(Effect.SDC1), self.having(Effect.PROVED)
        found = {"masked": masked, "benign": ~masked & ~sdc1 & ~self.having(Effect.DUE) & ~proved}
        found |= {"proved": proved, "audited": proved & self.having(Effect.AUDITED)}
        found |= {name: self.having(effect) for name, effect in COUNTED.items()}
        found |= {"correct": self.correct.expand_as(masked), "misclassified": self.misclassified}
        return {name: value.numpy() for name, value in found.items()}


def join(parts: Sequence[BatchOutcomes], flips: list[Flips]) -> BatchOutcomes:
    """The outcomes of a batch whose images were run in parts, one after the other; all on the host.

    Args:
        parts: at least one.
        flips: those of the whole batch.
    """
    if len(parts) == 1:
        return parts[0]
    whole = BatchOutcomes(torch.cat([part.labels for part in parts]), flips, parts[0].first, _nothing)
    whole.clean_top1 = torch.cat([part.clean_top1 for part in parts])
    whole.clean_nonfinite = torch.cat([part.clean_nonfinite for part in parts])
    whole.top1, whole.effects, whole.change = (
        torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("top1", "effects", "change")
    )
    for slot, one in enumerate(flips):
        of_each = parts[:1] if one.parameter else parts  # a weight's value is the same in all parts
        of_each = [part for part in of_each if len(part.flips[slot])]
        whole.struck(
            slot,
            torch.cat([part.original[slot] for part in of_each]),
            torch.cat([part.error[slot] for part in of_each]),
        )
    return whole


def _on_host(values: list[Tensor]) -> list[Tensor]:
    """The values in one transfer, unless they are of several types."""
    if len({value.dtype for value in values}) != 1:
        return [value.cpu() for value in values]
    return list(torch.split(torch.cat(values).cpu(), [len(value) for value in values]))


def _nothing(count: int) -> None:
    """Take no note of progress."""
