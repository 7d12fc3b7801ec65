"""What a protection costs the wave: the same faults without one and with each, in turns; ratios of times.

    python -m benchmarks.protections [--rounds 5] [--images 300] [--model vgg11_bn]

With infinite bounds, every fault stays exactly as long as without: that ratio is what the guards themselves cost. With
real ones, faults die earlier.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn
from torch.utils.data import Subset

from benchmarks import networks
from bitflip import Campaign, Sampled
from bitflip.data import digits
from bitflip.network import weightfile

WAYS = ("clamp:-inf:inf", "relu6", "ranger", "ranger-channel", "clip", "nan+clip")


def main() -> None:
    """Measure, and print a row for each protection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--model", choices=("digits_vgg", *networks.TRAINABLE), default="digits_vgg")
    given = parser.parse_args()
    model = trained(given.model)
    test, train = digits.load("test"), digits.load("train")
    campaign = Campaign(model.eval(), Subset(test, range(given.images)), batch_size=64, calibration=train)
    print(f"{given.model}, {given.images} images, {torch.get_num_threads()} threads, median of {given.rounds} rounds")
    print("| faults | protection | time | faults that stay |\n|---|---|---|---|")
    for faults in (Sampled("neuron", seed=1), Sampled("weight", seed=1, repeats=2)):
        for way in WAYS:
            times, stays = [], []
            for _ in range(given.rounds):
                # both within a few seconds of each other, so that what else the machine does hits them alike
                runs = [campaign.run(faults, protect=one) for one in (None, way)]
                times.append(runs[1].facts["campaign_seconds"] / runs[0].facts["campaign_seconds"])
                left = [sum(row.injections - (row.masked or 0) for row in run.layers) for run in runs]
                stays.append(left[1] / left[0])
            time, stay = statistics.median(times), statistics.median(stays)
            print(f"| {faults.target} | `{way}` | {time:.2f} | {stay:.2f} |", flush=True)


def trained(name: str) -> nn.Module:
    """The network that comes with the package, or another, trained on digits."""
    if name != "digits_vgg":
        return networks.trained(name, torch.device("cpu"))
    model = digits.build()
    weightfile.load(model, digits.WEIGHTS)
    return model


if __name__ == "__main__":
    main()
