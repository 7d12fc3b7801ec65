"""A run of a fault list from its settings to its files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bitflip.campaign import experiment, publishing, replay
from bitflip.campaign.experiment import Experiment
from bitflip.campaign.journal import Journal
from bitflip.campaign.replay import Found, Images
from bitflip.campaign.unfinished import writable
from bitflip.faults import faultlist
from bitflip.faults.faultlist import FaultList
from bitflip.faults.flips import Target
from bitflip.network import devices
from bitflip.network.layers import Numbered
from bitflip.results import faultresults, provenance, tracking
from bitflip.results import tables as results
from bitflip.results.paths import Paths
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.statistics import rates
from bitflip.statistics.rates import LayerEstimate


@dataclass(frozen=True)
class Finished:
    """A run of a fault list that came to its end.

    Attributes:
        listed: the faults that were run.
        found: what they did.
        experiment: what they were run in; its chosen layers are those of the list.
        seconds: of the run; little where an earlier start had done most of it.
        started: when.
    """

    listed: FaultList
    found: Found
    experiment: Experiment
    seconds: float
    started: str

    @cached_property
    def estimates(self) -> list[LayerEstimate]:
        """What was found out about each layer."""
        counts = self.found.tallied(self.experiment.settings.seed, self.experiment.chosen)
        confidence = self.experiment.settings.confidence
        return rates.of_layers(counts, self.experiment.target, confidence, None, weighted=False)


def main(settings: Hyperparameters, target: Target, prefix: str) -> int:
    """Run the list, print its totals and write its files; the exit code, 130 when interrupted."""
    finished = run(settings, target, prefix)
    return 130 if finished is None else 0


def run(settings: Hyperparameters, target: Target, prefix: str) -> Finished | None:
    """Run the faults of ``settings.faults``, or those of them that ``settings.limit`` leaves, and write the files.

    Returns:
        None if Ctrl-C stopped it; what was finished is kept, and the next run goes on from there.

    Raises:
        BadInput: with all rows that are no faults of this model and test set, before anything is run.
    """
    assert settings.faults is not None
    started = provenance.now()
    listed = faultlist.read(settings.faults)
    prepared = experiment.prepare(settings, target)
    listed.check(settings.faults, prepared.injector.everything, prepared.images, target == "neuron")
    if settings.limit is not None:
        listed = listed.only(faultlist.stratified(listed.faults, settings.limit, settings.seed))
    prepared = replace(prepared, chosen=layers_of(prepared, listed))
    if settings.save_faults is not None:
        with writable(settings.save_faults.parent), results.replacing(settings.save_faults) as file:
            faultlist.write(file, listed.faults)
    paths = Paths.of_list(settings, prefix)
    images = Images(prepared.test_set, prepared.images, prepared.together)
    found = Found(listed.faults, prepared.images)
    identity, choices = replay.identity(prepared, listed, images), replay.choices(prepared)
    with Journal(paths.unfinished, identity, choices, fresh=settings.fresh) as journal:
        print(title(prepared, listed), flush=True)
        if journal.records:
            print(f"going on from {journal.record}", file=sys.stderr)
        with tqdm(total=inferences(listed, prepared.images), unit="img", unit_scale=True, disable=None) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            try:
                seconds = replay.run(prepared, listed, images, journal, found, advance)
            except KeyboardInterrupt:
                done = f"interrupted after {int(found.complete.sum())} of {len(listed)} faults"
                print(f"{done}; the same command goes on from there", file=sys.stderr)
                return None
        finished = Finished(listed, found, prepared, seconds, started)
        try:
            _publish(finished, paths, journal)
        except KeyboardInterrupt:
            print("interrupted while reporting; the same command goes on from there", file=sys.stderr)
            return None
    try:
        with tracking.connect() as tracker:
            publishing.track(prepared, finished.estimates, tracker)
    except KeyboardInterrupt:
        print("interrupted while sending metrics; the results are written", file=sys.stderr)
        return None
    return finished


def _publish(finished: Finished, paths: Paths, journal: Journal) -> None:
    """Write the files, draw them and print the totals; then the run is complete."""
    with journal.publishing(paths.folder) as folder:
        lines = write(replace(paths, folder=folder), finished)
        drawn = publishing.draw([paths], folder) if finished.experiment.settings.plots else []
        written = [*paths.of_listed, *drawn]
    publishing.remove(publishing.drawn(paths), but=written)
    print(*lines, "Results:", *(f"  {path}" for path in written), sep="\n")
    journal.discard()


def layers_of(prepared: Experiment, listed: FaultList) -> list[Numbered]:
    """What the list has faults in; layers are numbered as in all runs of the model."""
    numbered = {(layer.path, layer.call): (i, layer) for i, layer in enumerate(prepared.injector.everything)}
    places = dict.fromkeys((fault.path, fault.call, fault.target) for fault in listed.faults)
    found = [
        Numbered(*numbered[path, call], parameter="" if target == "neuron" else target) for path, call, target in places
    ]
    return sorted(found, key=lambda item: item.number)


def save(path: Path, prepared: Experiment) -> None:
    """Write the faults that a run samples as a fault list, which run again gives the same outcomes."""
    sampling = prepared.sampling
    repeats = sampling.repeats * len(sampling.seeds) > 1
    with writable(path.parent), results.replacing(path) as file:
        faultlist.write(file, sampling.listed(prepared.layers, prepared.images), repeats=repeats)


def write(paths: Paths, finished: Finished) -> list[str]:
    """Write the files and return the totals in words."""
    prepared, found, estimates = finished.experiment, finished.found, finished.estimates
    lines = [*summary(finished), *results.result_lines(prepared.chosen, estimates)]
    faultresults.write_faults(paths.listed_faults, found)
    faultresults.write_images(paths.listed_images, found)
    results.write_summary(paths.summary, title(prepared, finished.listed), prepared.settings.seed, None, lines)
    results.write_table(paths.table, prepared.settings.seed, estimates)
    results.write_bits(paths.bits, estimates)
    results.write_run(paths.run, _facts(finished, estimates))
    return lines


def _facts(finished: Finished, estimates: Sequence[LayerEstimate]) -> dict[str, Any]:
    """All that is needed to understand the results, and to have them again."""
    prepared = finished.experiment
    return {
        "complete": True,
        "target": prepared.target,
        "settings": prepared.settings.model_dump(mode="json"),
        **publishing.circumstances(prepared),
        "faults": len(finished.listed),
        "images": int(finished.found.seen.sum()),
        "clean_correct": int(finished.found.seen_correct.sum()),
        **publishing.means(prepared, estimates),
        **publishing.times(finished.started, finished.seconds),
    }


def title(prepared: Experiment, listed: FaultList) -> str:
    """The run in a line."""
    s = prepared.settings
    assert s.faults is not None
    layers = len({(fault.path, fault.call) for fault in listed.faults})
    return (
        f"{s.model_name} on {s.dataset}: {len(listed)} faults of {s.faults.name} in {layers} layers, "
        f"{prepared.images} images, {devices.describe(prepared.placement.device)}, {s.precision}, "
        f"{prepared.engine.name} engine"
    )


def inferences(listed: FaultList, images: int) -> int:
    """How many there are under all faults."""
    return sum(images if fault.images is None else len(fault.images) for fault in listed.faults)


def summary(finished: Finished) -> Sequence[str]:
    """The totals in words."""
    found = finished.found
    clean = (
        f"{found.seen_correct.sum()} / {found.seen.sum()} = {100 * found.seen_correct.sum() / found.seen.sum():.2f}%"
    )
    total = found.counts["images"].sum()
    shares = [
        f"{name} {found.counts[name].sum()} ({100 * found.counts[name].sum() / total:.4f}%)"
        for name in ("masked", "benign", "critical", "nonfinite")
    ]
    return [
        f"Clean accuracy: {clean}",
        f"{total} inferences under {len(finished.listed)} faults: {', '.join(shares)}",
    ]
