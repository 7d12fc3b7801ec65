"""All that one campaign keeps of its outcomes."""

from __future__ import annotations

from pathlib import Path

from bitflip.campaign.experiment import Experiment
from bitflip.campaign.logs import DetailLog, FaultTable, Log
from bitflip.faults.listed import Listed
from bitflip.faults.tasks import Task
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.outcomes.counts import Counts
from bitflip.outcomes.per_fault import PerFault
from bitflip.outcomes.tally import Tally


class Tallies:
    """The tallies of an experiment, as its settings ask for.

    Args:
        experiment: whose outcomes they take.
        folder: for the logs.

    Attributes:
        main: counts of sampled faults, or what each fault of a list did.
        details: the detailed log of each seed, if it is wanted.
        tables: the fault table of each seed, if it is wanted.
        seeds: of the faults; those of a list were not drawn, and have the seed 0.
        by_name: all of them.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        settings, items = experiment.settings, experiment.targets
        self._experiment = experiment
        listed = isinstance(experiment.source, Listed)
        self.seeds = (0,) if listed else settings.all_seeds
        self.main: Counts | PerFault = (
            PerFault(experiment.source.faults, experiment.images.count, bounded=settings.prove)
            if isinstance(experiment.source, Listed)
            else Counts(self.seeds, items)
        )
        self.details = {
            seed: DetailLog(folder, items, settings.batch_size, seed, experiment.network.injector.stored_at)
            for seed in self.seeds
            if settings.detailed_log
        }
        self.tables = {seed: FaultTable(folder, items, seed) for seed in self.seeds if settings.fault_table}
        self.by_name: dict[str, Tally] = {"main": self.main}
        for name, logs in (("detail", self.details), ("table", self.tables)):
            self.by_name |= {f"{name}-{seed}": log for seed, log in logs.items()}

    def add(self, task: Task, batch: BatchOutcomes) -> None:
        """Take the outcomes of one task."""
        for tally in self.by_name.values():
            tally.add(task, batch)

    @property
    def counts(self) -> Counts:
        """What was counted, by layer and bit."""
        if isinstance(self.main, Counts):
            return self.main
        return self.main.tallied(self._experiment.settings.seed, self._experiment.targets)

    def close(self) -> None:
        """Let go of the files."""
        logs: list[Log] = [*self.details.values(), *self.tables.values()]
        for log in logs:
            log.close()
