"""``bitflip COMMAND``, or ``python -m bitflip COMMAND``: two of the scripts, and what can be done beside them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bitflip import __version__, terminal
from bitflip.commands import entry
from bitflip.commands.exits import Exit

SCRIPTS: dict[Literal["neuron", "weight"], str] = {
    "neuron": "flip one bit of one neuron per image in each layer, as neuron.py does",
    "weight": "flip one bit of one weight per batch in each layer that has a weight, as weight.py does",
}
COMMANDS = {
    "plan": "how many faults a margin of error takes, and how long they take here",
    "report": "pictures and a page of a run, from its result files; many seeds joined into one",
    "compare": "runs held against each other: what differs by layer, and how surely; in one plot",
    "formats": "the same network in several number formats, side by side: accuracy, rates by layer and by bit",
    "protect": "a network with and without protections, under the same faults: what each breaks, and saves",
    "budget": "which bits must be protected, from the files of a run: what is left, and how few are enough",
    "prove": "what share of all faults, of every value and bit, a bound shows to be harmless, without running one",
    "verify": "run a published fault list and compare with its published outcomes",
    "coverage": "what of a network faults can reach, and whether the engines agree on it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 130 when interrupted."""
    given = sys.argv[1:] if argv is None else list(argv)
    prog = "bitflip" if Path(sys.argv[0]).stem == "bitflip" else "python -m bitflip"
    for target in SCRIPTS:
        if given[:1] == [target]:
            return entry.main(target, f"{target}_", given[1:], f"{prog} {target}")
    with terminal.outliving_readers(), terminal.speaking(), Exit() as end:
        arguments = _parser(prog, given[:1]).parse_args(given)
        end.device = hasattr(arguments, "device")
        end.code = int(arguments.run(arguments))
    return end.code


def _parser(prog: str, chosen: Sequence[str]) -> argparse.ArgumentParser:
    """All commands, of which only the chosen one has its arguments: others are not even imported."""
    parser = argparse.ArgumentParser(prog=prog, description="Single-bit-flip fault injection.")
    parser.add_argument("--version", action="version", version=f"bitflip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in [*SCRIPTS.items(), *COMMANDS.items()]:
        command = commands.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")
        if [name] == chosen:
            module = importlib.import_module(f"bitflip.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
