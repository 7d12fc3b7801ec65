"""What sharing the clean part is worth to bit error rates: the wave against whole passes, in turns; ratios of times.

    python -m benchmarks.error_rates [--rounds 3] [--images 256] [--model resnet20]

Whole passes are those of the reference engine, which gives the same counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.utils.data import Subset

from benchmarks.protections import trained
from bitflip import Campaign
from bitflip.data import digits

RATES = (1e-6, 1e-5, 1e-4)
PATTERNS = 3


def main() -> None:
    """Measure, and print a row for each target and scope."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--model", default="digits_vgg")
    given = parser.parse_args()
    images = Subset(digits.load("test"), range(given.images))
    model = trained(given.model).eval()
    engines = [Campaign(model, images, batch_size=256, engine=name) for name in ("reference", "wave")]
    print(f"{given.model}, {given.images} images, {torch.get_num_threads()} threads, median of {given.rounds} rounds")
    print("| bits of | struck | whole passes | wave | faster by |\n|---|---|--:|--:|--:|")
    for target in ("neuron", "weight"):
        taken: dict[str, list[list[float]]] = {"all layers together": [], "each layer alone": []}
        for _ in range(given.rounds):
            both = [[seconds(one, target, by_layer=by_layer) for one in engines] for by_layer in (False, True)]
            taken["all layers together"].append(both[0])
            taken["each layer alone"].append([more - less for less, more in zip(*both, strict=True)])
        for struck, rounds in taken.items():
            whole, wave = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(one / other for one, other in rounds)
            print(f"| {target}s | {struck} | {whole:.2f} s | {wave:.2f} s | {ratio:.2f}x |", flush=True)


def seconds(campaign: Campaign, target: str, *, by_layer: bool) -> float:
    """Processor time that the patterns take, and with them, every time, preparing the run."""
    began = time.process_time()  # of all threads; what else runs on the machine is not in it
    campaign.error_rates(target, RATES, patterns=PATTERNS, by_layer=by_layer, layer_type=["Conv2d", "Linear"])  # type: ignore[arg-type]
    return time.process_time() - began


if __name__ == "__main__":
    main()
