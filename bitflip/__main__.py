"""``python -m bitflip COMMAND``: what can be done beside the three scripts."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from bitflip import terminal
from bitflip.errors import BadInput, refuse

COMMANDS = {
    "plan": "how many faults a margin of error takes, and how long they take here",
    "report": "pictures and a page of a run, from its result files; many seeds joined into one",
    "compare": "two runs held against each other: what differs by layer, and how surely",
    "verify": "run a published fault list and compare with its published outcomes",
    "coverage": "what of a network faults can reach, and whether the engines agree on it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 130 when interrupted."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m bitflip", description="Single-bit-flip fault injection.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")
        if given[:1] == [name]:  # others are not even imported
            module = importlib.import_module(f"bitflip.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    with terminal.outliving_readers():
        arguments = parser.parse_args(given)
        try:
            return int(arguments.run(arguments))
        except BadInput as error:
            return refuse(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
