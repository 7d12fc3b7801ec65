"""What to do when the memory of the device, or of the host, runs out: the same work in smaller portions."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.errors import BadInput, first_line
from bitflip.faults.flips import Flips
from bitflip.outcomes import batch as outcomes
from bitflip.outcomes.batch import BatchOutcomes

log = logging.getLogger(__name__)

_SIGNS = (  # of a lack of memory in the words of a RuntimeError
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
)

Progress = Callable[[int], None]
Run = Callable[[Inputs, Tensor, list[Flips], int, Progress], BatchOutcomes]


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory; on the CPU, torch has no type of its own for that."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def may_be_due(error: Exception) -> bool:
    """Whether an exception of the model may be the doing of a fault: no lack of memory, and no mistake of the user.

    Raises:
        BadInput: if it made the GPU stop, after which this process can compute nothing more on it.
    """
    if "device-side assert" in str(error):
        raise BadInput(
            "device (--device): a fault made the GPU stop, with an index out of range or the like; expected cpu for "
            "this model, where such faults are counted as due"
        ) from error
    return not ran_out(error) and not isinstance(error, BadInput)


def let_go() -> None:
    """Free what nobody holds any more; not from within an ``except`` clause, whose traceback holds everything."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Portions:
    """Runs batches in portions of as many images as fit the memory, which changes no outcome.

    Args:
        run: runs images, such as (B, C, H, W), and labels, (B,), with flips; takes the index in the test set of the
            first image and what to call with the number of further faulty images whose outcome is known.
        most: images of one portion; None as long as whole batches fit.
    """

    def __init__(self, run: Run, most: int | None = None) -> None:
        self._run = run
        self.most = most

    def run(self, images: Inputs, labels: Tensor, flips: list[Flips], first: int, progress: Progress) -> BatchOutcomes:
        """The outcomes of one batch, on the host.

        Raises:
            BadInput: if not even one image fits.
        """
        done: list[BatchOutcomes] = []
        start = 0
        while start < len(labels) or not done:
            left = len(labels) - start
            size = left if self.most is None else -(-left // -(-left // self.most))  # of about the same size each
            part = slice(start, start + size)
            cut = [one.of(part) for one in flips]
            found = self._attempt(inputs.rows(images, part), labels[part], cut, first + start, progress)
            if isinstance(found, BatchOutcomes):
                done.append(found)
                start += size
                continue
            let_go()
            if size <= 1:
                raise BadInput(f"device (--device): the memory does not suffice for one image at a time ({found})")
            self.most = (size + 1) // 2
            log.warning(
                "not enough memory for %d images at a time: going on with %d; the faults stay the same", size, self.most
            )
        return outcomes.join(done, flips)

    def _attempt(
        self, images: Inputs, labels: Tensor, flips: list[Flips], first: int, progress: Progress
    ) -> BatchOutcomes | str:
        """The outcomes, or why the memory did not suffice."""
        reported = 0

        def report(faulty: int) -> None:
            nonlocal reported
            reported += faulty
            progress(faulty)

        try:
            return self._run(images, labels, flips, first, report)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            reason = first_line(error)
        progress(-reported)
        return reason
