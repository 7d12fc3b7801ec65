"""``python -m bitflip plan``: how many faults a margin of error takes, and how long they take here."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitflip.commands import shared
from bitflip.network.names import label
from bitflip.settings import hyperparameters, reading
from bitflip.terminal import aligned, duration

if TYPE_CHECKING:  # the command imports what is slow once it runs, so that --help answers at once
    from bitflip.campaign.experiment import Experiment
    from bitflip.faults.flips import TargetKind
    from bitflip.network.layers import Target

MARGIN = 1.0  # percentage points, unless the margin is given


@dataclass(frozen=True)
class Need:
    """What one layer takes: a row of the table.

    Attributes:
        layer: its number.
        type, path, call, parameter: see :class:`bitflip.network.layers.Layer` and
            :class:`bitflip.network.layers.Target`.
        elements: values that can be hit.
        bits: of one value.
        population: all faults that there are: elements x bits, for neurons x images.
        faults: how many of them are enough to know the layer's rate.
        faults_per_bit: how many of one bit are enough to know that bit's rate.
    """

    layer: int
    type: str
    path: str
    call: int
    parameter: str
    elements: int
    bits: int
    population: int
    faults: int
    faults_per_bit: int


@dataclass(frozen=True)
class Trial:
    """What one batch with one flip per image (or one for the batch) in every layer showed.

    Attributes:
        images: in the batch.
        correct: those of them that the clean model classifies correctly.
        seconds: that it took.
    """

    images: int
    correct: int
    seconds: float


@dataclass(frozen=True)
class Goal:
    """What can be asked of a campaign.

    Attributes:
        name: of what is known to within the margin.
        faults: how many it takes, in all layers together.
        rounds: flips per image (neurons) or batch (weights) in every layer.
        seconds: for that.
    """

    name: str
    faults: int
    rounds: int
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: its own and those settings of the scripts that matter."""
    shared.add_arguments(parser, "neuron", "the table of layers")
    margin = f"half the width of the interval, in percentage points; default {MARGIN:g}"
    without = *hyperparameters.names(lambda role: not role.planned), "bit_error_rate", "by_layer"
    reading.add_flags(parser, without, margin=margin)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan and return 0.

    Raises:
        BadInput: for bad settings, or a file that can't be written.
    """
    prepared = shared.prepared(arguments)
    settings = prepared.settings
    margin = MARGIN if settings.margin is None else settings.margin
    needs = [
        need(
            item,
            arguments.target,
            prepared.images.count,
            margin / 100,
            settings.confidence,
            settings.bit,
            settings.fault,
        )
        for item in prepared.targets
    ]
    trial = measure(prepared)
    goals = plan(
        needs, arguments.target, prepared.images.count, settings.batch_size, trial, margin / 100, settings.confidence
    )
    print(_text(prepared, needs, goals, trial, margin))
    shared.write(arguments.csv, Need, needs)
    return 0


def need(
    item: Target,
    target: TargetKind,
    images: int,
    margin: float,
    confidence: float,
    bit: int | None = None,
    fault: str = "flip",
) -> Need:
    """What one layer takes.

    Args:
        item: the layer.
        target: where bits flip.
        images: in the test set.
        margin: half the width of the interval, as a fraction.
        confidence: of that interval.
        bit: the only bit that is struck, if it is.
        fault: kind of it.
    """
    from bitflip.faults import kinds
    from bitflip.statistics.sampling import sample_size

    layer = item.layer
    tensor = layer.parameter(item.parameter)
    elements = math.prod(layer.shape if tensor is None else tensor.shape)
    per_bit = elements * (images if target == "neuron" else 1)
    bits = kinds.of(fault).patterns(item.bits, bit)
    return Need(
        item.number,
        layer.type,
        layer.path,
        layer.call,
        item.parameter,
        elements,
        bits,
        per_bit * bits,
        sample_size(per_bit * bits, margin, confidence),
        sample_size(per_bit, margin, confidence),
    )


def measure(experiment: Experiment) -> Trial:
    """Run the first batch, once to warm up and once with a clock."""
    from bitflip.campaign.executor import portions
    from bitflip.faults.tasks import Cut

    size = min(experiment.settings.batch_size, experiment.images.count)
    [(images, labels)] = experiment.images.batches([range(size)])
    run = portions(experiment.network.engine, experiment.network.placement).run
    for turn in range(2):
        flips = experiment.tasks(Cut(size, 0), turn, experiment.targets)[0].flips
        began = time.monotonic()
        outcomes = run(images, labels, flips, 0, lambda faulty: None)
        seconds = time.monotonic() - began
    return Trial(size, int(outcomes.correct.sum()), seconds)


def plan(
    needs: Sequence[Need],
    target: TargetKind,
    images: int,
    batch_size: int,
    trial: Trial,
    margin: float,
    confidence: float,
) -> list[Goal]:
    """What the network's rate, each layer's and each bit's take.

    A flip of a neuron counts if its image is classified correctly without it; in the trial, so many were.
    """
    from bitflip.statistics.sampling import sample_size

    once = images / trial.images * trial.seconds  # a flip per image, or per batch, in every layer
    counted = max(1, images * trial.correct // trial.images) if target == "neuron" else math.ceil(images / batch_size)
    network = sample_size(sum(need.population for need in needs), margin, confidence)
    most = max(need.faults for need in needs)
    rarest = max(need.faults_per_bit * need.bits for need in needs)
    wanted = {
        "the network's rate": (network, math.ceil(network / len(needs) / counted)),
        "each layer's rate": (sum(need.faults for need in needs), math.ceil(most / counted)),
        "each bit's rate in each layer": (
            sum(need.faults_per_bit * need.bits for need in needs),
            math.ceil(rarest / counted),
        ),
    }
    return [Goal(name, faults, rounds, rounds * once) for name, (faults, rounds) in wanted.items()]


def _text(experiment: Experiment, needs: Sequence[Need], goals: Sequence[Goal], trial: Trial, margin: float) -> str:
    confidence = 100 * experiment.settings.confidence
    per = "image" if experiment.target == "neuron" else "batch"
    layers = [("layer", "type", "path", "faults there are", "enough", "enough per bit")]
    for row in needs:
        place = label(row.path, row.call, row.parameter)
        layers.append(
            (str(row.layer), row.type, place, f"{row.population:,}", f"{row.faults:,}", f"{row.faults_per_bit:,}")
        )
    wanted = [("to know", "faults", f"flips per {per} and layer", "time")]
    wanted += [(goal.name, f"{goal.faults:,}", f"{goal.rounds:,}", duration(goal.seconds)) for goal in goals]
    return "\n".join(
        [
            experiment.title,
            f"For a margin of {margin:g} percentage points either way at {confidence:g} % confidence, at any rate:",
            "",
            *aligned(layers, words=range(3)),
            "",
            *aligned(wanted, words=[0]),
            "",
            f"Times are estimates, from one batch of {trial.images} images that took {trial.seconds:.2f} s.",
            f"Rates near 0 or 100 % need fewer: --margin {margin:g} stops when the intervals are narrow enough.",
        ]
    )
