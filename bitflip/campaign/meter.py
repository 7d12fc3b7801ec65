"""How far a run is, for whoever waits: a bar on a terminal, and plain lines now and then where nobody looks on."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:  # not in Python 3.10
    from typing import Self

log = logging.getLogger(__name__)

SOON, LATER = 10.0, 60.0  # seconds between two lines: in the first minute, and from then on
REDRAWN = 0.2  # seconds between two looks of the bar, at least


class Meter:
    """Shows how many faulty images are through, how long the others will take, and the rate so far; a context.

    Args:
        total: faulty images of the run; None if that is not known before its end.
        before: of them, those that an earlier start has run.
        bar: True for a bar, False for nothing; None for a bar on a terminal, and lines in the log elsewhere.
    """

    def __init__(self, total: int | None, before: int = 0, *, bar: bool | None = None) -> None:
        self._total, self._before, self._count = total, before, before
        self._lines = bar is None and not sys.stderr.isatty()
        self._began = time.monotonic()
        self._due = self._began + SOON
        self._rate = ""
        # Without miniters=1, tqdm waits for as many as came at once before.
        self._bar = tqdm(
            total=total,
            initial=before,
            unit="img",
            unit_scale=True,
            mininterval=REDRAWN,
            miniters=1,
            smoothing=0.05,
            disable=self._lines or bar is False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, faulty: int) -> None:
        """Take note of so many further faulty images; of a negative number, if they have to be run again."""
        self._count += faulty
        self._bar.update(faulty)
        now = time.monotonic()
        if self._lines and now >= self._due:
            self._due = now + (SOON if now - self._began < LATER else LATER)
            log.info("%s", self.line(now - self._began))

    def rate(self, text: str) -> None:
        """Take the rate so far, in words."""
        self._rate = text
        self._bar.set_postfix_str(text, refresh=False)

    def line(self, seconds: float) -> str:
        """How far it is, so many seconds after this start."""
        words = [f"{self._count:,} faulty images"]
        if self._total:
            words = [f"{100 * self._count / self._total:.1f} % of {self._total:,} faulty images"]
        words.append(f"{tqdm.format_interval(seconds)} gone")
        if self._total and self._count > self._before:
            left = seconds * (self._total - self._count) / (self._count - self._before)
            words.append(f"about {tqdm.format_interval(left)} left")
        return ", ".join([*words, self._rate] if self._rate else words)
