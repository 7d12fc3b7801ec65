"""Runs that differ only in their seed, joined into one: means, intervals, and the spread over the seeds."""

from __future__ import annotations

import io
import json
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitflip import csvs
from bitflip.errors import BadInput
from bitflip.report.runs import Place, Row, Run
from bitflip.report.summary import due, means_of, parts_of, spread, sums, total
from bitflip.results import columns
from bitflip.results.paths import Paths
from bitflip.settings.hyperparameters import changes_results
from bitflip.statistics import rates
from bitflip.statistics.rates import Rate


def settings_of(run: Run) -> dict[str, Any]:
    """What runs must share to be joined: settings, and facts about model, data and layers.

    Settings may differ that change no fault and no outcome; the weights are compared by their hash.
    """
    facts = run.facts
    return {
        "target": run.target,
        **{name: value for name, value in run.settings.items() if changes_results(name, run.target)},
        "confidence": run.confidence,
        "sha256 of the weights": facts.get("model", {}).get("sha256"),
        "sha256 of the model's code": facts.get("model", {}).get("code_sha256"),
        "sha256 of the images": facts.get("data", {}).get("sha256"),
        "images": facts.get("images"),
        "layers": [(place.label, place.type) for place in (row.place for row in run.layers)],
        "columns": "with intervals" if run.has_intervals else "without intervals",
    }


def key(run: Run) -> str:
    """The same text for runs that can be joined."""
    return json.dumps(settings_of(run), sort_keys=True, default=str)


def check(runs: Sequence[Run]) -> list[str]:
    """One sentence per run that can't be joined with the first."""
    problems = []
    by_seed: dict[int, Run] = {}
    first = settings_of(runs[0])
    for run in runs:
        file = run.files.table
        if not run.facts:
            problems.append(f"{run.files.run}: expected the settings of {file.name} there, to know what can be joined")
            continue
        if not run.complete:
            problems.append(
                f"{file}: expected complete runs only; it was interrupted after {run.facts.get('images')} images"
            )
            continue
        mine = settings_of(run)
        unknown = {name for name in first if "sha256" in name and None in (first[name], mine[name])}  # before 0.2
        differing = [name for name in {**first, **mine} if name not in unknown and first.get(name) != mine.get(name)]
        if differing:
            name = differing[0]
            others = f" (and {', '.join(differing[1:])})" if len(differing) > 1 else ""
            what = f"is {_short(mine.get(name))} there and {_short(first.get(name))} in {runs[0].files.table.name}"
            if name == "layers":
                what = f"differ from those of {runs[0].files.table.name}"
            problems.append(f"{file}: expected runs that differ only in seed, {name} {what}{others}")
        elif run.seeds[0] in by_seed:
            other = by_seed[run.seeds[0]].files.table
            problems.append(f"{file}: expected each seed once, {run.seeds[0]} is also in {other}")
        by_seed.setdefault(run.seeds[0], run)
    return problems


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}…"


def join(runs: Sequence[Run], folder: Path, left_out: Sequence[str] = ()) -> Run:
    """Join single-seed runs.

    The rate of a layer is the mean over its seeds. Its interval is that of the whole sample: Wilson for neurons; for
    weights clustered by flip.

    Raises:
        BadInput: if runs differ in more than the seed, a seed comes twice, or a run was interrupted; all together.
    """
    if problems := check(runs):
        raise BadInput(*problems)
    runs = sorted(runs, key=lambda run: run.seeds[0])
    first = runs[0]
    stem = first.files.stem.removesuffix(f"_{first.seeds[0]}")
    facts = {
        name: first.facts[name] for name in ("target", "settings", "images", "model", "layers") if name in first.facts
    }
    facts["settings"] = {name: value for name, value in first.settings.items() if name in settings_of(first)}
    facts["confidence"] = first.confidence
    facts["complete"] = True
    cells = _cells(runs)
    joined = Run(
        files=Paths(folder, f"{stem}_seeds"),
        seeds=tuple(run.seeds[0] for run in runs),
        layers=tuple(_joined_rows([run.layers for run in runs], runs, cells)),
        bits=tuple(_joined_rows([run.bits for run in runs], runs, cells)) if all(run.bits for run in runs) else (),
        means=(),
        facts=facts,
        left_out=tuple(left_out),
        output_path=first.output_path,
    )
    parts = {row.place: parts_of(cells[row.place], first) for row in joined.layers}
    each = [{(mean.of, mean.name): mean.rate.value for mean in means_of(run)} for run in runs]
    means = (
        replace(mean, seeds=tuple(of_run.get((mean.of, mean.name)) for of_run in each))
        for mean in means_of(joined, parts)
    )
    return replace(joined, means=tuple(means))


