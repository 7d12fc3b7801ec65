"""The protection of an experiment's model: its bounds found, its guards put in place."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from bitflip.campaign.correcting import Corrected
from bitflip.data import inputs
from bitflip.data.images import Images
from bitflip.data.inputs import Inputs
from bitflip.engines import memory
from bitflip.engines.injection import Injector
from bitflip.engines.invariance import Invariant
from bitflip.errors import BadInput, first_line
from bitflip.network import calibration, code, devices, own, protections
from bitflip.network.calibration import Bounds
from bitflip.network.models import Classifier
from bitflip.network.names import label
from bitflip.network.protections import Call, Guard
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.settings.protection import Protection

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
OwnProtection = Callable[[nn.Module], nn.Module]

TOGETHER = 100  # images that are calibrated on at a time


@dataclass(frozen=True)
class Safeguard:
    """What protects a model.

    Attributes:
        protection: of its layers' outputs, and of its weights.
        bounds: that were measured; None for one that needs none.
        guarded: shape of the values of one image that are guarded, by the path of the module and its call.
        value_bytes: of a value.
        code: SHA-256 of the source of a user's own protection.
        corrected: bits of weights of which flips are corrected, if there are any.
    """

    protection: Protection
    bounds: Bounds | None = None
    guarded: dict[Call, Shape] = field(default_factory=dict)
    value_bytes: int = 0
    code: str | None = None
    corrected: Corrected | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """For the results."""
        measured = {} if self.bounds is None else {"bounds_sha256": self.bounds.sha256, **self.bounds.origin}
        corrected = {} if self.corrected is None else self.corrected.facts
        bounds = 0 if self.bounds is None else self.bounds.count * self.value_bytes
        return {
            "name": str(self.protection),
            "layers": [label(*call) for call in self.guarded],
            "operations": sum(map(math.prod, self.guarded.values())) * self.protection.operations,
            "bytes": bounds + (0 if self.corrected is None else self.corrected.bytes),
            **({} if self.code is None else {"code_sha256": self.code}),
            **measured,
            **corrected,
        }


def protect(
    settings: Hyperparameters,
    classifier: Classifier,
    example: Inputs,
    images: Callable[[], Images],
    bounds: Bounds | None = None,
) -> Safeguard | None:
    """Protect a model as the settings say, in place; see :func:`bitflip.network.protections.taken_off`.

    Args:
        settings: of the run.
        classifier: the model.
        example: some of the inputs.
        images: gives those to measure bounds on, if there is need.
        bounds: if they are known.

    Raises:
        BadInput: if the model has nothing to protect, or the bounds are those of another one.
    """
    protection = settings.protection
    if protection is None:
        return None
    if not protection.guards:
        return Safeguard(protection)
    devices.pin_arithmetic(settings.precision)
    model = classifier.model.eval()
    place = next(tensor.device for tensor in model.parameters())

    def ready(batch: Inputs) -> Inputs:
        return inputs.to(inputs.of(batch), place, classifier.dtype)

    functions = protections.Functions(model)
    with _taking(model), functions.counting():
        calibration.passes(model, {}, [ready(example)], lambda call, output: None, Invariant)
    unseen = (
        f"calls of functions, which are no layers and can't be protected ({functions}); make them modules, such as "
    )
    unseen += "nn.ReLU, or name the blocks that they are in with protect_layers (--protect-layers)"
    try:
        modules = protections.chosen(model, protection, settings.protected_types)
    except BadInput as error:
        raise BadInput(*error.problems, *([f"the model has {unseen}"] if functions.found else [])) from error
    if functions.found and settings.protected_types is None and not protection.own:
        log.warning(f"not protected are {unseen}")
    own_guards: dict[str, nn.Module] = {}
    source = None
    if protection.own:
        own_guards = own.made(protection.own, modules)
        own_guards = {path: guard.to(place, classifier.dtype) for path, guard in own_guards.items()}
        modules = {path: modules[path] for path in own_guards}
        source = code.sha256(own.file_of(protection.own))
    guarded: dict[Call, Shape] = {}

    def look(call: Call, output: Any) -> None:
        calibration.require_values(call, output)
        values: Tensor = output
        if call[0] in own_guards:
            own.require_alike(call, own_guards[call[0]], output)
        guarded[call] = tuple(values.shape[1:]) if len(values) == count else (*values.shape[1:], len(values) // count)

    count = inputs.count(example)
    with _taking(model):
        calibration.passes(model, modules, [ready(example)], look, Invariant)
    if protection.calibrated:
        if bounds is None and settings.bounds is not None:
            bounds = calibration.read(settings.bounds)
        if bounds is None:
            chosen = images()
            per: calibration.Per = "channel" if protection.range == "ranger-channel" else "layer"
            with _taking(model):
                found = calibration.measure(
                    model,
                    modules,
                    lambda: (ready(batch) for batch, _ in chosen.batches(chosen.spans(TOGETHER))),
                    per,
                    settings.percentile,
                    Invariant,
                )
            origin = {"percentile": settings.percentile, "images": chosen.count, "images_sha256": chosen.sha256}
            bounds = replace(found, origin={**origin, "model_sha256": classifier.sha256})
        _require(bounds, protection, guarded, classifier)
    guards = {
        call: own_guards[call[0]] if own_guards else _guard(protection, call, bounds, classifier) for call in guarded
    }
    protections.apply(model, modules, guards)
    bounds = bounds if protection.calibrated else None
    return Safeguard(protection, bounds, guarded, classifier.dtype.itemsize, source)


def by_function(
    function: OwnProtection, settings: Hyperparameters, classifier: Classifier, example: Inputs
) -> tuple[Classifier, Safeguard]:
    """A copy of a model, protected by a user's own function, which has to leave its layers.

    Args:
        function: model -> model.
        settings: of the run, which name the function.
        classifier: the model.
        example: some of the inputs.

    Raises:
        BadInput: if it does not, or fails.
    """
    protection = settings.protection
    assert protection is not None
    try:
        model = function(copy.deepcopy(classifier.model))
    except Exception as error:  # the user's code can raise anything
        raise BadInput(f"protect: {protection.own} fails: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"protect: expected a function that returns the model, got {type(model).__name__}")
    before, after = (_layers(one, settings, example) for one in (classifier.model, model))
    if before != after:
        a, b = next(pair for pair in itertools.zip_longest(before, after) if pair[0] != pair[1])
        raise BadInput(
            "protect: expected a function that keeps the layers, their paths and the shapes of their outputs, got "
            f"{_named(b)} in the place of {_named(a)}; FILE.py:factory protects a layer without taking a place"
        )
    return replace(classifier, model=model.eval()), Safeguard(protection, code=protection.own)


def _layers(model: nn.Module, settings: Hyperparameters, example: Inputs) -> list[tuple[Any, ...]]:
    found = Injector(model, settings.batch_size, example)
    return [
        (layer.path, layer.call, layer.shape, tuple(parameter.name for parameter in layer.parameters))
        for layer in found.everything
    ]


def _named(layer: tuple[Any, ...] | None) -> str:
    return "nothing" if layer is None else label(layer[0], layer[1])


@contextlib.contextmanager
def _taking(model: nn.Module) -> Iterator[None]:
    """Name what fails on images."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        if memory.ran_out(error):
            raise
        raise BadInput(
            f"protect (--protect): {type(model).__name__} can't take the images: {first_line(error)}"
        ) from error


