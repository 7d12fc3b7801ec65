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
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.loop import Done
from bitflip.campaign.unfinished import writable
from bitflip.faults.listed import Listed
from bitflip.outcomes.counts import Counts
from bitflip.outcomes.per_fault import PerFault
from bitflip.results import faultresults, provenance, tables
from bitflip.results.paths import Paths
from bitflip.results.tracking import Tracker
from bitflip.statistics import rates
from bitflip.statistics.rates import LayerEstimate


def report(done: Done, prefix: str, checkpoint: Checkpoint) -> list[LayerEstimate]:
    """Print the table and write the result files of each seed, or of the list.

    Returns:
        What was found out about each layer, by all seeds together.

    Raises:
        BadInput: if there is no room; then the files of earlier runs are as they were.
    """
    experiment, counts = done.experiment, done.tallies.counts
    overall = experiment.estimates(counts)
    print(*_summary(done, counts), *tables.result_lines(experiment.chosen, overall, experiment.sought), sep="\n")
    print("Results:", *publish(done, prefix, checkpoint, counts), sep="\n  ")
    lines, pretty = [_line(found) for found in overall], terminal.is_pretty(sys.stdout)
    print(terminal.most_fragile(lines, confidence=experiment.settings.confidence, pretty=pretty))
    if sentence := _about_width(done, overall):
        print(sentence)
    return overall


def _about_width(done: Done, overall: Sequence[LayerEstimate]) -> str | None:
    """What would narrow the intervals, if they are wide and the run could have been told to."""
    settings = done.experiment.settings
    known = [found for found in overall if found.rate.interval]
    if isinstance(done.experiment.source, Listed) or settings.margin is not None or not done.complete or not known:
        return None
    from bitflip.report import words  # only at the end of a run, for what it brings

    return words.narrower(
        [found.rate for found in known],
        [found.parts for found in known],
        done.experiment.target,
        settings.confidence,
        settings.repeats,
        done.seconds,
        several=settings.seeds is not None,
    )


def publish(done: Done, prefix: str, checkpoint: Checkpoint, counts: Counts) -> list[Path]:
    """Write the result files of each seed, or of the list, and draw them; where they are.

    Raises:
        BadInput: if there is no room; then the files of earlier runs are as they were.
    """
    experiment = done.experiment
    written: list[Path] = []
    unwanted: list[Path] = []  # of earlier runs, whose other files are replaced here
    finals = Paths.of_results(experiment.settings, prefix)
    with checkpoint.publishing(finals[0].folder) as folder:
        for place, final in enumerate(finals):
            paths = final if done.complete else final.partial()
            write(replace(paths, folder=folder), done, counts, place, checkpoint.began)
            made = {path.name for path in folder.iterdir()}
            written += [path for path in paths.all if path.name in made]
            unwanted += [path for path in paths.all if path.name not in made]
            if done.complete:
                partial = final.partial()
                unwanted += [*partial.all, *drawn(partial), *([] if _same(paths, folder) else drawn(final))]
        if experiment.settings.plots and done.complete:
            written += draw(finals, folder)
    remove(unwanted, but=written)
    return written


def _same(paths: Paths, folder: Path) -> bool:
    """Whether the tables that are there are those that are about to take their places, so that plots are theirs too."""
    return all(
        path.is_file() and path.read_bytes() == (folder / path.name).read_bytes() for path in (paths.table, paths.bits)
    )


def write(paths: Paths, done: Done, counts: Counts, place: int, began: str) -> None:
    """Write the files of one seed, given by its place, or those of the list.

    Args:
        paths: of the files.
        done: the campaign.
        counts: of it.
        place: of the seed.
        began: when the run did.
    """
    experiment, tallies = done.experiment, done.tallies
    settings, seed = experiment.settings, tallies.seeds[place]
    estimates = experiment.estimates(counts, place)
    lines = tables.result_lines(experiment.chosen, estimates, experiment.sought)
    if isinstance(tallies.main, PerFault):
        seed = settings.seed  # which made the choice, if there is a limit
        lines = [*_summary(done, counts), *lines]
        faultresults.write_faults(paths.listed_faults, tallies.main)
        faultresults.write_images(paths.listed_images, tallies.main)
    tables.write_summary(paths.summary, _heading(done, counts), seed, settings.bit, lines)
    tables.write_table(paths.table, seed, estimates, bounded=settings.prove)
    if experiment.source.by_bit:
        tables.write_bits(paths.bits, estimates, bounded=settings.prove)
    tables.write_run(paths.run, _facts(done, counts, estimates, seed, began))
    protected = experiment.network.protected
    if protected is not None and protected.bounds is not None:
        protected.bounds.write(paths.bounds)
    if settings.detailed_log:
        tallies.details[tallies.seeds[place]].copy(paths.detail)
    if settings.fault_table:
        tallies.tables[tallies.seeds[place]].copy(paths.faults)