def _cells(runs: Sequence[Run]) -> dict[Place, list[Row]]:
    """The rows of all runs by layer, as finely as the files have them."""
    cells: dict[Place, list[Row]] = defaultdict(list)
    for run in runs:
        for row in run.bits or run.layers:
            cells[row.place].append(row)
    return cells


def _joined_rows(
    tables: Sequence[Sequence[Row]], runs: Sequence[Run], cells: Mapping[Place, Sequence[Row]]
) -> Iterable[Row]:
    """One row for each (layer, bit) of any table, in order."""
    found: dict[Hashable, dict[int, Row]] = defaultdict(dict)
    for index, table in enumerate(tables):
        for row in table:
            found[row.place, row.bit][index] = row
    places = {row.place: number for number, row in enumerate(runs[0].layers)}
    for by_run in sorted(found.values(), key=lambda rows: _order(next(iter(rows.values())), places)):
        rows = list(by_run.values())
        place, bit = rows[0].place, rows[0].bit
        known = [row.outcomes for row in rows if row.outcomes is not None]
        values = tuple(by_run[i].rate.value if i in by_run else None for i in range(len(runs)))
        yield Row(
            place,
            sum(row.misclassified for row in rows),
            sum(row.correct for row in rows),
            _rate(values, rows, [row for row in cells[place] if bit in (None, row.bit)], runs[0]),
            total(known) if len(known) == len(rows) else None,
            bit,
            values,
        )


def _order(row: Row, places: Mapping[Any, int]) -> tuple[int, int]:
    return places[row.place], -1 if row.bit is None else row.bit


def _rate(values: Sequence[float | None], rows: Sequence[Row], parts: Sequence[Row], run: Run) -> Rate:
    """The mean of the seeds' rates; where they have different numbers of images (bits), that of the images."""
    have = [value for value in values if value is not None]
    if not have:
        return Rate()
    pooled = 100 * sum(row.misclassified for row in rows) / sum(row.correct for row in rows)
    value = pooled if rows[0].bit is not None else statistics.fmean(have)
    if run.weighted and rows[0].bit is None:
        return rates.mean([parts_of(parts, run)], run.confidence)
    low, high = rates.of(sums(parts, run.target), run.target, run.confidence).interval or (value, value)
    return Rate(value, min(low, value), max(high, value))


# --- files ---


def tables(run: Run) -> dict[Path, str]:
    """The CSV files and the JSON of joined seeds, as text by path."""
    place = [*columns.PLACE, "parameter"]
    measured = ["seeds", *columns.HITS, "rate", *columns.INTERVAL, "sd", "min", "max"]
    each = [columns.rate_of(seed) for seed in run.seeds]
    outcomes = ["flips", "injections", *columns.of_outcomes(bounded=run.bounded)]
    found = {
        run.files.table: _csv([*place, *measured, *outcomes, *each], (_row(row, run) for row in run.layers)),
        run.files.means: _csv(
            ["of", "name", "seeds", *measured[3:], *each],
            ([m.of, m.name, *_numbers(m.rate, m.seeds), *map(_text, m.seeds)] for m in run.means),
        ),
        run.files.run: json.dumps({**run.facts, "seeds": run.seeds, "left_out": run.left_out}, indent=2) + "\n",
    }
    if run.bits:
        header = [*place, "bit", *measured, *outcomes, *each]
        found[run.files.bits] = _csv(header, (_row(row, run) for row in run.bits))
    return found


def _row(row: Row, run: Run) -> list[object]:
    p, o = row.place, row.outcomes
    raised = Rate() if o is None else due(row, run)
    seeds, *rest = _numbers(row.rate, row.seeds)
    return [
        *(p.layer, p.type, p.path, p.call, p.parameter),
        *([] if row.bit is None else [row.bit]),
        *(seeds, row.misclassified, row.correct, *rest),
        *(None if o is None else o[name] for name in ("flips", "injections", *columns.of_effects(bounded=run.bounded))),
        *map(_text, (raised.low, raised.high)),
        *([] if run.bounded else [_text(None if o is None else o.largest_change)]),
        *map(_text, row.seeds),
    ]


def _numbers(rate: Rate, seeds: Sequence[float | None]) -> list[object]:
    numbers = (rate.value, rate.low, rate.high, *spread(seeds))
    return [sum(value is not None for value in seeds), *map(_text, numbers)]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csvs.Writer(buffer)
    for row in (header, *rows):
        writer.writerow(row)
    return buffer.getvalue()
