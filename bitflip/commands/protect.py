"""``python -m bitflip protect``: a network with and without protections, under the same faults."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip.commands import shared
from bitflip.errors import BadInput
from bitflip.network.names import printable
from bitflip.settings import reading
from bitflip.settings.protection import VALID, Protection
from bitflip.terminal import aligned

if TYPE_CHECKING:  # the command imports what is slow once it runs, so that --help answers at once
    from bitflip.report.protections import Measured
    from bitflip.results.tracking import Tracker
    from bitflip.settings.hyperparameters import Hyperparameters

# are given otherwise, or would not leave all runs the same faults, each of them known
OWN = (
    *("model_name", "protect", "prove", "audit", "fault_table", "plots", "seeds", "margin", "rerun", "save_faults"),
    *("bit_error_rate", "by_layer"),
)
METRIC = "Misclassification_rate"
MEASURED = ("bounds", "calibration_images", "percentile")  # of those whose bounds are measured
DEFAULT = "relu6,ranger,clip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: its own and those settings of the scripts that matter."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="as --model-name of a run; default: that of a run")
    parser.add_argument(
        "--with",
        dest="with_",
        metavar="LIST",
        default=DEFAULT,
        help=f"comma-separated, each {VALID}; default {DEFAULT}",
    )
    parser.add_argument("--target", choices=["neuron", "weight"], default="neuron", help="where bits flip")
    reading.add_flags(parser, OWN, output_path="folder for the tables, and a folder in it for each run")


def run(arguments: argparse.Namespace) -> int:
    """Run the network with and without the protections, print and write what came of it, and return the exit code.

    Raises:
        BadInput: for bad settings, or a file that can't be written.
    """
    from bitflip.report import protections
    from bitflip.results import tracking

    found = _protections(arguments.with_)
    models = arguments.models or [None]
    # All mistakes show before anything runs; the first run's seed, which may come from the clock, is everybody's.
    each = [_settings(arguments, model, found) for model in models]
    for settings in each:
        tables: dict[str, Path] = {}
        for name, one in settings.items():
            what = one.protect or "unprotected"
            code, table = shared.run_quietly(one, arguments.target, what, tracked=False)  # they have the same steps
            if code:
                return code
            tables[name] = table
        measured = protections.measured(tables)
        print(*lines(measured), sep="\n")
        with tracking.connect() as tracker:
            track(measured, tracker)
        stem = next(iter(settings.values())).output_path.parent / f"{measured[0].run.files.stem}_protections"
        shared.write_together(stem, protections.HEAD, protections.rows(measured), protections.picture(measured))
    return 0


def _protections(text: str) -> list[Protection]:
    found = []
    for part in text.split(","):
        try:
            found.append(Protection.of(part))
        except ValueError:
            raise BadInput(
                f"with (--with): expected protections, comma-separated, each {VALID}; got {part!r}"
            ) from None
    return list(dict.fromkeys(found))


def _settings(arguments: argparse.Namespace, model: str | None, found: list[Protection]) -> dict[str, Hyperparameters]:
    """The settings of each run, by the name of the protection."""
    from bitflip.commands import checks
    from bitflip.faults import faultlist
    from bitflip.report.protections import BARE

    own: list[tuple[str, Protection | None]] = [(BARE, None), *((str(one), one) for one in found)]
    given = reading.flags_of(arguments) + ([] if model is None else [f"--model-name={model}"])
    bounds = [f"--{name.replace('_', '-')}=" for name in MEASURED]
    settings: dict[str, Hyperparameters] = {}
    for name, protection in own:
        flags = [*given, "--fault-table", "--no-plots"]
        if protection is None:
            flags = [flag for flag in flags if not flag.startswith("--protect-layers=")]
        if protection is None or not protection.calibrated:
            flags = [flag for flag in flags if not flag.startswith(tuple(bounds))]
        flags += [] if protection is None else [f"--protect={name}"]
        checked = checks.checked(flags, arguments.target)
        seed = next(iter(settings.values())).seed if settings else checked.seed
        folder = checked.output_path / re.sub(r"[^A-Za-z0-9_.+-]", "_", name)
        settings[name] = checked.model_copy(update={"seed": seed, "output_path": folder})
        if checked.faults is not None and protection is not None and protection.ecc:
            faultlist.read(checked.faults).require_single()  # now, and not behind the runs before this one
    return settings


def track(found: Sequence[Measured], tracker: Tracker) -> None:
    """Send the rates of each layer at step = layer number: of the first protection, without one, and their difference.

    And the same for each protection under its name.
    """
    for row in found[0].run.layers:
        bare = row.rate.value
        if bare is None:
            continue
        payload = {f"{METRIC}/unprotected": bare}
        for one in found[1:]:
            same = next((other.rate.value for other in one.run.layers if other.place == row.place), None)
            if same is not None:
                for name in (METRIC, f"{METRIC}/{one.name}"):
                    payload.setdefault(name, same)
                    payload.setdefault(f"{name}/difference", same - bare)
        tracker.log(payload, step=row.place.layer)


def lines(found: list[Measured]) -> list[str]:
    """The tables for people: what protections do over the network, and by layer."""
    bare = found[0]
    head = ("protection", "clean accuracy", "broken", "mended", "rate", "difference", "interval", "")
    overall: list[tuple[str, ...]] = [(*head, "sdc1", "sdc5", "nonfinite", "due", "operations", "bytes")]
    for one in found:
        network = None if one.against is None else one.against.network
        known = network is not None and network.value is not None
        outcomes = one.outcomes
        shares = [None if outcomes is None else outcomes.share(name) for name in ("sdc1", "sdc5", "nonfinite", "due")]
        overall.append(
            (
                one.name,
                f"{one.correct}/{one.images} = {100 * one.correct / max(1, one.images):.2f}%",
                *((str(one.broken), str(one.mended)) if one.against else ("", "")),
                _number(None if one.rate is None else one.rate.value),
                f"{network.value:+.4f}" if known and network and network.value is not None else "",
                f"({network.low:+.4f} to {network.high:+.4f})" if known and network and network.low is not None else "",
                "*" if network is not None and network.sure else "",
                *map(_number, shares),
                *(f"{number:,}" for number in one.cost),
            )
        )
    by_layer: list[tuple[str, ...]] = [(*(one.name for one in found), "layer")]
    for row in bare.run.layers:
        cells = []
        for one in found:
            same = next((other for other in one.run.layers if other.place == row.place), None)
            difference = one.differences().get(row.place)
            star = "*" if difference is not None and difference.sure else " "
            cells.append(f"{_number(None if same is None else same.rate.value)}{star}")
        by_layer.append((*cells, printable(row.place.named)))
    paired = [one.against for one in found if one.against is not None]
    why = f"{'Paired' if all(one.paired for one in paired) else 'Not paired'}: {paired[0].why}." if paired else ""
    return [
        bare.run.title,
        *aligned(overall, words=[0, 7]),
        why,
        "Rates, and shares of all faulty inferences, in percent; the rate is the mean of the layers, the difference is "
        "in percentage points, and of the images that both classify correctly.",
        "",
        "Misclassification rate by layer; * where the difference is sure:",
        *aligned(by_layer, words=[len(found)]),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
