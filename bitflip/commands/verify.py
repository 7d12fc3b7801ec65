"""``python -m bitflip verify``: does a published fault list do here what was published of it?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip import hyperparameters
from bitflip.errors import BadInput
from bitflip.hyperparameters import Hyperparameters

if TYPE_CHECKING:  # the command imports what is slow once it runs, so that --help answers at once
    from bitflip import faultlist, faultresults, verification


TOLERANCE = 1e-4

ABOUT_MASKED = """\
About the masked column: an inference is masked when its logits are the clean ones to the bit, so it depends on the
arithmetic. TF32 convolutions drop the low 13 of the 23 mantissa bits of their inputs and weights: a flip there is
rounded away before it is multiplied, and the published share falls off a cliff between bits 11 and 12 from the least
significant end. IEEE float32 keeps all bits and masks far less in the low ones. Critical outcomes barely depend on
that. So masked is part of the verdict only with --precision tf32 on a GPU, where it has to be within
{most:.0%} of the published share for each bit."""
MOST_MASKED = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: those of ``weight.py`` that a fault list leaves a choice of, and its own."""
    for name, setting in Hyperparameters.model_fields.items():
        if name in hyperparameters.NOT_OF_A_LIST:
            continue
        flag = f"--{name.replace('_', '-')}"
        if setting.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=setting.description)
        else:
            parser.add_argument(flag, metavar="VALUE", help=(setting.description or "").replace("%", "%%"))
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        help="compare an earlier run's ..._faults.csv (its ..._images.csv beside it) instead of running the list",
    )
    parser.add_argument(
        "--tolerance",
        metavar="SHARE",
        type=float,
        default=TOLERANCE,
        help="difference of two shares that other arithmetic may make, beside sampling error; default %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the tables, and return 0 when all is within sampling error, otherwise 1.

    Raises:
        BadInput: for bad settings, a list that holds no published outcomes, or results that do not belong to it.
    """
    from bitflip import experiment

    if not 0 <= arguments.tolerance < 1:
        raise BadInput(f"tolerance (--tolerance): expected a share from 0 to 1, got {arguments.tolerance}")
    if arguments.faults is None:
        raise BadInput("faults (--faults): expected the path of a published fault list")
    if arguments.results is not None:
        return _read(Path(arguments.faults), arguments.results, arguments.tolerance)
    return _run(experiment.checked(settings_of(arguments), "weight"), arguments.tolerance)


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """The command line of ``weight.py`` that has the same settings."""
    flags = []
    for name in Hyperparameters.model_fields:
        value = getattr(arguments, name, None)
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            flags += [f"--{flag}", value] if not value.startswith("-") else [f"--{flag}={value}"]
    return flags


def _run(settings: Hyperparameters, tolerance: float) -> int:
    from bitflip import faultlist, listrun
    from bitflip.faultresults import Read

    assert settings.faults is not None
    _published(settings.faults, faultlist.read(settings.faults))
    finished = listrun.run(settings, "weight", "weight_")
    if finished is None:
        return 130
    device = finished.experiment.placement.device.type
    masked = settings.precision == "tf32" and device == "cuda"
    return _judged(finished.listed, Read.of(finished.found), tolerance, masked=masked)


def _read(path: Path, results: Path, tolerance: float) -> int:
    from bitflip import faultlist, faultresults

    listed = _published(path, faultlist.read(path))
    if listed.problems:
        raise BadInput(*faultlist.sentences(path, listed.problems))
    read = faultresults.read(results)
    place = {fault: i for i, fault in enumerate(listed.faults)}
    strange = [fault for fault in read.faults if fault not in place]
    if strange:
        raise BadInput(
            f"results (--results): expected faults of {path} in {results}, got {len(strange)} others, "
            f"the first of them {','.join(map(str, strange[0].row))}"
        )
    return _judged(listed.only([place[fault] for fault in read.faults]), read, tolerance, masked=False)


def _published(path: Path, listed: faultlist.FaultList) -> faultlist.FaultList:
    from bitflip import faultlist

    if listed.published is None:
        raise BadInput(
            f"faults (--faults): expected published outcomes, in the columns {','.join(faultlist.PUBLISHED_HEADER)}, "
            f"in {path}, got a list of faults only"
        )
    return listed


def _judged(listed: faultlist.FaultList, read: faultresults.Read, tolerance: float, *, masked: bool) -> int:
    import numpy as np

    from bitflip import verification

    assert listed.published is not None
    images = np.array([known.images for known in listed.published], dtype=np.float64)
    sides = verification.Sides(
        [(fault.target, fault.path, fault.call, fault.bit) for fault in listed.faults],
        images,
        np.array([known.critical for known in listed.published], dtype=np.float64),
        read.counts["images"].astype(np.float64),
        read.counts["critical"].astype(np.float64),
        {key: counted.astype(np.float64) for key, counted in read.by_image.items()},
    )
    verdict = verification.compare(sides, tolerance)
    theirs = np.array([known.masked for known in listed.published]) / images
    ours = read.counts["masked"] / read.counts["images"]
    bits = np.array([fault.bit for fault in listed.faults])
    shares = {bit: (float(theirs[bits == bit].mean()), float(ours[bits == bit].mean())) for bit in sorted(set(bits))}
    print(*_tables(verdict, sides, shares), sep="\n")
    off = [bit for bit, (a, b) in shares.items() if masked and abs(a - b) > MOST_MASKED]
    print("", *_conclusion(verdict, off), sep="\n")
    return 0 if verdict.agrees and not off else 1


def _tables(
    verdict: verification.Verdict, sides: verification.Sides, masked: dict[int, tuple[float, float]]
) -> list[str]:
    from bitflip import verification
    from bitflip.faultlist import PUBLISHED_WIDTH

    images = sorted({int(n) for n in sides.images})
    published = sorted({int(n) for n in sides.published_images})
    lines = [
        "",
        f"Critical (top-1 changed), in percent of {_span(images)} images, published of {_span(published)}:",
        "",
        _row("bit", "from LSB", "faults", "published", "ours", "difference", "error", "in errors", "masked", "ours"),
    ]
    for group in verdict.bits:
        bit = int(str(group.name))
        shares = [f"{100 * share:.2f}" for share in masked[bit]]
        lines.append(_row(str(bit), str(PUBLISHED_WIDTH - 1 - bit), *_cells(group), *shares))
    width = max(len(str(_layer(group.name))) for group in verdict.layers)
    lines += ["", f"{'layer':{width}}{_row('', '', 'faults', 'published', 'ours', 'difference', 'error', 'in errors')}"]
    for group in [*verdict.layers, verdict.total]:
        lines.append(f"{_layer(group.name):{width}}{_row('', '', *_cells(group))}")
    lines += ["", "Correlation over faults, and mean difference of their critical shares:"]
    often = [int(str(group.name)) for group in verdict.bits if group.theirs > verification.RARE]
    chosen_bits: list[tuple[str, int | None]] = [("all faults", None), *((f"bit {bit}", bit) for bit in often)]
    for name, only in chosen_bits:
        chosen = [only is None or key[3] == only for key in sides.keys]
        r = verification.correlation(sides.theirs[chosen], sides.ours[chosen])
        gap = sides.ours[chosen] - sides.theirs[chosen]
        lines.append(
            f"  {name}: r = {'undefined' if r is None else f'{r:.5f}'} over {sum(chosen)} faults, "
            f"mean difference {gap.mean():+.5f}, largest {abs(gap).max():.4f}"
        )
    return lines


def _conclusion(verdict: verification.Verdict, off: Sequence[int]) -> list[str]:
    from bitflip import verification

    lines = [ABOUT_MASKED.format(most=MOST_MASKED), ""]
    for group in verdict.off:
        what = f"bit {group.name}" if isinstance(group.name, int) else _layer(group.name)
        ours, theirs = (f"{100 * share:.4f} %" for share in (group.ours, group.theirs))
        lines.append(f"{what}: {ours} is {group.z:+.1f} standard errors off the published {theirs}")
    lines += [f"bit {bit}: the masked share is more than {MOST_MASKED:.0%} off" for bit in off]
    lines.append(
        f"Groups may be {verdict.z:.2f} standard errors off. Single faults differ by {verdict.spread:.2f} times what "
        f"sampling explains; up to {verification.MOST_SPREAD} agrees."
    )
    agrees = verdict.agrees and not off
    lines.append(
        "Agrees with what was published, within sampling error."
        if agrees
        else "Does NOT agree with what was published: more than sampling error explains."
    )
    return lines


def _cells(group: verification.Group) -> list[str]:
    shares = [f"{100 * share:.4f}" for share in (group.theirs, group.ours)]
    return [str(group.faults), *shares, f"{100 * group.difference:+.4f}", f"{100 * group.error:.4f}", f"{group.z:+.2f}"]


def _row(*cells: str) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, (3, 10, 8, 11, 10, 12, 9, 11, 9, 8), strict=False))


def _layer(name: object) -> str:
    if not isinstance(name, tuple):
        return str(name)
    target, path, call = name
    return f"{path}{f' call {call}' if call else ''}{f' {target}' if target != 'weight' else ''}"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
