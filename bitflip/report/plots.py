"""The plots of a run as PNG and SVG: the rate by layer, by bit, and by both."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitflip.network.fields import regions
from bitflip.report import shown
from bitflip.report.runs import Run
from bitflip.report.scale import (
    CROSSES,
    OKABE_ITO,
    SHAPES,
    Scale,
    bit_ticks,
    number,
    percent,
    plain,
    scale_of,
    shape,
    slots,
)
from bitflip.report.shown import Line
from bitflip.report.style import GREY, INK, PALE, saved, styled
from bitflip.report.summary import by_bit, due_by_layer
from bitflip.statistics.rates import Rate
from bitflip.terminal import NOTHING

if TYPE_CHECKING:  # matplotlib takes a while to import: only when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("layers", "bits", "heatmap")
KINDS = ("png", "svg")
WIDTH = 3.5  # inches, a column of a paper
FEW = 30  # lines that are drawn with their names
MANY = 2000  # cells of the heat map that are drawn as shapes in SVG; more are an image there
LONGEST = 36  # characters of a name on an axis
NAMES_SIZE = 5.2  # points of those names
HEAT = ("#f7f5ef", "#fde0a6", "#f9a765", "#e8604c", "#b5255f", "#5e1561", "#1b0a33")  # light to dark, zero first


def pictures(run: Run, width: float = WIDTH) -> dict[str, dict[str, bytes] | None]:
    """The plots of a run: the content of ``png`` and ``svg`` by name, None where there is nothing to plot.

    Args:
        run: one run or joined seeds.
        width: in inches.
    """
    draw: dict[str, Callable[[Run, float], Figure | None]] = {"layers": layers, "bits": bits, "heatmap": heatmap}
    with styled():
        return {name: saved(figure(run, width)) for name, figure in draw.items()}


def _figure(run: Run, width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.04))
    axes = figure.subplots()
    figure.suptitle(wrapped(run.title, width), x=0.01, ha="left", fontsize=6, color=GREY)
    return figure, axes


def wrapped(text: str, width: float) -> str:
    """A title in two lines, if one is not enough, or more."""
    room = round(width * 24)
    text = plain(text)
    if len(text) <= room:
        return text
    head, separator, rest = text.partition(": ")
    return "\n".join([f"{plain(head, room)}{separator.strip()}", *textwrap.wrap(rest, room - 6)])


def _note(run: Run, lines: Sequence[Line]) -> str:
    """What the bars are, and the lines."""
    notes = [f"whiskers: {run.confidence * 100:g} % confidence interval"] if run.has_intervals else []
    notes += [CROSSES] if run.any_due else []
    notes += ["grey: range of seeds"] if len(run.seeds) > 1 else []
    if at := shown.border(lines):
        notes += [f"above the line: the {at} most fragile of {len(run.layers)} layers"]
        notes += ["below it: blocks, mean, and grey from least to most"]
    return "\n".join(notes)


def _rate_axis(axes: Axes, which: str, scale: Scale, note: str) -> None:
    """Make the x or y axis one of rates."""
    if scale.linear_to is not None:
        getattr(axes, f"set_{which}scale")("symlog", linthresh=scale.linear_to, linscale=1.0)
    getattr(axes, f"set_{which}lim")(0, scale.top)
    getattr(axes, f"set_{which}ticks")(scale.ticks, [number(tick) for tick in scale.ticks])
    getattr(axes, f"{which}axis").minorticks_off()
    name = "misclassification rate (%" + (")" if scale.linear_to is None else ", log scale)")
    if which == "x" and note:
        name += f"\n{note}"
    getattr(axes, f"set_{which}label")(name, loc="right" if note.count("\n") > 1 else "center")
    axes.grid(axis=which, color="#ececec", linewidth=0.5)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _errors(rates: Sequence[Rate]) -> np.ndarray[Any, Any]:
    """What matplotlib wants: distances down and up, (2, N); nothing where there is no interval."""
    found = np.zeros((2, len(rates)))
    for i, rate in enumerate(rates):
        if rate.value is not None and rate.interval:
            found[:, i] = max(rate.value - rate.interval[0], 0), max(rate.interval[1] - rate.value, 0)
    return found


def _colour(slot: int) -> str:
    return OKABE_ITO[slot % len(OKABE_ITO)]


def marker(slot: int) -> Any:
    """A type's marker, the same as on the page: a polygon with y upwards, or a circle."""
    return [(x, -y) for x, y in SHAPES[shape(slot)]] or "o"


