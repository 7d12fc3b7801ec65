"""The plots of the page: small SVG whose x coordinates are percentages, so that text keeps its size on any screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

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
from bitflip.report.shown import Cell, Line
from bitflip.report.summary import Bit
from bitflip.statistics.rates import Rate
from bitflip.terminal import NOTHING

HEIGHT = 250  # pixels of the plots by layer and by bit
FEW = 40  # lines whose names stand beside the heat map, and whose points are large
TALL = 17.0  # pixels of a line with its name beside it
LONGEST = 37  # characters of such a name
COLOURS = len(OKABE_ITO)


def symbols() -> str:
    """The markers and the hatching, to be used by all plots of the page."""
    shapes = "".join(f'<g id="m{i}">{_shape(corners)}</g>' for i, corners in enumerate(SHAPES))
    hatch = '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    pattern = f'{hatch}<path class="hatch" d="M0 0V6"/></pattern>'
    return f'<svg class="symbols" aria-hidden="true"><defs>{shapes}{pattern}</defs></svg>'


def _shape(corners: Sequence[tuple[float, float]]) -> str:
    if not corners:
        return '<circle r="4"/>'
    return f'<path d="M{" ".join(f"{5 * x:g} {5 * y:g}" for x, y in corners)}Z"/>'


def marker(slot: int) -> str:
    """The id of a type's marker."""
    return f"m{shape(slot)}"


def _y(scale: Scale, rate: float) -> str:
    return f"{HEIGHT * (1 - scale.place(rate)):.1f}"


def _rate_grid(scale: Scale) -> list[str]:
    lines = []
    for tick in scale.ticks:
        y = _y(scale, tick)
        lines.append(
            f'<line class="grid" x2="100%" y1="{y}" y2="{y}"/><text class="tick y" x="-8" y="{y}">{number(tick)}</text>'
        )
    return lines


def _svg(content: Sequence[str], height: float, label: str, identity: str, names: str = "") -> str:
    """A plot with a text for those who can't see it; arrow keys move the cursor."""
    return (
        f'<div class="frame {names}">'
        f'<svg id="{identity}" class="plot" width="100%" height="{height:g}" role="img" tabindex="0" '
        f'aria-label="{escape(label)}">{"".join(content)}</svg></div>'
    )


def _whisker(x: float, rate: Rate, scale: Scale, names: str) -> str:
    if rate.interval is None:
        return ""
    low, high = (_y(scale, end) for end in rate.interval)
    return f'<line class="{names}" x1="{x:.3f}%" x2="{x:.3f}%" y1="{low}" y2="{high}"/>'


def _cross(x: float, rate: Rate, scale: Scale) -> str:
    """The share of inferences in which the model raised an exception."""
    if rate.value is None:
        return ""
    return f"<g>{_whisker(x, rate, scale, 'whisker ink')}{_cross_at(f'{x:.3f}%', _y(scale, rate.value))}</g>"


def _cross_at(x: str, y: str) -> str:
    return f'<svg x="{x}" y="{y}" class="at"><path class="due" d="M-3.5-3.5 3.5 3.5M-3.5 3.5 3.5-3.5"/></svg>'


def layers(run: Run) -> str:
    """The rate by layer: of so many that they would be hairlines, as lines of text below each other."""
    lines = shown.lines(run)
    raised = [line.due(run) for line in lines] if run.any_due else []
    scale = scale_of([*(line.rate for line in lines), *raised])
    named = shown.border(lines) is not None
    body = _below_each_other(run, lines, scale, raised) if named else _beside_each_other(run, lines, scale, raised)
    worst = max(run.layers, key=lambda row: row.rate.value or 0)
    keys = "Up and down" if named else "Left and right"
    label = (
        f"Misclassification rate of {len(run.layers)} layers, from 0 to {percent(worst.rate.value)} % at "
        f"{worst.place.named}; the table below holds the numbers. {keys} arrow keys read them out."
    )
    height = TALL * len(lines) if named else HEIGHT
    plot = _svg(body, height, plain(label), "by-layer", "named" if named else "")
    return _axis_name(scale, run, shown.explained(run, lines)) + plot + ("" if named else _LAYER_NAME)


