"""Whether a part of a map that is made alone has the bits that it has in the whole map.

A kernel may round a small map, or a single channel, otherwise than a large one. Where it does, on this machine, for
this layer and this size, the wave runs whole maps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from bitflip.engines import strides, verdicts
from bitflip.engines.graph import Program, Rows, Step
from bitflip.engines.windows import (
    Kind,
    Spread,
    Window,
    crop,
    function_name,
    is_plain,
    one_channel,
    one_channel_normalised,
    padded,
    unpadded,
)
from bitflip.network import bits, formats
from bitflip.network.protections import Guard

CHANNELS = 8  # that are tried
VALUES = 2048  # at least, of one channel


class Exactness:
    """Tries layers of a program on random images, once for each size.

    Args:
        program: whose layers they are.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._found: dict[tuple[object, ...], bool] = {}

    def window(self, step: Step, size: tuple[int, int], channel: int | None, clean: Tensor) -> bool:
        """Whether a layer's output is exact for windows of one channel or all.

        Args:
            step: the layer; a convolution, pooling or one that works pixel by pixel.
            size: of the windows of its input.
            channel: the one that they cover, or None for all.
            clean: its input, (B, C, H, W), of which only the form counts.
        """
        module = self._program.module(step.node) if step.node.op == "call_module" else None
        if isinstance(module, Guard):
            return True  # it rounds nothing
        if channel is not None and isinstance(module, nn.BatchNorm2d):
            return self._known(step, ("channel",), clean, lambda: self._channels(module, clean))
        tried = self._spread if step.kind is Kind.SPREAD else self._pointwise
        return self._known(step, ("window", size, channel is None), clean, lambda: tried(step, size, channel, clean))

    def channel(self, step: Step, clean: object) -> bool:
        """Whether single channels of a layer's output, from its whole input, are exact.

        Args:
            step: any step that calls a module.
            clean: its input, of which only the form counts; anything.
        """
        module = self._program.module(step.node)
        if step.layout != Rows(0, 1) or not _is_map(clean) or not is_plain(module):
            return False
        return self._known(step, ("channel",), clean, lambda: self._channels(module, clean))

    def _known(self, step: Step, question: tuple[object, ...], clean: Tensor, how: Callable[[], bool]) -> bool:
        key = step.node, question
        if key not in self._found:
            module = self._program.module(step.node) if step.node.op == "call_module" else None
            of = function_name(step.node) if module is None else module
            form = f"{of} on {clean.dtype} {tuple(clean.shape[1:])} {strides.order(clean)}"
            # Numbers of few bits would hide how the kernel rounds, which is what the verdict is about.
            with contextlib.nullcontext() if module is None else formats.unrounded(module):
                self._found[key] = verdicts.of(clean.device).holds(form, str(question), how)
        return self._found[key]

    def _windows(self, images: Tensor, size: tuple[int, int], channel: int | None) -> tuple[Window, Tensor]:
        """Clean windows at the edges, in the corners and in the middle of all images, and their images."""
        height, width = images.shape[2] - size[0], images.shape[3] - size[1]
        places = sorted({(y, x) for y in (0, height // 2, height) for x in (0, width // 2, width)})
        top, left = torch.tensor(places, device=images.device).repeat(len(images), 1).unbind(1)
        image = torch.arange(len(images), device=images.device).repeat_interleave(len(places))
        window = Window(top, left, images[:0], channel)
        return window.having(crop(window.covered(images), image, top, left, size)), image

    def _spread(self, step: Step, size: tuple[int, int], channel: int | None, clean: Tensor) -> bool:
        module = self._program.module(step.node)
        spread = Spread.of(module)
        assert spread is not None
        images = strides.random(2, clean)
        with self._program.mode:
            whole = module(images)
        window, image = self._windows(images, size, channel)
        patch, found = spread.patches(window, padded(images, spread), image, (whole.shape[2], whole.shape[3]))
        with self._program.mode:
            found = found.having(unpadded(module, patch))
        return _same(found.contents, found.crop(whole, image))

    def _pointwise(self, step: Step, size: tuple[int, int], channel: int | None, clean: Tensor) -> bool:
        images = strides.random(2, clean)
        whole = self._program.run(step.node, lambda _: images.clone())
        window, image = self._windows(images, size, channel)
        alone = self._program.run(step.node, lambda _: window.contents.clone())
        return _same(alone, window.crop(whole, image))

    def _channels(self, module: nn.Module, clean: Tensor) -> bool:
        images = strides.random(max(2, VALUES // max(1, clean[0, 0].numel())), clean)
        with self._program.mode:
            whole = module(images)
            if whole.dim() != 4 or whole.shape[2:].numel() == 1:
                return False
            count = whole.shape[1]
            for channel in sorted({i * (count - 1) // max(1, CHANNELS - 1) for i in range(CHANNELS)}):
                if isinstance(module, nn.BatchNorm2d):
                    alone: Tensor | None = one_channel_normalised(module, images[:, channel : channel + 1], channel)
                else:
                    alone = one_channel(module, images, channel)
                if alone is None or not _same(alone, whole[:, channel : channel + 1]):
                    return False
        return True


def _is_map(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor (B, C, H, W) of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 4


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(bits.exact(a), bits.exact(b))
