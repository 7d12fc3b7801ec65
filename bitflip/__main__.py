"""Commands beside the three entry scripts: ``python -m bitflip COMMAND --help``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from bitflip.errors import BadInput

COMMANDS = {
    "verify": "run a published fault list and compare with its published outcomes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser("python -m bitflip", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")
        if name in arguments:  # only then: its module may import what is slow
            importlib.import_module(f"bitflip.commands.{name}").add_arguments(command)
    chosen = parser.parse_args(arguments)
    try:
        code: int = importlib.import_module(f"bitflip.commands.{chosen.command}").run(chosen)
    except BadInput as error:
        print(*(f"error: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
