"""ResNet-20 with TF32 convolutions where the published campaign had them, on any device.

A tensor core rounds the inputs and weights of a TF32 convolution to 10 mantissa bits (to nearest, ties away from zero),
multiplies exactly, and adds up in float32. Here the rounding is done in integer arithmetic before an ordinary float32
convolution, so only the order of the sum can differ. Which layers ran so can be read off the published masked column:
all those with 64 output channels (docs/published.md).

    --model-name docs/resnet20_tf32.py:build

with the module's file in the environment variable ``RESNET20``.
"""

import os
import runpy

import torch
from torch import Tensor, nn

DROPPED = 13  # of float32's 23 mantissa bits
CHANNELS = 64


def to_tf32(value: Tensor) -> Tensor:
    """The nearest TF32 numbers of a float32 tensor, as float32; infinities and NaNs as they are."""
    integer = value.view(torch.int32)
    rounded = (integer + (1 << (DROPPED - 1))) & -(1 << DROPPED)
    nearest: Tensor = torch.where(value.isfinite(), rounded.view(torch.float32), value)
    return nearest


class TF32Conv2d(nn.Conv2d):
    """A convolution that sees TF32 numbers only."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        output: Tensor = self._conv_forward(to_tf32(input), to_tf32(self.weight), self.bias)
        return output


def build(num_classes: int = 10) -> nn.Module:
    """The network of the file that ``RESNET20`` names."""
    model: nn.Module = runpy.run_path(os.environ["RESNET20"])["build"](num_classes)
    for module in model.modules():
        if type(module) is nn.Conv2d and module.out_channels == CHANNELS:
            module.__class__ = TF32Conv2d
    return model
