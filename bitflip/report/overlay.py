"""Several runs in one plot and on one page: their rates by layer, and beneath, how they differ from the first."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from bitflip.errors import BadInput
from bitflip.report import comparison, drawing, page
from bitflip.report.comparison import Comparison
from bitflip.report.page import Cell, Line, Table
from bitflip.report.runs import Place, Run
from bitflip.report.scale import OKABE_ITO, Scale, number, percent, plain, scale_of, short
from bitflip.report.style import GREY, saved, styled
from bitflip.report.words import command
from bitflip.settings.hyperparameters import changes_results
from bitflip.statistics.rates import Rate

if TYPE_CHECKING:  # matplotlib takes a while to import: only when something is drawn
    from matplotlib.axes import Axes

WIDTH, RATES, DIFFERENCES = 7.0, 2.2, 1.7  # inches: of the plot, and the heights of its parts
NAMED = 40  # layers that have room for their names
MOST = len(OKABE_ITO)  # runs whose colours stay apart
SAID = 3  # settings in a label
TALL = (250, 160)  # pixels of the page's plots


@dataclass(frozen=True)
class Overlay:
    """Several runs, and each against the first.

    Attributes:
        runs: at least two.
        against: the comparisons of all but the first.
    """

    runs: tuple[Run, ...]
    against: tuple[Comparison, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Overlay:
        """Compare runs with the first.

        Raises:
            BadInput: if one has nothing in common with it, or there are more than can be told apart.
        """
        if len(runs) > MOST:
            raise BadInput(f"expected at most {MOST} runs, whose colours stay apart, got {len(runs)}")
        return cls(tuple(runs), tuple(comparison.compare(runs[0], other) for other in runs[1:]))

    @property
    def names(self) -> list[str]:
        """A letter for each."""
        return list(string.ascii_uppercase[: len(self.runs)])

    @property
    def labels(self) -> list[str]:
        """What each is: in what it differs from another, or its title."""
        known = [run.settings for run in self.runs]
        settings = dict.fromkeys(name for one in known for name in one if changes_results(name, self.runs[0].target))
        differing = [name for name in settings if len({str(one.get(name)) for one in known}) > 1]
        labels = []
        for name, run in zip(self.names, self.runs, strict=True):
            given = [f"{setting} {comparison.written(run.settings.get(setting))}" for setting in differing]
            labels.append(f"{name}: {', '.join(given) if given and len(given) <= SAID else run.title}")
        return labels

    @property
    def places(self) -> list[Place]:
        """The layers of the first run."""
        return [row.place for row in self.runs[0].layers]

    def rates(self) -> list[list[Rate | None]]:
        """Of each run, the rate of each layer of the first."""
        found = []
        for run in self.runs:
            known = {_key(row.place): row.rate for row in run.layers}
            found.append([known.get(_key(place)) for place in self.places])
        return found

    def differences(self) -> list[list[Rate | None]]:
        """Of each run but the first, the difference of each layer, in percentage points."""
        found = []
        for against in self.against:
            known = {_key(place): Rate(one.value, one.low, one.high) for place, one in against.layers}
            found.append([known.get(_key(place)) for place in self.places])
        return found


def _key(place: Place) -> tuple[str, int, str]:
    return place.path, place.call, place.parameter or "weight"


# --- a plot ---


def picture(found: Overlay) -> dict[str, bytes]:
    """A plot as ``png`` and ``svg``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with styled():
        figure = Figure(figsize=(WIDTH, RATES + DIFFERENCES), layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04))
        figure.suptitle(plain(found.runs[0].title, 150), x=0.01, ha="left", fontsize=6, color=GREY)
        above, beneath = figure.subplots(2, 1, sharex=True, height_ratios=[RATES, DIFFERENCES])
        _rates(above, found)
        _differences(beneath, found)
        places = found.places
        step = -(-len(places) // NAMED)
        labels = [short(place.label, 22) for place in places[::step]]
        beneath.set_xticks(range(0, len(places), step), labels, rotation=90, fontsize=5)
        beneath.set_xlim(-0.6, len(places) - 0.4)
        made = saved(figure)
    assert made is not None
    return made


def _rates(axes: Axes, found: Overlay) -> None:
    rates = found.rates()
    scale = scale_of([rate for one in rates for rate in one if rate is not None])
    if scale.linear_to is not None:
        axes.set_yscale("symlog", linthresh=scale.linear_to, linscale=1.0)
    axes.set_ylim(0, scale.top)
    axes.set_yticks(scale.ticks, [number(tick) for tick in scale.ticks])
    axes.minorticks_off()
    axes.set_ylabel("misclassification rate (%)")
    for i, (label, one) in enumerate(zip(found.labels, rates, strict=True)):
        _points(axes, one, i, len(rates), plain(label, 90))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, fontsize=5.5)


