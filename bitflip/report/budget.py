"""Which bits must be protected? From a run's files: what is left when the worst ones are, and how many are enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from bitflip import csvs
from bitflip.errors import BadInput
from bitflip.faults.allocation import by_effect, strata
from bitflip.network.fields import regions
from bitflip.report import comparison, record
from bitflip.report.runs import Place, Run, parameters_of
from bitflip.report.summary import sums
from bitflip.results import columns
from bitflip.settings.combined import SINGLE
from bitflip.statistics import budget
from bitflip.statistics.budget import Curve, Ints
from bitflip.statistics.intervals import Sums
from bitflip.statistics.rates import Rate

HEAD = ("rank", "layer", "name", "path", "call", "parameter", "bit", "bits", "protected", "rate", "low", "high")
POSITION: Literal["position"] = "position"  # what ranks cells without looking at any fault

By = Run | Literal["position"] | None


@dataclass(frozen=True)
class Cell:
    """A bit position of a layer's values.

    Attributes:
        place: the layer.
        bit: from the most significant.
        bits: that there are: one of each value.
    """

    place: Place
    bit: int
    bits: int


@dataclass(frozen=True)
class Budget:
    """What protecting bits leaves.

    Attributes:
        run: whose faults say so.
        cells: in the order in which they are protected.
        curve: what is left when the first of them are.
        ranked: what chose the order, in words.
        flips: faults that what is left is estimated by, on images that the clean model classifies correctly.
    """

    run: Run
    cells: tuple[Cell, ...]
    curve: Curve
    ranked: str
    flips: int

    def rate(self, count: int) -> Rate:
        """What is left when so many cells are protected, in percent."""
        return Rate(*(100 * float(end[count]) for end in (self.curve.rate, self.curve.low, self.curve.high)))

    def share(self, count: int) -> float:
        """Percent of the bits that so many cells are."""
        return 100 * float(self.curve.share[count])

    def enough(self, target: float) -> int:
        """The fewest cells of which it is sure that they leave no more than a rate, in percent."""
        return self.curve.enough(target / 100)

    def rows(self) -> Iterator[list[Any]]:
        """The rows of a table, in the columns of :data:`HEAD`: the first of no cell, then one for each."""
        for count in range(len(self.cells) + 1):
            rate = self.rate(count)
            where: list[Any] = [""] * 7
            if count:
                cell = self.cells[count - 1]
                place = cell.place
                where = [place.layer, place.type, place.path, place.call, place.parameter, cell.bit, cell.bits]
            numbers = (self.share(count), rate.value, rate.low, rate.high)
            yield [count, *where, *(f"{number:.6f}" for number in numbers)]


def of(run: Run, ranked_by: By = None) -> Budget:
    """What protecting the bits of a run leaves.

    Args:
        run: of faults of single bits.
        ranked_by: what chooses which bits come first: another run with other faults; the positions of bits; None for
            one half of the run's own faults, so that the other half estimates.

    Raises:
        BadInput: if the files do not say enough, or a file is damaged.
    """
    cells = _cells(run)
    place = {(cell.place, cell.bit): i for i, cell in enumerate(cells)}
    bits = np.array([cell.bits for cell in cells], dtype=np.float64)
    kinds = [(str(run.form_of(cell.place)), cell.bit) for cell in cells]  # a bit is another one in another format
    bit = np.unique(kinds, axis=0, return_inverse=True)[1].ravel()
    layers = {where: i for i, where in enumerate(dict.fromkeys(cell.place for cell in cells))}
    layer = np.array([layers[cell.place] for cell in cells])
    rank = np.array([by_effect(run.width_of(cell.place), run.form_of(cell.place)).index(cell.bit) for cell in cells])
    if ranked_by is None:
        ranking, estimating = _halves(run, place)
        words = "half of the faults, chosen at random"
    else:
        estimating = _whole(run, place)
        ranking = _whole(_other(run, ranked_by), place) if isinstance(ranked_by, Run) else _nothing(len(cells))
        words = ranked_by.title if isinstance(ranked_by, Run) else "the position of the bit"
    order = budget.worst_first(ranking, layer, bit, rank)
    curve = budget.curve(estimating, _parts(run, cells, layer), bits, order, run.confidence)
    faults = int(np.minimum(estimating.flips, estimating.n).sum())
    return Budget(run, tuple(cells[i] for i in order), curve, words, faults)


def _cells(run: Run) -> list[Cell]:
    """All that a fault of a run could have hit, whether one has or not.

    Raises:
        BadInput: if the files do not say it.
    """
    _require_single(run)
    values = _values(run)
    fixed = int(run.settings.get("bit_flip_pos", -1))
    cells = []
    for row in run.layers:
        if (count := values.get((row.place.layer, row.place.parameter))) is None:
            raise BadInput(f"{run.files.run}: expected the shape of {row.place.label}, to know how many bits it has")
        known = [fixed] if fixed >= 0 and run.listed is None else range(run.width_of(row.place))
        cells += [Cell(row.place, bit, count) for bit in known]
    return cells


def _require_single(run: Run) -> None:
    """See that faults change one bit each, and that it is known which.

    Raises:
        BadInput: if not.
    """
    kind = str(run.settings.get("fault") or "flip")
    if run.listed and run.files.listed_faults.exists():
        table = csvs.Table(run.files.listed_faults, ended=True)
        table.require(("bit",), table.header)
        several = (bits for _, bits in table.values(lambda row: row["bit"]) if not bits.isdecimal())
        kind = next((f"a fault of bits {bits}" if bits else "a fault of a whole value" for bits in several), kind)
    if kind.partition(":")[0] not in SINGLE or not run.bits:
        raise BadInput(
            f"{run.files.table}: expected a run whose faults change one bit each ({', '.join(SINGLE)}), with its "
            f"{run.files.bits.name}, got {kind if ' ' in kind else f'fault {kind}'}"
        )


def _values(run: Run) -> dict[tuple[int, str], int]:
    """How many values there are, by number of the layer and parameter."""
    found = {}
    for item in run.facts.get("layers", []):
        shapes = {"": item.get("shape")}
        if run.target == "weight":
            shapes = {str(tensor.get("name")): tensor.get("shape") for tensor in parameters_of(item)}
        for name, shape in shapes.items():
            if isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape):
                found[item.get("number"), name] = math.prod(shape)
    return found


def _parts(run: Run, cells: Sequence[Cell], layer: Ints) -> Ints:
    """Which cells' faults were drawn alike, all bits equally often: those of a layer, or of its two strata."""
    if not run.weighted:
        return layer
    rare = [
        cell.bit not in strata(run.width_of(cell.place), run.number_of(cell.place))[0][0] for cell in cells
    ]  # the first stratum is the bit that gets more
    _, part = np.unique(2 * layer + np.array(rare), return_inverse=True)
    return part.astype(np.int64)


