"""Where the entry scripts come in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from bitflip import terminal
from bitflip.commands.exits import Exit


def main(
    target: Literal["neuron", "weight"], prefix: str, argv: Sequence[str] | None = None, prog: str | None = None
) -> int:
    """Run the experiment that the arguments and the environment ask for, and return the exit code.

    Importing torch takes seconds: ``--help`` is answered before it, and Ctrl-C during it is no traceback.

    Args:
        target: where bits flip: ``neuron`` or ``weight``.
        prefix: of the result files' names.
        argv: command line arguments; None for those of the process.
        prog: what ``--help`` calls the program; None for the script's own name.
    """
    given = sys.argv[1:] if argv is None else argv
    with terminal.outliving_readers(), Exit("interrupted before anything was done") as end:
        from bitflip.settings import reading

        reading.read(given, prog)
        from bitflip.commands import run

        end.interrupted = "interrupted"  # the run says it better, unless it is about to end
        end.code = run.main(target, prefix, given)
    return end.code