def _heading(done: Done, counts: Counts) -> str:
    """The start of the ``.txt``."""
    experiment = done.experiment
    settings = experiment.settings
    if isinstance(done.tallies.main, PerFault):
        return experiment.title
    heading = [experiment.network.injector.summary(settings.layer_types).rstrip(), "", f"Model: {settings.model_name}"]
    heading += [f"Dataset: {settings.dataset}", f"Target: {experiment.target}", *_summary(done, counts)]
    return "\n".join([*heading, *([] if done.complete else [f"Interrupted after {done.where}"])])


def _summary(done: Done, counts: Counts) -> list[str]:
    """The totals in words."""
    accuracy = f"Clean accuracy: {counts.correct} / {counts.images} = {100 * counts.correct / counts.images:.2f}%"
    found = done.tallies.main
    due = f"Due: the model raised an exception in {found.due} of {found.inferences} faulty inferences"
    raised = [due] if found.due else []
    if not isinstance(found, PerFault):
        return [accuracy, *raised]
    shares = [
        f"{name} {found.counts[name].sum()} ({100 * found.counts[name].sum() / found.inferences:.4f}%)"
        for name in ("masked", "benign", "harmless", "critical", "nonfinite")
        if name in found.counts
    ]
    return [accuracy, f"{found.inferences} inferences under {len(found.faults)} faults: {', '.join(shares)}", *raised]


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
    return terminal.Line(found.item.named, found.rate.value, found.rate.low, found.rate.high)


def _facts(done: Done, counts: Counts, estimates: Sequence[LayerEstimate], seed: int, started: str) -> dict[str, Any]:
    """All that is needed to understand the results of a seed, and to have them again."""
    experiment, source = done.experiment, done.experiment.source
    listed = {"faults": len(source.faults), "faults_sha256": source.digest} if isinstance(source, Listed) else {}
    return {
        "complete": done.complete,
        "target": experiment.target,
        "settings": {**experiment.settings.values, "seed": seed, "seeds": None},
        **circumstances(experiment),
        **listed,
        "images": counts.images,
        "clean_correct": counts.correct,
        **_means(experiment, estimates),
        "started": started,
        "ended": provenance.now(),
        "campaign_seconds": round(done.seconds, 3),
    }


def _means(experiment: Experiment, estimates: Sequence[LayerEstimate]) -> dict[str, Any]:
    """The chosen layers, and the mean rates over them."""
    confidence = experiment.settings.confidence
    return {
        "confidence": confidence,
        "means": [
            {
                **{"of": of, "name": name, "rate": rate.value, "low": rate.low, "high": rate.high},
                **{"due": due.value, "due_low": due.low, "due_high": due.high},
            }
            for (of, name), (rate, due) in rates.means(estimates, confidence).items()
        ],
        "layers": [{"number": item.number, **asdict(item.layer)} for item in experiment.chosen],
    }


def circumstances(experiment: Experiment) -> dict[str, Any]:
    """What results depend on beside the settings."""
    classifier = experiment.network.classifier
    return {
        "engine": experiment.network.engine.name,
        "device": experiment.device,
        "precision": experiment.settings.precision,
        "channels_first": experiment.network.channels_first,
        "model": {
            "source": classifier.source,
            "weights": classifier.weights,
            "sha256": classifier.sha256,
            "code_sha256": classifier.code,
        },
        "data": {"images": experiment.images.count, "sha256": experiment.images.sha256},
        **({} if experiment.network.protected is None else {"protection": experiment.network.protected.facts}),
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
    last = max(item.number for item in experiment.chosen)
    found_means = rates.means(estimates, experiment.settings.confidence)
    means = {
        f"mean/{name}": rate.value
        for (of, name), (rate, _) in found_means.items()
        if of == "type" and rate.value is not None
    }
    seed = {} if experiment.settings.seeds else {"seed": float(experiment.settings.seed)}
    tracker.log({**means, **seed}, step=last)