def _other(run: Run, ranking: Run) -> Run:
    """Another run, whose faults are others.

    Raises:
        BadInput: if they are not, or strike something else.
    """
    if ranking.target != run.target:
        raise BadInput(
            f"ranked_by (--ranked-by): expected a run with {run.target} faults, got {ranking.target} faults in "
            f"{ranking.files.table.name}"
        )
    same = ranking.listed == run.listed if ranking.listed or run.listed else set(ranking.seeds) & set(run.seeds)
    if same:
        raise BadInput(
            "ranked_by (--ranked-by): expected a run with other faults, such as of another seed; faults that "
            "choose which bits come first can't also say what is left"
        )
    _require_single(ranking)
    forms = {_key(row.place): (ranking.width_of(row.place), ranking.form_of(row.place)) for row in ranking.layers}
    for row in run.layers:
        mine = run.width_of(row.place), run.form_of(row.place)
        if (its := forms.get(_key(row.place), mine)) != mine and regions(*its) != regions(*mine):
            raise BadInput(
                "ranked_by (--ranked-by): expected a run in the same number format, in which bits are the same, got "
                f"{its[1]} for {row.place.label} in {ranking.files.table.name}, {mine[1]} in {run.files.table.name}"
            )
    return ranking


# --- the faults of each cell ---

