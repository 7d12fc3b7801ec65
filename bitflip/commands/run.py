"""The road of a run: settings, experiment, campaign, results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from bitflip import terminal
from bitflip.campaign import identity, loop, publishing, saving
from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.loop import Done
from bitflip.commands import checks, error_rates, shared
from bitflip.commands.exits import Exit
from bitflip.errors import BadInput, refuse
from bitflip.faults.flips import TargetKind
from bitflip.results import provenance, tracking
from bitflip.results.paths import Paths
from bitflip.settings import reading, words
from bitflip.settings.hyperparameters import Hyperparameters


def main(target: TargetKind, prefix: str = "", argv: Sequence[str] | None = None) -> int:
    """Run one experiment and return the exit code: 0, 2 for bad input, 130 when interrupted.

    Args:
        target: where bits flip: ``neuron`` or ``weight``.
        prefix: of the result files' names.
        argv: command line arguments; None for those of the process.
    """
    interrupted = "interrupted before the first batch was finished; nothing was written"
    with terminal.speaking(), Exit(interrupted) as end:
        given = sys.argv[1:] if argv is None else argv
        settings = checks.checked(given, target)
        variables = reading.from_environment(given)
        if settings.bit_error_rates:
            end.code = error_rates.run(settings, target, prefix, variables)
        else:
            end.code = run(settings, target, prefix, variables).code
    return end.code


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: exit code: 0, 2 for an image that can't be read or no room, 130 when interrupted.
        done: what was run; None if not even one task was finished.
    """

    code: int
    done: Done | None = None


def run(
    settings: Hyperparameters,
    target: TargetKind,
    prefix: str,
    from_environment: Sequence[str] = (),
    *,
    tracked: bool = True,
) -> Ended:
    """Run the faults that the settings sample, or those of a list, and write the files.

    Ctrl-C stops it; what was finished is kept, and the same command goes on from there.

    Args:
        settings: of the run.
        target: where bits flip.
        prefix: of the result files' names.
        from_environment: names of the settings that come from there.
        tracked: whether its metrics are sent, if vessl manages the process.

    Raises:
        BadInput: for what only shows once all is loaded, or if nothing was finished.
    """
    paths, seed = Paths.of_run(settings, prefix), settings.seeds or settings.seed
    again = "the same command" if settings.faults is not None else f"the same command with seed {seed}"
    kept, when = "nothing was written", "before the first batch was finished"
    done: Done | None = None
    try:
        with ExitStack() as stack:
            same = identity.of_settings(settings, target)
            finals = Paths.of_results(settings, prefix)
            checkpoint = Checkpoint(paths.unfinished, same, provenance.now(), finals, fresh=settings.fresh)
            stack.enter_context(checkpoint)
            if checkpoint.resumed:
                kept = f"{again} goes on from where the run was"
            loaded, executor = shared.loaded(settings, target, stack)
            print(loaded.title + words.asked(settings, target, from_environment), flush=True)
            publishing.warn_of_changes(loaded)
            checkpoint.require(identity.of_experiment(loaded, executor), executor.device)
            if settings.save_faults is not None:
                saving.save(settings.save_faults, loaded)
            tracker = stack.enter_context(tracking.connect() if tracked else tracking.Tracker())
            done = loop.execute(loaded, checkpoint, tracker, executor)
            done.experiment = replace(loaded, device=executor.device)  # further nodes may have come
            kept, when = f"{again} goes on from there", "while reporting"
            if not done.complete:
                print(f"interrupted after {done.where}; {kept}", file=sys.stderr)
            if done.complete or settings.faults is None:
                estimates = publishing.report(done, prefix, checkpoint)
                if done.complete:
                    checkpoint.discard()
                    kept, when = "the results are written", "while sending metrics"
                publishing.track(done.experiment, estimates, tracker)
    except KeyboardInterrupt:
        print(f"interrupted {when}; {kept}", file=sys.stderr)
        return Ended(130, done)
    if isinstance(done.stopped, BadInput):
        return Ended(refuse(done.stopped), done)
    return Ended(0 if done.complete else 130, done)