def _crosses(axes: Axes, at: Sequence[int], raised: Sequence[Rate], *, across: bool = False) -> None:
    """Where a bit, or layer, lies with the share of inferences in which the model raised an exception."""
    known = [(place, rate) for place, rate in zip(at, raised, strict=False) if rate.value is not None]
    if known:
        places, rates = [place for place, _ in known], [rate for _, rate in known]
        values = np.array([rate.value for rate in rates], dtype=float)
        x, y = (values, places) if across else (places, values)
        errors: dict[str, Any] = {"xerr" if across else "yerr": _errors(rates)}
        axes.errorbar(x, y, **errors, fmt="x", color=INK, markersize=3, elinewidth=0.5, clip_on=False, zorder=4)


def layers(run: Run, width: float = WIDTH) -> Figure:
    """The rate by layer: few lines below each other with their names, many layers beside each other by number."""
    lines = shown.lines(run)
    return _named_lines(run, lines, width) if _named(lines) else _many_layers(run, width)


def _named(lines: Sequence[Line]) -> bool:
    return len(lines) <= FEW or shown.border(lines) is not None


def _named_lines(run: Run, lines: Sequence[Line], width: float) -> Figure:
    slot = slots(run.types)
    legend_rows = -(-len(slot) // _columns(run, width))
    figure, axes = _figure(run, width, 0.85 + 0.135 * len(lines) + 0.12 * legend_rows)
    raised = [line.due(run) for line in lines] if run.any_due else []
    scale = scale_of([*(line.rate for line in lines), *(Rate(line.range[1]) for line in lines if line.range), *raised])
    _rate_axis(axes, "x", scale, _note(run, lines))
    for i, line in enumerate(lines):
        if line.range and (line.row is None or len(run.seeds) > 1):
            axes.hlines(i, *line.range, color=PALE, linewidth=3.0, zorder=1)
    for kind, number_ in slot.items():
        at = [i for i, line in enumerate(lines) if line.row and line.row.place.type == kind and line.known]
        _points(axes, at, [lines[i].rate for i in at], marker(number_), _colour(number_))
    _points(axes, *_blocks(lines), "|", INK)
    _crosses(axes, range(len(lines)), raised, across=True)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    _name(axes, lines, 0.0)
    axes.spines["left"].set_visible(False)
    for i, line in enumerate(lines):
        where = {"xy": (1, i), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        text = percent(line.rate.value)
        axes.annotate(text, xytext=(24, 0), ha="right", va="center", fontsize=6, color=INK, **where)  # type: ignore[arg-type]
    _legend(figure, axes, run, width)
    return figure


def _points(axes: Axes, at: Sequence[int], rates: Sequence[Rate], marker_: Any, colour: str) -> None:
    """Rates from left to right with their intervals, one below the other."""
    if not at:
        return
    stroke = marker_ == "|"
    axes.errorbar(
        np.array([rate.value for rate in rates], dtype=float),
        at,
        xerr=_errors(rates),
        linestyle="",
        marker=marker_,
        color=colour,
        markersize=4.0 if stroke else 3.6,
        markeredgewidth=1.0 if stroke else 0.0,
        elinewidth=0.9,
        clip_on=False,
        zorder=3,
    )


def _blocks(lines: Sequence[Line]) -> tuple[list[int], list[Rate]]:
    """Places and rates of the blocks that have one."""
    at = [i for i, line in enumerate(lines) if line.row is None and line.known]
    return at, [lines[i].rate for i in at]


def _name(axes: Axes, lines: Sequence[Line], middle: float) -> None:
    """Name lines, of which line 0 lies at ``middle``, on the y axis, and part layers from blocks."""
    names = [line.brief(LONGEST) for line in lines]
    axes.set_yticks(np.arange(len(lines)) + middle, names, fontsize=NAMES_SIZE)
    axes.tick_params(axis="y", length=0)
    if at := shown.border(lines):
        axes.axhline(at - 0.5 + middle, color=GREY, linewidth=0.6, zorder=3)


def _many_layers(run: Run, width: float) -> Figure:
    rows = run.layers
    slot = slots(run.types)
    legend_rows = -(-len(slot) // _columns(run, width))
    figure, axes = _figure(run, width, max(2.1, width * 0.45) + 0.12 * legend_rows)
    raised = due_by_layer(run)
    scale = scale_of([*(row.rate for row in rows), *raised])
    _rate_axis(axes, "y", scale, "")
    numbers = [row.place.layer for row in rows]
    at = numbers if len(set(numbers)) == len(rows) else list(range(len(rows)))
    if run.has_intervals:
        ends = [row.rate.interval or (np.nan, np.nan) for row in rows]
        low, high = np.array(ends).T
        axes.fill_between(at, low, high, color=PALE, linewidth=0, step="mid", zorder=1)
    size = 3.0 if len(rows) <= 100 else 1.9
    for kind, number_ in slot.items():
        chosen = [i for i, row in enumerate(rows) if row.place.type == kind and row.rate.value is not None]
        axes.plot(
            [at[i] for i in chosen],
            [float(rows[i].rate.value or 0) for i in chosen],
            linestyle="",
            marker=marker(number_),
            color=_colour(number_),
            markersize=size,
            markeredgewidth=0,
            clip_on=False,
            zorder=3,
            label=plain(kind, 20),
        )
    _crosses(axes, at, raised)
    axes.set_xlim(min(at) - 0.01 * len(rows), max(at) + 0.01 * len(rows))
    note = f"; band: {run.confidence * 100:g} % confidence interval" if run.has_intervals else ""
    note += f"\n{CROSSES}" if raised else ""
    axes.set_xlabel(f"layer, by number{note}")
    _name_the_worst(axes, run, at, scale)
    _legend(figure, axes, run, width)
    return figure


def _name_the_worst(axes: Axes, run: Run, at: list[int], scale: Scale) -> None:
    """Write the path of the most fragile layer beside its point."""
    i = max(range(len(at)), key=lambda i: run.layers[i].rate.value or 0)
    worst = run.layers[i]
    if not worst.rate.value:
        return
    left = at[i] < (at[0] + at[-1]) / 2
    axes.annotate(
        f"{shown.brief_place(worst.place, LONGEST)} {percent(worst.rate.value)} %",
        (at[i], worst.rate.value),
        xytext=(4 if left else -4, 3 if scale.place(worst.rate.value) < 0.9 else -1),
        textcoords="offset points",
        ha="left" if left else "right",
        va="center",
        fontsize=6,
        color=INK,
    )


def _columns(run: Run, width: float) -> int:
    longest = max(len(plain(kind, 20)) for kind in run.types)
    return max(1, min(len(run.types), int(width / (0.052 * longest + 0.24))))


def _legend(figure: Figure, axes: Axes, run: Run, width: float) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=marker(s),
            color=_colour(s),
            markersize=3.6,
            markeredgewidth=0,
            label=plain(kind, 20),
        )
        for kind, s in slots(run.types).items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_columns(run, width),
        handletextpad=0.1,
        columnspacing=1.0,
        borderpad=0.2,
        labelspacing=0.3,
    )


def bits(run: Run, width: float = WIDTH) -> Figure | None:
    """The rate by bit over all layers; None unless several bits were flipped."""
    found = by_bit(run)
    if len(found) < 2:
        return None
    figure, axes = _figure(run, width, max(1.9, width * 0.42))
    raised = [item for item in found if item.due.value]
    scale = scale_of(
        [*(item.rate for item in found), *(item.due for item in raised)], linear=True
    )  # a bar's length is its rate
    _rate_axis(axes, "y", scale, "")
    count = run.width_of()
    colours = {"sign": OKABE_ITO[1], "exponent": OKABE_ITO[0]}
    colour = {
        bit: colours.get(name, OKABE_ITO[2])
        for name, first, last in regions(count, run.form)
        for bit in range(first, last + 1)
    }
    have = [item for item in found if item.rate.value is not None]
    at = [item.bit for item in have]
    values = [float(item.rate.value or 0) for item in have]
    shades = [colour.get(bit, OKABE_ITO[0]) for bit in at]
    axes.bar(at, values, width=0.72, color=shades, alpha=0.8, linewidth=0, zorder=2)
    rates = [item.rate for item in have]
    axes.errorbar(
        at, values, yerr=_errors(rates), fmt="none", ecolor=INK, elinewidth=0.7, capsize=1.2, capthick=0.7, zorder=3
    )
    _crosses(axes, [item.bit for item in raised], [item.due for item in raised])
    axes.set_xlim(-0.6, count - 0.4)
    _bit_axis(axes, count, run.form)
    level = f"; whiskers: {run.confidence * 100:g} % interval" if found[0].rate.interval else ""
    level += f"\n{CROSSES}" if raised else ""
    axes.set_xlabel(f"bit, from the most significant{level}")
    return figure


def _bit_axis(axes: Axes, count: int, form: object, middle: float = 0.0) -> None:
    """Number the bits, and write sign, exponent and mantissa above theirs; bit 0 lies at ``middle``."""
    step = 1 if count <= 16 else 4 if count <= 32 else 8
    ticks = bit_ticks(count, step, form)
    axes.set_xticks([tick + middle for tick in ticks], [str(tick) for tick in ticks])
    for name, first, last in regions(count, form):
        if first:
            axes.axvline(first + middle - 0.5, color=GREY, linewidth=0.5, linestyle=(0, (2, 2)), zorder=3)
        inside = last > first
        axes.annotate(
            name,
            ((first + last) / 2 + middle if inside else last + middle + 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0 if inside else -3, 1.5),
            textcoords="offset points",
            ha="center" if inside else "right",
            va="bottom",
            fontsize=5.5,
            color=GREY,
            annotation_clip=False,
        )


def heatmap(run: Run, width: float = WIDTH) -> Figure | None:
    """The rate by layer and bit, on a square root scale; None unless several bits were flipped."""
    if len({row.bit for row in run.bits}) < 2:
        return None
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.patches import Rectangle

    rows = shown.lines(run)
    few = _named(rows)
    count = run.width_of()
    share = np.full((len(rows), count), np.nan)
    for i, cells_of in enumerate(shown.cells(run, rows)):
        for bit, cell in cells_of.items():
            share[i, bit] = np.nan if cell.rate.value is None else cell.rate.value
    height = 0.85 + (0.125 * len(rows) if few else min(3.4, max(2.2, 0.03 * len(rows))))
    figure, axes = _figure(run, width, height)
    colours = LinearSegmentedColormap.from_list("heat", HEAT)
    top = max(float(np.nanmax(share, initial=0.0)), 1e-9)
    norm = PowerNorm(0.5, 0, top if top > 1e-6 else 1.0)
    axes.set_facecolor(HEAT[0])  # zero, which most cells are
    _hatch(axes, np.argwhere(np.isnan(share)))
    hot = np.argwhere(share > 0)
    cells = PatchCollection([Rectangle((x, y), 1, 1) for y, x in hot.tolist()], cmap=colours, norm=norm, linewidth=0)
    cells.set_array(share[share > 0])
    cells.set_rasterized(len(hot) > MANY)
    axes.add_collection(cells, autolim=False)
    if few:
        axes.hlines(range(1, len(rows)), 0, count, color="white", linewidth=0.3)
        axes.vlines(range(1, count), 0, len(rows), color="white", linewidth=0.3)
    axes.set_xlim(0, count)
    axes.set_ylim(len(rows), 0)
    _bit_axis(axes, count, run.form, middle=0.5)
    axes.set_xlabel("bit, from the most significant" + (f"\nhatched: {NOTHING}" if np.isnan(share).any() else ""))
    if few:
        _name(axes, rows, 0.5)
    else:
        step = int(_step(len(rows)))
        axes.set_yticks(np.arange(0, len(rows), step) + 0.5, [rows[i].number for i in range(0, len(rows), step)])
        axes.set_ylabel("layer, by number")
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    bar = figure.colorbar(cells, ax=axes, fraction=0.035, pad=0.02, aspect=30 if height > 2 else 15)
    bar.outline.set_linewidth(0.6)
    ticks = [tick for tick in _root_ticks(norm.vmax or 1.0) if tick <= (norm.vmax or 1.0)]
    bar.set_ticks(ticks, labels=[number(tick) for tick in ticks])
    bar.set_label("misclassification rate (%)")
    return figure


def _hatch(axes: Axes, cells: np.ndarray[Any, Any]) -> None:
    """Hatch the cells with nothing to divide by, (N, 2) of row and column, as one shape."""
    if not len(cells):
        return
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    path = Path.make_compound_path(*(Path([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)]) for y, x in cells))
    axes.add_patch(PathPatch(path, facecolor="white", hatch="//////", edgecolor="#c8c8c8", linewidth=0))


def _step(count: int) -> float:
    return next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000) if count / step <= 8)


def _root_ticks(top: float) -> list[float]:
    """Round numbers that are apart on a square root scale."""
    power = 10.0 ** np.floor(np.log10(top))
    found = [0.0]
    for tick in (power / 100, power / 20, power / 5, power / 2, power, 2 * power, 5 * power, 10 * power):
        if np.sqrt(tick / top) - np.sqrt(found[-1] / top) > 0.11:
            found.append(float(tick))
    return found