Places = Mapping[tuple[Place, int], int]


def _nothing(cells: int) -> Sums[Any]:
    return Sums(*(np.zeros(cells) for _ in fields(Sums)))


def _whole(run: Run, place: Places) -> Sums[Any]:
    """The sums of each cell over all faults of a run; layers are matched as in a comparison."""
    keys = {(_key(where), bit): i for (where, bit), i in place.items()}
    found = _nothing(len(place))
    for row in run.bits:
        i = keys.get((_key(row.place), row.bit or 0))
        if i is not None:
            one = sums([row], run.target)
            for field in fields(Sums):
                getattr(found, field.name)[i] = getattr(one, field.name)
    return found


def _key(place: Place) -> tuple[str, int, str]:
    return place.path, place.call, place.parameter


def _halves(run: Run, place: Places) -> tuple[Sums[Any], Sums[Any]]:
    """Two halves of a run's faults, the same ones each time.

    Raises:
        BadInput: if the files do not tell the faults apart.
    """
    random = np.random.Generator(np.random.Philox(key=run.seeds[0] % 2**64))
    whole = _whole(run, place)
    if np.array_equal(whole.nn, whole.n) and np.array_equal(whole.mm, whole.m):  # one image each
        return budget.thinned(whole.m.astype(np.int64), whole.n.astype(np.int64), random)
    if run.files.listed_faults.exists():
        cell, m, n = _of_list(run, place)
    elif run.files.faults.exists():
        cell, m, n = _of_table(run, place)
    else:
        raise BadInput(
            f"{run.files.table}: expected a run with fault_table (--fault-table), since half of the faults, one by "
            "one, choose which bits come first and the others say what is left; or name another run that chooses "
            f"(--ranked-by RUN), or let the positions of bits do so (--ranked-by {POSITION})"
        )
    return budget.dealt(cell, m, n, len(place), random)


def _of_table(run: Run, place: Places) -> tuple[Ints, Ints, Ints]:
    """Cell, broken and clean-correct images of each flip of a fault table."""
    size = int(run.settings.get("batch_size") or 1)
    by_number = {(where.layer, where.parameter): where for where, _ in place}
    found = []
    for where, table in comparison.faults_by_layer(run.files.faults).items():
        correct = table["label"] == table["clean_top1"]
        broken = record.misclassified(table["label"], table["clean_top1"], table["top1"])
        bits, flip = comparison.flips_of(table, size)
        m, n = (np.bincount(flip, true, len(bits)) for true in (broken, correct))
        found.append((np.array([place[by_number[where], bit] for bit in bits.tolist()]), m, n))
    cell, m, n = (np.concatenate(each).astype(np.int64) for each in zip(*found, strict=True))
    return cell, m, n


def _of_list(run: Run, place: Places) -> tuple[Ints, Ints, Ints]:
    """The same of a list's row for each fault."""
    keys = {(_key(where), bit): i for (where, bit), i in place.items()}
    table = csvs.Table(run.files.listed_faults, ended=True)
    table.require(("target", "layer", "call", "bit", *columns.HITS), table.header)

    def read(row: csvs.Row) -> tuple[int, int, int]:
        where = (row["layer"], row.count("call"), "" if row["target"] == "neuron" else row["target"])
        bit, m, n = (row.count(name) for name in ("bit", *columns.HITS))
        if (where, bit) not in keys:
            row.unlike("layer", f"a layer and bit of {run.files.table.name}", 0)
        row.finish()
        return keys[where, bit], m, n

    found = np.array([one for _, one in table.values(read)], dtype=np.int64).reshape(-1, 3)
    return found[:, 0], found[:, 1], found[:, 2]
