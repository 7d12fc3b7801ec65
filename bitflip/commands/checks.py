"""Every mistake in the settings that shows without loading anything, found together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from bitflip import files
from bitflip.cluster import joining
from bitflip.commands.shared import OUTPUT
from bitflip.data import datasets, training
from bitflip.errors import BadInput
from bitflip.faults import faultlist
from bitflip.faults.flips import TargetKind
from bitflip.network import calibration, devices, layers, models, own
from bitflip.settings import combined, reading
from bitflip.settings.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)


def checked(argv: Sequence[str], target: TargetKind) -> Hyperparameters:
    """Read the settings and look for every mistake that shows without loading anything.

    Raises:
        BadInput: with all mistakes together.
    """
    settings, problems = reading.read(argv)
    for sentence in reading.nearly_settings():
        log.warning(sentence)
    name = str(settings.model_name)
    custom = models.is_custom(name)  # may hold float64 values, and layer classes of its own
    checks: list[tuple[set[str], Callable[[], list[str]]]] = [
        ({"dataset", "model_name", "weights", "hub_path"}, lambda: models.check(settings)),
        ({"bit_flip_pos", "model_name"}, lambda: combined.check_bit(settings, 64 if custom else 32)),
        ({"fault", "bit_flip_pos", "bit_sampling"}, lambda: combined.check_fault(settings)),
        ({"bit_error_rate"}, lambda: combined.check_error_rate(settings)),
        (combined.IDLE, lambda: combined.check_idle(settings, target)),
        ({"seeds", "margin"}, lambda: combined.check_seeds(settings)),
        ({"prove", "audit", "engine", "fault_table", "faults"}, lambda: combined.check_prove(settings)),
        (
            {"protect", "protect_layers", "bounds", "calibration_images", "percentile"},
            lambda: combined.check_protect(settings),
        ),
        ({"protect", "fault", "bit_error_rate"}, lambda: combined.check_ecc(settings, target)),
        ({"protect"}, lambda: own.check(settings)),
        ({"bounds"}, lambda: calibration.check_file(settings.bounds)),
        ({"calibration_images", "dataset"}, lambda: training.check(settings)),
        ({"layer_type", "model_name"}, lambda: [] if custom else layers.check_types(settings.layer_types)),
        ({"mean", "std", "channels", "dataset", "class_order"}, lambda: datasets.check(settings)),
        ({"device"}, lambda: [] if settings.ray else devices.check(settings.device)),
        (
            {"device", "precision"},
            lambda: [] if settings.ray else devices.check_precision(settings.precision, settings.device),
        ),
        ({"ray", "device", "faults"}, lambda: joining.check(settings)),
        ({"output_path"}, lambda: files.check_folder(OUTPUT, settings.output_path)),
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


def _check_rerun(path: Path | None, target: TargetKind) -> list[str]:
    """One sentence if an earlier run flipped something else than this script does."""
    then = None if path is None else json.loads(path.read_text(encoding="utf-8")).get("target")
    if then in (None, target):
        return []
    scripts = {"neuron": "main.py or neuron.py", "weight": "weight.py"}
    if then not in ("neuron", "weight"):
        return [f"rerun (--rerun): expected a run with neuron or weight faults, but {path} says {then!r}"]
    return [f"rerun (--rerun): {path} is of a run with {then} faults; give it to {scripts[then]}"]
