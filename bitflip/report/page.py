"""The report of a run as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bitflip.report import drawing
from bitflip.report.damage import Worst, worst
from bitflip.report.runs import Row, Run
from bitflip.report.scale import percent, plain, regions, slots
from bitflip.report.summary import Bit, by_bit, means, spread, total
from bitflip.report.words import command, findings, script
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
    css, js = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    found = by_bit(run)
    several = len(found) > 1
    sections = [
        _head(run),
        _section("In words", _list(findings(run)) + _shares(run)),
        _section("By layer", drawing.legend(run) + drawing.layers(run)),
        _section("By bit", drawing.bits(run, found) + _bit_table(run, found)) if several else "",
        _section("By layer and bit", drawing.heatmap(run)) if several else "",
        _section("Every layer", _layer_table(run), "long"),
        _section("By layer type", _mean_table(run)),
        _section("Most damaging single faults", _fault_table(worst(run)), "long"),
        _section("How to repeat it", _repeat(run, files)),
        _section("What the numbers mean", _meaning(run)),
    ]
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(js)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(run.title)}</title>\n<style>{css}</style>\n</head>\n"
        f"<body>\n{drawing.symbols()}\n<main>\n{chr(10).join(filter(None, sections))}\n</main>\n"
        '<div id="tip"></div>\n<p id="aloud" class="unseen" aria-live="polite"></p>\n'
        f'<script type="application/json" id="data">{_data(run, found)}</script>\n'
        f"<script>{js}</script>\n</body>\n</html>\n"
    )


def _hash(content: str) -> str:
    """What a policy calls an inline style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _text(value: object) -> str:
    return escape(plain(str(value)))


def _section(name: str, content: str, kind: str = "") -> str:
    identity = name.lower().replace(" ", "-")
    return (
        f'<section class="{kind}" aria-labelledby="h-{identity}"><h2 id="h-{identity}">{name}</h2>\n{content}</section>'
    )


def _list(sentences: Iterable[str]) -> str:
    return f'<ul class="findings">{"".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)}</ul>'


def _data(run: Run, found: Sequence[Bit]) -> str:
    """What the tooltips say, as JSON that can't end its element."""

    def numbers(row: Row | Bit) -> list[Any]:
        ends = (row.rate.value, row.rate.low, row.rate.high)
        return [row.misclassified, row.correct, *(None if end is None else round(end, 7) for end in ends)]

    line = {row.place: i for i, row in enumerate(run.layers)}
    content = {
        "layers": [
            [row.place.layer, plain(row.place.label), plain(row.place.type), *numbers(row)] for row in run.layers
        ],
        "bits": [[item.bit, *numbers(item)] for item in found],
        "cells": [[line[row.place], row.bit, *numbers(row)] for row in run.bits],
        "width": run.width_of(),
        "tall": drawing.row_height(run),
    }
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# --- the parts, from top to bottom ---


def _head(run: Run) -> str:
    facts = run.facts
    one = len(run.seeds) == 1
    seeds = run.origin if one else f"{len(run.seeds)} seeds ({_seed_list(run.seeds)})"
    parts = [f"One bit of one {run.target} flipped at a time", f"{len(run.layers)} layers", seeds]
    if facts.get("device"):
        parts.append(str(facts["device"]))
    if facts.get("started"):
        parts.append(str(facts["started"]).partition("T")[0])
    head = f'<header><h1>{_text(run.name)}</h1><p class="lead">{_text(" · ".join(parts))}</p>'
    if not run.complete:
        head += _warning(
            f"This run was interrupted; these are the {facts.get('images', 'first')} images that were finished."
        )
    for sentence in run.left_out:
        head += _warning(f"Left out: {sentence}")
    return f"{head}{_numbers(run)}</header>"


def _warning(sentence: str) -> str:
    return f'<p class="warning">{_text(sentence)}</p>'


def _seed_list(seeds: Sequence[int]) -> str:
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{', '.join(map(str, seeds[:11]))}, …"


def _numbers(run: Run) -> str:
    """A few numbers that say how it went."""
    items: list[tuple[str, str]] = []
    network = next((mean for mean in means(run) if mean.of == "network"), None)
    if network is not None and network.rate.value is not None:
        interval = f" ({_interval(network.rate)} %)" if network.rate.interval else ""
        items.append((f"{percent(network.rate.value)} %", f"mean misclassification rate of the layers{interval}"))
    whole = total(row.outcomes for row in run.layers if row.outcomes)
    if whole is not None and whole.injections and not run.weighted:
        if (masked := whole.share("masked")) is not None:
            items.append((f"{masked:.1f} %", "of faulty inferences masked, bit for bit"))
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
    return f'<dl class="facts">{"".join(f"<div><dt>{_text(b)}</dt><dd>{_text(a)}</dd></div>" for a, b in items)}</dl>'


def _interval(rate: Rate) -> str:
    return f"{percent(rate.interval[0])} {EN_DASH} {percent(rate.interval[1])}" if rate.interval else ""


