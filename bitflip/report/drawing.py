"""The plots of the page: small SVG whose x coordinates are percentages, so that text keeps its size on any screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from bitflip.report.runs import Row, Run
from bitflip.report.scale import CROSSES, Scale, bit_ticks, number, percent, plain, regions, scale_of, slots
from bitflip.report.summary import Bit, due_by_layer
from bitflip.statistics.rates import Rate
from bitflip.terminal import NOTHING

HEIGHT = 250  # pixels of the plots by layer and by bit
FEW = 40  # layers whose names stand beside the heat map, and whose points are large
SHAPES = (
    '<circle r="4"/>',
    '<rect x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
    '<path d="M0-5 4.6 3.6H-4.6Z"/>',
    '<path d="M0-5 4.4 0 0 5-4.4 0Z"/>',
    '<path d="M0 5-4.6-3.6H4.6Z"/>',
    '<path d="M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z"/>',
    '<path d="M-5 0 3.6-4.6V4.6Z"/>',
    '<path d="M5 0-3.6 4.6V-4.6Z"/>',
)
COLOURS = 8


def symbols() -> str:
    """The markers and the hatching, to be used by all plots of the page."""
    shapes = "".join(f'<g id="m{i}">{shape}</g>' for i, shape in enumerate(SHAPES))
    hatch = '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    pattern = f'{hatch}<path class="hatch" d="M0 0V6"/></pattern>'
    return f'<svg class="symbols" aria-hidden="true"><defs>{shapes}{pattern}</defs></svg>'


def marker(slot: int) -> str:
    """The id of a type's marker; colours repeat after eight types, so then the marker moves on."""
    return f"m{(slot + slot // COLOURS) % len(SHAPES)}"


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
    shape = '<path class="due" d="M-3.5-3.5 3.5 3.5M-3.5 3.5 3.5-3.5"/>'
    point = f'<svg x="{x:.3f}%" y="{_y(scale, rate.value)}" class="at">{shape}</svg>'
    return f"<g>{_whisker(x, rate, scale, 'whisker ink')}{point}</g>"


