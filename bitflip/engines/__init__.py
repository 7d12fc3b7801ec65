"""Engines run the faults of one batch; all of them give the same outcome for the same fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines import invariance, strides
from bitflip.engines.graph import Program, Untraceable
from bitflip.engines.injection import Injector
from bitflip.engines.pool import Budget
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.faults.flips import Flips
from bitflip.outcomes.batch import BatchOutcomes

EVEN = 5  # images on which a model is tried


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
    name: Literal["wave", "reference"], injector: Injector, images: Inputs, pool_bytes: int | None = None
) -> tuple[Engine, str | None]:
    """The engine of a name, and one sentence if the model needs another one.

    Args:
        name: of the engine.
        injector: of the model.
        images: any batch of the run's form and device, such as (B, C, H, W); see :func:`bitflip.data.inputs.random`.
        pool_bytes: memory for the faulty rows of the wave; None for a default that fits the device.
    """
    if where := invariance.uneven(injector.original_model, inputs.random(EVEN, images, strides.random)):
        note = f"{where} rounds an image otherwise when others are run with it: images are run one at a time, by the "
        return Reference(injector, most=1), note + "reference engine"
    if name == "wave":
        try:
            program = Program(injector.original_model, injector.modules, injector.layers, images)
            return Wave(injector, program, Budget.of(inputs.device(images), pool_bytes)), None
        except Untraceable as error:
            return Reference(injector), f"the wave engine can't run this model: {error}; using the reference engine"
    return Reference(injector), None
