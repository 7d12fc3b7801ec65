"""The library: campaigns on a model and a test set of your own, in a program or a notebook.

No environment variable is read and nothing is printed; what there is to say goes to the logger ``bitflip``. The model
comes back as it was: in its mode and memory format, on its device, bit for bit; and so do PyTorch's settings.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from bitflip import files
from bitflip.campaign import experiment, identity, loop, protecting, publishing, side_by_side
from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.error_rates import ErrorRateCampaign
from bitflip.campaign.executor import Here
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.protecting import OwnProtection, Safeguard
from bitflip.campaign.sampling import Sampled, as_text
from bitflip.campaign.side_by_side import Protections
from bitflip.data import training
from bitflip.data.images import Images
from bitflip.errors import BadInput
from bitflip.faults import faultlist
from bitflip.faults.faultlist import FaultList
from bitflip.faults.flips import TargetKind
from bitflip.faults.kinds import Own
from bitflip.network import calibration, code, devices, forms, models, protections
from bitflip.network import own as protection
from bitflip.report.result import Result, Rows
from bitflip.results import provenance
from bitflip.results.paths import Paths
from bitflip.results.tracking import Tracker
from bitflip.settings import combined, hyperparameters
from bitflip.settings.hyperparameters import Hyperparameters, NumberFormat
from bitflip.settings.protection import OWN
from bitflip.statistics.falls import Point


@dataclass(frozen=True)
class LayerInfo:
    """A layer that faults can strike.

    Attributes:
        number: of the layer, among all layers.
        path: of its module in the model; ``input`` is the input.
        call: which call of the module in a forward pass, from 0.
        type: class name of the module.
        shape: of the output for one input.
        parameters: names of the parameter tensors that can be flipped.
    """

    number: int
    path: str
    call: int
    type: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]


class Campaign:
    """Fault injection into one model, on one test set.

    Args:
        model: any classifier, whose output is one row of logits per input, (B, classes); wrapped or not, see
            :func:`bitflip.network.forms.plain`.
        test_set: a ``Dataset`` of (input, label), or a ``DataLoader`` of such batches that does not shuffle. An input
            is a tensor of a fixed shape, or a tuple or dict of tensors that the model takes as arguments.
        batch_size: inputs that one weight flip hits; None for that of the loader, or 256.
        device: ``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: of float32 arithmetic, ``ieee`` or ``tf32``.
        engine: ``wave`` or ``reference``.
        number_format: of weights and layers' outputs, as the setting; None for that of the model.
        calibration: a ``Dataset`` or ``DataLoader`` like the test set, of other inputs, on which formats of fewer bits
            and protections measure their ranges.
        name: what files and titles call the model; None for its class.

    Raises:
        BadInput: for a loader that shuffles, or anything else that does not fit; its sentences say what.
    """

    def __init__(
        self,
        model: nn.Module,
        test_set: Any,
        *,
        batch_size: int | None = None,
        device: str = "auto",
        precision: Literal["ieee", "tf32"] = "ieee",
        engine: Literal["wave", "reference"] = "wave",
        number_format: NumberFormat | None = None,
        calibration: Any = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise BadInput(f"model: expected {forms.instead_of(model)}")
        forms.check(model, "model")
        if what := forms.lazy(model):
            raise BadInput(f"model: expected initialised modules, but {what}; run one batch through the model first")
        if next(model.parameters(), None) is None:
            raise BadInput("model: expected a model with parameters, got one without")
        forms.check_values(model, "model")
        self._model = model
        loader = test_set if isinstance(test_set, DataLoader) else None
        if loader is not None:
            test_set = loader.dataset
            batch_size = loader.batch_size if batch_size is None else batch_size
        if isinstance(test_set, IterableDataset) or not hasattr(test_set, "__len__"):
            raise BadInput("test_set: expected a data set with a length, whose items have numbers")
        if loader is not None and not isinstance(loader.sampler, SequentialSampler):
            raise BadInput("test_set: expected a DataLoader that does not shuffle: faults are tied to places of inputs")
        self._settings = {
            "batch_size": 256 if batch_size is None else batch_size,
            "device": device,
            "precision": precision,
            "engine": engine,
            "number_format": number_format,
        }
        self._calibration = calibration
        self._name = name or type(forms.inside(model)).__name__
        self._data_name = type(test_set).__name__
        settings = _settings(self._settings)
        if problems := [*devices.check(device), *devices.check_precision(precision, device)]:
            raise BadInput(*problems)
        drop_last = bool(loader is not None and loader.drop_last)
        count = len(test_set) // settings.batch_size * settings.batch_size if drop_last else len(test_set)
        if count == 0:
            raise BadInput("test_set: expected at least one input")
        self._images = (
            Images(test_set, count)
            if loader is None
            else Images(test_set, count, loader.collate_fn, loader.num_workers)
        )

    @cached_property
    def layers(self) -> Rows[LayerInfo]:
        """All layers, as they are numbered without a choice of types; what only holds parameters comes last."""
        with self._prepared(_settings(self._settings), "neuron", None) as found:
            everything = found.network.injector.everything
        return Rows(
            LayerInfo(number, la.path, la.call, la.type, la.shape, tuple(parameter.name for parameter in la.parameters))
            for number, la in enumerate(everything)
        )

    def run(
        self,
        faults: Sampled | FaultList,
        *,
        confidence: float = 0.95,
        detailed_log: bool = False,
        fault_table: bool = False,
        prove: bool = False,
        audit: float = 0.0,
        protect: str | OwnProtection | None = None,
        protect_layers: Sequence[str] | None = None,
        calibration_set: Any = None,
        bounds: str | Path | None = None,
        percentile: float = 100.0,
        progress: bool = False,
        folder: str | Path | None = None,
        fresh: bool = False,
    ) -> Result:
        """Run faults, and report what they did.

        Args:
            faults: to sample, or read from a list with :func:`bitflip.read_faults`.
            confidence: of all intervals.
            detailed_log: also log every misclassification.
            fault_table: also write a row for every injection; :func:`bitflip.compare` then compares fault by fault.
            prove: do not run faults of which a bound shows that they can't change the class.
            audit: share of those that are run all the same.
            protect: protection of the layers' outputs, such as ``ranger`` or ``nan+clip``; see docs/protections.md. Or
                a function that takes a copy of the model and returns it protected, with the same layers.
            protect_layers: class names of the layers and blocks that are protected; None for activations and max
                pooling.
            calibration_set: instead of the campaign's ``calibration``.
            bounds: a file of bounds that another run wrote, instead.
            percentile: of the values seen in calibration that the bounds, and the ranges of 8-bit formats, are.
            progress: show a progress bar.
            folder: for the files; a run that was stopped goes on from there. None: they are kept as long as the result.
            fresh: start over all the same, and replace what another run has left in the folder under the same name.

        Raises:
            BadInput: for settings or faults that do not fit; its sentences say what.
            KeyboardInterrupt: if Ctrl-C stops it.
        """
        target: TargetKind
        chosen: dict[str, Any]
        own: Own | None = None
        function = None if protect is None or isinstance(protect, str) else protect
        if function is not None:
            protect = f"{OWN}:{code.described(function)}"
        listed = faults if isinstance(faults, FaultList) else None
        if isinstance(faults, FaultList):
            target = "neuron" if all(fault.target == "neuron" for fault in faults.faults) else "weight"
            chosen = {"faults": faults.path, "seed": 0}
        else:
            if not isinstance(faults, Sampled):
                raise BadInput(f"faults: expected Sampled(...) or a list from read_faults, got {faults!r}")
            faults.check()
            target, chosen = faults.target, faults.settings
            own = None if isinstance(faults.fault, str) else faults.fault
        holder = tempfile.TemporaryDirectory(prefix="bitflip-") if folder is None else None
        chosen |= {
            "confidence": confidence,
            "detailed_log": detailed_log,
            "fault_table": fault_table,
            "plots": False,
            "fresh": fresh,
        }
        chosen |= {"prove": prove, "audit": audit, "protect": protect, "bounds": bounds, "percentile": percentile}
        chosen |= {"protect_layers": "default" if protect_layers is None else as_text(protect_layers)}
        path = Path(holder.name if holder is not None else str(folder))
        settings = _settings({**self._settings, **chosen, "output_path": path}).model_copy(
            update={"model_name": self._name, "dataset": self._data_name}
        )
        if own is not None:
            settings = settings.model_copy(update={"fault": f"own:{code.described(own)}"})
        checks = combined.check_prove, combined.check_fault, combined.check_sampling, combined.check_protect
        problems = [sentence for check in checks for sentence in check(settings)] + combined.check_ecc(settings, target)
        problems += [] if function is not None else protection.check(settings)
        if problems := [*problems, *calibration.check_file(settings.bounds)]:
            raise BadInput(*problems)
        if problems := files.check_folder("folder", path):
            raise BadInput(*problems)
        table = self._run(settings, target, listed, own, calibration_set, function, progress=progress)
        return Result(table, holder)

    def compare_protections(
        self,
        faults: Sampled | FaultList,
        protections: Sequence[str | OwnProtection],
        *,
        folder: str | Path | None = None,
        **options: Any,
    ) -> Protections:
        """Run the same faults without a protection and with each of several, and hold them against each other.

        Args:
            faults: as for :meth:`run`.
            protections: each as ``protect`` there.
            folder: for the files of all runs; None: they are kept as long as the result.
            options: further arguments of :meth:`run`.

        Raises:
            BadInput: for settings, faults or protections that do not fit; its sentences say what.
        """
        return side_by_side.compare(self, faults, protections, folder, options)

    def error_rates(
        self,
        target: TargetKind,
        rates: Sequence[float],
        *,
        patterns: int = 10,
        seed: int = 0,
        by_layer: bool = False,
        layer_type: Sequence[str] | None = None,
        parameters: Sequence[str] | None = ("weight",),
        confidence: float = 0.95,
        progress: bool = False,
    ) -> list[Point]:
        """Flip each bit of all chosen layers with a probability, and report what that does to accuracy.

        Args:
            target: ``neuron``, the bits of all layers' outputs, for each input anew; or ``weight``, of parameters.
            rates: bit error rates, above 0 and at most 0.5; their patterns are nested.
            patterns: that are drawn for each rate.
            seed: the same seed draws the same patterns.
            by_layer: also flip the bits of each layer alone.
            layer_type: class names of the layers; None for all.
            parameters: names of the parameter tensors; None for all.
            confidence: of all intervals.
            progress: show a progress bar.

        Returns:
            For the network, then each layer: a point for each rate, ascending.

        Raises:
            BadInput: for what does not fit; its sentences say what.
        """
        sampled = Sampled(target, seed, patterns, layer_type=layer_type, parameters=parameters)
        sampled.check()
        chosen = sampled.settings | {"bit_error_rate": as_text(rates), "by_layer": by_layer, "confidence": confidence}
        with tempfile.TemporaryDirectory(prefix="bitflip-") as folder:
            settings = _settings({**self._settings, **chosen, "output_path": folder})
            with (
                Checkpoint(Path(folder), {}, provenance.now()) as checkpoint,
                self._prepared(settings, target, None) as prepared,
            ):
                found = ErrorRateCampaign(prepared, checkpoint)
                found.run(bar=progress)
                return found.points()

    def _run(
        self,
        settings: Hyperparameters,
        target: TargetKind,
        listed: FaultList | None,
        own: Own | None,
        calibration_set: Any,
        function: OwnProtection | None,
        *,
        progress: bool,
    ) -> Path:
        paths, finals = Paths.of_run(settings, ""), Paths.of_results(settings, "")
        shared = identity.of_settings(settings, target)
        with (
            Checkpoint(paths.unfinished, shared, provenance.now(), finals, fresh=settings.fresh) as checkpoint,
            self._prepared(settings, target, listed, own, calibration_set, function) as prepared,
        ):
            executor = Here(prepared)
            checkpoint.require(identity.of_experiment(prepared, executor), executor.device)
            done = loop.execute(prepared, checkpoint, Tracker(), executor, bar=progress)
            if done.stopped is not None:
                raise done.stopped
            publishing.publish(done, "", checkpoint, done.tallies.counts)
            checkpoint.discard()
        return finals[0].table

    @contextlib.contextmanager
    def _prepared(
        self,
        settings: Hyperparameters,
        target: TargetKind,
        listed: FaultList | None,
        own: Own | None = None,
        calibration_set: Any = None,
        function: OwnProtection | None = None,
    ) -> Iterator[Experiment]:
        """An experiment on the model, which is as it was when the block ends."""
        with (
            devices.borrowed(self._model),
            forms.unwrapped(self._model) as model,
            protections.taken_off(model),
            devices.as_they_were(),
        ):
            if settings.number_format is not None:
                model = copy.deepcopy(model)  # its values and its type become others
            classifier = models.given(model)
            examples = self._images.first(experiment.EXAMPLES)
            protected: Safeguard | None

            def calibration() -> Images:
                return _calibration(self._calibration if calibration_set is None else calibration_set)

            if function is not None:
                classifier, protected = protecting.by_function(function, settings, classifier, examples)
            else:
                protected = protecting.protect(settings, classifier, examples, calibration)
            network = experiment.ready(settings, target, classifier, 1, examples, calibration, protected)
            classes = network.injector.logits_shape[1]
            labels = self._images.labels
            wrong = [] if labels is None else labels[(labels < 0) | (labels >= classes)].tolist()
            if wrong:
                raise BadInput(f"test_set: expected labels from 0 to {classes - 1}, one for each logit, got {wrong[0]}")
            yield experiment.of(settings, target, network, self._images, listed, own)


def read_faults(path: str | Path) -> FaultList:
    """Read a fault list, in the project's own or in the published format; see :mod:`bitflip.faults.faultlist`.

    Raises:
        BadInput: if the file can't be read, is no fault list, or holds no fault.
    """
    return faultlist.read(Path(path))


def _calibration(given: Any) -> Images:
    """The inputs to calibrate on.

    Raises:
        BadInput: if there are none.
    """
    loader = given if isinstance(given, DataLoader) else None
    given = given if loader is None else loader.dataset
    if given is None or isinstance(given, IterableDataset) or not len(given):
        raise BadInput(
            "calibration_set: expected a data set with a length, of inputs that are not those of the test set, to "
            "measure on them what layers return; give it to the run, or to the campaign as calibration"
        )
    return training.spread(given, None if loader is None else loader.collate_fn)


def _settings(values: dict[str, Any]) -> Hyperparameters:
    try:
        return Hyperparameters(**values)
    except ValidationError as error:
        raise BadInput(*hyperparameters.problems(error).values()) from None
