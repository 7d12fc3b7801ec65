"""The ``_detailed.txt``: blocks of ``Key: value`` lines, in the form of the scripts that this project succeeds.

Of neurons, a block for each misclassification, and two blank lines behind it. Of weights, a block for each flip,
whatever it did, then one for each image that it broke, and a blank line behind every block.

What those scripts did not say comes as further lines at the end of a block, and only where it is not what it mostly is:
call 0, the parameter ``weight``, repeat 0, a flip, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from bitflip.network import bits
from bitflip.network.formats import Stored
from bitflip.network.layers import Layer, Target
from bitflip.outcomes.batch import BatchOutcomes

StoredOf = Callable[[Layer, str, int], Stored | None]  # of an element

_NEURON_DIMENSIONS, _WEIGHT_DIMENSIONS = 3, 4  # that a position has at least; None stands for those that are not there


def text(chosen: Sequence[Target], batch_size: int, batch: BatchOutcomes, seed: int, stored_of: StoredOf) -> str:
    """The blocks of one batch of outcomes, of the flips of one seed.

    Batches and positions in them are those of ``batch_size``, however many images were run together.

    Args:
        chosen: what faults strike.
        batch_size: of the batches that are meant.
        batch: the outcomes.
        seed: of the flips.
        stored_of: how a value of a layer's output, or of a parameter of it, is stored; None as it is.
    """
    written: list[str] = []
    items = {item.where: item for item in chosen}
    slots = [slot for slot, flips in enumerate(batch.flips) if flips.seed == seed]
    misclassified, count = batch.misclassified, len(batch.labels)
    start = 0
    while start < count:
        number = (batch.first + start) // batch_size
        end = min(count, (number + 1) * batch_size - batch.first)
        for slot in slots:
            item = items[batch.flips[slot].where]
            broken = (misclassified[slot, start:end].nonzero()[:, 0] + start).tolist()
            if item.parameter:
                hit = _span(batch.first + start, batch.first + end - 1)
                written.append(f"{_flip(item, batch, slot, hit, stored_of)}\n\n")
                written += (f"{_broken(batch, slot, image, batch_size)}\n\n" for image in broken)
            else:
                written += (f"{_neuron(item, batch, slot, image, batch_size, stored_of)}\n\n\n" for image in broken)
        start = end
    return "".join(written)


def blocks(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The blocks of a file: the number of the first line, from 1, and the values by key."""
    found: dict[str, str] = {}
    first = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            if found:
                yield first, found
            found = {}
            continue
        first = first if found else number
        key, _, value = line.partition(":")
        found[key] = value.strip()
    if found:
        yield first, found


def _neuron(item: Target, batch: BatchOutcomes, slot: int, image: int, batch_size: int, stored_of: StoredOf) -> str:
    flips, index = batch.flips[slot], batch.first + image
    row = int(np.searchsorted(flips.images, image))
    place = (index % batch_size, *_padded(flips.coordinates(row), _NEURON_DIMENSIONS))
    return "\n".join(
        [
            f"Layer: {item.number}",
            f"Batch: {index // batch_size}",
            f"Position: {place}",
            *_values(batch, slot, row, stored_of),
            f"Label:        {int(batch.labels[image])}",
            f"Model output: {int(batch.top1[slot, image])}",
            f"Layer type: {item.layer.type}",
            *_further(item, batch, slot, row, f"Test image: {index}"),
        ]
    )


def _flip(item: Target, batch: BatchOutcomes, slot: int, hit: str, stored_of: StoredOf) -> str:
    return "\n".join(
        [
            f"Layer: {item.number}",
            f"Layer type: {item.layer.type}",
            f"Position: {_padded(batch.flips[slot].coordinates(0), _WEIGHT_DIMENSIONS)}",
            *_values(batch, slot, 0, stored_of),
            *_further(item, batch, slot, 0, f"Test images: {hit}"),
        ]
    )


def _broken(batch: BatchOutcomes, slot: int, image: int, batch_size: int) -> str:
    index = batch.first + image
    return (
        f"Batch: {index // batch_size}\nImage: {index % batch_size}\nLabel: {int(batch.labels[image])}\n"
        f"Model output: {int(batch.top1[slot, image])}\nTest image: {index}"
    )


def _values(batch: BatchOutcomes, slot: int, row: int, stored_of: StoredOf) -> list[str]:
    """What the flip did: of a number format, the numbers that codes stand for, and the bits of the codes."""
    flips, original, error = batch.flips[slot], batch.original[slot][row], batch.error[slot][row]
    stored = stored_of(*flips.where, int(flips.element[row]))
    before, after = original, error
    if stored is not None:
        change = flips.changes.of(slice(row, row + 1))
        before = stored.encode(original)
        # Codes that are no number can't be told from each other by their value.
        known = change.rule is None
        after = bits.masked(before, torch.from_numpy(change.arrays[:, 0])) if known else stored.encode(error)
    return [
        f"Original value:  {original.item()}",
        f"Original binary: {bits.text(before)}",
        f"Flip bit: {flips.kind_and_bits(row)[1]}",
        f"Error value:     {error.item()}",
        f"Error binary:    {bits.text(after)}",
    ]


def _further(item: Target, batch: BatchOutcomes, slot: int, row: int, images: str) -> Iterator[str]:
    flips = batch.flips[slot]
    yield f"Path: {item.layer.path}"
    if item.layer.call:
        yield f"Call: {item.layer.call}"
    if item.parameter not in ("", "weight"):
        yield f"Parameter: {item.parameter}"
    yield images
    if repeat := flips.repeat_of(row):
        yield f"Repeat: {repeat}"
    if (kind := flips.kind_and_bits(row)[0]) != "flip":
        yield f"Fault: {kind}"
    if item.format != "float32":
        yield f"Number format: {item.format}"


def _padded(coordinates: tuple[int, ...], dimensions: int) -> tuple[int | None, ...]:
    return (*coordinates, *[None] * (dimensions - len(coordinates)))


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
