"""Hold runs against each other, layer by layer."""

from __future__ import annotations

import argparse
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip import csvs, files
from bitflip.commands import shared
from bitflip.errors import BadInput
from bitflip.network.names import printable
from bitflip.terminal import aligned

if TYPE_CHECKING:
    from bitflip.report.comparison import Comparison, Difference
    from bitflip.report.runs import Run

CSV = "csv (--csv)"
NAMES = string.ascii_uppercase  # of the runs
HEAD = ("layer", "name", "path", "call", "parameter", "first", "second", "difference", "low", "high", "compared")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "first", type=Path, metavar="A", help="a run: its .json or .csv, or what their names start with"
    )
    parser.add_argument("second", type=Path, metavar="B", help="another one, whose rates less those of A are shown")
    parser.add_argument("more", type=Path, nargs="*", metavar="C", help="further ones, each against A")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table to a file")
    parser.add_argument(
        "--output-path",
        type=Path,
        metavar="FOLDER",
        help="also write a page with all of them in one plot, rates and differences, and the plot to a folder",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison, and return the exit code.

    Raises:
        BadInput: if a file is damaged, the runs have nothing in common, or the file can't be written.
    """
    from bitflip.report import comparison, reading

    folder = arguments.output_path
    shared.make_folder(folder)
    if arguments.csv is not None and (problems := files.check_place(CSV, arguments.csv)):
        raise BadInput(*problems)
    paths = (arguments.first, arguments.second, *arguments.more)
    if len(paths) > len(NAMES):
        raise BadInput(f"expected at most {len(NAMES)} runs, one for each letter, got {len(paths)}")
    runs = [reading.read(reading.table_of(_file(path))) for path in paths]
    against = [comparison.compare(runs[0], other) for other in runs[1:]]
    print(*(f"{name}: {one.files.folder / one.files.stem}" for name, one in zip(NAMES, runs, strict=False)), sep="\n")
    for name, found in zip(NAMES[1:], against, strict=False):
        print(*([""] if name != "B" else []), text(found, name), sep="\n")
    for line in shared.raised(runs, NAMES):
        print(line)
    if arguments.csv is not None:
        write(arguments.csv, against)
    if folder is not None:
        draw(folder, runs)
    return 0


def draw(folder: Path, runs: Sequence[Run]) -> None:
    """Write the plot and the page of several runs, and say where they are.

    Raises:
        BadInput: if they can't be written, or there are too many runs.
    """
    from bitflip.report import overlay

    found = overlay.Overlay.of(runs)
    stem = f"{runs[0].files.stem}_compared"
    pictures = [(folder / f"{stem}.{kind}", content) for kind, content in overlay.picture(found).items()]
    page = folder / f"{stem}.html"
    contents = [*pictures, (page, overlay.html(found, [path for path, _ in pictures]).encode())]
    for path, content in contents:
        with files.written_for(shared.OUTPUT, path) as file:
            file.buffer.write(content)
    print("Written:", *(path for path, _ in contents), sep="\n  ")


def _file(path: Path) -> Path:
    """The table of a run that is given by what the names of its files start with."""
    table = path.with_name(f"{path.name}.csv")
    return table if path.name and table.is_file() else path


def text(found: Comparison, name: str = "B") -> str:
    """The comparison for people, of A with the run of a name."""
    lines = [
        *([f"The runs differ in {'; '.join(found.differing)}."] if found.differing else []),
        f"{'Paired' if found.paired else 'Not paired'}: {found.why}.",
        *(f"Not compared: {sentence}." for sentence in found.unmatched),
        f"Misclassification rates in percent, {name} - A in percentage points "
        f"({100 * found.confidence:g} % confidence):",
    ]
    rows = [("A", name, f"{name} - A", "interval", "", "layer")]
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


def write(path: Path, against: Sequence[Comparison]) -> None:
    """Write the table of comparisons, of several with the name of the run.

    Raises:
        BadInput: if the file can't be written.
    """
    with files.written_for(CSV, path) as file:
        writer = csvs.Writer(file)
        several = len(against) > 1
        writer.writerow([*(["run"] if several else []), *HEAD])
        each = [(name, *pair) for name, found in zip(NAMES[1:], against, strict=False) for pair in found.layers]
        for name, place, difference in each:
            numbers = (difference.first, difference.second, difference.value, difference.low, difference.high)
            cells = ["" if number is None else f"{number:.6f}" for number in numbers]
            where = [place.layer, place.type, place.path, place.call, place.parameter]
            writer.writerow([*([name] if several else []), *where, *cells, difference.compared])
