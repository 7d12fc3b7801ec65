"""``python -m bitflip budget``: which bits must be protected, from the result files of a run."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip.commands import shared
from bitflip.errors import BadInput
from bitflip.network.names import printable, ranges
from bitflip.terminal import aligned

if TYPE_CHECKING:  # the command imports what is slow once it runs, so that --help answers at once
    from bitflip.report.budget import Budget
    from bitflip.report.runs import Run

SHARES = (0.0, 0.01, 0.1, 0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0)  # percent, of the printed table
WORST = 10  # cells that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run of faults of single bits: its .json or .csv; or several that differ only in their seed, of which "
        "every second one ranks",
    )
    parser.add_argument(
        "--target-rate",
        metavar="RATE",
        help="also say how few bits are enough for a misclassification rate of at most so many percent, such as 0.1%%",
    )
    parser.add_argument(
        "--ranked-by",
        metavar="RUN|position",
        help="what chooses the bits that are protected first: another run with other faults, or position, the most "
        "significant bits of the exponent; default: half of the run's own faults, so that the other half says what "
        "is left",
    )
    parser.add_argument("--output-path", type=Path, help="folder for the table and the plot; default: that of the run")


def run(arguments: argparse.Namespace) -> int:
    """Print what is left, write it as a table and a plot, and return the exit code.

    Raises:
        BadInput: for a file that is damaged or does not say enough, or a rate that is none.
    """
    from bitflip.report import budget, budget_plot, reading

    target = _percent(arguments.target_rate)
    shared.make_folder(arguments.output_path)
    found = [reading.read(reading.table_of(path)) for path in arguments.runs]
    ranked_by: budget.By = None
    if arguments.ranked_by == budget.POSITION:
        ranked_by = budget.POSITION
    elif arguments.ranked_by is not None:
        ranked_by = reading.read(reading.table_of(Path(arguments.ranked_by)))
    if ranked_by is None and len(found) > 1:
        found.sort(key=lambda one: one.seeds)
        ranked_by, found = _joined(found[::2]), found[1::2]
    budgeted = budget.of(_joined(found), ranked_by)
    print(*lines(budgeted, target), sep="\n")
    files = budgeted.run.files
    stem = (arguments.output_path or files.folder) / f"{files.stem}_budget"
    shared.write_together(stem, budget.HEAD, budgeted.rows(), budget_plot.picture(budgeted, target))
    return 0


def _joined(runs: list[Run]) -> Run:
    from bitflip import report

    return runs[0] if len(runs) == 1 else report.join(runs, runs[0].files.folder)


def _percent(text: str | None) -> float | None:
    if text is None:
        return None
    if re.fullmatch(r"\s*\d*\.?\d+(e-?\d+)?\s*%?\s*", text) and 0 < (rate := float(text.strip(" %"))) < 100:
        return rate
    raise BadInput(f"target_rate (--target-rate): expected a rate in percent, such as 0.1%, got {text!r}")


def lines(found: Budget, target: float | None) -> list[str]:
    """What is left, for people."""
    confidence = found.run.confidence
    shares = [found.share(count) for count in range(len(found.cells) + 1)]
    counts = sorted({max(count for count, known in enumerate(shares) if known <= share) for share in SHARES})
    table = [("protected", "rate", "interval", "bits, all or in some of the layers")]
    table += [(f"{shares[count]:.4g}%", *_rate(found, count), _which(found, count)) for count in counts]
    worst = [f"{printable(cell.place.label)} bit {cell.bit}" for cell in found.cells[:WORST]]
    return [
        found.run.title,
        f"Which bits come first: by {found.ranked}. What is left: by {found.flips:,} other faults.",
        "Share of all bits that are protected, and the misclassification rate of a flip of any bit, in percent, if it "
        f"does nothing in those ({100 * confidence:g} % confidence):",
        *aligned(table, words=[3]),
        *shared.raised([found.run]),
        f"Worst first: {', '.join(worst)}{', ...' if len(found.cells) > WORST else '.'}",
        *([] if target is None else [_enough(found, target)]),
    ]


def _rate(found: Budget, count: int) -> tuple[str, str]:
    rate = found.rate(count)
    return f"{rate.value:.4f}", f"({rate.low:.4f} to {rate.high:.4f})"


def _enough(found: Budget, target: float) -> str:
    count, sure = found.enough(target), 50 + 50 * found.run.confidence
    if count == len(found.cells):
        return f"At most {target:g} %: not known of any budget short of all bits; more faults would tell."
    bits, all_bits = (sum(cell.bits for cell in found.cells[:end]) for end in (count, None))
    rate, interval = _rate(found, count)
    which = _which(found, count)
    return (
        f"At most {target:g} %: {found.share(count):.4g} % of the bits are enough ({sure:g} % confidence): {bits:,} of "
        f"{all_bits:,}{f', bits {which}' if which else ''}; the rate is then {rate} % {interval}."
    )


def _which(found: Budget, count: int) -> str:
    """The first cells in words: bits, and in how many of the layers."""
    whole = Counter(cell.bit for cell in found.cells)
    chosen = Counter(cell.bit for cell in found.cells[:count])
    full = [bit for bit in sorted(chosen) if chosen[bit] == whole[bit]]
    some = [f"{bit} in {chosen[bit]} of {whole[bit]}" for bit in sorted(chosen) if chosen[bit] < whole[bit]]
    return "; ".join([*([", ".join(ranges(full))] if full else []), *some])
