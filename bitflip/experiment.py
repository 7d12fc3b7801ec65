"""The road of a run: hyperparameters, model and test set, layers, faults, campaign, results."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from bitflip import campaign, datasets, devices, engines, hyperparameters, layers, models, provenance, results, tracking
from bitflip.datasets import TestSet
from bitflip.devices import Placement
from bitflip.engines import Engine
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput
from bitflip.faults import Target
from bitflip.hyperparameters import Hyperparameters
from bitflip.injection import Injector, WithInput
from bitflip.layers import Numbered
from bitflip.models import Classifier
from bitflip.outcomes import BatchOutcomes, Tally, mean_rates
from bitflip.results import Paths
from bitflip.tracking import Tracker

RUNNING_RATE_EVERY = 10.0  # seconds between two running rates sent to vessl


def main(target: Target, prefix: str = "", argv: Sequence[str] | None = None) -> int:
    """Run one experiment and return the exit code: 0, 2 for bad input, 130 when interrupted.

    Args:
        target: where bits flip: ``neuron`` or ``weight``.
        prefix: of the result files' names.
        argv: command line arguments; None for those of the process.
    """
    counts: Counts | None = None
    try:
        started = provenance.now()
        settings = checked(sys.argv[1:] if argv is None else argv)
        experiment = prepare(settings, target)
        print(experiment.title, flush=True)
        with tracking.connect() as tracker:
            counts, paths = execute(experiment, Paths.of(settings, prefix), tracker)
            report(experiment, counts, paths, started)
            track(experiment, counts, tracker)
    except BadInput as error:
        return _refused(error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = str(error).split(". ")[0]
        return _refused(BadInput(f"batch_size (--batch-size): expected a batch that fits the memory: {reason}"))
    except KeyboardInterrupt:
        when = "before the first batch was finished; nothing was written" if counts is None else "while reporting"
        print(f"interrupted {when}", file=sys.stderr)
        return 130
    if isinstance(counts.stopped, BadInput):
        return _refused(counts.stopped)
    return 0 if counts.complete else 130


def _refused(error: BadInput) -> int:
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def checked(argv: Sequence[str]) -> Hyperparameters:
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
        ({"layer_type", "model_name"}, lambda: [] if custom else layers.check_types(settings.layer_types)),
        ({"device"}, lambda: devices.check(settings.device)),
        ({"output_path"}, lambda: results.check_folder(settings.output_path)),
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
        layers: those of them that have what the target needs: for ``weight``, a weight.
        images: number of images that will be run.
        together: images that are run together; more than a batch where that is faster and changes no fault.
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

    @property
    def layers(self) -> list[Numbered]:
        """See the class."""
        return injectable(self.chosen, self.target)

    @property
    def title(self) -> str:
        """The run in a line."""
        s = self.settings
        return (
            f"{s.model_name} on {s.dataset}: {self.target} faults in {len(self.layers)} layers, {self.images} images, "
            f"seed {s.seed}, {devices.describe(self.placement.device)}, {s.precision}, {self.engine.name} engine"
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
    images = datasets.size_of(test_set, settings.batch_size, drop_last=settings.drop_last)
    if images == 0:
        raise BadInput(
            f"batch_size (--batch-size): expected at most {len(test_set)} with drop_last, the number of images"
        )
    with contextlib.redirect_stdout(sys.stderr):
        classifier = models.load(settings)
    placement = Placement(device, classifier.dtype)
    model = placement.model(classifier.model)
    injector = Injector(
        WithInput(model) if target == "neuron" else model,
        settings.batch_size,
        (settings.channels, settings.img_size, settings.img_size),
    )
    classes = models.NUM_CLASSES[settings.dataset]
    if len(injector.logits_shape) != 2 or injector.logits_shape[1] < classes:
        raise BadInput(
            f"model_name (--model-name): expected a classifier of {classes} classes, whose output for one "
            f"image has the shape (1, {classes}), got {injector.logits_shape}"
        )
    left = layers.of_types(injector.layers, settings.layer_types)
    chosen = layers.of_numbers(left, settings.layer_numbers)
    for item in injectable(chosen, target):
        width = item.layer.bits if target == "neuron" else item.layer.weight_bits
        if problems := hyperparameters.check_bit(settings, width):
            raise BadInput(*problems)
    size = (1, settings.channels, settings.img_size, settings.img_size)
    pool_bytes = None if settings.pool_mib is None else settings.pool_mib << 20
    engine, note = engines.build(settings.engine, injector, placement.images(torch.zeros(size)), pool_bytes)
    if note is not None:
        print(note, file=sys.stderr)
    together = settings.batch_size
    if target == "neuron" and isinstance(engine, Wave):
        together *= max(1, engine.budget.images(injector.layers) // together)
    return Experiment(settings, target, placement, test_set, images, classifier, injector, engine, chosen, together)


def injectable(chosen: Sequence[Numbered], target: Target) -> list[Numbered]:
    """The layers that have what the target needs: a weight, or an output of its own for each image."""
    return [c for c in chosen if (c.layer.per_image if target == "neuron" else c.layer.weight_shape is not None)]


@dataclass
class Counts:
    """What a campaign counted.

    Attributes:
        tallies: one per layer that was run.
        images: images that were run.
        correct: those of them that the clean model classifies correctly.
        seconds: of the campaign, without loading.
        stopped: what ended the campaign early, if anything did.
    """

    tallies: list[Tally]
    images: int = 0
    correct: int = 0
    seconds: float = 0.0
    stopped: BadInput | KeyboardInterrupt | None = None

    @property
    def complete(self) -> bool:
        """Whether all images were run."""
        return self.stopped is None

    def add(self, batch: BatchOutcomes) -> None:
        """Count one batch."""
        tallies = {tally.chosen.layer: tally for tally in self.tallies}
        correct = int(batch.correct.sum())
        self.images += len(batch.labels)
        self.correct += correct
        for flips, misclassified in zip(batch.flips, batch.misclassified.sum(dim=1).tolist(), strict=True):
            tally = tallies[flips.layer]
            tally.misclassified += misclassified
            tally.correct += correct

    @property
    def rate(self) -> float | None:
        """Misclassifications of all layers so far, in percent of the faulty images that could be misclassified."""
        faulty = sum(tally.correct for tally in self.tallies)
        return 100.0 * sum(tally.misclassified for tally in self.tallies) / faulty if faulty else None


def execute(experiment: Experiment, paths: Paths, tracker: Tracker) -> tuple[Counts, Paths]:
    """Run the campaign; Ctrl-C or an image that can't be read ends it after the batches that were finished.

    Returns:
        The counts, and the paths for them: those given, or those of partial results.

    Raises:
        KeyboardInterrupt, BadInput: if not even one batch was finished.
    """
    settings = experiment.settings
    counts = Counts([Tally(item) for item in experiment.layers])
    began = reported = time.monotonic()
    with ExitStack() as stack:
        detail = stack.enter_context(results.Beside(paths.folder)) if settings.detailed_log else None
        bar = stack.enter_context(
            tqdm(
                total=experiment.images * len(experiment.layers) * settings.repeats,
                unit="img",
                unit_scale=True,
                disable=None,
            )
        )

        def advance(faulty: int) -> None:
            bar.update(faulty)

        try:
            for batch in campaign.run(
                experiment.engine,
                experiment.target,
                datasets.batches(experiment.test_set, experiment.together, experiment.images),
                [item.layer for item in experiment.layers],
                seed=settings.seed,
                bit=settings.bit,
                repeats=settings.repeats,
                placement=experiment.placement,
                progress=advance,
            ):
                counts.add(batch)
                if detail is not None:
                    results.write_detail(detail.file, experiment.target, experiment.layers, settings.batch_size, batch)
                if counts.rate is not None:
                    bar.set_postfix_str(f"misclassified {counts.rate:.3f} %")
                    if time.monotonic() - reported > RUNNING_RATE_EVERY:
                        reported = time.monotonic()
                        tracker.log({"running/Misclassification_rate": counts.rate}, step=counts.images)
        except (KeyboardInterrupt, BadInput) as stop:  # Ctrl-C, or a damaged image far down the test set
            if counts.images == 0:
                raise
            counts.stopped, paths = stop, paths.partial()
        counts.seconds = time.monotonic() - began
        if detail is not None:
            detail.put(paths.detail)
    return counts, paths


def report(experiment: Experiment, counts: Counts, paths: Paths, started: str) -> None:
    """Print the table and write the result files."""
    settings = experiment.settings
    accuracy = f"Clean accuracy: {counts.correct} / {counts.images} = {100 * counts.correct / counts.images:.2f}%"
    lines = results.result_lines(experiment.chosen, {t.chosen.number: t for t in counts.tallies})
    print(accuracy, *lines, sep="\n")
    heading = [experiment.injector.summary(settings.layer_types).rstrip(), "", f"Model: {settings.model_name}"]
    heading += [f"Dataset: {settings.dataset}", f"Target: {experiment.target}", accuracy]
    if not counts.complete:
        heading.append(f"Interrupted after {counts.images} of {experiment.images} images")
        print(f"interrupted after {counts.images} of {experiment.images} images", file=sys.stderr)
    if not settings.detailed_log:
        paths.detail.unlink(missing_ok=True)  # of an earlier run, whose other files are replaced here
    results.write_summary(paths.summary, "\n".join(heading), settings.seed, settings.bit, lines)
    results.write_table(paths.table, settings.seed, counts.tallies)
    results.write_run(
        paths.run,
        {
            "complete": counts.complete,
            "target": experiment.target,
            "engine": experiment.engine.name,
            "settings": settings.model_dump(mode="json"),
            "device": devices.describe(experiment.placement.device),
            "precision": settings.precision,
            "model": {
                "source": experiment.classifier.source,
                "weights": experiment.classifier.weights,
                "sha256": experiment.classifier.sha256,
            },
            "images": counts.images,
            "clean_correct": counts.correct,
            "layers": [{"number": item.number, **asdict(item.layer)} for item in experiment.chosen],
            "versions": provenance.versions(),
            "git_commit": provenance.git_commit(),
            "started": started,
            "ended": provenance.now(),
            "campaign_seconds": round(counts.seconds, 3),
        },
    )
    written = [paths.summary, paths.table, paths.run, *([paths.detail] if settings.detailed_log else [])]
    print("Results:", *written, sep="\n  ")


def track(experiment: Experiment, counts: Counts, tracker: Tracker) -> None:
    """Send each layer's rate, at step = layer number, then the mean of each layer type and the seed."""
    for tally in counts.tallies:
        if tally.rate is not None:
            payload = {"Misclassification_rate": tally.rate, tally.chosen.layer.type: tally.rate}
            tracker.log(payload, step=tally.chosen.number)
    last = max((item.number for item in experiment.chosen), default=0)
    means = {f"mean/{name}": rate for name, rate in mean_rates(counts.tallies).items()}
    tracker.log({**means, "seed": float(experiment.settings.seed)}, step=last)
