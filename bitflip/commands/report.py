"""Draw a run again, write its page, and join runs that differ only in their seed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip.commands import shared
from bitflip.errors import BadInput

if TYPE_CHECKING:
    from bitflip.report.runs import Run

WIDEST = 20.0  # inches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="FOLDER|FILE",
        help="one folder: a report of each run in it, and of those together that differ only in their seed; "
        "several folders or .csv files: their runs, which must differ only in their seed, joined into one report",
    )
    parser.add_argument("--each", action="store_true", help="do not join anything: a report of each run")
    parser.add_argument(
        "--output-path",
        type=Path,
        help="folder for the joined report; default: the folder that all runs are in, directly or not",
    )
    parser.add_argument(
        "--width", type=float, default=3.5, help="of the plots in inches; default 3.5, a column of a paper"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the reports, print their paths, and return the exit code.

    Raises:
        BadInput: if a file is damaged or does not belong to the others.
    """
    from bitflip import report
    from bitflip.report import reading

    if not 2 <= arguments.width <= WIDEST:
        raise BadInput(f"--width: expected inches from 2 to {WIDEST:g}, got {arguments.width:g}")
    shared.make_folder(arguments.output_path)
    tables: dict[Path, None] = {}
    problems: list[str] = []
    for path in arguments.paths:
        try:
            tables |= dict.fromkeys(reading.find(path) if path.is_dir() else [reading.table_of(path)])
        except BadInput as error:
            problems += error.problems
    found = []
    for table in tables:
        try:
            found.append(reading.read(table))
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(*problems)
    reports = _reports(found, arguments)
    for one in reports:
        print(one.title)
        print(*(f"  {path}" for path in report.write(one, arguments.width)), sep="\n")
    return 0


def _reports(found: list[Run], arguments: argparse.Namespace) -> list[Run]:
    """What to write: of one folder each run and those that can be joined, of several paths the joined one only."""
    from bitflip.report import joined

    if arguments.each or len(found) == 1:
        return found
    folder = arguments.output_path or Path(os.path.commonpath([one.files.folder.resolve() for one in found]))
    if len(arguments.paths) > 1:
        return [_joined(found, folder)]
    groups: dict[str, list[Run]] = {}
    for one in found:
        if one.facts:
            groups.setdefault(joined.key(one), []).append(one)
    several = [group for group in groups.values() if len({one.seeds[0] for one in group if one.complete}) > 1]
    made = [_joined(group, folder) for group in several]
    if len({one.files.stem for one in made}) < len(made):
        names = " and ".join(group[0].files.table.name for group in several)
        raise BadInput(f"{folder}: {names} have the same model and data set, but other settings; report them apart")
    if made:
        in_groups = {one.files.table for group in several for one in group}
        for one in found:
            if one.files.table not in in_groups:
                print(f"not joined, for its settings are others: {one.files.table}", file=sys.stderr)
    return [*found, *made]


def _joined(found: list[Run], folder: Path) -> Run:
    """Runs joined, without those that were interrupted."""
    from bitflip import report

    whole = [one for one in found if one.complete]
    left_out = [
        f"{one.files.table.name}, interrupted after {one.facts.get('images')} images"
        for one in found
        if not one.complete
    ]
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    if len(whole) < 2:
        raise BadInput(f"{found[0].files.table}: expected at least two complete runs to join")
    return report.join(whole, folder, left_out)
