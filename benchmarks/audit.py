"""Run what --prove would leave out, and look whether a class changes: it must not, once.

    python benchmarks/audit.py                    # nine networks, neurons and weights, a million faulty images
    python benchmarks/audit.py --faults 2000 --networks resnet20 convnext_tiny    # a short one

Three networks are trained on digits, the others have random weights; all see the digits test part. A fault counts that
a bound decides before it is run. Those that are decided on the way are run to the end as well, but not counted.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, Python looks in benchmarks/ only

import bitflip
from benchmarks import engines, networks
from bitflip.data import digits
from bitflip.engines import coverage
from bitflip.errors import BadInput

RANDOM = ("vgg13_bn", "resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "convnext_tiny")
TRAINED = ("vgg11_bn", "resnet20")
IMAGES = 200


def main() -> int:
    """Print a line for each network and target; return 1 if a class changed."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0], epilog="\n".join(lines[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "audited for each network and target, at least; default 60000"
    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda or cuda:N")
    parser.add_argument("--faults", type=engines.positive, default=60_000, help=text)
    every = ("digits_vgg", *TRAINED, *RANDOM)
    parser.add_argument("--networks", nargs="+", choices=every, default=every, metavar="NAME", help="default: all nine")
    options = parser.parse_args()
    test_set = torch.utils.data.Subset(digits.load("test"), range(IMAGES))
    everything = 0
    print("| network | target | faulty images | proved harmless and run | seconds |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, build in models(options.networks):
        for target in ("neuron", "weight"):
            campaign = bitflip.Campaign(build(), test_set, batch_size=IMAGES, device=options.device)
            faulty, audited, before = 0, 0, time.perf_counter()
            for seed in itertools.count():
                try:
                    rows = campaign.run(bitflip.Sampled(target, seed=seed, repeats=4), prove=True, audit=1).layers
                except BadInput as error:
                    print(f"{name}, {target}, seed {seed}: {error}", file=sys.stderr)
                    return 1
                faulty += sum(row.injections for row in rows)
                audited += sum(row.audited or 0 for row in rows)
                if audited >= options.faults:
                    break
            everything += audited
            print(f"| {name} | {target} | {faulty:,} | {audited:,} | {time.perf_counter() - before:.0f} |", flush=True)
    print(f"\nNone of {everything:,} faulty images that were proved harmless changed its class.")
    return 0


def models(chosen: Collection[str]) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Names, and what makes the network."""
    if "digits_vgg" in chosen:
        yield "digits_vgg, trained", trained_digits
    for name in (name for name in TRAINED if name in chosen):
        yield f"{name}, trained", functools.partial(networks.trained, name, torch.device("cpu"))
    for name in (name for name in RANDOM if name in chosen):
        yield name, functools.partial(random_weights, name)


def trained_digits() -> nn.Module:
    """The network that comes with the package."""
    model = digits.build()
    model.load_state_dict(torch.load(digits.WEIGHTS, weights_only=True))
    return model


def random_weights(name: str) -> nn.Module:
    """A network of ours or of torchvision's with random weights, the same each time."""
    torch.manual_seed(0)
    model = (
        networks.vgg13_bn() if name == "vgg13_bn" else torchvision.models.get_model(name, weights=None, num_classes=10)
    )
    return coverage.enlivened(model).eval()


if __name__ == "__main__":
    sys.exit(main())