def _shares(run: Run) -> str:
    """What happened to all faulty inferences, as one bar."""
    whole = total(row.outcomes for row in run.layers if row.outcomes)
    if whole is None or run.weighted:
        return ""
    x, bars, keys = 0.0, [], []
    for name, column, meaning in (
        ("masked", "masked", "masked: the logits are the same, bit for bit"),
        ("benign", "benign", "benign: logits differ, the class does not"),
        ("sdc", "sdc1", "SDC-1: the class differs"),
    ):
        share = whole.share(column)
        if share is None:
            return ""
        bars.append(f'<rect class="{name}" x="{x:.3f}%" width="{share:.3f}%" height="100%"/>')
        keys.append(
            f'<span><svg aria-hidden="true"><rect class="{name}" width="100%" height="100%"/></svg>'
            f"{meaning}, {percent(share)} %</span>"
        )
        x += share
    return f'<svg class="share" aria-hidden="true">{"".join(bars)}</svg><p class="key">{"".join(keys)}</p>'


def _table(identity: str, header: Sequence[tuple[str, str]], rows: Iterable[str], *, sorts: bool = True) -> str:
    """A table that sorts; a header is a name and its kind, ``n`` for numbers."""
    cells = "".join(
        f'<th scope="col" class="{kind}" aria-sort="none"><button type="button">{name}</button></th>'
        if sorts
        else f'<th scope="col" class="{kind}">{name}</th>'
        for name, kind in header
    )
    return (
        f'<div class="scroll"><table id="{identity}" class="{"sorts" if sorts else ""}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number_cell(value: float | None, text: str) -> str:
    return f'<td class="n" data-v="{"" if value is None else f"{value:.7g}"}">{text}</td>'


def _layer_table(run: Run) -> str:
    joined = len(run.seeds) > 1
    header = [("#", "n"), ("Layer", ""), ("Type", ""), ("Rate, %", "n")]
    if run.has_intervals:
        header.append((f"{run.confidence * 100:g} % interval", "n"))
    if joined:
        header += [("SD over seeds", "n"), ("Least", "n"), ("Most", "n")]
    header += [("Misclassified", "n"), ("Of", "n")]
    whole = total(row.outcomes for row in run.layers if row.outcomes)
    known = [outcome for outcome in OUTCOMES if whole is not None and whole[outcome[0]] is not None]
    shown = [outcome for outcome in known if outcome[0] != "flips" or run.target == "weight"]
    header += [(words, "n") for _, words, _ in shown]
    top = max((row.rate.value or 0 for row in run.layers), default=0) or 1.0
    slot = slots(run.types)
    rows = []
    for i, row in enumerate(run.layers):
        value = row.rate.value
        share = 100 * (value or 0) / top
        bar = f'<svg class="share-bar" aria-hidden="true"><rect width="{share:.1f}%" height="8"/></svg>'
        cells = [
            _number_cell(row.place.layer, str(row.place.layer)),
            f'<td class="path">{_text(row.place.label)}</td><td>{_text(row.place.type)}</td>',
            _number_cell(value, f"{percent(value)}{bar}"),
        ]
        if run.has_intervals:
            cells.append(_number_cell(row.rate.low, _interval(row.rate)))
        if joined:
            cells += [_number_cell(x, percent(x)) for x in spread(row.seeds)]
        cells += [_number_cell(x, f"{x:,}") for x in (row.misclassified, row.correct)]
        cells += [_outcome_cell(row, *outcome) for outcome in shown]
        rows.append(f'<tr data-i="{i}" class="s{slot[row.place.type]}">{"".join(cells)}</tr>')
    note = "<p>Click a header to sort; click a layer in a plot to find it here.</p>"
    return note + _table("layers", header, rows)


OUTCOMES = (
    ("flips", "Flips", ","),
    ("masked", "Masked, %", ".1f"),
    ("sdc5", "SDC-5", ","),
    ("nonfinite", "NaN or ∞", ","),
    (CHANGE, "Largest change", ".3f"),
)
"""What the table of layers shows of outcomes, as far as it is known: column, header and format."""


def _outcome_cell(row: Row, column: str, words: str, form: str) -> str:
    o = row.outcomes
    value = None if o is None else o.share(column) if words.endswith("%") else o[column]
    return _number_cell(value, "" if value is None else format(value, form))


def _bit_table(run: Run, found: Sequence[Bit]) -> str:
    part = {bit: name for name, first, last in regions(run.width_of()) for bit in range(first, last + 1)}
    header = [("Bit", "n"), ("Part", ""), ("Rate, %", "n"), ("Interval", "n"), ("Misclassified", "n"), ("Of", "n")]
    rows = [
        f"<tr>{_number_cell(item.bit, str(item.bit))}<td>{part.get(item.bit, '')}</td>"
        f"{_number_cell(item.rate.value, percent(item.rate.value))}{_number_cell(item.rate.low, _interval(item.rate))}"
        f"{_number_cell(item.misclassified, f'{item.misclassified:,}')}"
        f"{_number_cell(item.correct, f'{item.correct:,}')}</tr>"
        for item in found
    ]
    return f"<details><summary>As a table</summary>{_table('bits', header, rows)}</details>"


def _mean_table(run: Run) -> str:
    header = [("Type", ""), ("Layers", "n"), ("Mean rate, %", "n"), ("Interval", "n")]
    if len(run.seeds) > 1:
        header += [("SD over seeds", "n"), ("Least", "n"), ("Most", "n")]
    rows = []
    for mean in means(run):
        count = len(run.layers) if mean.of == "network" else sum(row.place.type == mean.name for row in run.layers)
        name = "all layers" if mean.of == "network" else mean.name
        more = "".join(_number_cell(x, percent(x)) for x in spread(mean.seeds)) if len(run.seeds) > 1 else ""
        rows.append(
            f"<tr><td>{_text(name)}</td>{_number_cell(count, str(count))}"
            f"{_number_cell(mean.rate.value, percent(mean.rate.value))}"
            f"{_number_cell(mean.rate.low, _interval(mean.rate))}{more}</tr>"
        )
    return _table("types", header, rows)


def _fault_table(found: Worst) -> str:
    if not found.faults:
        return f"<p>{_text(found.words)}</p>"
    with_change = any(fault.change is not None for fault in found.faults)
    header = [("Layer", ""), ("Value struck", ""), ("Bit", "n"), ("Before", "n"), ("After", "n"), ("Class", "")]
    if with_change:
        header.append(("Change of probability", "n"))
    rows = []
    for fault in found.faults:
        change = (
            _number_cell(fault.change, EN_DASH if fault.change is None else f"{fault.change:.3f}")
            if with_change
            else ""
        )
        rows.append(
            f'<tr><td class="path">{_text(fault.place.label)}</td><td>{_text(fault.where)}</td>'
            f"{_number_cell(fault.bit, str(fault.bit))}"
            f'<td class="n">{_text(fault.original)}</td><td class="n">{_text(fault.error)}</td>'
            f"<td>{_text(fault.effect)}</td>{change}</tr>"
        )
    return f"<p>{_text(found.words)}</p>{_table('faults', header, rows, sorts=False)}"


def _repeat(run: Run, files: Sequence[Path]) -> str:
    parts = []
    line = command(run)
    if len(run.seeds) > 1:
        parts.append(
            f"<p>{len(run.seeds)} runs that differ only in their seed ({_text(_seed_list(run.seeds))}), each:</p>"
        )
    if line:
        parts.append(f"<pre><code>{_text(line)}</code></pre>")
        exact = run.files.run.name
        if len(run.seeds) == 1:
            again = shlex.join(["python", script(run), "--rerun", exact])
            parts.append(
                f"<p>or, from its settings, in the folder that holds them:</p><pre><code>{_text(again)}</code></pre>"
            )
        parts.append(
            f"<p>All settings, versions, the commit and the hash of the weights are in <code>{_text(exact)}</code>.</p>"
        )
    else:
        parts.append(
            f"<p>The settings of this run are not known: <code>{_text(run.files.run.name)}</code> "
            "was not beside its table.</p>"
        )
    shown: list[tuple[str, object]] = [(name, value) for name, value in run.settings.items() if value is not None]
    model, versions = run.facts.get("model", {}), run.facts.get("versions", {})
    shown += [("weights' SHA-256", str(model["sha256"])[:16] + "…")] if model.get("sha256") else []
    shown += [("commit", run.facts["git_commit"])] if run.facts.get("git_commit") else []
    shown += [(name, version) for name, version in versions.items()]
    if run.facts.get("campaign_seconds") is not None:
        shown.append(("seconds", run.facts["campaign_seconds"]))
    items = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in shown)
    parts.append(f'<dl class="settings">{items}</dl>')
    if files:
        links = ", ".join(f'<a href="{quote(path.name)}">{_text(path.name)}</a>' for path in files)
        parts.append(f"<p>Files: {links}</p>")
    return "".join(parts)


def _meaning(run: Run) -> str:
    each = "one image" if run.target == "neuron" else "all images of a batch"
    sentences = [
        "The misclassification rate of a layer is, among the images that the network classifies correctly without a "
        "fault, "
        f"the share whose class changes. A flip hits one value, for {each}.",
        "Bits count from the most significant one; of a float32, 0 is the sign, 1 to 8 are the exponent, 9 to 31 the "
        "mantissa.",
    ]
    if run.has_intervals:
        kind = (
            "Wilson intervals, for flips are independent of each other"
            if run.target == "neuron"
            else "clustered by flip, for the images that one flip hits are not independent"
        )
        sentences.append(f"Intervals hold the rate with {run.confidence * 100:g} % confidence: {kind}.")
    else:
        sentences.append("This run's files hold no intervals; a newer version of the program writes them.")
    if len(run.seeds) > 1:
        sentences.append(
            "Rates are means over the seeds; SD is the standard deviation of the seeds' rates, not of their mean."
        )
    return "".join(f"<p>{sentence}</p>" for sentence in sentences)
