"""What a number format costs the wave: the same faults in float32 and in each, in turns; ratios of times.

python -m benchmarks.formats [--rounds 5] [--images 300] [--model digits_vgg]
"""

from __future__ import annotations

import argparse
import statistics
from typing import get_args

import torch
from torch.utils.data import Subset

from benchmarks.protections import trained
from bitflip import Campaign, Sampled
from bitflip.data import digits
from bitflip.settings.hyperparameters import NumberFormat

FORMS = ("bfloat16", "float8_e4m3fn", "int8")


def main() -> None:
    """Measure, and print a row for each format and target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--model", default="digits_vgg")
    parser.add_argument("--with", dest="forms", default=",".join(FORMS), help=f"of {', '.join(get_args(NumberFormat))}")
    given = parser.parse_args()
    test, train = Subset(digits.load("test"), range(given.images)), digits.load("train")
    model = trained(given.model).eval()
    print(f"{given.model}, {given.images} images, {torch.get_num_threads()} threads, median of {given.rounds} rounds")
    print("| faults | format | time | faults that stay |\n|---|---|--:|--:|")
    for faults in (Sampled("neuron", seed=1), Sampled("weight", seed=1, repeats=2)):
        for form in given.forms.split(","):
            campaigns = [
                Campaign(model, test, batch_size=64, number_format=one, calibration=train) for one in ("float32", form)
            ]
            times, stays = [], []
            for _ in range(given.rounds):
                # both within a few seconds of each other, so that what else the machine does hits them alike
                runs = [campaign.run(faults) for campaign in campaigns]
                times.append(runs[1].facts["campaign_seconds"] / runs[0].facts["campaign_seconds"])
                left = [sum(row.injections - (row.masked or 0) for row in run.layers) for run in runs]
                stays.append(left[1] / left[0])
            print(f"| {faults.target} | {form} | {statistics.median(times):.2f} | {statistics.median(stays):.2f} |")


if __name__ == "__main__":
    main()
