"""What a run is: all that an unfinished one must share with the one that goes on with it."""

from __future__ import annotations

from typing import Any

from bitflip.campaign.executor import Executor
from bitflip.campaign.experiment import Experiment
from bitflip.faults.flips import TargetKind
from bitflip.faults.listed import Listed
from bitflip.results import provenance
from bitflip.settings import hyperparameters
from bitflip.settings.hyperparameters import Hyperparameters


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
        "images": experiment.images.count,
        "pixels and labels": experiment.images.sha256,
        "layers": [[item.number, item.layer.path] for item in experiment.targets],
        "faults": source.digest if isinstance(source, Listed) else None,
        **{f"{name} version": version for name, version in provenance.versions().items()},
    }
