"""The road of a run: hyperparameters, experiment, campaign, results."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from bitflip import execution, experiment, listrun, provenance, publishing, tracking
from bitflip.checkpoint import Checkpoint, writable
from bitflip.errors import BadInput
from bitflip.execution import Done
from bitflip.faults import Target
from bitflip.results import Paths

# Settings that a run may change when it is gone on with: they change no result, or name the folder.
NOT_SHARED = {
    *("input_path", "output_path", "weights", "hub_path", "device", "pool_mib", "fresh", "rerun"),
    *("seed", "seeds", "save_faults"),
}


def main(target: Target, prefix: str = "", argv: Sequence[str] | None = None) -> int:
    """Run one experiment and return the exit code: 0, 2 for bad input, 130 when interrupted.

    Args:
        target: where bits flip: ``neuron`` or ``weight``.
        prefix: of the result files' names.
        argv: command line arguments; None for those of the process.
    """
    done: Done | None = None
    try:
        settings = experiment.checked(sys.argv[1:] if argv is None else argv, target)
        if settings.faults is not None:
            return listrun.main(settings, target, prefix)
        paths = Paths.of(settings, prefix, settings.seeds or settings.seed)
        shared = {"target": target, **settings.model_dump(mode="json", exclude=NOT_SHARED)}
        with Checkpoint(paths.unfinished, shared, provenance.now(), fresh=settings.fresh) as checkpoint:
            loaded = experiment.prepare(settings, target)
            print(loaded.title, flush=True)
            checkpoint.require(
                {
                    "device": loaded.placement.device.type,
                    "model sha256": loaded.classifier.sha256,
                    "images": loaded.images,
                    "layers": [[item.number, item.layer.path] for item in loaded.layers],
                }
            )
            if settings.save_faults is not None:
                listrun.save(settings.save_faults, loaded)
            with tracking.connect() as tracker:
                done = execution.execute(loaded, checkpoint, tracker)
                with writable(settings.output_path):
                    publishing.report(loaded, done, prefix, checkpoint.started)
                publishing.track(loaded, done, tracker)
            if done.complete:
                checkpoint.discard()
    except BadInput as error:
        return _refused(error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = str(error).split(". ")[0]
        return _refused(BadInput(f"batch_size (--batch-size): expected a batch that fits the memory: {reason}"))
    except KeyboardInterrupt:
        when = "before the first batch was finished; nothing was written" if done is None else "while reporting"
        print(f"interrupted {when}", file=sys.stderr)
        return 130
    if isinstance(done.stopped, BadInput):
        return _refused(done.stopped)
    return 0 if done.complete else 130


def _refused(error: BadInput) -> int:
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2