def _differences(axes: Axes, found: Overlay) -> None:
    axes.axhline(0, color=GREY, linewidth=0.5)
    for i, one in enumerate(found.differences(), start=1):
        _points(axes, one, i, len(found.runs))
    axes.set_ylabel(f"difference to {found.names[0]}\n(percentage points)")


def _points(axes: Axes, rates: Sequence[Rate | None], place: int, count: int, label: str = "") -> None:
    known = [(i, rate) for i, rate in enumerate(rates) if rate is not None and rate.value is not None]
    values = np.array([rate.value for _, rate in known], dtype=np.float64)
    ends = np.array([rate.interval or (rate.value, rate.value) for _, rate in known], dtype=np.float64).reshape(-1, 2)
    axes.errorbar(
        [i + 0.7 * ((place + 0.5) / count - 0.5) for i, _ in known],
        values,
        yerr=np.maximum([values - ends[:, 0], ends[:, 1] - values], 0),
        fmt="o",
        color=OKABE_ITO[place],
        markersize=2.2,
        elinewidth=0.7,
        clip_on=False,
        label=label,
    )
    axes.grid(axis="y", color="#ececec", linewidth=0.5)
    axes.set_axisbelow(True)


# --- a page ---


def html(found: Overlay, files: Sequence[Path] = ()) -> str:
    """The page: one HTML file that needs nothing else.

    Args:
        found: the runs.
        files: of the same folder, to be named on it.
    """
    css, js = page.style_and_script()
    first, rates = found.runs[0], [rate for one in found.rates() for rate in one if rate is not None]
    scale = scale_of(rates)
    ends = [end for one in found.differences() for rate in one if rate is not None for end in (rate.interval or ())]
    reach = max([abs(end) for end in ends], default=1.0) or 1.0
    return page.TEMPLATES.get_template("overlay.html.j2").render(
        css=css,
        js=js,
        symbols=Markup(drawing.symbols()),
        title=f"{len(found.runs)} runs of {first.name}" if _one_name(found) else f"{len(found.runs)} runs",
        lead=f"{first.target} faults, {len(first.layers)} layers, {100 * first.confidence:g} % confidence intervals",
        runs=_runs(found),
        findings=list(_findings(found)),
        first=found.names[0],
        by_layer=Markup(_legend(found) + _plot(found, found.rates(), 0, _up(scale), TALL[0], "Rates")),
        differences=Markup(_plot(found, found.differences(), 1, _around(reach), TALL[1], "Differences")),
        layers=_table(found),
        commands=[(name, command(run)) for name, run in zip(found.names, found.runs, strict=True) if run.settings],
        files=[path.name for path in files],
    )


def _one_name(found: Overlay) -> bool:
    return len({run.name for run in found.runs}) == 1


def _runs(found: Overlay) -> Table:
    lines = []
    for i, (name, run) in enumerate(zip(found.names, found.runs, strict=True)):
        mean = next((mean.rate for mean in run.means if mean.of == "network"), Rate())
        cells = [Cell(name), Cell(run.title), Cell(str(run.files.folder / run.files.stem), "path")]
        lines.append(Line([*cells, Cell(percent(mean.value), "n"), Cell(_ends(mean), "n")], i))
    header = [("", ""), ("run", ""), ("files", "path"), ("mean of layers, %", "n"), ("interval", "n")]
    return Table(header, lines)


def _findings(found: Overlay) -> Iterator[str]:
    for name, against in zip(found.names[1:], found.against, strict=True):
        sure = [(place, one) for place, one in against.layers if one.sure]
        differs = (
            f"{name} differs from {found.names[0]} in {'; '.join(against.differing)}. " if against.differing else ""
        )
        paired = "Each fault is compared with itself" if against.paired else f"Not paired: {against.why}"
        yield f"{differs}{paired}; {len(sure)} of {len(against.layers)} layers differ for sure."
        one = against.network
        if one is not None and one.value is not None and one.low is not None and one.high is not None:
            yield f"The mean of the layers differs by {one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f}) points."
        if sure:
            place, most = max(sure, key=lambda pair: abs(pair[1].value or 0.0))
            yield f"Most at {place.named}: {most.value:+.4f} points."
        yield from (f"{sentence}, {name} being the second." for sentence in against.unmatched[:3])


