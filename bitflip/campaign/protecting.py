"""The protection of an experiment's model: its bounds found, its guards put in place."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from bitflip.data import inputs
from bitflip.data.images import Images
from bitflip.data.inputs import Inputs
from bitflip.engines import memory
from bitflip.engines.invariance import Invariant
from bitflip.errors import BadInput, first_line
from bitflip.network import calibration, devices, protections
from bitflip.network.calibration import Bounds
from bitflip.network.models import Classifier
from bitflip.network.names import label
from bitflip.network.protections import Call, Guard
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.settings.protection import Protection

log = logging.getLogger(__name__)

Shape = tuple[int, ...]

TOGETHER = 100  # images that are calibrated on at a time


@dataclass(frozen=True)
class Safeguard:
    """What protects a model.

    Attributes:
        protection: of its layers' outputs.
        bounds: that were measured; None for one that needs none.
        guarded: shape of the values of one image that are guarded, by the path of the module and its call.
        value_bytes: of a value.
    """

    protection: Protection
    bounds: Bounds | None
    guarded: dict[Call, Shape]
    value_bytes: int

    @property
    def facts(self) -> dict[str, Any]:
        """For the results."""
        measured = {} if self.bounds is None else {"bounds_sha256": self.bounds.sha256, **self.bounds.origin}
        return {
            "name": str(self.protection),
            "layers": [label(*call) for call in self.guarded],
            "operations": sum(map(math.prod, self.guarded.values())) * self.protection.operations,
            "bytes": 0 if self.bounds is None else self.bounds.count * self.value_bytes,
            **measured,
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
    devices.pin_arithmetic(settings.precision)
    model = classifier.model.eval()
    modules = protections.chosen(model, protection, settings.protected_types)
    guarded: dict[Call, Shape] = {}

    def look(call: Call, output: Any) -> None:
        calibration.require_values(call, output)
        values: Tensor = output
        guarded[call] = tuple(values.shape[1:]) if len(values) == count else (*values.shape[1:], len(values) // count)

    place = next(tensor.device for tensor in model.parameters())

    def ready(batch: Inputs) -> Inputs:
        return inputs.to(inputs.of(batch), place, classifier.dtype)

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
    guards = {call: _guard(protection, call, bounds, classifier) for call in guarded}
    protections.apply(model, modules, guards)
    return Safeguard(protection, bounds if protection.calibrated else None, guarded, classifier.dtype.itemsize)


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
