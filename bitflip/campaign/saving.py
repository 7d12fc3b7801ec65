"""The faults of a run as a fault list."""

from __future__ import annotations

from pathlib import Path

from bitflip import files
from bitflip.campaign.experiment import Experiment
from bitflip.faults import faultlist
from bitflip.faults.listed import Listed


def save(path: Path, experiment: Experiment) -> None:
    """Write the faults of one round through the test set, or of the list; run again, they give the same outcomes.

    Raises:
        BadInput: if it can't be written.
    """
    source = experiment.source
    with files.written_for(faultlist.SAVE, path) as file:
        if isinstance(source, Listed):
            faultlist.write(file, source.faults)
        else:
            needed = {
                faultlist.FAULT: source.kind.name not in ("flip", "flips", "burst"),
                faultlist.REPEAT: source.repeats * len(source.seeds) > 1,
            }
            listed = source.listed(experiment.targets, experiment.images.count)
            faultlist.write(file, listed, [column for column, true in needed.items() if true])
