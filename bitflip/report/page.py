"""The report of a run as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bitflip.network.fields import regions
from bitflip.report import drawing, shown
from bitflip.report.damage import Worst, worst
from bitflip.report.runs import Row, Run
from bitflip.report.scale import percent, plain, slots
from bitflip.report.summary import Bit, by_bit, due, means, spread, total
from bitflip.report.words import again, command, findings, happening
from bitflip.results.columns import CHANGE
from bitflip.statistics.rates import Rate

EN_DASH = "\N{EN DASH}"
HERE = Path(__file__).parent


def html(run: Run, files: Sequence[Path] = ()) -> str:
    """The page.

    Args:
        run: one run or joined seeds.
        files: of the same folder, to be named on the page.

    Raises:
        BadInput: if the file that names single faults is damaged.
    """
    found = by_bit(run)
    several = len(found) > 1
    css, js = style_and_script()
    single = worst(run)
    lines = shown.lines(run)
    cells = shown.cells(run, lines)
    return TEMPLATES.get_template("page.html.j2").render(
        run=run,
        css=css,
        js=js,
        symbols=Markup(drawing.symbols()),
        lead=_lead(run),
        warnings=_warnings(run),
        numbers=_numbers(run),
        findings=findings(run),
        shares=_shares(run),
        by_layer=Markup(drawing.legend(run) + drawing.layers(run)),
        by_bit=Markup(drawing.bits(run, found)) if several else "",
        bits=_bit_table(run, found),
        heatmap=Markup(drawing.heatmap(run, lines, cells)) if several else "",
        layers=_layer_table(run),
        types=_mean_table(run),
        worst=single,
        faults=_fault_table(single),
        several=len(run.seeds) > 1,
        seeds=_seed_list(run.seeds),
        command=command(run),
        again=again(run),
        settings=_settings(run),
        files=[path.name for path in files],
        confidence=f"{run.confidence * 100:g}",
        data=Markup(_data(run, lines, found, cells)),
    )


def style_and_script() -> list[Markup]:
    """What is in every page."""
    return [Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")]


def _shown(value: object) -> Markup:
    """What is put into the page: nothing invisible, and no markup but our own."""
    return value if isinstance(value, Markup) else Markup(escape(plain(str(value))))


def _digest(content: str) -> str:
    """What a policy calls an inline style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


