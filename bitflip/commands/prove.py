"""``python -m bitflip prove``: what share of all faults is proved harmless, for every value and bit."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitflip.commands import shared
from bitflip.errors import BadInput
from bitflip.network.names import label
from bitflip.settings import hyperparameters, reading
from bitflip.terminal import aligned

if TYPE_CHECKING:  # the command imports what is slow once it runs, so that --help answers at once
    from torch import Tensor

    from bitflip.engines.exhaustive import Proved

# have no meaning here
OWN = (
    *("faults", "seed", "margin", "bit_sampling", "bit_flip_pos", "engine", "prove", "audit", "confidence"),
    *("fault", "bit_error_rate", "by_layer"),
)


@dataclass(frozen=True)
class Cell:
    """What is known about the faults of one bit of a layer's output or parameter: a row of the table.

    Attributes:
        layer: its number.
        type, path, call, parameter: see :class:`bitflip.network.layers.Layer` and
            :class:`bitflip.network.layers.Target`.
        bit: counted from the most significant one.
        values: that have the bit; of an output, for each image.
        images: that were looked at.
        proved: decimal number, percent of values x images of which a flip is proved harmless.
        everywhere: the same of a parameter, percent of values of which a flip is proved harmless for all images.
    """

    layer: int
    type: str
    path: str
    call: int
    parameter: str
    bit: int
    values: int
    images: int
    proved: str
    everywhere: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: its own and those settings of the scripts that matter."""
    shared.add_arguments(parser, "weight", "a table by layer and bit")
    reading.add_flags(parser, {*hyperparameters.names(lambda role: not role.planned), *OWN})


def run(arguments: argparse.Namespace) -> int:
    """Print the shares by layer and return 0.

    Raises:
        BadInput: for bad settings, a model without bounds, or a file that can't be written.
    """
    import torch

    from bitflip.engines.exhaustive import Exhaustive
    from bitflip.engines.wave import Wave

    prepared = shared.prepared(arguments, "--prove")
    settings = prepared.settings
    engine, placement = prepared.network.engine, prepared.network.placement
    if not isinstance(engine, Wave) or engine.prover is None:
        raise BadInput("model_name (--model-name): expected a model that the wave engine runs with bounds")
    exhaustive = Exhaustive(engine, prepared.targets)
    count = prepared.images.count
    for images, _ in prepared.images.batches(prepared.images.spans(settings.batch_size)):
        with torch.no_grad():
            exhaustive.add(placement.inputs(images))
    found = exhaustive.finish()
    print(f"{settings.model_name} on {settings.dataset}: every bit of every {arguments.target}, {count} images\n")
    print("\n".join(lines(found)))
    shared.write(arguments.csv, Cell, (cell for one in found for cell in cells_of(one)))
    return 0


def cells_of(one: Proved) -> Iterator[Cell]:
    """The rows of one target."""
    from bitflip.results import tables

    layer = one.target.layer
    place = (one.target.number, layer.type, layer.path, layer.call, one.target.parameter)
    shares = _percent(one.pairs, one.values * one.images)
    everywhere = [None] * len(shares) if one.everywhere is None else _percent(one.everywhere, one.values)
    for bit, both in enumerate(zip(shares, everywhere, strict=True)):
        yield Cell(*place, bit, one.values, one.images, *map(tables.decimal, both))


def _percent(counts: Tensor, whole: int) -> list[float]:
    found: list[float] = (100 * counts / max(1, whole)).tolist()
    return found


def lines(found: Sequence[Proved]) -> list[str]:
    """The table by layer, and what it comes to."""
    weights = bool(found[0].target.parameter)
    rows = [["layer", "type", "path", "values", "proved harmless", *(["for all images"] * weights)]]
    for one in found:
        name = label(one.target.layer.path, one.target.layer.call, one.target.parameter)
        row = [f"#{one.target.number}", one.target.layer.type, name, f"{one.values:,}"]
        rows.append([*row, *(_share(done, whole) for done, whole in _sums([one], weights))])
    (pairs, whole), *everywhere = _sums(found, weights)
    ends = [f"Of all {whole:,} faults (values x bits x images), {_share(pairs, whole)} are proved harmless."]
    ends += [f"Of all {of:,} bits, {_share(done, of)} are so for every image." for done, of in everywhere]
    return [*aligned(rows, words=range(3)), "", *ends]


def _sums(found: Sequence[Proved], weights: bool) -> list[tuple[float, int]]:
    """Proved faults x images, of all; for weights also those that are proved for every image, of all."""
    faults = [one.values * one.target.bits for one in found]
    pairs = sum(count * one.images for count, one in zip(faults, found, strict=True))
    sums = [(sum(float(one.pairs.sum()) for one in found), pairs)]
    if weights:
        sums.append((sum(0.0 if one.everywhere is None else float(one.everywhere.sum()) for one in found), sum(faults)))
    return sums


def _share(done: float, whole: int) -> str:
    return f"{100 * done / max(1, whole):.2f} %"
