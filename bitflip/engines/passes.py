"""Clean passes: what every step makes of images without a fault, kept where the same images are run again."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines.graph import Program, copied
from bitflip.engines.injection import Injector
from bitflip.network import bits
from bitflip.network.quantised import memory_of

Results = Mapping[fx.Node, Any]
"""What steps make of a batch; not to be changed."""

NONE: Results = MappingProxyType({})


class Passes:
    """The clean passes of a model.

    Args:
        injector: of the model.
        program: its steps.
        most: memory for the results, in bytes: of one pass, and of all that are kept.
        again: whether the same images are run several times. Which of them come first is kept as long as there is
            memory, and never replaced: rounds through a test set ask for all batches in turn, for which the one that
            was not asked for longest is the one that is needed next.

    Attributes:
        bytes: of the results of an image.
    """

    def __init__(self, injector: Injector, program: Program, most: int, *, again: bool = False) -> None:
        self._injector, self._program, self._most, self._again = injector, program, most, again
        self.bytes = sum(step.bytes for step in program.steps)
        self._left = most if again else 0
        self._kept: dict[tuple[int, int], tuple[Inputs, Results]] = {}

    def known(self, images: Inputs, first: int) -> Results:
        """The results of a batch where they are worth keeping, else none.

        Args:
            images: of the batch.
            first: index in the test set of the first of them, by which they are found again.
        """
        return self.of(images, first) if self._again and self._fits(images, self._most) else NONE

    def of(self, images: Inputs, first: int | None = None) -> Results:
        """The results of a batch: of all steps, if they fit the memory, or the logits alone.

        Args:
            images: of the batch.
            first: see :meth:`known`; None if they will not be asked for again.
        """
        if first is None or not self._again:
            return self._made(images)
        place = first, inputs.count(images)
        if place in self._kept and _same(images, self._kept[place][0]):
            return self._kept[place][1]
        found = self._made(images)
        if place not in self._kept and self._fits(images, self._left):
            self._left -= self.bytes * inputs.count(images)
            self._kept[place] = inputs.clone(images), found
        return found

    def let_go(self) -> None:
        """Keep nothing any more, as memory is short."""
        self._kept, self._left = {}, 0

    def _fits(self, images: Inputs, most: int) -> bool:
        return self.bytes * inputs.count(images) <= most

    def _made(self, images: Inputs) -> Results:
        """The results of a pass, as none changes in place."""
        program, whole = self._program, self._fits(images, self._most)
        self._injector.kept.restore()
        values: dict[fx.Node, Any] = {program.placeholder: program.model.pack(inputs.clone(images))}
        found: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for step in program.steps:
                if step.in_place:  # also what only views what it changes must stay as it is
                    changed = {place for node in step.inputs for place in _places(values[node])}
                    shared = [node for node, value in found.items() if not changed.isdisjoint(_places(value))]
                    found |= {node: copied(found[node]) for node in shared}
                values[step.node] = program.run(step.node, values.__getitem__)
                if whole or step.node is program.logits:
                    found[step.node] = values[step.node]
                for node in step.dead:
                    del values[node]
        return found


def _places(value: Any) -> set[int]:
    """Where the memory is of all tensors in a value."""
    return {memory_of(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


def _same(batch: Inputs, other: Inputs) -> bool:
    """Whether two batches of as many rows have the same bits."""
    pairs = zip(inputs.parts(batch), inputs.parts(other), strict=True)
    return all(one.dtype == two.dtype and torch.equal(bits.exact(one), bits.exact(two)) for one, two in pairs)
