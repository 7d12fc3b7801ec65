"""What a run needs, checked and loaded: hyperparameters, model and test set, layers, engine."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bitflip import engines
from bitflip.campaign.campaign import Sampling
from bitflip.cluster import joining
from bitflip.data import datasets
from bitflip.data.datasets import TestSet
from bitflip.engines import Engine
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput
from bitflip.faults import faultlist
from bitflip.faults.flips import Target
from bitflip.network import devices, layers, models
from bitflip.network.devices import Placement
from bitflip.network.layers import Numbered
from bitflip.network.models import Classifier
from bitflip.outcomes.counts import Counts
from bitflip.results import tables as results
from bitflip.settings import hyperparameters
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.statistics import rates
from bitflip.statistics.rates import LayerEstimate


def checked(argv: Sequence[str], target: Target) -> Hyperparameters:
    """Read the settings and look for every mistake that shows without loading anything.

    Raises:
        BadInput: with all mistakes together.
    """
    settings, problems = hyperparameters.read(argv)
    name = str(settings.model_name)
    custom = models.is_custom(name)  # may hold float64 values, and layer classes of its own
    checks: list[tuple[set[str], Callable[[], list[str]]]] = [
        ({"dataset", "model_name", "weights", "hub_path"}, lambda: models.check(settings)),
        ({"bit_flip_pos", "model_name"}, lambda: hyperparameters.check_bit(settings, 64 if custom else 32)),
        ({"seeds", "margin"}, lambda: hyperparameters.check_seeds(settings)),
        ({"layer_type", "model_name"}, lambda: [] if custom else layers.check_types(settings.layer_types)),
        ({"mean", "std", "channels", "dataset"}, lambda: datasets.check(settings)),
        ({"device"}, lambda: [] if settings.ray else devices.check(settings.device)),
        (
            {"device", "precision"},
            lambda: [] if settings.ray else devices.check_precision(settings.precision, settings.device),
        ),
        ({"ray", "device", "faults"}, lambda: joining.check(settings)),
        ({"output_path"}, lambda: results.check_folder(settings.output_path)),
        ({"faults", "save_faults", "limit"}, lambda: faultlist.check_settings(settings)),
        ({"rerun"}, lambda: _check_rerun(settings.rerun, target)),
    ]
    found = list(problems.values())
    for reads, check in checks:
        if not reads & problems.keys():  # a check of a value that is known to be bad would mislead
            found += check()
    if found:
        raise BadInput(*found)
    return settings


@dataclass(frozen=True)
class Experiment:
    """All that a campaign needs, loaded and checked.

    Attributes:
        chosen: the layers that the user chose.
        layers: where faults strike: those of them with an output for each image, or each chosen parameter of theirs.
        images: number of images that will be run.
        together: images that are run together; more than a batch where that is faster and changes no fault, which
            only sampled weight faults would.
        device: what computes, in words.
    """

    settings: Hyperparameters
    target: Target
    placement: Placement
    test_set: TestSet
    images: int
    classifier: Classifier
    injector: Injector
    engine: Engine
    chosen: list[Numbered]
    together: int
    device: str

    @property
    def layers(self) -> list[Numbered]:
        """See the class."""
        return layers.targets(self.chosen, self.target, self.settings.parameter_names)

    def estimates(self, counts: Counts, seed: int | None = None) -> list[LayerEstimate]:
        """What was found out about each layer, by the place of a seed; None for all seeds together."""
        weighted = self.settings.bit is None and self.settings.bit_sampling == "importance"
        return rates.of_layers(counts, self.target, self.settings.confidence, seed, weighted=weighted)

    @property
    def sampling(self) -> Sampling:
        """Which faults are sampled."""
        s = self.settings
        importance = s.bit is None and s.bit_sampling == "importance"
        return Sampling(self.target, s.all_seeds, s.batch_size, s.repeats, s.bit, importance)

    @property
    def flips_per_round(self) -> int:
        """Flips that a layer gets, by each seed, in one round through the test set."""
        per_flip = 1 if self.target == "neuron" else self.settings.batch_size
        return -(-self.images // per_flip) * self.settings.repeats

    @property
    def title(self) -> str:
        """The run in a line."""
        s, count = self.settings, len({item.number for item in self.layers})
        return (
            f"{s.model_name} on {s.dataset}: {self.target} faults in {count} layers, {self.images} images, "
            f"{'seed' if s.seeds is None else 'seeds'} {s.seed if s.seeds is None else s.seeds}, "
            f"{self.device}, {s.precision}, {self.engine.name} engine"
        )


def prepare(settings: Hyperparameters, target: Target) -> Experiment:
    """Load the test set and the model, find the layers, and check what only shows then.

    Raises:
        BadInput: if the data or the weights can't be had, or don't fit the other settings.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what downloads say does not belong into the table
        test_set = datasets.load(settings)
    return assemble(settings, target, test_set)


