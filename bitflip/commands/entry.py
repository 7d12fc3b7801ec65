"""Where the entry scripts come in."""

from __future__ import annotations

import sys
from typing import Literal

from bitflip import terminal
from bitflip.errors import BadInput, refuse
from bitflip.settings import reading


def main(target: Literal["neuron", "weight"], prefix: str) -> int:
    """Run the experiment that the process's arguments and environment ask for, and return the exit code.

    Importing torch takes seconds: ``--help`` is answered before it, and Ctrl-C during it is no traceback.

    Args:
        target: where bits flip: ``neuron`` or ``weight``.
        prefix: of the result files' names.
    """
    with terminal.outliving_readers():
        try:
            reading.read(sys.argv[1:])
            from bitflip.commands import run
        except BadInput as error:
            return refuse(error)
        except KeyboardInterrupt:
            print("interrupted before anything was done", file=sys.stderr)
            return 130
        return run.main(target, prefix)
