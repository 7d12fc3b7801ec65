"""``python -m bitflip verify``: does a published fault list do here what was published of it?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip.errors import BadInput
from bitflip.network.names import label
from bitflip.settings import hyperparameters, reading
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.terminal import aligned

if TYPE_CHECKING:  # the command imports what is slow once it runs, so that --help answers at once
    from bitflip.faults import faultlist
    from bitflip.report import verification
    from bitflip.results import faultresults


TOLERANCE = 1e-4

ABOUT_MASKED = """\
About the masked columns: an inference is masked when its logits are the clean ones to the bit, so it depends on the
arithmetic, as critical outcomes barely do. A TF32 convolution rounds its inputs and weights to 10 mantissa bits: it
never sees a flip of a weight in the last 12, bits 11 to 0 from the least significant end, and takes away small
differences that come from layers before it. Layers whose flips there are all masked, as if they ran in TF32:
  published: {theirs}
  ours: {ours}"""
NO_MASKED = "which does not tell masked from benign"
NO_SHARES = f"Masked shares are not compared: ours are of a run with prove (--prove), {NO_MASKED}."
NOT_JUDGED = "Masked shares are not part of the verdict; --masked is for where both sides did the same arithmetic."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: those of ``weight.py`` that a fault list leaves a choice of, and its own."""
    reading.add_flags(parser, hyperparameters.names(lambda role: role.sampling))
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        help="compare an earlier run's ..._faults.csv (its ..._images.csv beside it) instead of running the list",
    )
    parser.add_argument(
        "--masked",
        action="store_true",
        help="make masked shares part of the verdict: where both sides did the same arithmetic, layer by layer",
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
    from bitflip.commands import checks

    if not 0 <= arguments.tolerance < 1:
        raise BadInput(f"tolerance (--tolerance): expected a share from 0 to 1, got {arguments.tolerance}")
    if arguments.faults is None:
        raise BadInput("faults (--faults): expected the path of a published fault list")
    if arguments.results is not None:
        return _read(Path(arguments.faults), arguments.results, arguments.tolerance, masked=arguments.masked)
    settings = checks.checked(reading.flags_of(arguments), "weight")
    if settings.prove and arguments.masked:
        raise BadInput(f"masked (--masked): expected a run without prove (--prove), {NO_MASKED}")
    return _run(settings, arguments.tolerance, masked=arguments.masked)


def _run(settings: Hyperparameters, tolerance: float, *, masked: bool) -> int:
    from bitflip.commands import run
    from bitflip.faults import faultlist
    from bitflip.faults.listed import Listed
    from bitflip.outcomes.per_fault import PerFault
    from bitflip.results.faultresults import Read

    assert settings.faults is not None
    _published(settings.faults, faultlist.read(settings.faults))
    ended = run.run(settings, "weight", "weight_")
    if ended.code or ended.done is None:
        return ended.code
    source, found = ended.done.experiment.source, ended.done.tallies.main
    assert isinstance(source, Listed)
    assert isinstance(found, PerFault)
    return _judged(source.listed, Read.of(found), tolerance, masked=masked)


def _read(path: Path, results: Path, tolerance: float, *, masked: bool) -> int:
    from bitflip.faults import faultlist
    from bitflip.results import faultresults

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
    return _judged(listed.only([place[fault] for fault in read.faults]), read, tolerance, masked=masked)


def _published(path: Path, listed: faultlist.FaultList) -> faultlist.FaultList:
    from bitflip.faults import faultlist

    if listed.published is None:
        raise BadInput(
            f"faults (--faults): expected published outcomes, in the columns {','.join(faultlist.PUBLISHED_HEADER)}, "
            f"in {path}, got a list of faults only"
        )
    return listed


def _judged(listed: faultlist.FaultList, read: faultresults.Read, tolerance: float, *, masked: bool) -> int:
    import numpy as np

    from bitflip.report import verification

    assert listed.published is not None
    known = {
        name: np.array([getattr(one, name) for one in listed.published], dtype=np.float64)
        for name in ("images", "critical", "masked")
    }
    ours = {name: read.counts[name].astype(np.float64) for name in known if name in read.counts}
    if masked and "masked" not in ours:
        raise BadInput(f"masked (--masked): expected results of a run without prove (--prove), {NO_MASKED}")
    sides = verification.Sides(
        [(fault.target, fault.path, fault.call, fault.bit) for fault in listed.faults],
        published_images=known["images"],
        published=known["critical"],
        images=ours["images"],
        critical=ours["critical"],
        published_masked=known["masked"],
        masked=ours.get("masked"),
        by_image={key: counted.astype(np.float64) for key, counted in read.by_image.items()},
    )
    verdict = verification.compare(sides, tolerance)
    print(*_tables(verdict, sides), sep="\n")
    off = verdict.masked.off if masked and verdict.masked is not None else []
    print("", *_conclusion(verdict, off, masked=masked), sep="\n")
    return 0 if verdict.agrees and not off else 1


def _tables(verdict: verification.Verdict, sides: verification.Sides) -> list[str]:
    from bitflip.faults.faultlist import PUBLISHED_WIDTH
    from bitflip.report import verification

    images = sorted({int(n) for n in sides.images})
    published = sorted({int(n) for n in sides.published_images})
    lines = [
        "",
        f"Critical (top-1 changed), in percent of {_span(images)} images, published of {_span(published)}:",
        "",
    ]
    head = ("faults", "published", "ours", "difference", "error", "in errors")
    found = verdict.masked
    rows: list[tuple[str, ...]] = [("bit", "from LSB", *head, *([] if found is None else ("masked", "ours")))]
    for group in verdict.bits:
        bit = int(str(group.name))
        masked = () if found is None else _percent(found.bits[bit])
        rows.append((str(bit), str(PUBLISHED_WIDTH - 1 - bit), *_cells(group), *masked))
    layers: list[tuple[str, ...]] = [("layer", *head, *([] if found is None else ("low bits", "ours")))]
    for group in [*verdict.layers, verdict.total]:
        masked = () if found is None else _percent(found.rounded_off.get(group.name))
        layers.append((_layer(group.name), *_cells(group), *masked))
    lines += [*aligned(rows), "", *aligned(layers, words=[0])]
    if found is not None:
        lines += ["", "low bits: the masked share of flips in bits 11 to 0 from the least significant end"]
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


def _conclusion(verdict: verification.Verdict, off: Sequence[int], *, masked: bool) -> list[str]:
    from bitflip.report import verification

    lines = [NO_SHARES, ""]
    if verdict.masked is not None:
        theirs, ours = (", ".join(_layer(layer) for layer in side) or "none" for side in verdict.masked.tf32)
        lines = [ABOUT_MASKED.format(theirs=theirs, ours=ours), *([] if masked else [NOT_JUDGED]), ""]
    for group in verdict.off:
        what = f"bit {group.name}" if isinstance(group.name, int) else _layer(group.name)
        ours, theirs = (f"{100 * share:.4f} %" for share in (group.ours, group.theirs))
        lines.append(f"{what}: {ours} is {group.z:+.1f} standard errors off the published {theirs}")
    for bit in off:
        assert verdict.masked is not None
        a, b = _percent(verdict.masked.bits[bit])
        lines.append(f"bit {bit}: {b} % are masked, published {a} %, more than images and an order of sums explain")
    lines.append(
        f"Groups may be {verdict.z:.2f} standard errors off. Single faults differ by {verdict.spread:.2f} times what "
        f"sampling explains; up to {verification.MOST_SPREAD} agrees."
    )
    lines.append(
        "Agrees with what was published, within sampling error."
        if verdict.agrees and not off
        else "Does NOT agree with what was published: more than sampling error explains."
    )
    return lines


def _cells(group: verification.Group) -> list[str]:
    shares = [f"{100 * share:.4f}" for share in (group.theirs, group.ours)]
    return [str(group.faults), *shares, f"{100 * group.difference:+.4f}", f"{100 * group.error:.4f}", f"{group.z:+.2f}"]


def _percent(shares: tuple[float, float] | None) -> tuple[str, str]:
    return ("", "") if shares is None else (f"{100 * shares[0]:.2f}", f"{100 * shares[1]:.2f}")


def _layer(name: object) -> str:
    if not isinstance(name, tuple):
        return str(name)
    target, path, call = name
    return label(path, call, target)


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
