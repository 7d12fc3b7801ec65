"""What a run is: what an unfinished one shares with one that goes on with it, and a finished one with its repeat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from bitflip.campaign.executor import Executor
from bitflip.campaign.experiment import Experiment
from bitflip.faults.flips import TargetKind
from bitflip.faults.listed import Listed
from bitflip.results import provenance
from bitflip.settings import hyperparameters
from bitflip.settings.hyperparameters import Hyperparameters, role_of

LONG = 60  # characters of a value that a sentence still quotes


def of_settings(settings: Hyperparameters, target: TargetKind) -> dict[str, Any]:
    """What shows before anything is loaded, by the name that a user knows it by."""
    values = settings.values
    return {"target": target, **{name: values[name] for name in hyperparameters.names(lambda role: role.unfinished)}}


def of_experiment(experiment: Experiment, executor: Executor) -> dict[str, Any]:
    """What shows once all is loaded."""
    classifier, source, protected = experiment.network.classifier, experiment.source, experiment.network.protected
    return {
        "device": executor.arithmetic,
        "engine that can run it": experiment.network.engine.name,
        "model sha256": classifier.sha256,
        "code of the model": classifier.code,
        "bounds of the protection": None if protected is None or protected.bounds is None else protected.bounds.sha256,
        "code of the protection": None if protected is None else protected.code,
        "bits that are protected": None
        if protected is None or protected.corrected is None
        else protected.corrected.sha256,
        "images": experiment.images.count,
        "pixels and labels": experiment.images.sha256,
        "layers": [[item.number, item.layer.path] for item in experiment.targets],
        "faults": source.digest if isinstance(source, Listed) else None,
        **{f"{name} version": version for name, version in provenance.versions().items()},
    }


def of_finished(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the ``.json`` of a finished run says of it, as far as it does.

    Raises:
        KeyError, TypeError, AttributeError: if it is none.
    """
    settings, model, data = facts["settings"], facts["model"], facts["data"]
    listed = {"faults": facts["faults_sha256"]} if "faults_sha256" in facts else {}
    return {
        "target": facts["target"],
        **{name: value for name, value in settings.items() if role_of(name).unfinished},
        "device": kind_of(facts["device"]),
        "engine that can run it": facts["engine"],
        "model sha256": model["sha256"],
        "code of the model": model["code_sha256"],
        "images": data["images"],
        "pixels and labels": data["sha256"],
        **listed,
        **{f"{name} version": version for name, version in facts["versions"].items()},
    }


def kind_of(device: str) -> str:
    """What of a device, in words, results are taken to depend on: all GPUs count as one."""
    return "cuda" if device.startswith("cuda") else device


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same there as here."""
    return [name for name in here if there.get(name) != here[name]]


def difference(there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str]) -> str:
    """That in words."""
    return "; ".join(_words(name, there.get(name), here[name]) for name in names)


def _words(name: str, there: object, here: object) -> str:
    if max(len(str(there)), len(str(here))) > LONG:
        return f"other {name}"
    return f"{name} {there} there, {here} here"
