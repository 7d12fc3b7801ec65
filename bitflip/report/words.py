"""What a run found, in sentences, and how to repeat it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from bitflip.network.fields import regions
from bitflip.network.names import ranges
from bitflip.report.runs import Row, Run
from bitflip.report.scale import percent, plain
from bitflip.report.shown import ranked
from bitflip.report.summary import Bit, by_bit, due_of_all, means, parts_of, total
from bitflip.statistics import sampling
from bitflip.statistics.rates import Part, Rate
from bitflip.terminal import NOTHING, duration

WIDE = 5.0  # percentage points either way; an interval that is wider says little

SCRIPTS = {"neuron_": "neuron.py", "weight_": "weight.py"}


def with_interval(rate: Rate) -> str:
    """``3.34 % (2.21 to 5.07 %)``."""
    text = f"{percent(rate.value)} %"
    return f"{text} ({percent(rate.interval[0])} to {percent(rate.interval[1])} %)" if rate.interval else text


def findings(run: Run) -> list[str]:
    """The most fragile layers and bits, in a few sentences."""
    rows = ranked(run)
    if not rows:
        return [f"No image is classified correctly without a fault: every rate is 0 / 0, {NOTHING}."]
    found = [
        *_about_layers(run, rows),
        *_about_width(run, rows),
        *_about_types(run),
        *_about_bits(run),
        *_about_outcomes(run),
    ]
    return [plain(sentence) for sentence in found]


def _about_layers(run: Run, rows: Sequence[Row]) -> list[str]:
    first, *rest = rows
    if not first.rate.value:
        images = max(row.correct for row in rows)
        high = max((row.rate.high for row in rows if row.rate.high is not None), default=None)
        bound = (
            f"; with {run.confidence * 100:g} % confidence no layer's rate is over {percent(high)} %" if high else ""
        )
        return [f"No flip in any of the {len(rows)} layers changed the class of any of {images:,} images{bound}."]
    sentence = (
        f"The most fragile layer is {first.place.named}: {with_interval(first.rate)} of the images "
        f"that are right without a fault change class, {first.misclassified:,} of {first.correct:,}."
    )
    if follow := [row for row in rest[:2] if row.rate.value]:
        names = " and ".join(f"{row.place.named} with {percent(row.rate.value)} %" for row in follow)
        sentence += f" {names} follow{'s' * (len(follow) == 1)}."
    found = [sentence]
    if rest and first.rate.interval:
        rivals = sum(row.rate.high is not None and row.rate.high >= first.rate.interval[0] for row in rest)
        if rivals:
            layers = "layer" if rivals == 1 else "layers"
            found.append(
                f"Its interval overlaps those of {rivals} other {layers}: among them the order is not certain."
            )
    none = sum(row.misclassified == 0 for row in rows)
    if none:
        found.append(f"In {none} of {len(rows)} layers no flip changed a class.")
    if run.listed is not None:
        found.append(
            "Rates are those of the faults in the list. Intervals say how sure they would be of all faults of a layer, "
            "had the list been drawn at random."
        )
    return found


def _about_width(run: Run, rows: Sequence[Row]) -> list[str]:
    if run.listed is not None or not run.complete or run.settings.get("margin") is not None:
        return []
    rates = [row.rate for row in rows]
    if not all(rate.interval for rate in rates) or not isinstance(repeats := run.settings.get("repeats", 1), int):
        return []
    parts = [parts_of(_cells(row, run) if run.weighted else [row], run) for row in rows]
    seconds = run.facts.get("campaign_seconds")
    sentence = narrower(rates, parts, run.target, run.confidence, repeats, seconds, several=len(run.seeds) > 1)
    return [sentence] if sentence else []


def _cells(row: Row, run: Run) -> list[Row]:
    return [cell for cell in run.bits if cell.place == row.place]


def narrower(
    rates: Sequence[Rate],
    parts: Sequence[Sequence[Part]],
    target: str,
    confidence: float,
    repeats: int,
    seconds: float | None,
    *,
    several: bool,
) -> str | None:
    """If intervals are so wide that rates say little, in one sentence what narrows them, and how long that takes.

    Args:
        rates: of the layers, with their intervals.
        parts: that these are the means of.
        target: of the faults.
        confidence: of the intervals.
        repeats: that the run made.
        seconds: that it took; None if that is not known.
        several: whether it was one of several seeds, which are not run to a margin.
    """
    widest = max(rates, key=lambda rate: (rate.high or 0) - (rate.low or 0))
    low, high = widest.interval or (0.0, 0.0)
    if high - low <= 2 * WIDE:
        return None
    helps = []
    if factor := sampling.times(parts, target, confidence, WIDE):
        wanted = rounded_up(max(factor * repeats, repeats + 1))
        time = "" if seconds is None else f", in about {duration(seconds * wanted / repeats)} on this machine"
        helps.append(f"--repeats {wanted} makes each about {2 * WIDE:g} points wide{time}")
    if not several:
        helps.append(f"--margin {WIDE:g} runs each layer until its own is")
    if not helps:
        return None
    return f"Intervals are too wide to say much, up to {percent(low)} to {percent(high)} %: {'; '.join(helps)}."


def rounded_up(count: int) -> int:
    """A number of at most two figures and zeros that is at least as large.

    >>> [rounded_up(count) for count in (7, 99, 101, 1234)]
    [7, 99, 110, 1300]
    """
    unit = int(10 ** max(0, len(str(count)) - 2))
    return math.ceil(count / unit) * unit


def _about_types(run: Run) -> list[str]:
    of = [mean for mean in means(run) if mean.of == "type" and mean.rate.value is not None]
    if len(of) < 2 or not any(mean.rate.value for mean in of):
        return []
    of = sorted(of, key=lambda mean: -(mean.rate.value or 0))
    most, least = of[0], of[-1]
    return [
        f"By layer type, {most.name} has the highest mean rate, {with_interval(most.rate)}, "
        f"and {least.name} the lowest, {with_interval(least.rate)}."
    ]


def bit_name(bit: int, width: int, form: object = None) -> str:
    """``bit 1 (highest of the exponent)``."""
    for name, first, last in regions(width, form):
        if first <= bit <= last:
            if first == last:
                return f"bit {bit} ({name})"
            return f"bit {bit} (highest of the {name})" if bit == first else f"bit {bit} ({name})"
    return f"bit {bit}"


def _about_bits(run: Run) -> list[str]:
    alike = run.by_format
    found = [(of, item) for of in alike for item in by_bit(of)]
    # Of misclassifications by random bits; by counting them where bits were drawn alike.
    weights = [(item.rate.value or 0) if run.weighted else item.misclassified for _, item in found]
    wrong = sum(weights)
    if len({item.bit for _, item in found}) < 2 or not wrong:
        return []
    place = max(range(len(found)), key=lambda i: found[i][1].rate.value or 0)
    (of, most), share = found[place], 100 * weights[place] / wrong
    width = of.width_of(of.layers[0].place)
    whose = f" of {of.form} values" if len(alike) > 1 else ""
    sentences = [
        f"The most fragile bit is {bit_name(most.bit, width, of.form)}{whose}: {with_interval(most.rate)} of its "
        f"flips' images change class, and it accounts for {percent(share)} % of all misclassifications."
    ]
    if len(alike) > 1:
        names = ", ".join(str(one.form) for one in alike)
        return [*sentences, f"Plots by bit count bits of the same number together, though values differ ({names})."]
    for region, first, last in regions(width, of.form):
        inside = [i for i, (_, item) in enumerate(found) if first <= item.bit <= last]
        if region == "mantissa" and inside:
            share = 100 * sum(weights[i] for i in inside) / wrong
            sentences.append(_about_mantissa([found[i][1] for i in inside], share))
    return sentences


def _about_mantissa(inside: Sequence[Bit], share: float) -> str:
    if not share:
        return f"No flip in the mantissa changed a class, in {sum(item.correct for item in inside):,} tries."
    return f"Mantissa bits account for {percent(share)} % of all misclassifications."


def _about_outcomes(run: Run) -> list[str]:
    whole = total(row.outcomes for row in run.layers if row.outcomes)
    if run.weighted:
        return [
            f"A third of the flips were drawn from {' or '.join(dict.fromkeys(map(_top, run.by_format)))}; the rates "
            "are those of random bits, the counts are not."
        ]
    if whole is None or not whole.injections:
        return []
    found = []
    if (masked := whole.share("masked")) is not None:
        of = f"of {whole.injections:,} faulty inferences were masked"
        found.append(f"{percent(masked)} % {of}: their logits equal the clean ones bit for bit")
    if (proved := whole.share("proved")) is not None:
        audited = f"; {whole['audited']:,} of them were run all the same, and none did" if whole["audited"] else ""
        found.append(
            f"{percent(proved)} % of {whole.injections:,} faulty inferences were proved unable to change the class, "
            f"by a bound{audited}"
        )
    if (nonfinite := whole.share("nonfinite")) is not None:
        found.append(f"{percent(nonfinite)} % had NaN or infinity among the logits")
    if run.any_due:
        found.append(f"{with_interval(due_of_all(run.layers, run))} made the model raise an exception (DUE)")
    return [f"{'; '.join(found)}."] if found else []


def _top(run: Run) -> str:
    """The bit that importance sampling draws most, of a run of values that are alike."""
    return "the sign" if run.number_of(run.layers[0].place) == "integer" else "the top exponent bit"


def script(run: Run) -> str:
    """The entry script that made a run."""
    return next((name for prefix, name in SCRIPTS.items() if run.files.stem.startswith(prefix)), "main.py")


def happening(run: Run) -> str:
    """What happened to the bits, and what protected the network."""
    name, _, more = str(run.settings.get("fault", "flip")).partition(":")
    setting, protection = (run.settings.get(name) for name in ("number_format", "protect"))
    form = "" if setting is None else f" ({setting})" if run.form == setting else f" in a network of {setting}"
    others = str(run.settings.get("parameters") or "weight") if run.target == "weight" else "weight"
    what = (
        run.target
        if others == "weight"
        else f"value of {'all parameters' if others == 'all' else others.replace(',', ', ')}"
    )
    struck = f"one {what}{form}"
    value = {"random": "random bits", "zero": "0", "own": f"what {more.partition(':')[0]} returns"}.get(name, more)
    found = {
        "flip": f"One bit of {struck} flipped at a time",
        "stuck0": f"One bit of {struck} stuck at 0",
        "stuck1": f"One bit of {struck} stuck at 1",
        "flips": f"{more} bits of {struck} flipped at a time",
        "burst": f"{more} neighbouring bits of {struck} flipped at a time",
    }.get(name, f"One {what}{form} at a time replaced by {value}")
    if run.listed:
        found = f"One {run.target}{form} at a time struck as a list says"
    return found if protection is None else f"{found}, protected by {protection}"


def command(run: Run) -> str | None:
    """The command line that repeats a run, or all that were joined; None when its settings are not known."""
    from bitflip.settings.hyperparameters import DatasetName, Hyperparameters

    if run.settings.get("dataset") not in get_args(DatasetName):  # not known, or not made by a script
        return None

    fields = Hyperparameters.model_fields
    arguments = []
    for name, value in ({**run.settings, "output_path": run.output_path}).items():
        default = fields[name].default if name in fields else None
        if value is None or value == default or (name in fields and str(value) == str(default)):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        else:
            arguments.append(shlex.quote(f"{flag}={value}"))
    line = " ".join(["python", script(run), *arguments])
    if len(run.seeds) == 1:
        return line
    if run.settings.get("margin") is None:
        return f"{line} --seeds={','.join(ranges(run.seeds))}"
    return f'for seed in {" ".join(map(str, run.seeds))}; do {line} "--seed=$seed"; done'  # each stops by itself


def again(run: Run) -> str:
    """The command line that repeats a single run from its ``.json``, as long as that is where the run wrote it."""
    folder = run.output_path or "."
    flags = [f"--rerun={Path(folder) / run.files.run.name}", f"--output-path={folder}"]
    return shlex.join(["python", script(run), *flags])
