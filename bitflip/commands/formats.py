"""``python -m bitflip formats``: the same network in several number formats, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bitflip.commands import shared
from bitflip.errors import BadInput
from bitflip.settings import reading
from bitflip.settings.combined import SINGLE
from bitflip.settings.hyperparameters import NARROW, NumberFormat
from bitflip.terminal import aligned

if TYPE_CHECKING:  # the command imports what is slow once it runs, so that --help answers at once
    from bitflip.faults.flips import TargetKind
    from bitflip.report.formats import Measured
    from bitflip.settings.hyperparameters import Hyperparameters

# are given otherwise, or are not for all formats, or leave no rate by layer
OWN = (
    *("number_format", "plots", "seeds", "rerun", "save_faults", "faults", "limit", "prove", "audit"),
    *("bit_error_rate", "by_layer", "bit_flip_pos"),
)
DEFAULT = "float32,bfloat16,float8_e4m3fn,int8"
WEIGHTS = ("parameters",)  # settings that mean nothing to neurons
MEASURED = ("calibration_images", "percentile")  # nor, without a protection, to formats that are computed in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: its own and those settings of the scripts that matter."""
    valid = ", ".join(get_args(NumberFormat))
    parser.add_argument(
        "--with",
        dest="with_",
        metavar="LIST",
        default=DEFAULT,
        help=f"number formats, comma-separated, of {valid}; default {DEFAULT}",
    )
    parser.add_argument(
        "--target", choices=["neuron", "weight", "both"], default="both", help="where bits flip; default both"
    )
    reading.add_flags(parser, OWN, output_path="folder for the tables, and a folder in it for each format")


def run(arguments: argparse.Namespace) -> int:
    """Run the network in each format, print and write what came of it, and return the exit code.

    Raises:
        BadInput: for bad settings, or a file that can't be written.
    """
    from bitflip.report import formats

    targets: list[TargetKind] = ["neuron", "weight"] if arguments.target == "both" else [arguments.target]
    # All mistakes show before anything runs; the first run's seed, which may come from the clock, is everybody's.
    each: dict[tuple[str, TargetKind], Hyperparameters] = {}
    for form in _formats(arguments.with_):
        for target in targets:
            seed = next(iter(each.values())).seed if each else None
            each[form, target] = _settings(arguments, form, target, seed)
    tables: dict[tuple[str, str], Path] = {}
    for (form, target), settings in each.items():
        code, table = shared.run_quietly(settings, target, f"{form}, {target}s")
        if code:
            return code
        tables[form, target] = table
    found = formats.measured(tables)
    print(*lines(found), sep="\n")
    stem = next(iter(each.values())).output_path.parent / f"{found[0].run.files.stem}_formats"
    shared.write_together(stem, formats.HEAD, formats.rows(found), formats.picture(found))
    return 0


def _formats(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    known = get_args(NumberFormat)
    if wrong := [name for name in names if name not in known]:
        raise BadInput(f"with (--with): expected number formats of {', '.join(known)}, got {wrong[0]!r}")
    return names


def _settings(arguments: argparse.Namespace, form: str, target: TargetKind, seed: int | None) -> Hyperparameters:
    from bitflip.commands import checks

    given = reading.flags_of(arguments)
    if target == "neuron":
        given = _without(given, WEIGHTS)
    if form not in NARROW and not any(flag.startswith("--protect=") for flag in given):
        given = _without(given, MEASURED)
    checked = checks.checked([*given, "--no-plots", f"--number-format={form}"], target)
    seed = checked.seed if seed is None else seed
    return checked.model_copy(update={"seed": seed, "output_path": checked.output_path / form})


def _without(flags: list[str], names: tuple[str, ...]) -> list[str]:
    """Those flags that are of other settings."""
    return [flag for flag in flags if not flag.startswith(tuple(f"--{name.replace('_', '-')}=" for name in names))]


def lines(found: list[Measured]) -> list[str]:
    """The tables for people: each format over the network, then by bit."""
    rows: list[tuple[str, ...]] = [("format", "target", "clean accuracy", "rate", "interval", "bits that matter most")]
    for one in found:
        correct, images = one.images
        rate = one.rate
        worst = sorted((bit for bit in one.bits if bit.rate.value), key=lambda bit: -(bit.rate.value or 0.0))[:3]
        interval = "" if rate.interval is None else f"({rate.interval[0]:.3f} to {rate.interval[1]:.3f})"
        rows.append(
            (
                one.form,
                one.run.target,
                f"{correct}/{images} = {100 * correct / max(1, images):.2f}%",
                "-" if rate.value is None else f"{rate.value:.3f} %",
                interval,
                ", ".join(f"{bit.bit} ({bit.rate.value:.2f} %)" for bit in worst),
            )
        )
    title = f"{found[0].run.name}, the same network in each number format"
    fault = str(found[0].run.settings.get("fault"))
    under = "a fault in one random bit" if fault in SINGLE else f"fault {fault}"
    what = f"The rate is the mean of the layers' misclassification rates under {under}, in percent."
    return [title, *aligned(rows, words=[0, 1, 4, 5]), what]
