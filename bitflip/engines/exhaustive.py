"""Every bit of every value, not a sample: which faults a bound shows to be harmless, for which images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines.bounds import Reach
from bitflip.engines.graph import Entry, Step
from bitflip.engines.striking import flippable_part
from bitflip.engines.wave import Wave
from bitflip.network import bits
from bitflip.network.layers import Target


@dataclass
class Proved:
    """What is known about all faults of one target.

    Attributes:
        target: the layer's output, or one of its parameters.
        values: that it has; of an output, for each image.
        images: that were looked at.
        pairs: faults x images that are proved harmless, or corrected by a code, by bit, (bits,).
        everywhere: of a parameter, faults that are so for all images, by bit, (bits,).
    """

    target: Target
    values: int
    images: int = 0
    pairs: Tensor = field(default_factory=lambda: torch.zeros(0))
    everywhere: Tensor | None = None


class Exhaustive:
    """Goes through all faults of some targets, for one batch of images after the other.

    Args:
        wave: with a prover.
        targets: outputs of layers, or parameters.
    """

    def __init__(self, wave: Wave, targets: Sequence[Target]) -> None:
        assert wave.prover is not None
        self._wave, self._prover = wave, wave.prover
        self.found = [Proved(target, self._size(target)) for target in targets]
        for one in self.found:
            one.pairs = torch.zeros(one.target.bits, dtype=torch.float64)
        self._least: dict[int, tuple[Tensor, Tensor]] = {}  # of a parameter: of each column, over all images; and each
        self._at: dict[tuple[str, int], list[int]] = {}
        for i, target in enumerate(targets):
            self._at.setdefault((target.layer.path, target.layer.call), []).append(i)

    def _size(self, target: Target) -> int:
        if not target.parameter:
            return math.prod(target.layer.shape)
        return self._tensor(target).numel()

    def _tensor(self, target: Target) -> Tensor:
        return self._wave.injector.tensor_of(target.layer, target.parameter).detach()

    def add(self, images: Inputs) -> None:
        """Look at a batch."""
        program, known = self._wave.program, self._prover.clean(images)
        reach = self._prover.reach(known)
        clean: dict[fx.Node, Any] = {program.placeholder: program.model.pack(inputs.clone(images))}
        for one in self.found:
            one.images += inputs.count(images)
        with torch.no_grad():
            for step in program.steps:
                here = self._at.get(step.layer, ()) if step.layer is not None else ()
                read = clean[step.inputs[0]] if here and step.inputs else None
                clean[step.node] = known[step.node] if step.node in known else program.run(step.node, clean.__getitem__)
                for i in here:
                    self._look(i, step, read, clean[step.node], reach)
                for node in step.dead:
                    del clean[node]

    def _look(self, i: int, step: Step, read: Any, output: Any, reach: Reach) -> None:
        one, bounds = self.found[i], self._prover.bounds
        far = reach.logits if step.node is self._wave.program.logits else reach.before_last
        if one.target.parameter:
            entry = self._wave.program.entry(self._tensor(one.target))
            if not isinstance(entry, Entry) or self._wave.program.steps[entry.step] is not step:
                return  # it reaches the images elsewhere, too, such as a weight that two layers share
            units = bounds.units(step, one.target.parameter, read)
            if units is None:
                return
            most = (far[:, None] / units).nan_to_num(0.0, posinf=math.inf).T.contiguous()  # (K, B)
            tensor = self._tensor(one.target)
            each = self._each(step, tensor, 0, number=False)
            values, each = (_by_column(part, len(most)).contiguous() for part in (tensor, each))
            most = most.sort(dim=1).values
            least = most[:, 0] if i not in self._least else torch.minimum(self._least[i][0], most[:, 0])
            self._least[i] = least, each
            for bit in range(one.target.bits):
                below = torch.searchsorted(most, _changes(values, bit) * each, right=True)
                one.pairs[bit] += float(below.numel() * most.shape[1] - below.sum())
            return
        values, count = flippable_part(self._wave.program.module(step.node), output), len(far)
        if len(values) % count:
            return
        each = self._each(step, values, 1, number=True).reshape(count, -1)
        values = values.reshape(count, -1)
        for bit in range(one.target.bits):
            one.pairs[bit] += float((_changes(values, bit) * each < far[:, None]).sum())

    def _each(self, step: Step, values: Tensor, dim: int, *, number: bool) -> Tensor:
        """By how much the value before the last layer moves for a unit of each value's, in their shape.

        Args:
            step: whose output they are, or change.
            values: (...), of which the channels of the output are dimension ``dim``.
            number: whether each changes one number of the output, or all of a channel.
        """
        if step.node is self._wave.program.logits:
            return torch.ones((), dtype=torch.float64, device=values.device).expand(values.shape)
        onward = self._prover.bounds.onward(step.node)
        found = onward.number if number else onward.channel
        return found.view(-1, *[1] * (values.dim() - dim - 1)).expand(values.shape)

    def finish(self) -> list[Proved]:
        """What was found; to be called once."""
        for i, (least, each) in self._least.items():
            one = self.found[i]
            values = _by_column(self._tensor(one.target), len(least))
            hits = [(_changes(values, bit) * each < least[:, None]).sum() for bit in range(one.target.bits)]
            one.everywhere = torch.stack(hits).double().cpu()
        for one in self.found:
            for bit in self._wave.injector.corrected.get((one.target.layer.path, one.target.parameter), ()):
                one.pairs[bit] = float(one.values * one.images)
                one.everywhere = torch.zeros(one.target.bits).double() if one.everywhere is None else one.everywhere
                one.everywhere[bit] = float(one.values)
        return self.found


def _by_column(values: Tensor, columns: int) -> Tensor:
    """A parameter's values, those of each column in a row of their own, (K, N)."""
    if columns == 1:
        return values.reshape(1, -1)
    if values.dim() == 1:
        return values[:, None]
    groups = columns // values.shape[1]
    return values.reshape(groups, -1, *values.shape[1:]).transpose(1, 2).reshape(columns, -1)


def _changes(values: Tensor, bit: int) -> Tensor:
    """By how much a flip of the bit changes each value; NaN or infinity where it is then no number."""
    flipped = bits.flip(values.contiguous(), torch.tensor(bit, device=values.device))
    return (flipped.double() - values.double()).abs()