def _guard(protection: Protection, call: Call, bounds: Bounds | None, classifier: Classifier) -> Guard:
    low: Sequence[float] = (protection.low,)
    high: Sequence[float] = (protection.high,)
    if protection.calibrated:
        assert bounds is not None
        low, high = bounds.ranges[call]
    return Guard(protection, low, high, classifier.dtype)


def _require(bounds: Bounds, protection: Protection, guarded: Mapping[Call, Shape], classifier: Classifier) -> None:
    """Refuse bounds of other layers.

    Raises:
        BadInput: if they do not fit the protection, or the model.
    """
    per = "channel" if protection.range == "ranger-channel" else "layer"
    if bounds.per != per:
        raise BadInput(
            f"{calibration.SETTING}: expected bounds per {per} for {protection}, got bounds per {bounds.per}"
        )
    for call, shape in guarded.items():
        if call not in bounds.ranges:
            raise BadInput(
                f"{calibration.SETTING}: expected bounds for each protected layer, got none for {label(*call)}"
            )
        size = len(bounds.ranges[call][0])
        if per == "channel" and size != (shape[0] if shape else 1):
            raise BadInput(
                f"{calibration.SETTING}: expected bounds for {shape[0]} channels of {label(*call)}, got {size}"
            )
    of = bounds.origin.get("model_sha256")
    if of not in (None, classifier.sha256):
        log.warning("the bounds (--bounds) were measured with other weights than those of the model")
