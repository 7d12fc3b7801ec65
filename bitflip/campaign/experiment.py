"""What a run needs, checked and loaded: hyperparameters, model and test set, layers, engine."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from bitflip import engines
from bitflip.campaign import correcting, protecting
from bitflip.campaign.protecting import Safeguard
from bitflip.data import datasets, inputs, training
from bitflip.data.images import Images
from bitflip.data.inputs import Inputs
from bitflip.engines import Engine
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.invariance import Invariant
from bitflip.errors import BadInput
from bitflip.faults import faultlist, kinds
from bitflip.faults.faultlist import FaultList
from bitflip.faults.flips import TargetKind
from bitflip.faults.kinds import Kind, Own
from bitflip.faults.listed import Listed
from bitflip.faults.sampled import Sampling
from bitflip.faults.tasks import Cut, Tasks
from bitflip.network import devices, formats, layers, layouts, models, programs, quantised
from bitflip.network.calibration import Bounds
from bitflip.network.devices import Placement
from bitflip.network.formats import Storage
from bitflip.network.layers import Layer, Target
from bitflip.network.models import Classifier
from bitflip.outcomes.counts import Counts
from bitflip.settings import combined
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.statistics import rates
from bitflip.statistics.rates import LayerEstimate

log = logging.getLogger(__name__)

EXAMPLES = 5  # of the first images, which the network is tried on
MANY = 5  # names in a sentence
BLOCK_ROWS = {"cpu": 1 << 14, "cuda": 1 << 17}  # faulty images of a list's task: enough to share a clean pass


@dataclass(frozen=True)
class Network:
    """A classifier, ready to be struck.

    Attributes:
        classifier: what was loaded.
        placement: where it runs.
        injector: of its faults.
        engine: that runs them.
        protected: what protects its layers' outputs; None if nothing does.
        note: why it is not the engine that was asked for; None if it is.
        channels_first: paths of the convolutions that are not run channels last, where that is the rule.
    """

    classifier: Classifier
    placement: Placement
    injector: Injector
    engine: Engine
    note: str | None
    channels_first: list[str]
    protected: Safeguard | None = None


@dataclass(frozen=True)
class Experiment:
    """All that a campaign needs, loaded and checked.

    Attributes:
        settings: of the run.
        target: what faults strike.
        network: that they strike.
        images: of the test set, those that are run.
        chosen: the layers that the user chose, or that a fault list has faults in.
        targets: where faults strike: those of them with an output for each image, or each chosen parameter of theirs.
        source: of the faults.
        device: what computes, in words.
    """

    settings: Hyperparameters
    target: TargetKind
    network: Network
    images: Images
    chosen: list[Target]
    targets: list[Target]
    source: Sampling | Listed
    device: str

    def estimates(self, counts: Counts, seed: int | None = None, *, by_bit: bool = True) -> list[LayerEstimate]:
        """What was found out about each layer, and each of its bits if wanted.

        Args:
            counts: of the campaign.
            seed: place of a seed; None for all seeds together.
            by_bit: whether the bits are wanted.
        """
        weighted = isinstance(self.source, Sampling) and self.source.importance
        confidence = self.settings.confidence
        return rates.of_layers(counts, self.target, confidence, seed, weighted=weighted, by_bit=by_bit)

    def tasks(self, cut: Cut, turn: int, targets: Sequence[Target]) -> Tasks:
        """The tasks of a round through the test set."""
        return self.source.tasks(targets, self.images.count, cut, turn)

    @property
    def cut(self) -> Cut:
        """How a campaign is best cut into tasks here: more images than a batch where that is faster.

        Sampled weight faults hit a batch, which may then not be another one.
        """
        together, kind = self.settings.batch_size, self.network.placement.device.type
        if self.target == "neuron" or isinstance(self.source, Listed):
            together *= max(1, (self.network.engine.best or 0) // together)
        return Cut(together, BLOCK_ROWS.get(kind, BLOCK_ROWS["cpu"]))

    @property
    def flips_per_round(self) -> int:
        """Flips that a layer gets, by each seed, in one round through the test set."""
        per_flip = 1 if self.target == "neuron" else self.settings.batch_size
        return -(-self.images.count // per_flip) * self.settings.repeats

    @property
    def sought(self) -> str:
        """What a layer has to have to be struck, in words."""
        return sought(self.settings, self.target)

    @property
    def title(self) -> str:
        """The run in a line."""
        s, count = self.settings, len({item.number for item in self.targets})
        seeds = f"seed {s.seed}" if s.seeds is None else f"seeds {s.seeds}"
        what, whose = f"{self.target} faults", f", {seeds}"
        if isinstance(self.source, Listed):
            assert s.faults is not None
            what, whose = f"{len(self.source.faults)} faults of {s.faults.name}", ""
        return (
            f"{s.model_name} on {s.dataset}: {what} in {count} layers, {self.images.count} images{whose}, "
            f"{self.device}, {s.precision}, {self.network.engine.name} engine{' with bounds' if s.prove else ''}"
            f"{'' if s.protect is None else f', protected by {s.protect}'}"
        )


def sought(settings: Hyperparameters, target: TargetKind) -> str:
    """See :attr:`Experiment.sought`."""
    if target == "neuron":
        return "output of its own for each image"
    return " or ".join(settings.parameter_names or ["parameter"])


def prepare(settings: Hyperparameters, target: TargetKind, bounds: Bounds | None = None) -> Experiment:
    """Load test set, model and fault list, find the layers, and check what only shows then.

    Args:
        settings: of the run.
        target: what faults strike.
        bounds: for the protection, if they are known.

    Raises:
        BadInput: if the data or the weights can't be had, or don't fit the other settings.
    """
    listed = None if settings.faults is None else faultlist.read(settings.faults)
    with contextlib.redirect_stdout(sys.stderr):  # what downloads say does not belong into the table
        test_set = datasets.load(settings)
    count = datasets.size_of(test_set, settings)
    if count == 0:
        there = min(len(test_set), settings.max_images or len(test_set))
        raise BadInput(f"batch_size (--batch-size): expected at most {there} with drop_last, the number of images")
    classes = datasets.classes_of(settings, test_set)
    with contextlib.redirect_stdout(sys.stderr):
        classifier = models.load(settings, classes)
    devices.keep_freed_memory()
    images = Images(test_set, count)
    examples = images.first(EXAMPLES)

    def calibration() -> Images:
        return training.load(settings)

    protected = protecting.protect(settings, classifier, examples, calibration, bounds)
    network = ready(settings, target, classifier, classes, examples, calibration, protected)
    outputs = network.injector.logits_shape[1]
    if settings.dataset == "folder" and outputs > classes:
        log.warning(
            f"the model has {outputs} outputs, {settings.input_path} {classes} class folders: they have labels 0 to "
            f"{classes - 1}, in the order above; if one of the model's classes has no folder, all after it are wrong"
        )
    return of(settings, target, network, images, listed)


def of(
    settings: Hyperparameters,
    target: TargetKind,
    network: Network,
    images: Images,
    listed: FaultList | None = None,
    own: Own | None = None,
) -> Experiment:
    """The experiment of a network that is ready: with the faults of a list, if there is one, or sampled ones.

    Args:
        settings: of the run.
        target: what faults strike.
        network: that they strike.
        images: of the test set.
        listed: the list.
        own: what becomes of the values, instead of the settings' kind of fault.

    Raises:
        BadInput: if the settings, or the rows of the list, don't fit the network.
    """
    if network.note is not None:
        log.warning(network.note)
    if listed is None:
        sampling = sampling_of(settings, target, own)
        source: Sampling | Listed = sampling
        chosen = choose(settings, target, network.injector)
        if target == "neuron" and settings.layer_types is None and settings.layer_numbers is None:
            _say_what_is_left_out(network.injector)
        targets = layers.targets(chosen, target, settings.parameter_names)
        if not targets:
            types = ", ".join(sorted({item.layer.type for item in chosen}))
            raise BadInput(
                "layer_type, layer_num (--layer-type, --layer-num): expected at least one layer that has "
                f"a{'n' * (target == 'neuron')} {sought(settings, target)}, got {len(chosen)} of type {types}"
            )
        for item in targets:
            if problems := combined.check_bit(settings, item.bits) or sampling.kind.check(
                item.bits, settings.bit, item.format
            ):
                raise BadInput(*problems)
    else:
        source = _listed(settings, target, listed, network.injector.everything, images.count)
        chosen = targets = source.targets
    undone = [t for t in targets if t.parameter and network.injector.overwrites(t.layer, t.parameter)]
    if undone:
        names = list(dict.fromkeys(item.named for item in undone))
        raise BadInput(
            "model_name (--model-name): expected a model that leaves the parameters that are struck as they are; each "
            f"forward pass gives new values to {', '.join(names[:MANY])}{', ...' if names[MANY:] else ''}"
        )
    if network.protected is not None and network.protected.protection.ecc:
        network = _correcting(network, network.protected, targets)
    device = devices.describe(network.placement.device)
    return Experiment(settings, target, network, images, chosen, targets, source, device)


def _say_what_is_left_out(injector: Injector) -> None:
    """Name the layers that have no neurons: a table without them must not look as if it were of all."""
    if left := injector.without_neurons:
        names = ", ".join(f"{path} ({type(injector.modules[path]).__name__})" for path in left[:MANY])
        log.warning(
            f"no neurons are struck of {names}{', ...' if left[MANY:] else ''}: what is returned is no tensor of "
            "numbers with the images along its first dimension"
        )


def _correcting(network: Network, protected: Safeguard, targets: Sequence[Target]) -> Network:
    """The network whose flips of the bits that matter most are corrected, as many as may be."""
    corrected = correcting.choose(protected.protection, targets)
    network.injector.corrected = corrected.bits
    return replace(network, protected=replace(protected, corrected=corrected))


def ready(
    settings: Hyperparameters,
    target: TargetKind,
    classifier: Classifier,
    classes: int,
    example: Inputs,
    calibration: Callable[[], Images],
    protected: Safeguard | None = None,
) -> Network:
    """A classifier that was loaded, on its device, with its layers found and an engine chosen.

    Args:
        settings: of the run.
        target: what faults strike.
        classifier: the model.
        classes: that it tells apart, at least.
        example: some of the inputs.
        calibration: gives images that are not those of the test, on which ranges are measured.
        protected: what protects the layers' outputs, if something does.

    Raises:
        BadInput: if it does not take the inputs, or is no classifier of so many classes.
    """
    device = devices.resolve(settings.device)
    devices.pin_arithmetic(settings.precision)
    narrow = settings.number_format in formats.NARROW
    if (path := quantised.first_in(classifier.model)) and (settings.number_format is not None or settings.prove):
        setting = "prove (--prove)" if settings.number_format is None else "number_format (--number-format)"
        raise BadInput(f"{setting}: expected none with a model that is quantised already, as {path} is")
    if settings.number_format is not None:
        classifier.model.to(formats.FLOATS["float32" if narrow else settings.number_format])
    placement = Placement(device, classifier.dtype)
    model = placement.model(classifier.model)
    struck = WithInput(model, inputs.names(example)) if target == "neuron" else model
    storage = _stored(struck, settings, calibration(), placement) if narrow else programs.storage(struck)
    injector = Injector(struck, settings.batch_size, example, storage)
    counted = f"; there are {classes} class folders in {settings.input_path}: is it the parent of the right one?"
    channels_first = layouts.suit(injector.modules, injector.layers)
    injector.require_logits(classes, counted if settings.dataset == "folder" else "")
    pool_bytes = None if settings.pool_mib is None else settings.pool_mib << 20
    audit = settings.audit if settings.prove else None
    inputs_here, again = placement.inputs(example), settings.margin is not None
    engine, note = engines.build(settings.engine, injector, inputs_here, pool_bytes, audit, again=again)
    return Network(classifier, placement, injector, engine, note, channels_first, protected)


def _stored(model: nn.Module, settings: Hyperparameters, images: Images, placement: Placement) -> Storage:
    """Store a network's numbers in a format of fewer bits, in place."""
    model.eval()

    def batches() -> Iterator[Inputs]:
        return (placement.inputs(batch) for batch, _ in images.batches(images.spans(protecting.TOGETHER)))

    ranges = formats.observe(model, batches, Invariant, settings.percentile)
    return formats.store(model, str(settings.number_format), ranges)


