"""A campaign: batches of images, each run clean and with one fault per chosen layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from bitflip import faults
from bitflip.devices import Placement
from bitflip.engines import Engine
from bitflip.faults import Flips, Target
from bitflip.layers import Layer
from bitflip.outcomes import BatchOutcomes


def run(
    engine: Engine,
    target: Target,
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: Sequence[Layer],
    *,
    seed: int,
    bit: int | None,
    repeats: int,
    placement: Placement,
    progress: Callable[[int], None],
) -> Iterator[BatchOutcomes]:
    """Run every batch and yield its outcomes, on the host, as soon as they are known.

    Args:
        engine: what runs the faults.
        target: ``neuron`` (one flip per image and layer) or ``weight`` (one flip per batch and layer).
        batches: images (B, C, H, W) and labels (B,), in the order of the test set; for neurons, their size changes
            no fault.
        layers: where to flip; with ``weight``, each has a weight.
        seed: of the faults.
        bit: the bit to flip, or None for a random one per fault.
        repeats: flips per image (or batch) and layer; each takes a slot of the outcomes.
        placement: where to run.
        progress: called with the number of further faulty images whose outcome is known.
    """
    first = 0
    for number, (images, labels) in enumerate(batches):
        flips: list[Flips] = [
            faults.neurons(seed, layer, first, len(images), bit, repeat)
            if target == "neuron"
            else faults.weight(seed, layer, number, bit, repeat)
            for layer in layers
            for repeat in range(repeats)
        ]
        outcomes = BatchOutcomes(labels.to(placement.device), flips, first, progress)
        with torch.no_grad():
            execute = engine.neurons if target == "neuron" else engine.weights
            execute(placement.images(images), flips, outcomes)
        outcomes.to_host()
        yield outcomes
        first += len(images)