def assemble(settings: Hyperparameters, target: Target, test_set: TestSet) -> Experiment:
    """The experiment of settings on a test set; see :func:`prepare`."""
    assert settings.img_size is not None
    device = devices.resolve(settings.device)
    devices.pin_arithmetic(settings.precision)
    devices.keep_freed_memory()
    images = datasets.size_of(test_set, settings.batch_size, drop_last=settings.drop_last)
    if images == 0:
        raise BadInput(
            f"batch_size (--batch-size): expected at most {len(test_set)} with drop_last, the number of images"
        )
    with contextlib.redirect_stdout(sys.stderr):
        classes = datasets.classes_of(settings, test_set)
        classifier = models.load(settings, classes)
    placement = Placement(device, classifier.dtype)
    model = placement.model(classifier.model)
    example = torch.zeros(1, settings.channels, settings.img_size, settings.img_size)
    injector = Injector(WithInput(model) if target == "neuron" else model, settings.batch_size, example)
    if len(injector.logits_shape) != 2 or injector.logits_shape[1] < classes:
        raise BadInput(
            f"model_name (--model-name): expected a classifier of {classes} classes, whose output for one "
            f"image has the shape (1, {classes}), got {injector.logits_shape}"
        )
    found = list(injector.layers)
    if target == "weight":  # what only holds parameters is listed where one of them is chosen
        with_one = layers.with_parameters(injector.everything, settings.parameter_names)
        found += [layer for layer in with_one if layer in injector.holders]
    left = layers.of_types(found, settings.layer_types)
    chosen = layers.of_numbers(left, settings.layer_numbers)
    for item in layers.targets(chosen, target, settings.parameter_names):
        if problems := hyperparameters.check_bit(settings, item.bits):
            raise BadInput(*problems)
    pool_bytes = None if settings.pool_mib is None else settings.pool_mib << 20
    engine, note = engines.build(settings.engine, injector, placement.inputs(example), pool_bytes)
    if note is not None:
        print(note, file=sys.stderr)
    together = settings.batch_size
    if (target == "neuron" or settings.faults is not None) and isinstance(engine, Wave):
        together *= max(1, engine.budget.images(injector.layers) // together)
    loaded = (settings, target, placement, test_set, images, classifier, injector, engine, chosen, together)
    return Experiment(*loaded, device=devices.describe(device))


def _check_rerun(path: Path | None, target: Target) -> list[str]:
    """One sentence if an earlier run flipped something else than this script does."""
    then = None if path is None else json.loads(path.read_text(encoding="utf-8")).get("target")
    if then in (None, target):
        return []
    scripts = {"neuron": "main.py or neuron.py", "weight": "weight.py"}
    if then not in ("neuron", "weight"):
        return [f"rerun (--rerun): expected a run with neuron or weight faults, but {path} says {then!r}"]
    return [f"rerun (--rerun): {path} is of a run with {then} faults; give it to {scripts[then]}"]
