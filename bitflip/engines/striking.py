"""Striking values of a layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitflip.faults.flips import Flips
from bitflip.network.formats import Stored


@dataclass(frozen=True)
class Struck:
    """Where flips strike a layer's output, and with what.

    Attributes:
        index: of each struck value, one tensor (B,) per dimension of the output.
        original, error: the values before and after, (B,).
    """

    index: tuple[Tensor, ...]
    original: Tensor
    error: Tensor

    def only(self, rows: Tensor) -> Struck:
        """Some of them, (N,) of bool or of places."""
        return Struck(tuple(where[rows] for where in self.index), self.original[rows], self.error[rows])


def strike(output: Tensor, flips: Flips, stored: Stored | None = None) -> Struck:
    """Find the values of a layer's output that flips strike, one per image.

    Args:
        output: (B, ...) or (B * windows, ...), left untouched; need not be contiguous.
        flips: one for each image, or for some.
        stored: how the values are stored; None as they are.
    """
    layer = flips.layer
    if flips.rows is None and output.numel() != len(flips) * math.prod(layer.shape):
        raise RuntimeError(f"{layer.path}: {len(flips)} images of {layer.shape} expected, got {tuple(output.shape)}")
    image = flips.images
    index = list(np.unravel_index(flips.element, layer.shape)) if layer.shape else []
    if output.dim() == len(index):  # (B * windows, ...): the batch is folded into the first dimension
        index[0] = image * layer.shape[0] + index[0]
    else:
        index.insert(0, image)
    # One transfer for all that is known; indexing, unlike a view, works for every memory format, and keeps it.
    change = flips.changes
    known = torch.from_numpy(np.concatenate([np.stack(index), change.arrays])).to(output.device)
    where = tuple(known[: len(index)])
    original = output[where]
    return Struck(where, original, change(original, known[len(index) :], stored))


def flippable_part(module: nn.Module, output: Any) -> Any:
    """What can be flipped in a layer's output: the first of the tuple that attention and recurrent layers return."""
    several = isinstance(module, nn.MultiheadAttention | nn.RNNBase) and isinstance(output, tuple)
    return output[0] if several else output


def flip_rows(output: Any, struck: Struck) -> Any:
    """A copy of a layer's output, in its memory format, with the struck values flipped; of a tuple, in its first."""
    if isinstance(output, tuple):
        return flip_rows(output[0], struck), *output[1:]
    faulty = output.clone()
    faulty[struck.index] = struck.error
    return faulty
