"""What a run tells: the printed table, the result files, the metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bitflip import terminal
from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.execution import Done
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.unfinished import writable
from bitflip.results import provenance
from bitflip.results import tables as results
from bitflip.results.paths import Paths
from bitflip.results.tracking import Tracker
from bitflip.statistics import rates
from bitflip.statistics.rates import LayerEstimate


def report(experiment: Experiment, done: Done, prefix: str, checkpoint: Checkpoint) -> list[LayerEstimate]:
    """Print the table and write the result files of each seed.

    Returns:
        What was found out about each layer, by all seeds together.

    Raises:
        BadInput: if there is no room; then the files of earlier runs are as they were.
    """
    settings, counts = experiment.settings, done.counts
    accuracy = f"Clean accuracy: {counts.correct} / {counts.images} = {100 * counts.correct / counts.images:.2f}%"
    overall = experiment.estimates(counts)
    print(accuracy, *results.result_lines(experiment.chosen, overall), sep="\n")
    heading = [experiment.injector.summary(settings.layer_types).rstrip(), "", f"Model: {settings.model_name}"]
    heading += [f"Dataset: {settings.dataset}", f"Target: {experiment.target}", accuracy]
    if not done.complete:
        heading.append(f"Interrupted after {done.where}")
        again = f"the same command with seed {settings.seeds or settings.seed} goes on from there"
        print(f"interrupted after {done.where}; {again}", file=sys.stderr)
    written: list[Path] = []
    unwanted: list[Path] = []  # of earlier runs, whose other files are replaced here
    with checkpoint.publishing(settings.output_path) as folder:
        for place, seed in enumerate(settings.all_seeds):
            final = Paths.of(settings, prefix, seed)
            paths = final if done.complete else final.partial()
            new = replace(paths, folder=folder)
            estimates = experiment.estimates(counts, place)
            lines = results.result_lines(experiment.chosen, estimates)
            results.write_summary(new.summary, "\n".join(heading), seed, settings.bit, lines)
            results.write_table(new.table, seed, estimates)
            results.write_bits(new.bits, estimates)
            results.write_run(new.run, _facts(experiment, done, estimates, seed, checkpoint.began))
            if settings.detailed_log:
                done.logs.copy_detail(seed, new.detail)
            if settings.fault_table:
                done.logs.join_faults(seed, new.faults)
            written += [path for path in paths.all if (folder / path.name).exists()]
            unwanted += [path for path in paths.all if not (folder / path.name).exists()]
            unwanted += [*final.partial().all, *drawn(final.partial()), *drawn(final)] if done.complete else []
        if settings.plots and done.complete:
            of = [Paths.of(settings, prefix, seed) for seed in settings.all_seeds]
            written += draw(of, folder)
    remove(unwanted, but=written)
    print("Results:", *written, sep="\n  ")
    lines_of_all, pretty = [_line(found) for found in overall], terminal.is_pretty(sys.stdout)
    print(terminal.most_fragile(lines_of_all, confidence=settings.confidence, pretty=pretty))
    return overall


def draw(of: Sequence[Paths], folder: Path) -> list[Path]:
    """Draw the results of a run, of which there are several if it has several seeds, and write a page about them.

    Args:
        of: where the results will be.
        folder: where they are now, and where the plots and the page are written.

    Returns:
        Where those will be.
    """
    from bitflip import report as reports  # brings matplotlib, which is slow to import

    return [of[0].folder / path.name for path in reports.draw([folder / paths.table.name for paths in of])]


def remove(unwanted: Sequence[Path], but: Sequence[Path]) -> None:
    """Remove files of earlier runs, whose other files were replaced, unless they were replaced too."""
    for path in set(unwanted) - set(but):
        with writable(path.parent):
            path.unlink(missing_ok=True)


def drawn(paths: Paths) -> list[Path]:
    """What may have been drawn from the results of a run."""
    from bitflip import report as reports

    return reports.outputs(paths)


def _line(found: LayerEstimate) -> terminal.Line:
    item, rate = found.item, found.rate
    return terminal.Line(item.number, item.label, item.layer.type, rate.value, rate.low, rate.high)


def _facts(
    experiment: Experiment, done: Done, estimates: Sequence[LayerEstimate], seed: int, started: str
) -> dict[str, Any]:
    """All that is needed to understand the results of a seed, and to have them again."""
    settings = experiment.settings
    return {
        "complete": done.complete,
        "target": experiment.target,
        "settings": {**settings.model_dump(mode="json"), "seed": seed, "seeds": None},
        **circumstances(experiment),
        "images": done.counts.images,
        "clean_correct": done.counts.correct,
        **means(experiment, estimates),
        **times(started, done.seconds),
    }


def means(experiment: Experiment, estimates: Sequence[LayerEstimate]) -> dict[str, Any]:
    """The chosen layers, and the mean rates over them."""
    confidence = experiment.settings.confidence
    return {
        "confidence": confidence,
        "means": [
            {"of": of, "name": name, "rate": rate.value, "low": rate.low, "high": rate.high}
            for (of, name), rate in rates.means(estimates, confidence).items()
        ],
        "layers": [{"number": item.number, **asdict(item.layer)} for item in experiment.chosen],
    }


def times(started: str, seconds: float) -> dict[str, Any]:
    """When a run was made, which ends now, and how long its campaign took."""
    return {"started": started, "ended": provenance.now(), "campaign_seconds": round(seconds, 3)}


def circumstances(experiment: Experiment) -> dict[str, Any]:
    """What results depend on beside the settings."""
    return {
        "engine": experiment.engine.name,
        "device": experiment.device,
        "precision": experiment.settings.precision,
        "model": {
            "source": experiment.classifier.source,
            "weights": experiment.classifier.weights,
            "sha256": experiment.classifier.sha256,
        },
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }


def warn_of_changes(experiment: Experiment) -> None:
    """Say, in one line, what is not as it was when the run was made that this one repeats.

    It is no mistake: to run another model, or on another device, with the same settings is what some repeat a run for.
    """
    path = experiment.settings.rerun
    if path is None:
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    changes = provenance.changes(then, circumstances(experiment))
    if changes:
        print(f"not as in {path}, so the results may differ: {', '.join(changes)}", file=sys.stderr)


def track(experiment: Experiment, estimates: Sequence[LayerEstimate], tracker: Tracker) -> None:
    """Send each layer's rate, at step = layer number, then the mean of each layer type and the seed."""
    for found in estimates:
        if found.rate.value is not None:
            payload = {"Misclassification_rate": found.rate.value, found.item.layer.type: found.rate.value}
            tracker.log(payload, step=found.item.number)
    last = max((item.number for item in experiment.chosen), default=0)
    found_means = rates.means(estimates, experiment.settings.confidence)
    means = {
        f"mean/{name}": rate.value
        for (of, name), rate in found_means.items()
        if of == "type" and rate.value is not None
    }
    seed = {} if experiment.settings.seeds else {"seed": float(experiment.settings.seed)}
    tracker.log({**means, **seed}, step=last)
