"""Engines run the faults of one batch; all of them give the same outcome for the same fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines import assumptions, strides
from bitflip.engines.capture import Untraceable
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector
from bitflip.engines.passes import Passes
from bitflip.engines.pool import Budget
from bitflip.engines.proofs import Prover
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.faults.flips import Flips
from bitflip.outcomes.batch import BatchOutcomes

EVEN = 5  # random images on which rounding is tried


class Engine(Protocol):
    """Runs a batch of images clean and with each of the given flips, and reports to ``outcomes``.

    Attributes:
        name: of the engine.
        most: images that may be run together; None for any number.
        best: images that are best run together, if more than a few; None if it makes no difference.
    """

    name: str
    most: int | None
    best: int | None

    def run(self, images: Inputs, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """Run the batch, such as (B, C, H, W), once for each of the flips: with one per image in a layer's output, or
        with one in a parameter for all images.
        """


def build(
    name: Literal["wave", "reference"],
    injector: Injector,
    images: Inputs,
    pool_bytes: int | None = None,
    audit: float | None = None,
    *,
    again: bool = False,
) -> tuple[Engine, str | None]:
    """The engine of a name, and one sentence if the model needs another one.

    Args:
        name: of the engine.
        injector: of the model.
        images: a batch of those that will be run, such as (B, C, H, W), or one of their form and device.
        pool_bytes: memory for the faulty rows of the wave; None for a default that fits the device.
        audit: if bounds are to show which faults need not be run, the share of those that are run all the same.
        again: whether the same images will be run several times, with other faults.

    Raises:
        BadInput: if the model is not what the method is for, see :mod:`bitflip.engines.assumptions`.
    """
    few = inputs.rows(inputs.join([images, inputs.random(assumptions.IMAGES, images)]), slice(assumptions.IMAGES))
    why = assumptions.check(injector, few)
    if why is None and (where := assumptions.uneven(injector, inputs.random(EVEN, images, strides.random))):
        why = f"{where} rounds an image otherwise when others are run with it"
    if why is not None:
        return Reference(injector, most=1), f"{why}: images are run one at a time, by the reference engine"
    if name == "wave":
        try:
            if path := injector.layer_that_keeps:
                raise Untraceable(f"{path} keeps something from one pass to the next")
            injector.kept.restore()
            program = Program(injector.original_model, injector.modules, injector.layers, images)
            budget = Budget.of(inputs.device(images), pool_bytes)
        except Untraceable as error:
            return Reference(injector), f"the wave engine can't run this model: {error}; using the reference engine"
        prover, passes = None, Passes(injector, program, budget.bytes, again=again)
        if audit is not None:
            try:
                prover = Prover(injector, program, images, passes, audit)
            except Untraceable as error:
                why = f"there are no bounds for this model, so all faults are run: {error}"
        return Wave(injector, program, budget, prover=prover, passes=passes), why
    return Reference(injector), None