_LAYER_NAME = '<p class="axis-name">layer number</p>'


def _beside_each_other(run: Run, lines: Sequence[Line], scale: Scale, raised: Sequence[Rate]) -> list[str]:
    """The layers from left to right, by number."""
    slot, count = slots(run.types), len(lines)
    parts = _rate_grid(scale)
    size = "" if count <= FEW else "mid"
    for i, line in enumerate(lines):
        x, rate = 100 * (i + 0.5) / count, line.rate
        if line.row is None or rate.value is None:
            continue
        s = slot[line.row.place.type]
        ranges = _whisker(x, Rate(None, *line.range), scale, "range") if line.range else ""
        whisker = _whisker(x, rate, scale, f"whisker k{s % COLOURS}")
        point = _point(f"{x:.3f}%", _y(scale, rate.value), s, size)
        parts.append(f'<g class="s{s}">{ranges}{whisker}{point}</g>')
    parts += [_cross(100 * (i + 0.5) / count, rate, scale) for i, rate in enumerate(raised)]
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100) if count / step <= 24)
    for i in range(0, count, step):
        x = 100 * (i + 0.5) / count
        fine = " fine" if (i // step) % 2 else ""
        layer = lines[i].rows[0].place.layer
        parts.append(f'<text class="tick x{fine}" x="{x:.3f}%" y="{HEIGHT + 18}">{layer}</text>')
    parts.append(f'<line class="axis" x2="100%" y1="{HEIGHT}" y2="{HEIGHT}"/><line class="cursor" y2="{HEIGHT}"/>')
    return parts


def _point(x: str, y: str, slot: int, size: str) -> str:
    """A marker; a nested svg can be placed by percentages, and its content be scaled."""
    mark = f'<use href="#{marker(slot)}" class="f{slot % COLOURS} {size}"/>'
    return f'<svg x="{x}" y="{y}" class="at">{mark}</svg>'


def _below_each_other(run: Run, lines: Sequence[Line], scale: Scale, raised: Sequence[Rate]) -> list[str]:
    """Layers and blocks with their names, rates from left to right."""
    slot, height = slots(run.types), TALL * len(lines)
    parts = []
    for tick in scale.ticks:
        x = f"{100 * scale.place(tick):.3f}%"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y2="{height:g}"/>')
        parts.append(f'<text class="tick x" x="{x}" y="{height + 18:g}">{number(tick)}</text>')
    for i, line in enumerate(lines):
        y, rate = (i + 0.5) * TALL, line.rate
        parts += _name(line, y)
        if rate.value is None:
            continue
        x = f"{100 * scale.place(rate.value):.3f}%"
        ranges = _across(y, line.range, scale, "range") if line.range else ""
        if line.row is None:
            mark = f'<line class="whisker ink mean" x1="{x}" x2="{x}" y1="{y - 6:g}" y2="{y + 6:g}"/>'
            parts.append(f"<g>{ranges}{mark}</g>")
            continue
        s = slot[line.row.place.type]
        whisker = _across(y, rate.interval, scale, f"whisker k{s % COLOURS}") if rate.interval else ""
        parts.append(f'<g class="s{s}">{ranges}{whisker}{_point(x, f"{y:g}", s, "")}</g>')
    for i, rate in enumerate(raised):
        if rate.value is not None:
            parts.append(_cross_at(f"{100 * scale.place(rate.value):.3f}%", f"{(i + 0.5) * TALL:g}"))
    parts += _border(lines)
    parts.append(f'<rect class="cell" height="{TALL:g}" width="100%"/>')
    return parts


def _across(y: float, ends: tuple[float, float], scale: Scale, names: str) -> str:
    low, high = (f"{100 * scale.place(end):.3f}%" for end in ends)
    return f'<line class="{names}" x1="{low}" x2="{high}" y1="{y:g}" y2="{y:g}"/>'


def _name(line: Line, y: float) -> list[str]:
    """The name left of a line, and what stands there where there is no room for it."""
    name, few = escape(plain(line.brief(LONGEST))), escape(line.number)
    return [
        f'<text class="tick y name" x="-8" y="{y:g}">{name}</text>',
        f'<text class="tick y number" x="-8" y="{y:g}">{few}</text>',
    ]


def _border(lines: Sequence[Line]) -> list[str]:
    """Between layers and blocks."""
    at = shown.border(lines)
    return [f'<line class="axis" x2="100%" y1="{at * TALL:g}" y2="{at * TALL:g}"/>'] if at else []


def _axis_name(scale: Scale, run: Run, more: str = "") -> str:
    words = "misclassification rate, %" + ("" if scale.linear_to is None else ", logarithmic scale")
    if run.has_intervals:
        words += f"; lines: {run.confidence * 100:g} % confidence intervals"
    if run.any_due:
        words += f"; {CROSSES}"
    if len(run.seeds) > 1:
        words += "; grey: range of the seeds"
    words += f"; {more}" if more else ""
    return f'<p class="axis-name">{words}</p>'


def legend(run: Run) -> str:
    """A button per layer type, which shows or hides its layers."""
    buttons = []
    for kind, slot in slots(run.types).items():
        count = sum(row.place.type == kind for row in run.layers)
        shape = f'<use href="#{marker(slot)}" x="8" y="8" class="f{slot % COLOURS}"/>'
        icon = f'<svg class="icon" aria-hidden="true">{shape}</svg>'
        buttons.append(
            f'<button type="button" aria-pressed="true" data-slot="{slot}">{icon}'
            f"{escape(plain(kind, 40))} <small>{count}</small></button>"
        )
    return f'<div class="legend" role="group" aria-label="Layer types to show">{"".join(buttons)}</div>'


def bits(run: Run, found: Sequence[Bit]) -> str:
    """The rate by bit, all layers together."""
    count = run.width_of()
    raised = [item for item in found if item.due.value]
    scale = scale_of([*(item.rate for item in found), *(item.due for item in raised)], linear=True)
    parts = _rate_grid(scale)
    region_of = {bit: name for name, first, last in regions(count, run.form) for bit in range(first, last + 1)}
    for item in found:
        if item.rate.value is None:
            continue
        x, top = 100 * (item.bit + 0.5) / count, scale.place(item.rate.value) * HEIGHT
        name = region_of.get(item.bit, "exponent")
        parts.append(
            f'<rect class="bar {name}" x="{100 * (item.bit + 0.14) / count:.3f}%" width="{72 / count:.3f}%" '
            f'y="{HEIGHT - top:.1f}" height="{top:.1f}"/>{_whisker(x, item.rate, scale, "whisker ink")}'
        )
    parts += [_cross(100 * (item.bit + 0.5) / count, item.due, scale) for item in raised]
    parts += _bit_axis(count, HEIGHT, run.form)
    parts.append(f'<line class="axis" x2="100%" y1="{HEIGHT}" y2="{HEIGHT}"/><line class="cursor" y2="{HEIGHT}"/>')
    worst = max(found, key=lambda item: item.rate.value or 0)
    label = (
        f"Misclassification rate by bit, from 0 to {percent(worst.rate.value)} % at bit {worst.bit}; "
        "Left and right arrow keys read out bit by bit."
    )
    return (
        _axis_name(scale, replace(run, seeds=run.seeds[:1])) + _svg(parts, HEIGHT, label, "by-bit", "bits") + _BIT_NAME
    )


_BIT_NAME = '<p class="axis-name">bit, counted from the most significant</p>'


def _bit_axis(count: int, height: float, form: object) -> list[str]:
    parts = []
    for bit in bit_ticks(count, 2 if count <= 32 else 4, form):
        fine = "" if bit in bit_ticks(count, 8, form) else " fine"
        parts.append(
            f'<text class="tick x{fine}" x="{100 * (bit + 0.5) / count:.3f}%" y="{height + 18:g}">{bit}</text>'
        )
    for name, first, last in regions(count, form):
        x = 100 * (last + 1 if first == last else (first + last + 1) / 2) / count
        side = "y" if first == last else "middle"
        parts.append(f'<text class="tick region {side}" x="{x:.3f}%" y="-8">{name}</text>')
        if first:
            x = 100 * first / count
            parts.append(f'<line class="border" x1="{x:.3f}%" x2="{x:.3f}%" y1="-2" y2="{height:g}"/>')
    return parts


def row_height(lines: Sequence[Line]) -> float:
    """Height of a line in the heat map, in pixels."""
    return TALL if len(lines) <= FEW else max(2.0, min(10.0, 640 / len(lines)))


def heatmap(run: Run, lines: Sequence[Line], cells: Sequence[Mapping[int, Cell]]) -> str:
    """The rate by layer and bit; darker is higher, on a square root scale.

    Args:
        run: that is drawn.
        lines: that stand for its layers.
        cells: of each line, by bit.
    """
    count, tall = run.width_of(), row_height(lines)
    height = tall * len(lines)
    top = max((cell.rate.value or 0.0 for some in cells for cell in some.values()), default=0.0) or 1.0
    parts = [f'<rect class="unhit" width="100%" height="{height:g}"/>']
    for i, some in enumerate(cells):
        parts += _heat_row(some, i * tall, tall, count, top)
    if len(lines) <= FEW:
        for i, line in enumerate(lines):
            parts += _name(line, (i + 0.5) * tall)
    else:
        step = next(step for step in (5, 10, 20, 25, 50, 100, 200, 500, 10**6) if step * tall >= 40)
        for i in range(0, len(lines), step):
            layer = lines[i].rows[0].place.layer
            parts.append(f'<text class="tick y" x="-8" y="{(i + 0.5) * tall:g}">{layer}</text>')
    parts += _bit_axis(count, height, run.form)
    parts += _border(lines)
    parts.append(f'<rect class="cell" height="{tall:g}" width="{100 / count:.3f}%"/>')
    label = (
        f"Heat map of the misclassification rate by layer and bit, from 0 to {percent(top)} %; "
        "arrow keys read out cell by cell."
    )
    plot = _svg(parts, height, label, "by-both", f"heat {'named' if len(lines) <= FEW else ''}")
    known = sum(cell.rate.value is not None for some in cells for cell in some.values())
    return plot + _BIT_NAME + _heat_key(top, complete=known == len(lines) * count)


def _heat_row(cells: Mapping[int, Cell], y: float, tall: float, count: int, top: float) -> list[str]:
    """The cells of a line; neighbours whose rate is 0 are one rectangle."""
    parts = []
    start = last = -2
    for bit, cell in [*cells.items(), (-1, None)]:
        if cell is not None and cell.rate.value is None:
            continue  # there is nothing to divide by: as if no flip had hit it
        zero = cell is not None and not cell.rate.value
        if start >= 0 and not (zero and bit == last + 1):
            parts.append(_cell("zero", start, last, y, tall, count))
            start = -2
        if cell is not None and zero:
            start = bit if start < 0 else start
        elif cell is not None:
            shade = f' fill-opacity="{_shade((cell.rate.value or 0) / top)}"'
            parts.append(_cell("zero", bit, bit, y, tall, count))
            parts.append(_cell("hot", bit, bit, y, tall, count, shade))
        last = bit
    return parts


def _shade(share: float) -> str:
    """Opacity of a share of the highest rate: even a small one can be told from zero."""
    return f"{0.12 + 0.88 * share**0.5 if share else 0:.2f}"


def _cell(name: str, first: int, last: int, y: float, tall: float, count: int, more: str = "") -> str:
    x, width = 100 * first / count, 100 * (last - first + 1) / count
    return f'<rect class="{name}" x="{x:.3f}%" y="{y:g}" width="{width:.3f}%" height="{tall:g}"{more}/>'


def _heat_key(top: float, *, complete: bool) -> str:
    steps = [0.0, 0.01, 0.1, 0.3, 1.0]
    cells = "".join(
        f'<span><svg aria-hidden="true"><rect class="zero" width="100%" height="100%"/>'
        f'<rect class="hot" width="100%" height="100%" fill-opacity="{_shade(share)}"/></svg>'
        f"{percent(top * share)} %</span>"
        for share in steps
    )
    unhit = f'<span><svg aria-hidden="true"><rect class="unhit" width="100%" height="100%"/></svg>{NOTHING}</span>'
    return f'<p class="key">{cells}{"" if complete else unhit}</p>'