def choose(settings: Hyperparameters, target: TargetKind, injector: Injector) -> list[Target]:
    """The layers that the user chose, numbered.

    Raises:
        BadInput: if there is no such layer or parameter.
    """
    found = list(injector.layers)
    if target == "weight":  # what only holds parameters is listed where one of them is chosen
        with_one = layers.with_parameters(injector.everything, settings.parameter_names)
        found += [layer for layer in with_one if layer in injector.holders]
    left = layers.of_types(found, settings.layer_types)
    return layers.of_numbers(left, settings.layer_numbers)


def sampling_of(settings: Hyperparameters, target: TargetKind, own: Own | None = None) -> Sampling:
    """Which faults the settings sample, or of which kind of the user's own."""
    s = settings
    importance = s.bit is None and s.bit_sampling == "importance"
    kind = kinds.of(s.fault) if own is None else Kind("own", own=own)
    return Sampling(target, s.all_seeds, s.batch_size, s.repeats, s.bit, importance, kind)


def _listed(
    settings: Hyperparameters, target: TargetKind, listed: FaultList, found: Sequence[Layer], images: int
) -> Listed:
    """The faults of a list, or those of them that ``limit`` leaves.

    Raises:
        BadInput: with all rows that are no faults of this model and test set.
    """
    coded = settings.protection is not None and settings.protection.ecc > 0
    listed.check(found, images, target == "neuron", single=coded)
    if settings.limit is not None:
        listed = listed.only(faultlist.stratified(listed.faults, settings.limit, settings.seed))
    return Listed(listed, found)
