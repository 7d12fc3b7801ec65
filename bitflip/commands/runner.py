"""The road of a run: hyperparameters, experiment, campaign, results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from bitflip.campaign import execution, experiment, listrun, publishing
from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.execution import Done
from bitflip.campaign.experiment import Experiment
from bitflip.cluster import joining
from bitflip.cluster.driver import Cluster
from bitflip.cluster.shards import Facts
from bitflip.engines import memory
from bitflip.errors import BadInput, first_line, refuse
from bitflip.faults.flips import Target
from bitflip.network import devices
from bitflip.results import provenance, tracking
from bitflip.results.paths import Paths
from bitflip.settings.hyperparameters import Hyperparameters

# Settings that a run may change when it is gone on with: they change no result, or name the folder.
NOT_SHARED = {
    *("input_path", "output_path", "weights", "hub_path", "device", "pool_mib", "fresh", "rerun", "ray"),
    *("seed", "seeds", "save_faults", "plots"),
}


def main(target: Target, prefix: str = "", argv: Sequence[str] | None = None) -> int:
    """Run one experiment and return the exit code: 0, 2 for bad input, 130 when interrupted.

    Args:
        target: where bits flip: ``neuron`` or ``weight``.
        prefix: of the result files' names.
        argv: command line arguments; None for those of the process.
    """
    kept = "nothing was written"
    done: Done | None = None
    try:
        settings = experiment.checked(sys.argv[1:] if argv is None else argv, target)
        if settings.faults is not None:
            return listrun.main(settings, target, prefix)
        seed = settings.seeds or str(settings.seed)
        paths = Paths.of(settings, prefix, seed)
        shared = {"target": target, **settings.model_dump(mode="json", exclude=NOT_SHARED)}
        with ExitStack() as stack:
            checkpoint = stack.enter_context(
                Checkpoint(paths.unfinished, shared, provenance.now(), fresh=settings.fresh)
            )
            if checkpoint.resumed:
                kept = f"the same command with seed {seed} goes on from where the run was"
            workers = None if settings.ray is None else stack.enter_context(Cluster(settings, target))
            loaded = _loaded(settings, target, workers)
            print(loaded.title, flush=True)
            publishing.warn_of_changes(loaded)
            checkpoint.require(_shared(loaded, workers))
            if settings.save_faults is not None:
                listrun.save(settings.save_faults, loaded)
            with tracking.connect() as tracker:
                done = execution.execute(loaded, checkpoint, tracker, workers)
                kept = f"the same command with seed {seed} goes on from there"
                if workers is not None:
                    loaded = replace(loaded, device=workers.device)  # further nodes may have come
                estimates = publishing.report(loaded, done, prefix, checkpoint)
                publishing.track(loaded, estimates, tracker)
            if done.complete:
                checkpoint.discard()
    except BadInput as error:
        return refuse(error)
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        return refuse(BadInput(f"device (--device): the memory does not suffice for the run ({first_line(error)})"))
    except KeyboardInterrupt:
        when = "before the first batch was finished" if done is None else "while reporting"
        print(f"interrupted {when}; {kept}", file=sys.stderr)
        return 130
    if isinstance(done.stopped, BadInput):
        return refuse(done.stopped)
    return 0 if done.complete else 130


def _loaded(settings: Hyperparameters, target: Target, workers: Cluster | None) -> Experiment:
    """The experiment, ready to be run here, or by workers."""
    if workers is None:
        loaded = experiment.prepare(settings, target)
        if note := joining.hint(settings, loaded.placement.device):
            print(note, file=sys.stderr)
        return loaded
    # The driver only counts; it may be on a machine without a GPU.
    loaded = experiment.prepare(settings.model_copy(update={"device": "cpu"}), target)
    workers.meet(Facts.of(loaded), -(-loaded.images // settings.batch_size))
    print(f"ray: {workers}", file=sys.stderr)
    return replace(loaded, settings=settings, device=workers.device)


def _shared(loaded: Experiment, workers: Cluster | None) -> dict[str, object]:
    """What else two runs must share, for one to go on with the other."""
    kind = loaded.placement.device.type if workers is None else workers.kind
    return {
        "device": f"{kind} ({devices.kernels()})" if kind == "cpu" else kind,
        "engine that can run it": loaded.engine.name,
        "model sha256": loaded.classifier.sha256,
        "images": loaded.images,
        "layers": [[item.number, item.layer.path] for item in loaded.layers],
        **{f"{name} version": version for name, version in provenance.versions().items()},
    }