def _table(found: Overlay) -> Table:
    names, rates, differences = found.names, found.rates(), found.differences()
    header = [("layer", "n"), ("type", ""), ("path", "path"), *((f"{name}, %", "n") for name in names)]
    header += [(f"{name} - {names[0]}", "n") for name in names[1:]] + [("interval", "n")] * (len(names) == 2)
    lines = []
    for i, place in enumerate(found.places):
        cells = [Cell(str(place.layer), "n"), Cell(place.type), Cell(place.label, "path")]
        cells += [_cell(one[i], percent) for one in rates]
        cells += [_cell(one[i], lambda value: f"{value:+.4f}") for one in differences]
        cells += [Cell(_ends(differences[0][i] or Rate(), "+.4f"), "n")] * (len(names) == 2)
        lines.append(Line(cells))
    return Table(header, lines)


def _cell(rate: Rate | None, written: Callable[[float], str]) -> Cell:
    if rate is None or rate.value is None:
        return Cell("\N{EN DASH}", "n", "")
    star = "*" if rate.interval and not rate.interval[0] <= 0 <= rate.interval[1] and written is not percent else ""
    return Cell(written(rate.value) + star, "n", f"{rate.value:.6f}")


def _ends(rate: Rate, form: str = ".4f") -> str:
    return "" if rate.interval is None else " to ".join(format(end, form) for end in rate.interval)


Axis = tuple[Callable[[float], float], list[float]]  # where a number lies, 0 (at the foot) to 1; round numbers


def _up(scale: Scale) -> Axis:
    return scale.place, scale.ticks


def _around(reach: float) -> Axis:
    step = Scale(reach).ticks[1]
    ticks = [step * n for n in range(-int(reach / step), int(reach / step) + 1)]
    return lambda value: 0.5 + value / (2.1 * reach), ticks


def _plot(
    found: Overlay, lines: Sequence[Sequence[Rate | None]], first: int, axis: Axis, height: int, what: str
) -> str:
    """Points with whiskers in the style of a run's page, those of the runs beside each other."""
    place, ticks = axis
    count, runs = len(found.places), len(found.runs)

    def y(value: float) -> str:
        return f"{height * (1 - place(value)):.1f}"

    parts = []
    for tick in ticks:
        line = f'<line class="grid" x2="100%" y1="{y(tick)}" y2="{y(tick)}"/>'
        parts.append(f'{line}<text class="tick y" x="-8" y="{y(tick)}">{number(round(tick, 9))}</text>')
    size = "mid" if count * runs <= NAMED else "small"
    for run, one in enumerate(lines, start=first):
        for i, rate in enumerate(one):
            if rate is None or rate.value is None:
                continue
            x = 100 * (i + 0.15 + 0.7 * (run + 0.5) / runs) / count
            whisker = ""
            if rate.interval:
                low, high = (y(end) for end in rate.interval)
                whisker = f'<line class="whisker k{run}" x1="{x:.3f}%" x2="{x:.3f}%" y1="{low}" y2="{high}"/>'
            shape = f'<use href="#{drawing.marker(run)}" class="f{run} {size}"/>'
            parts.append(
                f'<g class="s{run}">{whisker}<svg x="{x:.3f}%" y="{y(rate.value)}" class="at">{shape}</svg></g>'
            )
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**6) if count / step <= 24)
    for i in range(0, count, step):
        x = 100 * (i + 0.5) / count
        parts.append(f'<text class="tick x" x="{x:.3f}%" y="{height + 18}">{found.places[i].layer}</text>')
    parts.append(f'<line class="axis" x2="100%" y1="{y(0)}" y2="{y(0)}"/>')
    unit = "misclassification rate, %" if first == 0 else f"percentage points above (or below) {found.names[0]}"
    label = f"{what} of {runs} runs in {count} layers; the table below holds the numbers."
    size = f'width="100%" height="{height}"'
    svg = f'<svg class="plot" {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return f'<p class="axis-name">{unit}</p><div class="frame">{svg}</div><p class="axis-name">layer number</p>'


def _legend(found: Overlay) -> str:
    """A button for each run, which shows or hides it."""
    buttons = []
    for i, label in enumerate(found.labels):
        shape = f'<use href="#{drawing.marker(i)}" x="8" y="8" class="f{i}"/>'
        icon = f'<svg class="icon" aria-hidden="true">{shape}</svg>'
        title = escape(plain(label, 70))
        buttons.append(f'<button type="button" aria-pressed="true" data-slot="{i}">{icon}{title}</button>')
    return f'<div class="legend">{"".join(buttons)}</div>'
