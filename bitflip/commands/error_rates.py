"""The road of a run with bit error rates: patterns of faults instead of single ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bitflip import terminal
from bitflip.campaign import identity, publishing
from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.error_rates import NETWORK, ErrorRateCampaign
from bitflip.cluster.driver import Cluster
from bitflip.cluster.patterned import OnCluster
from bitflip.commands import shared
from bitflip.faults.flips import TargetKind
from bitflip.results import error_rates, provenance, tables, tracking
from bitflip.results.paths import Paths
from bitflip.results.tracking import Tracker
from bitflip.settings import words
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.statistics.rates import Rate

FALLS = (1, 5)  # points of accuracy


def run(settings: Hyperparameters, target: TargetKind, prefix: str, from_environment: Sequence[str] = ()) -> int:
    """Run the patterns, print the table, write the files, and return the exit code: 0, or 130 when interrupted.

    Ctrl-C stops it; batches that were finished are kept, and the same command goes on from there.

    Args:
        settings: of the run.
        target: where bits flip.
        prefix: of the result files' names.
        from_environment: names of the settings that come from there.

    Raises:
        BadInput: for what only shows once all is loaded.
    """
    paths = Paths.of_run(settings, prefix).error_rates
    kept = "nothing was written"
    try:
        with ExitStack() as stack:
            same = identity.of_settings(settings, target)
            checkpoint = Checkpoint(paths.unfinished, same, provenance.now(), [paths], fresh=settings.fresh)
            stack.enter_context(checkpoint)
            loaded, executor = shared.loaded(settings, target, stack)
            checkpoint.require(identity.of_experiment(loaded, executor), executor.device)
            runner = OnCluster(executor, loaded) if isinstance(executor, Cluster) else None
            found = ErrorRateCampaign(loaded, checkpoint, runner)
            print(title(found) + words.asked(settings, target, from_environment), flush=True)
            publishing.warn_of_changes(loaded)
            kept = f"the same command with seed {settings.seeds or settings.seed} goes on from the last finished batch"
            tracker = stack.enter_context(tracking.connect())
            found.run()
            print("\n".join(lines(found)))
            print("Results:", *_publish(found, paths, checkpoint), sep="\n  ")
            checkpoint.discard()
            kept = "the results are written"
            _track(found, tracker)
    except KeyboardInterrupt:
        print(f"interrupted; {kept}", file=sys.stderr)
        return 130
    return 0


def title(found: ErrorRateCampaign) -> str:
    """The run in a line."""
    experiment, s = found.experiment, found.experiment.settings
    seeds = f"seed {s.seed}" if s.seeds is None else f"seeds {s.seeds}"
    per = "for each image" if experiment.target == "neuron" else "of the network"
    return (
        f"{s.model_name} on {s.dataset}: bit error rates in the {experiment.target}s of {len(experiment.targets)} "
        f"layers, {len(found.patterns)} pattern{'s' * (len(found.patterns) > 1)} {per}, {experiment.images.count} "
        f"images, {seeds}, {experiment.device}, {s.precision}"
    )


def lines(found: ErrorRateCampaign) -> list[str]:
    """The table for people."""
    points = found.points()
    rows: list[tuple[str, ...]] = [("scope", "bit error rate", "flips", "accuracy", "", "misclassified", "")]
    if any_due := any(point.due for point in points):
        rows = [(*rows[0], "exceptions (DUE)")]
    for point in points:
        name = NETWORK if point.scope is None else point.scope.named
        cells = (*_cells(point.accuracy), *_cells(point.misclassification))
        due = [f"{100 * point.due / point.images:.2f} %"] if any_due else []
        rows.append((name, f"{point.rate:g}", f"{point.flips:.4g}", *cells, *due))
    said = [f"Accuracy without a fault: {found.clean:.2f} %", *terminal.aligned(rows, words=[0])]
    if found.experiment.target == "weight" and len(found.patterns) < 5:
        said.append(f"An interval needs several patterns; this is of {len(found.patterns)}: --repeats 30 draws 30.")
    for lost in FALLS:
        at = found.falls(lost)[NETWORK]
        where = f"stays within {lost} point{'s' * (lost > 1)} of that up to {found.rates[-1]:g}"
        if at is not None:
            where = f"is {lost} point{'s' * (lost > 1)} below that at a bit error rate of {at:.2g}"
            where += " or less" if at == found.rates[0] else ""
        said.append(f"Accuracy {where}")
    return said


def _cells(rate: Rate) -> tuple[str, str]:
    if rate.value is None or rate.interval is None:
        return terminal.NOTHING, ""
    return f"{rate.value:.2f} %", f"({rate.interval[0]:.2f} to {rate.interval[1]:.2f})"


def _publish(found: ErrorRateCampaign, paths: Paths, checkpoint: Checkpoint) -> list[Path]:
    """Write the files; where they are."""
    settings, points = found.experiment.settings, found.points()
    with checkpoint.publishing(paths.folder) as folder:
        here = Paths(folder, paths.stem)
        error_rates.write(here.table, points)
        tables.write_run(here.run, _facts(found, checkpoint.began))
        with here.summary.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in [title(found), *lines(found)])
        if settings.plots:
            from bitflip.report.error_rates import pictures  # brings matplotlib, which is slow to import

            short = title(found).partition(f", {found.experiment.device}")[0]
            for kind, content in pictures(short, found.clean, points, settings.confidence).items():
                (folder / f"{paths.stem}.{kind}").write_bytes(content)
        return [paths.folder / path.name for path in sorted(folder.iterdir())]


def _facts(found: ErrorRateCampaign, began: str) -> dict[str, Any]:
    """All that is needed to understand the results, and to have them again."""
    falls = {f"{points} points": found.falls(points) for points in FALLS}
    return {
        "target": found.experiment.target,
        "settings": found.experiment.settings.values,
        **publishing.circumstances(found.experiment),
        "clean_accuracy": found.clean,
        "bit error rate at which accuracy falls by": falls,
        "started": began,
        "ended": provenance.now(),
        "campaign_seconds": round(found.seconds, 3),
    }


def _track(found: ErrorRateCampaign, tracker: Tracker) -> None:
    """Send what the network does at each rate, at step = its place, from the lowest."""
    network = [point for point in found.points() if point.scope is None]
    for step, point in enumerate(network):
        payload = {"bit_error_rate": point.rate, "accuracy": point.accuracy.value}
        payload["Misclassification_rate"] = point.misclassification.value
        tracker.log({name: value for name, value in payload.items() if value is not None}, step=step)
