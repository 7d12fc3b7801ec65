"""What a run tells: the printed table, the result files, the metrics."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitflip import provenance, rates, results, terminal
from bitflip.execution import Done
from bitflip.experiment import Experiment
from bitflip.rates import LayerEstimate
from bitflip.results import Paths
from bitflip.tracking import Tracker


def report(experiment: Experiment, done: Done, prefix: str, started: str) -> None:
    """Print the table and write the result files of each seed."""
    settings, counts = experiment.settings, done.counts
    accuracy = f"Clean accuracy: {counts.correct} / {counts.images} = {100 * counts.correct / counts.images:.2f}%"
    print(accuracy, *results.result_lines(experiment.chosen, experiment.estimates(counts)), sep="\n")
    heading = [experiment.injector.summary(settings.layer_types).rstrip(), "", f"Model: {settings.model_name}"]
    heading += [f"Dataset: {settings.dataset}", f"Target: {experiment.target}", accuracy]
    if not done.complete:
        heading.append(f"Interrupted after {done.where}")
        again = f"the same command with seed {settings.seeds or settings.seed} goes on from there"
        print(f"interrupted after {done.where}; {again}", file=sys.stderr)
    written: list[Path] = []
    for place, seed in enumerate(settings.all_seeds):
        final = Paths.of(settings, prefix, seed)
        paths = final if done.complete else final.partial()
        estimates = experiment.estimates(counts, place)
        lines = results.result_lines(experiment.chosen, estimates)
        results.write_summary(paths.summary, "\n".join(heading), seed, settings.bit, lines)
        results.write_table(paths.table, seed, estimates)
        results.write_bits(paths.bits, estimates)
        results.write_run(paths.run, _facts(experiment, done, estimates, seed, started))
        written += [paths.summary, paths.table, paths.bits, paths.run]
        for path, write, wanted in (
            (paths.detail, done.logs.copy_detail, settings.detailed_log),
            (paths.faults, done.logs.join_faults, settings.fault_table),
        ):
            if wanted:
                write(seed, path)
                written.append(path)
            else:
                path.unlink(missing_ok=True)  # of an earlier run, whose other files are replaced here
        if done.complete:
            _remove(final.partial())
    if settings.plots and done.complete:
        from bitflip import report as reports  # brings matplotlib, which is slow to import

        written += reports.draw([Paths.of(settings, prefix, seed).table for seed in settings.all_seeds])
    print("Results:", *written, sep="\n  ")
    all_layers = [_line(found) for found in experiment.estimates(counts)]
    pretty = terminal.is_pretty(sys.stdout)
    print(terminal.most_fragile(all_layers, confidence=settings.confidence, pretty=pretty))


def _remove(paths: Paths) -> None:
    """Delete the results of an interrupted run, and what was drawn from them."""
    from bitflip import report as reports

    for path in reports.outputs(reports.Files(paths.folder, paths.stem)):
        path.unlink(missing_ok=True)
    paths.remove()


def _line(found: LayerEstimate) -> terminal.Line:
    layer, rate = found.item.layer, found.rate
    path = f"{layer.path}, call {layer.call + 1}" if layer.call else layer.path
    ends = (None, None, None) if rate is None else (rate.value, rate.low, rate.high)
    return terminal.Line(found.item.number, path, layer.type, *ends)


def _facts(
    experiment: Experiment, done: Done, estimates: Sequence[LayerEstimate], seed: int, started: str
) -> dict[str, Any]:
    """All that is needed to understand the results of a seed, and to have them again."""
    settings = experiment.settings
    return {
        "complete": done.complete,
        "target": experiment.target,
        "engine": experiment.engine.name,
        "settings": {**settings.model_dump(mode="json"), "seed": seed, "seeds": None},
        "device": experiment.device,
        "precision": settings.precision,
        "model": {
            "source": experiment.classifier.source,
            "weights": experiment.classifier.weights,
            "sha256": experiment.classifier.sha256,
        },
        "images": done.counts.images,
        "clean_correct": done.counts.correct,
        "confidence": settings.confidence,
        "means": [
            {"of": of, "name": name, "rate": rate.value, "low": rate.low, "high": rate.high}
            for (of, name), rate in rates.means(estimates, settings.confidence).items()
        ],
        "layers": [{"number": item.number, **asdict(item.layer)} for item in experiment.chosen],
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "started": started,
        "ended": provenance.now(),
        "campaign_seconds": round(done.seconds, 3),
    }


def track(experiment: Experiment, done: Done, tracker: Tracker) -> None:
    """Send each layer's rate, at step = layer number, then the mean of each layer type and the seed."""
    estimates = experiment.estimates(done.counts)
    for found in estimates:
        if found.rate is not None:
            payload = {"Misclassification_rate": found.rate.value, found.item.layer.type: found.rate.value}
            tracker.log(payload, step=found.item.number)
    last = max((item.number for item in experiment.chosen), default=0)
    found_means = rates.means(estimates, experiment.settings.confidence)
    means = {f"mean/{name}": rate.value for (of, name), rate in found_means.items() if of == "type"}
    seed = {} if experiment.settings.seeds else {"seed": float(experiment.settings.seed)}
    tracker.log({**means, **seed}, step=last)
