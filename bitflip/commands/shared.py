"""What commands share that look at an experiment without running it: its settings, and a table of what they found."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitflip import csvs, files
from bitflip.errors import BadInput
from bitflip.settings import reading

if TYPE_CHECKING:  # the commands import what is slow once they run, so that --help answers at once
    from contextlib import ExitStack

    from bitflip.campaign.executor import Executor
    from bitflip.campaign.experiment import Experiment
    from bitflip.faults.flips import TargetKind
    from bitflip.report.runs import Run
    from bitflip.settings.hyperparameters import Hyperparameters

CSV = "csv (--csv)"
OUTPUT = "output_path (--output-path)"


def add_arguments(parser: argparse.ArgumentParser, target: str, table: str) -> None:
    """Add the flags that are no settings.

    Args:
        parser: of the command.
        target: where bits flip, unless told.
        table: what the file holds.
    """
    parser.add_argument("--target", choices=["neuron", "weight"], default=target, help="where bits flip")
    parser.add_argument("--csv", metavar="FILE", type=Path, help=f"also write {table} to a file")


def make_folder(folder: Path | None) -> None:
    """Make the folder that files are to go to, if one is named.

    Raises:
        BadInput: if they can't be written there.
    """
    if folder is not None and (problems := files.check_folder(OUTPUT, folder)):
        raise BadInput(*problems)


def prepared(arguments: argparse.Namespace, *flags: str) -> Experiment:
    """The experiment that the command line asks for, and further flags.

    Raises:
        BadInput: for bad settings, no layer that can be struck, or a file that can't be written.
    """
    from bitflip.campaign import experiment
    from bitflip.commands import checks

    if arguments.csv is not None and (problems := files.check_place(CSV, arguments.csv)):
        raise BadInput(*problems)
    # Unless told, results go nowhere in particular.
    settings = checks.checked(
        ["--output-path", tempfile.gettempdir(), *flags, *reading.flags_of(arguments)], arguments.target
    )
    return experiment.prepare(settings, arguments.target)


def loaded(settings: Hyperparameters, target: TargetKind, stack: ExitStack) -> tuple[Experiment, Executor]:
    """The experiment, and who runs it: this process, or workers, which end with the stack."""
    from bitflip.campaign import experiment
    from bitflip.campaign.executor import Here
    from bitflip.cluster import joining
    from bitflip.cluster.driver import Cluster

    if settings.ray is None:
        found = experiment.prepare(settings, target)
        if note := joining.hint(settings, found.network.placement.device):
            print(note, file=sys.stderr)
        return found, Here(found)
    cluster = stack.enter_context(Cluster(settings, target))
    # The driver only counts; it may be on a machine without a GPU.
    found = experiment.prepare(settings.model_copy(update={"device": "cpu"}), target)
    cluster.meet(found)
    print(f"ray: {cluster}", file=sys.stderr)
    return replace(found, settings=settings, device=cluster.device), cluster


def run_quietly(settings: Hyperparameters, target: TargetKind, what: str, *, tracked: bool = True) -> tuple[int, Path]:
    """Do a run without its table on the screen, as one of several.

    Args:
        settings: of it; the folder of its output is made.
        target: where bits flip.
        what: it is, for people who wait.
        tracked: whether its metrics are sent.

    Returns:
        Its exit code, and its ``.csv``.
    """
    from bitflip.commands import run as command
    from bitflip.results.paths import Paths

    prefix = "weight_" if target == "weight" else ""
    print(f"{what} ...", file=sys.stderr)
    settings.output_path.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        code = command.run(settings, target, prefix, tracked=tracked).code
    return code, Paths.of_results(settings, prefix)[0].table


def write_together(
    stem: Path, head: Sequence[str], rows: Iterable[Sequence[object]], picture: Mapping[str, bytes]
) -> None:
    """Write what several runs come to, and say where it is.

    Args:
        stem: path of the files without their endings.
        head: columns of the ``.csv``.
        rows: of it.
        picture: content of the plot, by ending.
    """
    written = [stem.with_name(f"{stem.name}.{kind}") for kind in ("csv", *picture)]
    with files.written_for(OUTPUT, written[0]) as file:
        writer = csvs.Writer(file)
        writer.writerow(head)
        for row in rows:
            writer.writerow(row)
    for path, content in zip(written[1:], picture.values(), strict=True):
        path.write_bytes(content)
    print("Written:", *written, sep="\n  ")


def raised(runs: Sequence[Run], names: Sequence[str] = ("",)) -> list[str]:
    """A line on exceptions of the model, which are no misclassifications, if there are any in runs of these names."""
    if not any(one.any_due for one in runs):
        return []
    each = []
    for name, one in zip(names, runs, strict=False):
        known = [row.outcomes for row in one.layers if row.outcomes]
        due, whole = sum(found["due"] or 0 for found in known), sum(found.injections for found in known)
        each.append(f"{name} {due:,.0f} of {whole:,}".strip())
    return [f"Not counted: faulty inferences in which the model raised an exception (DUE), {', '.join(each)}."]


def write(path: Path | None, kind: type[Any], rows: Iterable[Any]) -> None:
    """Write rows, dataclasses of one kind, as a CSV file, if there is to be one."""
    if path is None:
        return
    with files.written_for(CSV, path) as file:
        writer = csvs.Writer(file)
        writer.writerow(field.name for field in fields(kind))
        for row in rows:
            writer.writerow(asdict(row).values())
