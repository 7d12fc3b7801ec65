"""What a run says on a terminal or a pipe, and at its end: the most fragile layers as a short table."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO, cast

NOTHING = "nothing to divide by"  # of a rate without an image that could be misclassified: here, in files, on pages
MOST = 5  # layers that are shown
WIDEST = 100  # columns
BAR = 10  # columns of the longest bar

# What writing fails with when nobody reads any more: of a pipe, of a terminal, of a pipe on Windows.
GONE = (errno.EPIPE, errno.EIO, *([errno.EINVAL] if os.name == "nt" else []))
BOLD, DIM, RED, OFF = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Line:
    """A layer that was run.

    Attributes:
        name: of the layer: its number, type and path.
        rate, low, high: misclassification rate and its confidence interval in percent; None where there is none.
    """

    name: str
    rate: float | None
    low: float | None = None
    high: float | None = None


class _Speaker(logging.Handler):
    """Says everything on stderr, as it is, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """While open, what the package has to say goes to stderr, for whoever runs a script."""
    logger, speaker = logging.getLogger("bitflip"), _Speaker()
    before = logger.level, logger.propagate
    logger.addHandler(speaker)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(speaker)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def padded(rows: Sequence[Sequence[str]], words: Collection[int] = ()) -> list[list[str]]:
    """The cells of a table, all of a column as wide: those of ``words`` begin in one line, the others, numbers, end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [cell.ljust(width) if i in words else cell.rjust(width) for i, (cell, width) in enumerate(cells)]
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]


def aligned(rows: Sequence[Sequence[str]], words: Collection[int] = ()) -> list[str]:
    """The lines of a table; see :func:`padded`.

    >>> print(*aligned([("layer", "rate"), ("conv1", "12.5"), ("fc", "0")], words=[0]), sep="\\n")
    layer  rate
    conv1  12.5
    fc        0
    """
    return ["  ".join(cells).rstrip() for cells in padded(rows, words)]


def is_pretty(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal whose reader wants colours; see https://no-color.org."""
    unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return unicode and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb" and stream.isatty()


def most_fragile(
    lines: Sequence[Line], *, confidence: float = 0.95, pretty: bool = False, width: int | None = None
) -> str:
    """The most fragile layers, as text of a few lines; empty without a layer.

    Args:
        lines: all layers that were run.
        confidence: of the intervals.
        pretty: with colours and bars, for a terminal; see :func:`is_pretty`.
        width: columns of the terminal, None for those of this one; plain lines are as long as they are.

    >>> print(most_fragile([Line("#0 Conv2d (path conv1)", 12.5, 10.0, 15.31), Line("#1 ReLU (path relu)", 0.0)]))
    Most fragile layers (95 % confidence):
      12.500 %  (10.000 to 15.310)  #0 Conv2d (path conv1)
      1 of 2 layers without a misclassification
    """
    known = [line for line in lines if line.rate is not None]
    # Layers with the same rate stay in the order of the network.
    worst = [line for line in sorted(known, key=lambda line: -(line.rate or 0)) if line.rate][:MOST]
    rows = padded(
        [
            (
                f"{line.rate:.3f} %",
                "" if line.low is None or line.high is None else f"({line.low:.3f} to {line.high:.3f})",
            )
            for line in worst
        ]
    )
    columns = min(width or shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    text = []
    if rows:
        level = f" ({confidence * 100:g} % confidence)" if rows[0][1] else ""
        text.append(f"{BOLD}Most fragile layers{OFF}{level}:" if pretty else f"Most fragile layers{level}:")
    for line, cells in zip(worst, rows, strict=True):
        name = _printable(line.name)
        room = max(24, columns - sum(map(len, cells)) - 2 * 3 - (BAR + 2) * pretty)
        if pretty:
            cells[0] = f"{RED}{cells[0]}{OFF}  {_bar((line.rate or 0) / (worst[0].rate or 1))}"
            cells[1] = cells[1] and f"{DIM}{cells[1]}{OFF}"
            tail = room * 2 // 3
            name = name if len(name) <= room else f"{name[: room - tail - 1]}…{name[-tail:]}"
        text.append("  " + "  ".join([*filter(None, cells), name]))
    none = sum(line.rate == 0 for line in known)
    if none:
        text.append(f"  {none} of {len(known)} layers without a misclassification")
    if left := len(lines) - len(known):
        text.append(f"  {left} of {len(lines)} layers with 0 / 0, {NOTHING}")
    return "\n".join(text)


def _bar(share: float) -> str:
    eighths = max(1, round(share * BAR * 8))
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(BAR)


def _printable(name: str) -> str:
    """A name without anything that a terminal would act upon."""
    return "".join(c if c.isprintable() else "?" for c in name)


def duration(seconds: float) -> str:
    """A time for people, of two figures: ``40 ms``, ``45 s``, ``12 min``, ``3.5 h``, ``12 days``."""
    units = [("ms", 0.001, 0.1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800), ("days", 86_400, math.inf)]
    unit, length = next((unit, length) for unit, length, most in units if seconds < most)
    value = seconds / length
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Let what is printed go nowhere once its reader, such as ``head``, is gone: no reason to end a run."""
    with contextlib.ExitStack() as stack:
        # A stream that was closed before is None.
        given = [stream or stack.enter_context(open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr)]
        out, err = map(_Stream, given)
        stack.enter_context(contextlib.redirect_stdout(cast(TextIO, out)))
        stack.enter_context(contextlib.redirect_stderr(cast(TextIO, err)))
        try:
            yield
        finally:
            out.flush()
            err.flush()


class _Stream:
    """A stream that is let go of when its pipe breaks, or its terminal closes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._unbroken(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._unbroken(self._stream.flush)

    def _unbroken(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still buffered, too, can be written now
            os.close(nowhere)
