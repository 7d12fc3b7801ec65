"""A network with protections against the same network without, under the same faults: what each breaks, and saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitflip.report import comparison, reading, record, shown
from bitflip.report.comparison import Comparison, Difference
from bitflip.report.runs import Outcomes, Place, Row, Run
from bitflip.report.scale import OKABE_ITO, plain, scale_of
from bitflip.report.style import GREY, saved, styled
from bitflip.statistics.rates import Rate

if TYPE_CHECKING:  # matplotlib takes a while to import: only when something is drawn
    from matplotlib.axes import Axes

BARE = "unprotected"
CLASSES = ("masked", "benign", "sdc1", "sdc5", "sdc10", "sdc20", "nonfinite", "due")
HEAD = (
    *("protection", "layer", "name", "path", "call", "parameter", "rate", "low", "high"),
    *("difference", "difference_low", "difference_high", "compared", "correct", "misclassified", "injections"),
    *CLASSES,
    *("clean_correct", "images", "broken", "mended", "operations", "bytes"),
)
WIDTH, LAYER_HEIGHT = 7.0, 0.16  # inches


@dataclass(frozen=True)
class Measured:
    """What was found out about a protection.

    Attributes:
        name: of the protection; ``unprotected`` of none.
        run: under the faults.
        against: the run against that of the unprotected network; None for that itself.
        images: of the test set.
        correct: those that the network classifies correctly without a fault.
        broken, mended: those that only the unprotected network, only this one classifies correctly without a fault.
    """

    name: str
    run: Run
    against: Comparison | None
    images: int
    correct: int
    broken: int
    mended: int

    @property
    def rate(self) -> Rate | None:
        """The mean over the layers, in percent."""
        return next((mean.rate for mean in self.run.means if mean.of == "network"), None)

    @property
    def outcomes(self) -> Outcomes | None:
        """Of all layers together."""
        found = [row.outcomes for row in self.run.layers if row.outcomes is not None]
        return reduce(lambda a, b: a + b, found) if found else None

    @property
    def cost(self) -> tuple[int, int]:
        """Operations per image, of single values, and bytes of bounds, that the protection takes."""
        facts = self.run.facts.get("protection", {})
        return int(facts.get("operations", 0)), int(facts.get("bytes", 0))

    def differences(self) -> dict[Place, Difference]:
        """To the unprotected network, by layer."""
        return {} if self.against is None else dict(self.against.layers)


def measured(tables: Mapping[str, Path]) -> list[Measured]:
    """Read runs with a fault table each, the first of them that of the unprotected network.

    Args:
        tables: the ``.csv`` of each run, by the name of the protection.

    Raises:
        BadInput: if a file is damaged.
    """
    found: list[Measured] = []
    bare: Run | None = None
    before = np.zeros(0, dtype=bool)
    for name, table in tables.items():
        run = reading.read(table)
        right = _right(run)
        against = None if bare is None else comparison.compare(bare, run)
        bare, before = (run, right) if bare is None else (bare, before)
        counts = (int(right.sum()), int((before & ~right).sum()), int((right & ~before).sum()))
        found.append(Measured(name, run, against, len(right), *counts))
    return found


def _right(run: Run) -> NDArray[np.bool_]:
    """Whether each image that was struck is classified correctly without a fault, in their order: (N,)."""
    try:
        table = pq.read_table(run.files.faults, columns=["image", "label", "clean_top1"])
        image, label, top1 = (table.column(name).to_numpy() for name in table.column_names)
    except Exception as error:  # a damaged file makes its reader raise anything
        raise record.damaged(run.files.faults, error) from error
    _, first = np.unique(image, return_index=True)
    found: NDArray[np.bool_] = label[first] == top1[first]
    return found


def rows(found: Sequence[Measured]) -> Iterator[list[Any]]:
    """The rows of a table, in the columns of :data:`HEAD`: of each protection and layer, and the means over them."""
    for one in found:
        images = [one.correct, one.images, one.broken, one.mended, *one.cost]
        differences = one.differences()
        for row in one.run.layers:
            place = [row.place.layer, row.place.type, row.place.path, row.place.call, row.place.parameter]
            difference = _numbers(differences.get(row.place))
            yield [one.name, *place, *_rate(row.rate), *difference, *_counts([row]), *images]
        network = None if one.against is None else one.against.network
        yield [
            one.name,
            *["", "network", "", "", ""],
            *_rate(one.rate),
            *_numbers(network),
            *_counts(one.run.layers),
            *images,
        ]


def _rate(rate: Rate | None) -> list[str]:
    ends = (None, None) if rate is None or not rate.interval else rate.interval
    return ["" if number is None else f"{number:.6f}" for number in (None if rate is None else rate.value, *ends)]


def _numbers(difference: Difference | None) -> list[Any]:
    if difference is None:
        return [""] * 4
    ends = (difference.value, difference.low, difference.high)
    return [*("" if number is None else f"{number:.6f}" for number in ends), difference.compared]


def _counts(of: Sequence[Row]) -> list[Any]:
    outcomes = [row.outcomes for row in of if row.outcomes is not None]
    known = reduce(lambda a, b: a + b, outcomes) if outcomes else None
    classes = ["" if known is None else known[name] for name in ("injections", *CLASSES)]
    return [sum(row.correct for row in of), sum(row.misclassified for row in of), *classes]


def picture(found: Sequence[Measured]) -> dict[str, bytes]:
    """A plot as ``png`` and ``svg``: the rate by layer, and what is gained against what it costs."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layers = _drawn(found[0].run)
    with styled():
        height = max(3.0, 0.9 + LAYER_HEIGHT * len(layers))
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04))
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        figure.suptitle(plain(found[0].run.title, 150), x=0.01, ha="left", fontsize=6, color=GREY)
        _by_layer(left, found, layers)
        _gain(right, found)
        made = saved(figure)
    assert made is not None
    return made


