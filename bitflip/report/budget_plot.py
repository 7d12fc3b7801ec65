"""The misclassification rate that is left against the share of bits that are protected, as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bitflip.report.budget import Budget
from bitflip.report.scale import OKABE_ITO, Scale, bit_ticks, number, plain, short
from bitflip.report.style import GREY, INK, saved, styled

if TYPE_CHECKING:  # matplotlib takes a while to import: only when something is drawn
    from matplotlib.axes import Axes

WIDTH, LAYER_HEIGHT = 7.0, 0.14  # inches
DEPTH = 100  # of the logarithmic axis of rates: what is left of the interval at its foot says nothing
DECADES = 5  # of the logarithmic axis of shares that have room for their numbers
NAMED = 40  # layers that have room for their names


def picture(found: Budget, target: float | None = None) -> dict[str, bytes]:
    """A plot as ``png`` and ``svg``: what is left, and in which order bits are protected.

    Args:
        found: what protecting bits leaves.
        target: rate in percent that is to be reached, if there is one.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layers = list(dict.fromkeys(cell.place for cell in sorted(found.cells, key=lambda cell: cell.place.layer)))
    with styled():
        height = min(8.0, max(2.8, 0.9 + LAYER_HEIGHT * len(layers)))
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04))
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
        figure.suptitle(plain(found.run.title, 150), x=0.01, ha="left", fontsize=6, color=GREY)
        _left_over(left, found, target)
        image = _order(right, found, [place.label for place in layers], {place: i for i, place in enumerate(layers)})
        bar = figure.colorbar(image, ax=right, label="protected with so many percent of the bits", pad=0.01)
        ticks = [10.0**n for n in range(-9, 3) if found.share(1) <= 10.0**n]
        bar.set_ticks(ticks, labels=[number(tick) for tick in ticks])
        bar.minorticks_off()
        made = saved(figure)
    assert made is not None
    return made


def _left_over(axes: Axes, found: Budget, target: float | None) -> None:
    curve = found.curve
    share = 100 * curve.share
    linear = 10.0 ** np.floor(np.log10(share[1]))  # below it, nothing but the beginning
    axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
    axes.set_xlim(0, 100)
    top = max(float(100 * curve.high.max()), target or 0.0)
    scale = Scale(min(100.0, 1.15 * top), 10.0 ** np.floor(np.log10(top / DEPTH)))
    axes.set_yscale("symlog", linthresh=scale.linear_to, linscale=0.5)
    axes.set_ylim(0, scale.top)
    axes.set_yticks(scale.ticks, [number(tick) for tick in scale.ticks])
    lowest = round(np.log10(linear))
    step = max(1, -(-(2 - lowest) // DECADES))
    ticks = [0.0, *(10.0**n for n in range(2, lowest - (step == 1), -step))]  # beside 0 the lowest has little room
    axes.set_xticks(ticks, [number(tick) for tick in ticks])
    axes.minorticks_off()
    blue, red = OKABE_ITO[:2]
    axes.fill_between(share, 100 * curve.low, 100 * curve.high, step="post", color=blue, alpha=0.18, linewidth=0)
    axes.step(share, 100 * curve.rate, where="post", color=blue, linewidth=1.0)
    if target is not None:
        enough = found.share(found.enough(target))
        axes.axhline(target, color=red, linewidth=0.7, linestyle=(0, (3, 2)))
        axes.axvline(enough, color=red, linewidth=0.7, linestyle=(0, (1, 1.5)))
        place, _ = axes.transLimits.transform(axes.transScale.transform((enough, 0.0)))
        before = place > 0.5  # the line; else there is no room for the words
        axes.annotate(
            f"{enough:.3g} % of the bits",
            (enough, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2 if before else 2, -3),
            textcoords="offset points",
            ha="right" if before else "left",
            va="top",
            fontsize=5.5,
            color=INK,
        )
    axes.set_xlabel("share of the bits that are protected (%), worst first")
    axes.set_ylabel("misclassification rate that is left (%)")
    axes.grid(color="#ececec", linewidth=0.5)
    axes.set_axisbelow(True)


def _order(axes: Axes, found: Budget, names: list[str], rows: dict[Any, int]) -> Any:
    """Of each layer and bit, how much is protected when it is."""
    from matplotlib.colors import LogNorm

    width = 1 + max(cell.bit for cell in found.cells)
    grid = np.full((len(rows), width), np.nan)
    for rank, cell in enumerate(found.cells, start=1):
        grid[rows[cell.place], cell.bit] = found.share(rank)
    norm = LogNorm(found.share(1), 100.0)
    image = axes.imshow(grid, aspect="auto", cmap="magma", norm=norm, interpolation="nearest")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    step = max(1, -(-len(names) // NAMED))
    axes.set_yticks(range(0, len(names), step), [short(name, 22) for name in names[::step]], fontsize=5)
    axes.tick_params(length=0)
    ticks = bit_ticks(width, 4, found.run.form) if width > 1 else [0]
    axes.set_xticks(ticks)
    axes.set_xlabel("bit, from the most significant")
    return image
