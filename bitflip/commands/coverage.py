"""``python -m bitflip coverage``: what of a network faults can reach."""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from bitflip.errors import BadInput

INTRODUCTION = """\
# Coverage

Layers that were found and parameters that faults can reach, on random weights.

- *side*: height and width of the image in pixels, the smallest that was tried and taken.
- *layers*: calls of modules without children, and of attention, with the input image; *neuron layers*: those of them
  that have an output for each image.
- *tensors*: parameter tensors that weight faults can strike; one that is shared counts once; *never read*: those of
  them that no forward pass reads (auxiliary heads).
- *scalars* and *share*: the values of the tensors, and what part of all parameters they are.
- *engine*: what runs the faults by default.
"""
CHECKED = """\
- *engines agree*: one random bit of one random value per image in the output of {layers}, and one in {tensors},
  run by both engines on two images; they agree on a fault if all logits have the same bits, and both call it masked or
  neither does.
"""


_EACH = "each neuron layer", "each tensor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="of torchvision.models, digits_vgg, timm:NAME, or FILE.py:factory; default: every classifier of "
        "torchvision.models",
    )
    parser.add_argument("--hub-path", type=Path, help="checkout of pytorch-cifar-models that the names are entries of")
    parser.add_argument("--sizes", default="", help="image sizes to try, comma-separated, smallest first")
    parser.add_argument("--timm", action="store_true", help="also the smallest model of each family of timm")
    parser.add_argument("--check", action="store_true", help="also run one fault per target through both engines")
    parser.add_argument(
        "--targets", type=int, default=0, metavar="N", help="check N of the layers and N of the tensors only"
    )
    parser.add_argument("--rows", action="store_true", help="print the rows of the table only")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; the exit code is 1 if a parameter is out of reach, or the engines disagree."""
    from bitflip.engines import coverage
    from bitflip.network import models

    if arguments.targets < 0:
        raise BadInput(f"--targets: expected a number of at least 0, got {arguments.targets}")
    if not all(part.strip().isdigit() and int(part) for part in arguments.sizes.split(",") if arguments.sizes):
        raise BadInput(f"--sizes: expected whole numbers of at least 1, comma-separated, got {arguments.sizes!r}")
    sizes = tuple(map(int, arguments.sizes.split(","))) if arguments.sizes else None
    heading = ""
    if not arguments.rows:
        options, words = "".join(f" {name}" for name in arguments.models), [INTRODUCTION]
        if arguments.timm:
            options = f" --timm{options}"
        if arguments.check:
            some = arguments.targets
            options = f" --check{f' --targets {some}' * bool(some)}{options}"
            layers, tensors = (f"{some} of the neuron layers", f"{some} of the tensors") if some else _EACH
            words.append(CHECKED.format(layers=layers, tensors=tensors))
        made = f"Made by `python -m bitflip coverage{options}`.\n"
        heading = "\n".join(["".join(words), made, coverage.HEADER, ""])
    good, check = True, arguments.targets if arguments.check else None
    named = arguments.models or ([] if arguments.timm else models.torchvision_names())
    for name in chain(named, models.timm_families() if arguments.timm else ()):
        try:
            model, own = models.untrained(name, arguments.hub_path)
            found = coverage.of(name, model, sizes or (*coverage.SIZES, *own), check=check)
        except BadInput as error:
            if name in arguments.models:
                raise
            row = f"| {name} {'| ' * 8}| refused: {error} | |"
        else:
            good = good and found.scalars == found.parameters and not found.differing
            row = found.row()
        print(f"{heading}{row}", flush=True)  # no heading before a mistake in the first name
        heading = ""
    if not good:
        print("not every parameter is reachable, or the engines disagree; see the table", file=sys.stderr)
    return 0 if good else 1
