"""Train the network that comes with the package; this made ``digits_vgg.pt``.

    python -m bitflip.data.train_digits
    python -m bitflip.data.train_digits --output my_digits.pt --seed 1

The schedule is fixed: nothing is chosen by the test part, which is looked at once, after the last epoch.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bitflip.data import digits

BATCH_SIZE = 64
LEARNING_RATE = 0.05
WEIGHT_DECAY = 5e-4
MAX_ROTATION = math.radians(10)
MAX_SHIFT = 2 / 16  # of half the width: 2 of 32 pixels, half a pixel of the 8x8 scan


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save, and print how many test images are right; return the exit code."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bitflip.data.train_digits", description=description)
    parser.add_argument("--output", type=Path, default=Path("digits_vgg_new.pt"), help="weights file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    # Before the training, so that nobody waits for a result that can't be kept.
    if options.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {options.epochs}")
    if not options.output.parent.is_dir():
        parser.error(f"--output: expected a file in an existing directory, got {options.output}")
    if options.output.exists() and not options.overwrite:
        parser.error(f"--output: {options.output} exists; give --overwrite to replace it")

    start = time.perf_counter()
    model = train(options.epochs, options.seed)
    print(f"trained {options.epochs} epochs in {time.perf_counter() - start:.0f} s")
    save(model, options.output)
    images, labels = digits.load("test").tensors
    correct = count_correct(model, images, labels)
    print(f"test accuracy {correct / len(labels):.2%} ({correct} of {len(labels)}), weights in {options.output}")
    return 0


def train(epochs: int, seed: int) -> nn.Module:
    """Return a network in ``eval()`` mode, trained on the train part; the caller's random state is left alone.

    The same seed gives the same weights on the same machine with the same number of threads.
    """
    images, labels = digits.load("train").tensors  # (N, 3, 32, 32), (N,)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU one only; torch.manual_seed would reseed a GPU as well
        model = digits.build().train()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        steps = epochs * math.ceil(len(labels) / BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(labels)), BATCH_SIZE):
                loss = nn.functional.cross_entropy(model(jitter(images[batch])), labels[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
                optimizer.step()
                schedule.step()
    return model.eval()


def jitter(images: Tensor) -> Tensor:
    """Return normalised ``images``, shape ``(B, C, H, W)``, each turned and shifted a little at random."""
    angle = torch.empty(len(images)).uniform_(-MAX_ROTATION, MAX_ROTATION)
    shift = torch.empty(len(images), 2, 1).uniform_(-MAX_SHIFT, MAX_SHIFT)
    sine, cosine = angle.sin(), angle.cos()
    turn = torch.stack((cosine, -sine, sine, cosine), dim=1).view(-1, 2, 2)
    grid = nn.functional.affine_grid(torch.cat((turn, shift), dim=2), list(images.shape), align_corners=False)
    # Sampling fills with zero what comes in from outside, so blank paper has to be zero while it happens.
    paper = -digits.MEAN / digits.STD
    return nn.functional.grid_sample(images - paper, grid, align_corners=False) + paper


@torch.no_grad()
def count_correct(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return how many of ``images``, shape ``(N, 3, 32, 32)``, get their label, shape ``(N,)``, as top-1."""
    return int((model(images).argmax(dim=1) == labels).sum())


def save(model: nn.Module, output: Path) -> None:
    """Write the state dict of ``model``; ``output`` is either untouched or complete."""
    beside = output.with_name(f"{output.name}.partial")
    try:
        torch.save(model.state_dict(), beside)
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
