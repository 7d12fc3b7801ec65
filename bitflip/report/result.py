"""What a campaign found out, for a program or a notebook: made from its files, as plots and pages are."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from bitflip import report
from bitflip.errors import BadInput
from bitflip.report import budget, comparison, plots, reading
from bitflip.report.budget import Budget
from bitflip.report.comparison import Comparison
from bitflip.report.runs import Row, Run
from bitflip.results import columns
from bitflip.results.paths import Paths

T = TypeVar("T")


class Rows(tuple[T, ...]):
    """Rows of a table; each is a frozen value with a name for each column."""

    __slots__ = ()

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``.

        Raises:
            ImportError: without pandas.
        """
        import pandas

        return pandas.DataFrame([asdict(row) for row in self])  # type: ignore[call-overload]


@dataclass(frozen=True)
class ResultRow:
    """What the faults of one layer, or of one bit of it, did; rates are in percent.

    Attributes:
        layer, path, call, type, parameter: where bits were flipped; ``parameter`` is empty for neurons.
        bit: counted from the most significant; None for all.
        misclassified: clean-correct inputs whose class changed.
        correct: faulty inferences whose input the clean model classifies correctly.
        rate, low, high: misclassification rate with its confidence interval; None with nothing to divide by.
        flips, injections: flips that were made, and inferences with one.
        masked, benign, sdc1, sdc5, sdc10, sdc20, nonfinite, due: inferences by what happened, see
            :data:`bitflip.outcomes.batch.COLUMNS`; of a run with bounds, ``masked``, ``benign``, ``sdc10`` and
            ``sdc20`` are not known.
        harmless, proved, audited: those that did not change the class, those of them that a bound showed to be so, and
            those of these that were run all the same; the last two are 0 without bounds.
        largest_change: of the probability of the clean top-1 class, 0 to 1; None with bounds.
    """

    layer: int
    path: str
    call: int
    type: str
    parameter: str
    bit: int | None
    misclassified: int
    correct: int
    rate: float | None
    low: float | None
    high: float | None
    flips: int
    injections: int
    masked: int | None
    benign: int | None
    sdc1: int
    sdc5: int
    sdc10: int | None
    sdc20: int | None
    nonfinite: int
    due: int
    harmless: int
    proved: int
    audited: int
    largest_change: float | None


@dataclass(frozen=True)
class Picture:
    """A plot, which a notebook shows by itself.

    Attributes:
        png, svg: its content.
    """

    png: bytes
    svg: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | Path) -> None:
        """Write it to a file, whose name ends in ``.png`` or ``.svg``."""
        contents = {".png": self.png, ".svg": self.svg}
        path = Path(path)
        if path.suffix not in contents:
            raise BadInput(f"path: expected a name that ends in .png or .svg, got {path}")
        path.write_bytes(contents[path.suffix])


class Result:
    """What a campaign found out: the files that a script would have written, and what they say.

    Args:
        table: the ``.csv`` of the run.
        holder: what keeps the files' folder; None if that stays by itself.
    """

    def __init__(self, table: Path, holder: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self._holder = holder
        self._run: Run = report.read(table)

    def __repr__(self) -> str:
        return f"<Result: {self._run.title}>"

    @property
    def files(self) -> Paths:
        """Where the files are, for as long as the result is there; :meth:`save` writes them elsewhere."""
        return self._run.files

    @property
    def facts(self) -> dict[str, Any]:
        """The settings and circumstances of the run, and the number of inputs."""
        return dict(self._run.facts)

    @cached_property
    def layers(self) -> Rows[ResultRow]:
        """A row per layer, or parameter tensor."""
        return Rows(_row(row) for row in self._run.layers)

    @cached_property
    def bits(self) -> Rows[ResultRow]:
        """A row per layer and bit that was flipped in it."""
        return Rows(_row(row) for row in self._run.bits)

    def budget(self, ranked_by: Result | Literal["position"] | None = None) -> Budget:
        """What protecting some of the bits leaves; see docs/protections.md.

        Args:
            ranked_by: what chooses which bits come first: another result, of other faults; the positions of bits; None
                for half of the faults, so that the other half estimates.

        Raises:
            BadInput: if the faults are not of single bits, or the files do not tell them apart.
        """
        return budget.of(self._run, ranked_by._run if isinstance(ranked_by, Result) else ranked_by)

    def plot(self, name: Literal["layers", "bits", "heatmap"] = "layers", width: float = plots.WIDTH) -> Picture:
        """A plot of the rates: by layer, by bit, or by both.

        Args:
            name: of the plot.
            width: in inches.

        Raises:
            BadInput: if there is no such plot, or nothing to show in it.
        """
        if name not in plots.NAMES:
            raise BadInput(f"name: expected one of {', '.join(plots.NAMES)}, got {name!r}")
        content = plots.pictures(self._run, width)[name]
        if content is None:
            raise BadInput(f"name: expected a plot that has something to show, and {name} has not")
        return Picture(content["png"], content["svg"])

    def save(self, folder: str | Path, *, plots: bool = True) -> list[Path]:
        """Write the files that a script writes, with plots and a page about them; where they are.

        Raises:
            BadInput: if they can't be written.
        """
        folder, files = Path(folder), self._run.files
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = [Path(shutil.copy(path, folder)) for path in files.all if path.exists()]
        except OSError as error:
            raise BadInput(f"folder: expected one that can be written to, got {folder} ({error.strerror})") from error
        return [*written, *(report.write(report.read(folder / files.table.name)) if plots else [])]


def compare(first: Result | str | Path, second: Result | str | Path) -> Comparison:
    """Hold two runs against each other, layer by layer; where both have a table of the same faults, fault by fault.

    Args:
        first, second: results, or the ``.csv`` or ``.json`` of runs.

    Raises:
        BadInput: if they flip different things, have no layer in common, or a file is damaged.
    """
    return comparison.compare(*(_run_of(one) for one in (first, second)))


def _run_of(result: Result | str | Path) -> Run:
    return result._run if isinstance(result, Result) else report.read(reading.table_of(Path(result)))


def _row(row: Row) -> ResultRow:
    place, outcomes = row.place, row.outcomes
    assert outcomes is not None  # every run of this version has them
    cells: list[Any] = [place.layer, place.path, place.call, place.type, place.parameter, row.bit]
    cells += [row.misclassified, row.correct, row.rate.value, row.rate.low, row.rate.high]
    counts = outcomes.counts
    harmless = outcomes.injections - counts["sdc1"] - counts["due"]
    cells += [counts.get(name) for name in columns.COUNTS]
    cells += [harmless, counts.get("proved", 0), counts.get("audited", 0), outcomes.largest_change]
    return ResultRow(*cells)
