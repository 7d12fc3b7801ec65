"""The names of a run's files: of those that it writes, and those that a report adds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bitflip.settings.hyperparameters import Hyperparameters

LISTED_FAULTS = "_faults.csv"  # what the name of a list's row-per-fault file ends in


@dataclass(frozen=True)
class Paths:
    """Where the files of one run are.

    Attributes:
        folder: the output path.
        stem: what all file names start with, ``MODEL_DATASET_SEED`` with the script's prefix.
    """

    folder: Path
    stem: str

    @classmethod
    def of(cls, settings: Hyperparameters, prefix: str, seed: int | str) -> Paths:
        """The paths of a run with these settings; ``prefix`` tells the scripts apart."""
        model = model_stem(str(settings.model_name))
        return cls(settings.output_path, f"{prefix}{model}_{settings.dataset}_{seed}")

    @classmethod
    def of_run(cls, settings: Hyperparameters, prefix: str) -> Paths:
        """Those of a run as a whole, whatever the number of its seeds.

        Of the run of a fault list, ``MODEL_DATASET_list-NAME``; with ``limit``, the name says so.
        """
        if settings.faults is None:
            return cls.of(settings, prefix, settings.seeds or settings.seed)
        name = _plain(settings.faults.stem)
        limit = "" if settings.limit is None else f"_{settings.limit}_{settings.seed}"
        return cls.of(settings, prefix, f"list-{name}{limit}")

    @classmethod
    def of_results(cls, settings: Hyperparameters, prefix: str) -> list[Paths]:
        """Those of the results of each seed; of a fault list, its only ones."""
        if settings.faults is not None:
            return [cls.of_run(settings, prefix)]
        return [cls.of(settings, prefix, seed) for seed in settings.all_seeds]

    @property
    def summary(self) -> Path:
        """Layer summary and result lines, for people."""
        return self._named(".txt")

    @property
    def table(self) -> Path:
        """One row per layer."""
        return self._named(".csv")

    @property
    def bits(self) -> Path:
        """One row per layer and bit."""
        return self._named("_bits.csv")

    @property
    def faults(self) -> Path:
        """One row per injection, in columns."""
        return self._named("_faults.parquet")

    @property
    def detail(self) -> Path:
        """Every misclassification, as text."""
        return self._named("_detailed.txt")

    @property
    def run(self) -> Path:
        """Settings and everything else that is needed to repeat the run."""
        return self._named(".json")

    @property
    def bounds(self) -> Path:
        """The bounds of the protection, if they were measured."""
        return self._named("_bounds.json")

    @property
    def all(self) -> tuple[Path, ...]:
        """All files that a run may write."""
        listed = (self.listed_faults, self.listed_images)
        return (self.summary, self.table, self.bits, *listed, self.run, self.detail, self.faults, self.bounds)

    @property
    def listed_faults(self) -> Path:
        """Of a fault list: one row per fault."""
        return self._named(LISTED_FAULTS)

    @property
    def listed_images(self) -> Path:
        """Of a fault list: one row per image, layer and bit with a critical inference."""
        return self._named("_images.csv")

    @property
    def means(self) -> Path:
        """Of joined seeds: a row per layer type, and one for the network."""
        return self._named("_means.csv")

    @property
    def page(self) -> Path:
        """The report."""
        return self._named(".html")

    def picture(self, name: str, kind: str) -> Path:
        """A plot: ``layers``, ``bits`` or ``heatmap``, as ``png`` or ``svg``."""
        return self._named(f"_{name}.{kind}")

    @property
    def unfinished(self) -> Path:
        """The folder of a run that is not finished."""
        return self._named(".unfinished")

    @property
    def error_rates(self) -> Paths:
        """Those of a run with bit error rates."""
        return Paths(self.folder, f"{self.stem}_ber")

    def partial(self) -> Paths:
        """The paths for the results of an interrupted run, which must not pass for those of a whole one."""
        return Paths(self.folder, f"{self.stem}_partial")

    def _named(self, ending: str) -> Path:
        return self.folder / f"{self.stem}{ending}"


def model_stem(name: str) -> str:
    """A model's name as part of a file name."""
    module, _, factory = name.rpartition(":")
    place = Path(module).stem if module.endswith(".py") else module
    return _plain(f"{place}-{factory}" if module else name)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