def _drawn(bare: Run) -> list[Place]:
    """All layers, or of very many those that are most fragile without a protection."""
    few = len(bare.layers) <= shown.CROWDED
    return [row.place for row in (bare.layers if few else shown.ranked(bare)[: 2 * shown.WORST])]


def _by_layer(axes: Axes, found: Sequence[Measured], layers: Sequence[Place]) -> None:
    scale = scale_of([row.rate for one in found for row in one.run.layers])
    if scale.linear_to is not None:
        axes.set_xscale("symlog", linthresh=scale.linear_to, linscale=1.0)
    axes.set_xlim(0, scale.top)
    count = len(found[0].run.layers)
    which = "" if len(layers) == count else f"\nthe {len(layers)} most fragile of {count} layers"
    axes.set_xlabel(f"misclassification rate (%), with confidence intervals{which}")
    step = 0.8 / len(found)
    for number, one in enumerate(found):
        known = {row.place: row.rate for row in one.run.layers if row.rate.value is not None}
        at = [i for i, place in enumerate(layers) if place in known]
        values = [float(known[layers[i]].value or 0.0) for i in at]
        ends = [known[layers[i]].interval or (value, value) for i, value in zip(at, values, strict=True)]
        errors = [[v - low for v, (low, _) in zip(values, ends, strict=True)]]
        errors.append([high - v for v, (_, high) in zip(values, ends, strict=True)])
        axes.errorbar(
            values,
            [i + step * (number - (len(found) - 1) / 2) for i in at],
            xerr=np.maximum(errors, 0),
            fmt="o",
            color=OKABE_ITO[number % len(OKABE_ITO)],
            markersize=2.4,
            elinewidth=0.7,
            clip_on=False,
            label=plain(one.name, 30),
        )
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_yticks(range(len(layers)), [shown.brief_place(place, 36) for place in layers])
    axes.grid(axis="x", color="#ececec", linewidth=0.5)
    axes.legend(loc="best")


def _gain(axes: Axes, found: Sequence[Measured]) -> None:
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    edge = 0.5  # of the axis, at least
    for number, one in enumerate(found):
        network = None if one.against is None else one.against.network
        if network is None or network.value is None:
            continue
        lost = 100 * (found[0].correct - one.correct) / max(1, one.images)
        low, high = (network.value if end is None else end for end in (network.low, network.high))
        axes.errorbar(
            [lost],
            [-network.value],
            yerr=[[max(0.0, high - network.value)], [max(0.0, network.value - low)]],
            fmt="o",
            color=OKABE_ITO[number % len(OKABE_ITO)],
            markersize=3.5,
            elinewidth=0.9,
        )
        edge = max(edge, 1.2 * abs(lost))
    axes.set_xlim(-edge, edge)
    axes.margins(y=0.15)
    axes.set_xlabel("clean accuracy lost (percentage points)")
    axes.set_ylabel("misclassification rate saved, mean of layers (percentage points)")