def layers(run: Run) -> str:
    """The rate by layer."""
    raised = due_by_layer(run)
    scale = scale_of([*(row.rate for row in run.layers), *raised])
    slot = slots(run.types)
    parts = _rate_grid(scale)
    count = len(run.layers)
    size = "" if count <= FEW else "mid" if count <= 120 else "small"
    for i, row in enumerate(run.layers):
        x, s = 100 * (i + 0.5) / count, slot[row.place.type]
        if row.rate.value is None:
            continue
        kind = f'class="s{s}"'
        seeds = [value for value in row.seeds if value is not None]
        ranges = _whisker(x, Rate(None, min(seeds), max(seeds)), scale, "range") if seeds else ""
        whisker = _whisker(x, row.rate, scale, f"whisker k{s % COLOURS}")
        # a nested svg can be placed by percentages, and its content be scaled
        shape = f'<use href="#{marker(s)}" class="f{s % COLOURS} {size}"/>'
        point = f'<svg x="{x:.3f}%" y="{_y(scale, row.rate.value)}" class="at">{shape}</svg>'
        parts.append(f"<g {kind}>{ranges}{whisker}{point}</g>")
    parts += [_cross(100 * (i + 0.5) / count, rate, scale) for i, rate in enumerate(raised)]
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**6) if count / step <= 24)
    for i in range(0, count, step):
        x = 100 * (i + 0.5) / count
        fine = " fine" if (i // step) % 2 else ""
        parts.append(f'<text class="tick x{fine}" x="{x:.3f}%" y="{HEIGHT + 18}">{run.layers[i].place.layer}</text>')
    parts.append(f'<line class="axis" x2="100%" y1="{HEIGHT}" y2="{HEIGHT}"/><line class="cursor" y2="{HEIGHT}"/>')
    worst = max(run.layers, key=lambda row: row.rate.value or 0)
    label = (
        f"Misclassification rate of {count} layers, from 0 to {percent(worst.rate.value)} % at {worst.place.label}; "
        "the table below holds the numbers. Left and right arrow keys read out layer by layer."
    )
    return (
        _axis_name(scale, run) + _svg(parts, HEIGHT, plain(label), "by-layer") + '<p class="axis-name">layer number</p>'
    )


def _axis_name(scale: Scale, run: Run) -> str:
    words = "misclassification rate, %" + ("" if scale.linear_to is None else ", logarithmic scale")
    if run.has_intervals:
        words += f"; lines: {run.confidence * 100:g} % confidence intervals"
    if run.any_due:
        words += f"; {CROSSES}"
    if len(run.seeds) > 1:
        words += "; grey: range of the seeds"
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


def row_height(run: Run) -> float:
    """Height of a layer in the heat map, in pixels."""
    return 17.0 if len(run.layers) <= FEW else max(2.0, min(10.0, 640 / len(run.layers)))


def heatmap(run: Run) -> str:
    """The rate by layer and bit; darker is higher, on a square root scale."""
    count, tall = run.width_of(), row_height(run)
    height = tall * len(run.layers)
    top = max((row.rate.value or 0.0 for row in run.bits), default=0.0) or 1.0
    line = {row.place: i for i, row in enumerate(run.layers)}
    by_layer: list[list[Row]] = [[] for _ in run.layers]
    for row in run.bits:
        by_layer[line[row.place]].append(row)
    parts = [f'<rect class="unhit" width="100%" height="{height:g}"/>']
    for i, rows in enumerate(by_layer):
        parts += _heat_row(rows, i * tall, tall, count, top)
    if len(run.layers) <= FEW:
        for i, row in enumerate(run.layers):
            y = (i + 0.5) * tall
            name = escape(plain(row.place.label, 28))
            parts.append(f'<text class="tick y name" x="-8" y="{y:g}">{name}</text>')
            parts.append(f'<text class="tick y number" x="-8" y="{y:g}">{row.place.layer}</text>')
    else:
        step = next(step for step in (5, 10, 20, 25, 50, 100, 200, 500, 10**6) if step * tall >= 40)
        for i in range(0, len(run.layers), step):
            parts.append(f'<text class="tick y" x="-8" y="{(i + 0.5) * tall:g}">{run.layers[i].place.layer}</text>')
    parts += _bit_axis(count, height, run.form)
    parts.append(f'<rect class="cell" height="{tall:g}" width="{100 / count:.3f}%"/>')
    names = "named" if len(run.layers) <= FEW else ""
    label = (
        f"Heat map of the misclassification rate by layer and bit, from 0 to {percent(top)} %; "
        "arrow keys read out cell by cell."
    )
    return _svg(parts, height, label, "by-both", f"heat {names}") + _BIT_NAME + _heat_key(run, top)


def _heat_row(rows: Sequence[Row], y: float, tall: float, count: int, top: float) -> list[str]:
    """The cells of a layer; neighbours whose rate is 0 are one rectangle."""
    parts = []
    start = last = -2
    for row in [*sorted(rows, key=lambda row: row.bit or 0), None]:
        bit = -1 if row is None or row.bit is None else row.bit
        if row is not None and row.rate.value is None:
            continue  # there is nothing to divide by: as if no flip had hit it
        zero = row is not None and not row.rate.value
        if start >= 0 and not (zero and bit == last + 1):
            parts.append(_cell("zero", start, last, y, tall, count))
            start = -2
        if row is not None and zero:
            start = bit if start < 0 else start
        elif row is not None:
            shade = f' fill-opacity="{_shade((row.rate.value or 0) / top)}"'
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


def _heat_key(run: Run, top: float) -> str:
    steps = [0.0, 0.01, 0.1, 0.3, 1.0]
    cells = "".join(
        f'<span><svg aria-hidden="true"><rect class="zero" width="100%" height="100%"/>'
        f'<rect class="hot" width="100%" height="100%" fill-opacity="{_shade(share)}"/></svg>'
        f"{percent(top * share)} %</span>"
        for share in steps
    )
    known = sum(row.rate.value is not None for row in run.bits)
    complete = known == len(run.layers) * run.width_of()
    unhit = f'<span><svg aria-hidden="true"><rect class="unhit" width="100%" height="100%"/></svg>{NOTHING}</span>'
    return f'<p class="key">{cells}{"" if complete else unhit}</p>'