TEMPLATES = Environment(
    loader=FileSystemLoader(HERE),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["digest"] = _digest
TEMPLATES.filters["breakable"] = lambda path: Markup(str(_shown(path)).replace(".", ".<wbr>"))


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: that is shown.
        kind: ``n`` for numbers, ``path``, or nothing.
        data: what it is sorted by, if that is not the text.
        bar: length of a bar behind it, in percent.
    """

    text: str
    kind: str = ""
    data: str | None = None
    bar: str | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table; ``slot`` numbers the colour of a layer's type."""

    cells: Sequence[Cell]
    slot: int | None = None


@dataclass(frozen=True)
class Table:
    """A table; a column of the header is a name and its kind."""

    header: Sequence[tuple[str, str]]
    rows: Sequence[Line]


def _data(
    run: Run, lines: Sequence[shown.Line], found: Sequence[Bit], cells: Sequence[Mapping[int, shown.Cell]]
) -> str:
    """What the tooltips say, as JSON that can't end its element."""

    def numbers(row: Row | Bit | shown.Cell) -> list[Any]:
        ends = (row.rate.value, row.rate.low, row.rate.high)
        return [row.misclassified, row.correct, *(None if end is None else round(end, 7) for end in ends)]

    def line(one: shown.Line) -> list[Any]:
        if one.row is not None:
            return [place[one.row.place], plain(one.name), *numbers(one.row)]
        about = "nothing to divide by"
        if one.range is not None:
            about = f"mean {percent(one.rate.value)} %, from {percent(one.range[0])} to {percent(one.range[1])} %"
        return [place[max(one.rows, key=lambda row: row.rate.value or 0).place], plain(f"{one.name}: {about}")]

    place = {row.place: i for i, row in enumerate(run.layers)}
    content = {
        "lines": [line(one) for one in lines],
        "bits": [[item.bit, *numbers(item)] for item in found],
        "cells": [[i, bit, *numbers(cell)] for i, some in enumerate(cells) for bit, cell in some.items()],
        "width": run.width_of(),
        "tall": drawing.row_height(lines),
        "below": shown.border(lines) is not None,
    }
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# --- the parts, from top to bottom ---


def _lead(run: Run) -> str:
    seeds = run.origin if len(run.seeds) == 1 else f"{len(run.seeds)} seeds ({_seed_list(run.seeds)})"
    parts = [happening(run), f"{len(run.layers)} layers", seeds]
    if run.facts.get("device"):
        parts.append(str(run.facts["device"]))
    if run.facts.get("started"):
        parts.append(str(run.facts["started"]).partition("T")[0])
    return " · ".join(parts)


def _warnings(run: Run) -> list[str]:
    images = run.facts.get("images", "first")
    whole = f"This run was interrupted; these are the {images} images that were finished."
    return [*([] if run.complete else [whole]), *(f"Left out: {sentence}" for sentence in run.left_out)]


def _seed_list(seeds: Sequence[int]) -> str:
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{', '.join(map(str, seeds[:11]))}, …"


def _numbers(run: Run) -> list[tuple[str, str]]:
    """A few numbers that say how it went, each with its meaning."""
    items: list[tuple[str, str]] = []
    network = next((mean for mean in means(run) if mean.of == "network"), None)
    if network is not None and network.rate.value is not None:
        interval = f" ({_interval(network.rate)} %)" if network.rate.interval else ""
        items.append((f"{percent(network.rate.value)} %", f"mean misclassification rate of the layers{interval}"))
    whole = total(row.outcomes for row in run.layers if row.outcomes)
    if whole is not None and whole.injections and not run.weighted:
        if (masked := whole.share("masked")) is not None:
            items.append((f"{masked:.1f} %", "of faulty inferences masked, bit for bit"))
        if (proved := whole.share("proved")) is not None:
            items.append((f"{proved:.1f} %", "of faulty inferences proved harmless by a bound"))
        items.append((f"{whole.injections:,}", "faulty inferences"))
        if run.target == "weight":
            items.append((f"{whole.flips:,}", "flips"))
    else:
        items.append(
            (f"{sum(row.correct for row in run.layers):,}", "faulty inferences of images that are right without")
        )
    images, correct = run.facts.get("images"), run.facts.get("clean_correct")
    if isinstance(images, int) and isinstance(correct, int) and images:
        items.append((f"{100 * correct / images:.2f} %", f"accuracy without faults ({correct:,} of {images:,} images)"))
    return items


def _interval(rate: Rate) -> str:
    return f"{percent(rate.interval[0])} {EN_DASH} {percent(rate.interval[1])}" if rate.interval else ""


def _shares(run: Run) -> list[dict[str, str]]:
    """What happened to all faulty inferences, as the parts of one bar."""
    whole = total(row.outcomes for row in run.layers if row.outcomes)
    if whole is None or run.weighted:
        return []
    x, parts = 0.0, []
    harmless = [
        ("masked", "masked", "masked: the logits are the same, bit for bit"),
        ("benign", "benign", "benign: logits differ, the class does not"),
    ]
    if run.bounded:
        harmless = [("masked", "harmless", "harmless: the class is the same")]
    for name, column, meaning in (
        *harmless,
        ("sdc", "sdc1", "SDC-1: the class differs"),
        *([("due", "due", "DUE: the model raised an exception")] if whole["due"] else []),
    ):
        share = whole.share(column)
        if share is None:
            return []
        numbers = {"x": f"{x:.3f}", "width": f"{share:.3f}", "percent": percent(share)}
        parts.append({"name": name, "meaning": meaning, **numbers})
        x += share
    return parts


def _number(value: float | None, text: str, bar: str | None = None) -> Cell:
    return Cell(text, "n", "" if value is None else f"{value:.7g}", bar)


def _rate(rate: Rate) -> list[Cell]:
    return [_number(rate.value, percent(rate.value)), _number(rate.low, _interval(rate))]


SPREAD = (("SD over seeds", "n"), ("Least", "n"), ("Most", "n"))


def _spread(seeds: Sequence[float | None]) -> list[Cell]:
    return [_number(value, percent(value)) for value in spread(seeds)]


def _counts(*counts: int) -> list[Cell]:
    return [_number(count, f"{count:,}") for count in counts]


def _layer_table(run: Run) -> Table:
    joined = len(run.seeds) > 1
    whole = total(row.outcomes for row in run.layers if row.outcomes)
    known = [outcome for outcome in OUTCOMES if whole is not None and whole[outcome[0]] is not None]
    known = [outcome for outcome in known if outcome[0] != "flips" or run.target == "weight"]
    header = [("#", "n"), ("Path", ""), ("Type", ""), ("Rate, %", "n")]
    header += [(f"{run.confidence * 100:g} % interval", "n")] if run.has_intervals else []
    header += SPREAD if joined else ()
    header += [("Misclassified", "n"), ("Of", "n"), *((words, "n") for _, words, _ in known)]
    header += [("DUE, %", "n"), ("Interval", "n")] if run.any_due else []
    top = max((row.rate.value or 0 for row in run.layers), default=0) or 1.0
    slot = slots(run.types)
    rows = []
    for row in run.layers:
        value, low = _rate(row.rate)
        cells = [
            _number(row.place.layer, str(row.place.layer)),
            Cell(row.place.label, "path"),
            Cell(row.place.type),
            replace(value, bar=f"{100 * (row.rate.value or 0) / top:.1f}"),
            *([low] if run.has_intervals else []),
            *(_spread(row.seeds) if joined else []),
            *_counts(row.misclassified, row.correct),
            *(_outcome(row, *outcome) for outcome in known),
            *(_rate(due(row, run)) if run.any_due else []),
        ]
        rows.append(Line(cells, slot[row.place.type]))
    return Table(header, rows)


OUTCOMES = (
    ("flips", "Flips", ","),
    ("masked", "Masked, %", ".1f"),
    ("proved", "Proved harmless, %", ".1f"),
    ("sdc5", "SDC-5", ","),
    ("nonfinite", "NaN or ∞", ","),
    (CHANGE, "Largest change", ".3f"),
)
"""What the table of layers shows of outcomes, as far as it is known: column, header and format."""


def _outcome(row: Row, column: str, words: str, form: str) -> Cell:
    o = row.outcomes
    value = None if o is None else o.share(column) if words.endswith("%") else o[column]
    return _number(value, "" if value is None else format(value, form))


def _bit_table(run: Run, found: Sequence[Bit]) -> Table:
    part = {bit: name for name, first, last in regions(run.width_of(), run.form) for bit in range(first, last + 1)}
    header = [("Bit", "n"), ("Part", ""), ("Rate, %", "n"), ("Interval", "n"), ("Misclassified", "n"), ("Of", "n")]
    rows = [
        Line(
            [
                _number(item.bit, str(item.bit)),
                Cell(part.get(item.bit, "")),
                *_rate(item.rate),
                *_counts(item.misclassified, item.correct),
            ]
        )
        for item in found
    ]
    return Table(header, rows)


def _mean_table(run: Run) -> Table:
    joined = len(run.seeds) > 1
    header = [("Type", ""), ("Layers", "n"), ("Mean rate, %", "n"), ("Interval", "n"), *(SPREAD if joined else ())]
    rows = []
    for mean in means(run):
        count = len(run.layers) if mean.of == "network" else sum(row.place.type == mean.name for row in run.layers)
        name = "all layers" if mean.of == "network" else mean.name
        cells = [Cell(name), _number(count, str(count)), *_rate(mean.rate), *(_spread(mean.seeds) if joined else [])]
        rows.append(Line(cells))
    return Table(header, rows)


def _fault_table(found: Worst) -> Table:
    with_change = any(fault.change is not None for fault in found.faults)
    header = [("Layer", ""), ("Value struck", ""), ("Bit", "n"), ("Before", "n"), ("After", "n"), ("Class", "")]
    header += [("Change of probability", "n")] if with_change else []
    rows = []
    for fault in found.faults:
        change = _number(fault.change, EN_DASH if fault.change is None else f"{fault.change:.3f}")
        cells = [
            Cell(fault.place.named),
            Cell(fault.where),
            _number(fault.bit, str(fault.bit)),
            Cell(fault.original, "n"),
            Cell(fault.error, "n"),
            Cell(fault.effect),
            *([change] if with_change else []),
        ]
        rows.append(Line(cells))
    return Table(header, rows)


def _settings(run: Run) -> list[tuple[str, object]]:
    """What the results depend on, by name."""
    shown: list[tuple[str, object]] = [(name, value) for name, value in run.settings.items() if value is not None]
    model, versions = run.facts.get("model", {}), run.facts.get("versions", {})
    shown += [("weights' SHA-256", str(model["sha256"])[:16] + "…")] if model.get("sha256") else []
    shown += [("commit", run.facts["git_commit"])] if run.facts.get("git_commit") else []
    shown += [(name, version) for name, version in versions.items()]
    if run.facts.get("campaign_seconds") is not None:
        shown.append(("seconds", run.facts["campaign_seconds"]))
    return shown
