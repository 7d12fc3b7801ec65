"""Accuracy against the bit error rate, as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitflip.report.plots import WIDTH, wrapped
from bitflip.report.scale import OKABE_ITO
from bitflip.report.shown import brief
from bitflip.report.style import GREY, INK, PALE, saved, styled
from bitflip.statistics.falls import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 6  # layers in the legend: those that lose most


def pictures(title: str, clean: float, points: Sequence[Point], confidence: float) -> dict[str, bytes]:
    """The plot as ``png`` and ``svg``.

    Args:
        title: of the run.
        clean: accuracy without a fault, in percent.
        points: of each scope, at each rate.
        confidence: of the intervals.
    """
    with styled():
        found = saved(_figure(title, clean, points, confidence))
    assert found is not None
    return found


def _figure(title: str, clean: float, points: Sequence[Point], confidence: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, 0.62 * WIDTH), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.04))
    axes = figure.subplots()
    figure.suptitle(wrapped(title, WIDTH), x=0.01, ha="left", fontsize=6, color=GREY)
    lines: dict[str, list[Point]] = {}
    for point in points:
        name = "all layers"
        if (scope := point.scope) is not None:
            name = brief(scope.number, scope.layer.type, scope.label, 34)
        lines.setdefault(name, []).append(point)
    axes.axhline(clean, color=GREY, linewidth=0.6, linestyle=(0, (3, 2)))
    axes.annotate(
        "no fault",
        (0, clean),
        xycoords=("axes fraction", "data"),
        xytext=(2, 1.5),
        textcoords="offset points",
        fontsize=5.5,
        color=GREY,
    )
    order = sorted(lines, key=lambda name: sum(point.accuracy.value or 0.0 for point in lines[name]))
    named = [name for name in order if name != "all layers"][:NAMED]
    for name, found in lines.items():
        at, values = [point.rate for point in found], [point.accuracy.value or 0.0 for point in found]
        if name == "all layers":
            ends = [point.accuracy.interval or (0.0, 100.0) for point in found]
            errors = [
                [v - low for v, (low, _) in zip(values, ends, strict=True)],
                [high - v for v, (_, high) in zip(values, ends, strict=True)],
            ]
            axes.errorbar(
                at,
                values,
                yerr=errors,
                color=INK,
                linewidth=1.2,
                marker="o",
                markersize=3,
                elinewidth=0.7,
                capsize=1.5,
                label=name,
                zorder=4,
            )
        elif name in named:
            colour = OKABE_ITO[named.index(name) % len(OKABE_ITO)]
            axes.plot(
                at,
                values,
                color=colour,
                linewidth=0.8,
                marker=".",
                markersize=3,
                label=f"{name} alone",
                zorder=3,
            )
        else:
            axes.plot(at, values, color=PALE, linewidth=0.6, zorder=2)
    axes.set_xscale("log")
    axes.set_xticks(ticks := sorted({10.0 ** math.floor(math.log10(point.rate) + 0.5) for point in points}))
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0, top=min(100.0, axes.get_ylim()[1]) if clean < 97 else 102)
    axes.set_xlabel(f"bit error rate; whiskers: {confidence * 100:g} % interval")
    axes.set_ylabel("accuracy, %")
    axes.legend(loc="best")
    return figure
