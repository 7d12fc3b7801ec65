"""What plots show of a network: its layers; of very many, the most fragile ones, and all of them by block."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bitflip.report.runs import Place, Row, Run
from bitflip.report.scale import plain, short
from bitflip.report.summary import due
from bitflip.statistics.rates import Rate

CROWDED = 80  # layers; more are hairlines if each of them is drawn
WORST = 15  # layers that are drawn then
BLOCKS = range(4, 16)  # so many blocks say something about the network, and can be drawn
EQUAL = 10  # blocks of a network whose paths tell none
TYPE = 16  # characters of a layer's type on an axis


@dataclass(frozen=True)
class Line:
    """What is drawn as one: a layer, or a block of layers that follow each other.

    Attributes:
        rows: of the layers.
        path: of a block; None of a layer.
    """

    rows: tuple[Row, ...]
    path: str | None = None

    @property
    def row(self) -> Row | None:
        """The layer; None of a block."""
        return self.rows[0] if self.path is None else None

    @property
    def number(self) -> str:
        """``#5`` of a layer, ``#5 to 40`` of a block."""
        first, last = (row.place.layer for row in (self.rows[0], self.rows[-1]))
        return f"#{first}" if self.row or first == last else f"#{first} to {last}"

    @property
    def name(self) -> str:
        """The layer or block in words."""
        if self.path is None:
            return self.rows[0].place.named
        count = len(self.rows)
        return f"{self.number} {self.path} ({count} layer{'s' * (count > 1)})".replace("  ", " ")

    def brief(self, longest: int) -> str:
        """The name for an axis, in about so many characters."""
        if self.path is None:
            return brief_place(self.rows[0].place, longest)
        return f"{self.number} {short(self.path, max(8, longest - len(self.number) - 1))}".rstrip()

    @property
    def known(self) -> list[float]:
        """The rates of the layers that have one, in percent."""
        return [row.rate.value for row in self.rows if row.rate.value is not None]

    @property
    def rate(self) -> Rate:
        """Of the layer; of a block the mean of its layers, without an interval."""
        return self.row.rate if self.row else mean(self.known)

    @property
    def range(self) -> tuple[float, float] | None:
        """From the least to the most fragile of a block's layers, or of a layer's seeds; None with nothing to span."""
        found = [value for value in self.row.seeds if value is not None] if self.row else self.known
        return (min(found), max(found)) if found else None

    def due(self, run: Run) -> Rate:
        """See :func:`bitflip.report.summary.due`; of a block the mean."""
        found = [due(row, run) for row in self.rows]
        return found[0] if self.row else mean([rate.value for rate in found if rate.value is not None])


def mean(values: Sequence[float]) -> Rate:
    """The mean of rates as a rate without an interval."""
    return Rate(statistics.fmean(values) if values else None)


def brief(number: int, kind: str, label: str, longest: int) -> str:
    """A layer as :func:`bitflip.network.names.named` names it, cut to about so many characters for a plot."""
    head = f"#{number} {plain(kind, TYPE)}"
    return f"{head} (path {short(label, max(8, longest - len(head) - len(' (path )')))})"


def brief_place(place: Place, longest: int) -> str:
    """:func:`brief` of a place."""
    return brief(place.layer, place.type, place.label, longest)


def ranked(run: Run) -> list[Row]:
    """Layers that have a rate, the most fragile first; in order of the network where rates are equal."""
    return sorted((row for row in run.layers if row.rate.value is not None), key=lambda row: -(row.rate.value or 0))


def lines(run: Run) -> list[Line]:
    """What plots show of a run, from the first to the last."""
    if len(run.layers) <= CROWDED:
        return [Line((row,)) for row in run.layers]
    return [*(Line((row,)) for row in ranked(run)[:WORST]), *blocks(run.layers)]


def border(shown: Sequence[Line]) -> int | None:
    """The place of the first block; None if there is none."""
    return next((i for i, line in enumerate(shown) if line.row is None), None)


def explained(run: Run, shown: Sequence[Line]) -> str:
    """What is drawn, if that is not simply every layer."""
    at = border(shown)
    if at is None:
        return ""
    worst = f"first the {at} most fragile of {len(run.layers)} layers, then all of them" if at else "layers"
    return f"{worst} by block: the mean, and grey from the least to the most fragile"


@dataclass(frozen=True)
class Cell:
    """The flips of one bit in all layers of a line."""

    misclassified: int
    correct: int
    rate: Rate


def cells(run: Run, drawn: Sequence[Line]) -> list[dict[int, Cell]]:
    """The cells of each line, by bit; a block's rate is that of all its flips together."""
    of_place: dict[Place, list[Row]] = {}
    for row in run.bits:
        of_place.setdefault(row.place, []).append(row)
    found = []
    for line in drawn:
        by_bit: dict[int, list[Row]] = {}
        for one in line.rows:
            for row in of_place.get(one.place, []):
                if row.bit is not None:
                    by_bit.setdefault(row.bit, []).append(row)
        found.append({bit: _together(rows) for bit, rows in sorted(by_bit.items())})
    return found


def _together(rows: Sequence[Row]) -> Cell:
    wrong, correct = sum(row.misclassified for row in rows), sum(row.correct for row in rows)
    if len(rows) == 1:
        return Cell(wrong, correct, rows[0].rate)
    return Cell(wrong, correct, Rate(100 * wrong / correct if correct else None))


def blocks(rows: Sequence[Row]) -> list[Line]:
    """The layers of a network by the first parts of their paths: as many as can be drawn; alike in size, if none can.

    Layers that are alone in theirs are put together with those beside them that are, too.
    """
    deepest = max(row.place.path.count(".") for row in rows) + 1
    for depth in range(deepest, 0, -1):
        found = _at_depth(rows, depth)
        if len(found) in BLOCKS:
            return found
    size = -(-len(rows) // EQUAL)
    return [Line(tuple(rows[i : i + size]), "") for i in range(0, len(rows), size)]


def _at_depth(rows: Sequence[Row], depth: int) -> list[Line]:
    parts = [
        (start, tuple(members))
        for start, members in groupby(rows, key=lambda row: ".".join(row.place.path.split(".")[:depth]))
    ]
    found = []
    for alone, some in groupby(parts, key=lambda part: len(part[1]) == 1):
        if alone:
            members = tuple(row for _, one in some for row in one)
            ends = [row.place.path.rpartition(".")[2] for row in (members[0], members[-1])]
            found.append(Line(members, " to ".join(ends[: len(members)])))
        else:
            found += [Line(members, start) for start, members in some]
    return found
