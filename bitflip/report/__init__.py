"""Reports of runs, made from their result files only: pictures, a page, and many seeds joined into one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from bitflip.errors import BadInput, first_line
from bitflip.files import replacing_bytes
from bitflip.report import joined, page, plots
from bitflip.report.reading import read
from bitflip.report.runs import Run
from bitflip.results.paths import Paths

log = logging.getLogger(__name__)

__all__ = ["draw", "join", "outputs", "read", "write"]


def draw(tables: Sequence[Path], width: float = plots.WIDTH) -> list[Path]:
    """Report a run that has just been written; a failure is a warning, for the results are on the disk.

    But not a lack of room, which the results may suffer from as well.

    Args:
        tables: the ``.csv`` of the run; of several seeds all of them, which are then reported as one, or not at all
            if they were interrupted.
        width: of the plots, in inches.

    Returns:
        The files that were written.

    Raises:
        OSError: if there is no room.
    """
    try:
        runs = [read(table) for table in tables]
        if len(runs) == 1:
            return write(runs[0], width)
        for run in runs:
            for path in outputs(run.files):  # of an earlier run, whose results are no longer there
                path.unlink(missing_ok=True)
        return write(join(runs, runs[0].files.folder), width) if all(run.complete for run in runs) else []
    except Exception as error:  # whatever it is, the results must not suffer
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError):
            raise cause from None
        log.warning("no report was written: %s", first_line(error))
        return []


def outputs(of: Paths) -> list[Path]:
    """What reports add to the files of a run: plots and page."""
    return [*(of.picture(name, kind) for name in plots.NAMES for kind in plots.KINDS), of.page]


def write(run: Run, width: float = plots.WIDTH) -> list[Path]:
    """Write the tables of joined seeds, the plots and the page of a run, and return their paths.

    Raises:
        BadInput: if a file can't be read or written.
    """
    written = [*_tables(run), *_pictures(run, width)]
    of = run.files
    own = [of.table, of.bits, of.means, of.run, of.summary, of.detail, of.faults, *outputs(of)[:-1]]
    _put(of.page, page.html(run, [path for path in own if path.exists()]).encode())
    return [*written, of.page]


def join(runs: Sequence[Run], folder: Path, left_out: Sequence[str] = ()) -> Run:
    """Several seeds as one run; see :func:`bitflip.report.joined.join`."""
    return joined.join(runs, folder, left_out)


def _tables(run: Run) -> list[Path]:
    """Write the tables of joined seeds; a single run has its own."""
    tables = joined.tables(run) if len(run.seeds) > 1 else {}
    for path, text in tables.items():
        _put(path, text.encode())
    return list(tables)


def _put(path: Path, content: bytes) -> None:
    try:
        with replacing_bytes(path) as file:
            file.write(content)
    except OSError as error:
        raise BadInput(f"{path}: expected a file that can be written ({error.strerror})") from error


def _pictures(run: Run, width: float) -> list[Path]:
    """Write the plots; those that an earlier report drew and that no longer have anything to show are removed."""
    try:
        drawn = plots.pictures(run, width)
    except ImportError as error:
        raise BadInput(f"plots need matplotlib: pip install -r requirements.txt ({first_line(error)})") from error
    written = []
    for name, content in drawn.items():
        for kind in plots.KINDS:
            path = run.files.picture(name, kind)
            if content is None:
                path.unlink(missing_ok=True)
            else:
                _put(path, content[kind])
                written.append(path)
    return written
