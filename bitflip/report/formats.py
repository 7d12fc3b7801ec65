"""The same network in several number formats: what its faults do in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitflip.report import reading
from bitflip.report.runs import Run
from bitflip.report.scale import OKABE_ITO, plain
from bitflip.report.style import GREY, saved, styled
from bitflip.report.summary import Bit, by_bit
from bitflip.statistics.rates import Rate

HEAD = (
    *("format", "target", "clean_correct", "images", "scope", "layer", "name", "path", "call", "parameter", "bit"),
    *("rate", "low", "high"),
)
"""A row per format, target and scope: ``network`` (the mean over the layers), ``layer``, or ``bit`` (of all in it)."""

NAMES = {"neuron": "neurons", "weight": "weights"}
WIDTH, HEIGHT = 7.0, 4.4  # inches


@dataclass(frozen=True)
class Measured:
    """What was found out about a format.

    Attributes:
        form: number format.
        run: in it.
    """

    form: str
    run: Run

    @property
    def images(self) -> tuple[int, int]:
        """Those that are classified correctly without a fault, and all."""
        return int(self.run.facts.get("clean_correct", 0)), int(self.run.facts.get("images", 0))

    @property
    def rate(self) -> Rate:
        """The mean over the layers, in percent."""
        return next((mean.rate for mean in self.run.means if mean.of == "network"), Rate())

    @property
    def bits(self) -> list[Bit]:
        """Over all layers whose values are of the format; some parameters are of another."""
        alike = (of for of in self.run.by_format if of.form == self.form)
        return by_bit(next(alike, self.run))


def measured(tables: Mapping[tuple[str, str], Path]) -> list[Measured]:
    """Read runs, given the ``.csv`` of each, by number format and target.

    Raises:
        BadInput: if a file is damaged.
    """
    return [Measured(form, reading.read(table)) for (form, _), table in tables.items()]


def rows(found: Sequence[Measured]) -> Iterator[list[Any]]:
    """The rows of a table, in the columns of :data:`HEAD`."""
    for one in found:
        head = [one.form, one.run.target, *one.images]
        yield [*head, "network", *[""] * 6, *_ends(one.rate)]
        for row in one.run.layers:
            place = row.place
            where = [place.layer, place.type, place.path, place.call, place.parameter, ""]
            yield [*head, "layer", *where, *_ends(row.rate)]
        for bit in one.bits:
            yield [*head, "bit", *[""] * 5, bit.bit, *_ends(bit.rate)]


def _ends(rate: Rate) -> list[str]:
    return ["" if value is None else f"{value:.6f}" for value in (rate.value, rate.low, rate.high)]


def picture(found: Sequence[Measured]) -> dict[str, bytes]:
    """Rates by layer above, by bit below, neurons left, weights right, as ``png`` and ``svg``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    targets = list(dict.fromkeys(one.run.target for one in found))
    colour = {form: OKABE_ITO[i % len(OKABE_ITO)] for i, form in enumerate(dict.fromkeys(one.form for one in found))}
    with styled():
        layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05)
        figure = Figure(figsize=(WIDTH, HEIGHT), layout=layout)
        axes = figure.subplots(2, len(targets), squeeze=False)
        first = found[0].run
        figure.suptitle(f"{plain(first.name, 60)} in {len(colour)} number formats", x=0.01, ha="left", color=GREY)
        for column, target in enumerate(targets):
            above, below = axes[0][column], axes[1][column]
            for one in (one for one in found if one.run.target == target):
                style: dict[str, Any] = {"color": colour[one.form], "linewidth": 0.9, "marker": "o", "markersize": 2.2}
                layers = [row for row in one.run.layers if row.rate.value is not None]
                above.errorbar(
                    *_points(range(len(layers)), [row.rate for row in layers]), **style, elinewidth=0.4, label=one.form
                )
                bits = [bit for bit in one.bits if bit.rate.value is not None]
                below.errorbar(*_points([bit.bit for bit in bits], [bit.rate for bit in bits]), **style, elinewidth=0.4)
            above.set_title(NAMES[target], fontsize=7)
            above.set_xlabel("layer, in the order of the network")
            below.set_xlabel("bit, from the most significant of each format")
            for one_axes in (above, below):
                one_axes.set_ylabel("misclassified, %")
                seen = [float(y) for line in one_axes.get_lines() for y in line.get_ydata()]
                one_axes.set_ylim(0, min(105.0, max(1.0, 1.5 * max(seen, default=0.0))))  # whiskers may go beyond
        axes[0][0].legend(loc="best")
        pictures = saved(figure)
    assert pictures is not None
    return pictures


def _points(at: Sequence[int], rates: Sequence[Rate]) -> tuple[Any, ...]:
    """Where points are, and their whiskers."""
    values = [rate.value or 0.0 for rate in rates]
    ends = [rate.interval or (value, value) for rate, value in zip(rates, values, strict=True)]
    low = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    high = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return list(at), values, [low, high]
