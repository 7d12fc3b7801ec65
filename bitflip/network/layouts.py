"""The memory format of a convolution's weight, which chooses its kernel on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from bitflip.network.layers import Layer

PIXELS = range(2, 17)  # of the largest output map, and
PRODUCTS = 1 << 15  # input times output channels, from which oneDNN's kernels for (B, C, H, W) are the faster ones


def suit(modules: Mapping[str, nn.Module], layers: Iterable[Layer]) -> list[str]:
    """Give convolutions on small maps a weight in PyTorch's default memory format, and return their paths.

    All else is channels last on the CPU, which is faster on larger maps. The rule is about kernels that use AVX-512;
    the others do not gain by it. It depends on nothing that is measured, so each run on a machine, and each of its
    workers, makes the same choice. ``benchmarks/README.md`` says what it is worth.

    Args:
        modules: by path; those that are chosen are changed.
        layers: every call of theirs, with the shape of its output for one image.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return []
    largest: dict[str, int] = {}
    for layer in layers:
        largest[layer.path] = max(largest.get(layer.path, 0), math.prod(layer.shape[1:]))
    chosen = [path for path, pixels in largest.items() if pixels in PIXELS and _is_large(modules[path])]
    for path in chosen:
        weight = modules[path].weight
        assert isinstance(weight, nn.Parameter)
        weight.data = weight.data.contiguous()
    return chosen


def is_default(weight: torch.Tensor) -> bool:
    """Whether a weight (O, I, H, W) is in PyTorch's default memory format, and not channels last as well."""
    return weight.dim() == 4 and weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last)


def _is_large(module: nn.Module) -> bool:
    """Whether it is a convolution on the CPU with many products for each value, over more than single pixels."""
    if type(module) is not nn.Conv2d or module.weight.device.type != "cpu":
        return False
    many = module.in_channels * module.out_channels >= PRODUCTS
    return many and module.groups == 1 and math.prod(module.kernel_size) > 1
