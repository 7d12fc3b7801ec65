"""Hold two runs against each other, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip import csvs, files
from bitflip.errors import BadInput
from bitflip.network.names import printable
from bitflip.terminal import aligned

if TYPE_CHECKING:
    from bitflip.report.comparison import Comparison, Difference

CSV = "csv (--csv)"
HEAD = ("layer", "name", "path", "call", "parameter", "first", "second", "difference", "low", "high", "compared")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "first", type=Path, metavar="A", help="a run: its .json or .csv, or what their names start with"
    )
    parser.add_argument("second", type=Path, metavar="B", help="another one, whose rates less those of A are shown")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table to a file")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison, and return the exit code.

    Raises:
        BadInput: if a file is damaged, the runs have nothing in common, or the file can't be written.
    """
    from bitflip.report import comparison, reading

    if arguments.csv is not None and (problems := files.check_place(CSV, arguments.csv)):
        raise BadInput(*problems)
    first, second = (reading.read(reading.table_of(_file(path))) for path in (arguments.first, arguments.second))
    found = comparison.compare(first, second)
    print(f"A: {first.files.folder / first.files.stem}", f"B: {second.files.folder / second.files.stem}", sep="\n")
    print(text(found))
    if arguments.csv is not None:
        write(arguments.csv, found)
    return 0


def _file(path: Path) -> Path:
    """The table of a run that is given by what the names of its files start with."""
    table = path.with_name(f"{path.name}.csv")
    return table if path.name and table.is_file() else path


def text(found: Comparison) -> str:
    """The comparison for people."""
    lines = [
        *([f"The runs differ in {'; '.join(found.differing)}."] if found.differing else []),
        f"{'Paired' if found.paired else 'Not paired'}: {found.why}.",
        *(f"Not compared: {sentence}." for sentence in found.unmatched),
        f"Misclassification rates in percent, B - A in percentage points ({100 * found.confidence:g} % confidence):",
    ]
    rows = [("A", "B", "B - A", "interval", "", "layer")]
    rows += [(*_cells(difference), printable(place.named)) for place, difference in found.layers]
    if found.network is not None:
        rows.append((*_cells(found.network), "mean of all layers"))
    lines += aligned(rows, words=[5])
    chance = 1 / (1 - found.confidence)
    sure = sum(difference.sure for _, difference in found.layers)
    lines.append(
        f"* {sure} of {len(found.layers)} layers differ: the interval leaves out 0 (1 in {chance:.0f} does by chance)."
    )
    return "\n".join(lines)


def _cells(difference: Difference) -> tuple[str, str, str, str, str]:
    first, second = ("-" if rate is None else f"{rate:.4f}" for rate in (difference.first, difference.second))
    value = "-" if difference.value is None else f"{difference.value:+.4f}"
    ends = "" if difference.low is None else f"({difference.low:+.4f} to {difference.high:+.4f})"
    return first, second, value, ends, "*" if difference.sure else " "


def write(path: Path, found: Comparison) -> None:
    """Write the table of a comparison.

    Raises:
        BadInput: if the file can't be written.
    """
    with files.written_for(CSV, path) as file:
        writer = csvs.Writer(file)
        writer.writerow(HEAD)
        for place, difference in found.layers:
            numbers = (difference.first, difference.second, difference.value, difference.low, difference.high)
            cells = ["" if number is None else f"{number:.6f}" for number in numbers]
            where = [place.layer, place.type, place.path, place.call, place.parameter]
            writer.writerow([*where, *cells, difference.compared])
