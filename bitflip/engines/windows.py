"""Faulty values as small windows on clean ones.

A flip starts as one number. Element-wise layers keep it at one pixel, a convolution or pooling of kernel k spreads it
over a window that grows by k - 1 pixels and shrinks with the stride; everything outside is clean. So as long as the
window is small, only the window is computed: gather it with its surroundings from the clean values, put the faulty
contents in, run the layer without padding.

A flipped weight of a convolution or normalisation changes one channel, all over the map: a window in another direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitflip.engines import strides
from bitflip.engines.capture import name_of
from bitflip.engines.striking import Struck
from bitflip.network import formats
from bitflip.network.formats import Rounding
from bitflip.network.protections import Guard

WIDEST = 0.6  # share of the map beyond which a window is not worth its gathering


class Kind(Enum):
    """What a step does to a window."""

    POINTWISE = auto()  # pixel by pixel, of one value: normalisation, activation
    SUM = auto()  # of two values, pixel by pixel
    SPREAD = auto()  # convolution or pooling
    OTHER = auto()  # needs the whole map


@dataclass
class Window:
    """Rows of a (B, C, H, W) value that are clean outside a window of (h, w) pixels.

    Attributes:
        top, left: of each row's window, (S,).
        contents: (S, C, h, w).
        channel: the one channel that the windows cover, with C = 1; None if they cover all.
    """

    top: Tensor
    left: Tensor
    contents: Tensor
    channel: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.contents.shape[2], self.contents.shape[3]

    @classmethod
    def of_channel(cls, contents: Tensor, channel: int) -> Window:
        """One channel of the whole map, (B, 1, H, W)."""
        corner = torch.zeros(len(contents), dtype=torch.int64, device=contents.device)
        return cls(corner, corner, contents, channel)

    @classmethod
    def around(cls, output: Tensor, struck: Struck) -> Window:
        """The struck values of a clean output (B, C, H, W), each in the pixel that it is in."""
        image, channel, y, x = struck.index
        contents = crop(output, image, y, x, (1, 1))
        contents[torch.arange(len(image), device=image.device), channel, 0, 0] = struck.error
        return cls(y, x, contents)

    def having(self, contents: Tensor) -> Window:
        """The same windows with other contents."""
        return replace(self, contents=contents)

    def covered(self, value: Tensor) -> Tensor:
        """The channels of a value (., C, ., .) that the windows cover."""
        return value if self.channel is None else value[:, self.channel : self.channel + 1]

    def seen_from(self, other: Window) -> Window:
        """The same contents, with corners relative to those of another window."""
        return replace(self, top=self.top - other.top, left=self.left - other.left)

    def lies_within(self, other: Window) -> bool:
        """Whether every row's window lies within the other's."""
        top, left = self.top - other.top, self.left - other.left
        room = [theirs - ours for theirs, ours in zip(other.size, self.size, strict=True)]
        return bool(((top >= 0) & (left >= 0) & (top <= room[0]) & (left <= room[1])).all())

    def head(self, count: int) -> Window:
        """The windows of the first rows, without a copy."""
        return replace(self, top=self.top[:count], left=self.left[:count], contents=self.contents[:count])

    def pick(self, rows: Tensor) -> Window:
        """The windows of some rows, which may repeat."""
        return replace(self, top=self.top[rows], left=self.left[rows], contents=strides.pick(self.contents, 0, rows))

    def crop(self, clean: Tensor, image: Tensor) -> Tensor:
        """What is in the windows of the clean value, (S, C, h, w)."""
        covered = self.covered(clean)
        if self.size == covered.shape[2:]:  # all of it: whole rows are copied several times as fast as pixels
            return strides.pick(covered, 0, image)
        return crop(covered, image, self.top, self.left, self.size)

    def paste(self, rows: Tensor) -> Tensor:
        """Put the contents into the rows' clean values, (S, C, H, W), in place."""
        height, width = self.size
        row = torch.arange(len(rows), device=rows.device)
        y = self.top[:, None] + torch.arange(height, device=rows.device)
        x = self.left[:, None] + torch.arange(width, device=rows.device)
        target = self.covered(rows).permute(0, 2, 3, 1)
        target[row[:, None, None], y[:, :, None], x[:, None, :]] = self.contents.permute(0, 2, 3, 1)
        return rows


def join(windows: list[Window]) -> Window:
    """Windows of one size, and of one channel or all, as one group."""
    return replace(
        windows[0],
        top=torch.cat([w.top for w in windows]),
        left=torch.cat([w.left for w in windows]),
        contents=strides.join([w.contents for w in windows], 0),
    )


def crop(clean: Tensor, image: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows of a batch's value: (B, C, H, W) and S corners -> (S, C, h, w), channels last."""
    y = top[:, None] + torch.arange(size[0], device=clean.device)
    x = left[:, None] + torch.arange(size[1], device=clean.device)
    return clean.permute(0, 2, 3, 1)[image[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Spread:
    """The geometry of a convolution or pooling, (vertical, horizontal) each.

    Attributes:
        fill: what it pads with.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    fill: float

    @classmethod
    def of(cls, module: nn.Module) -> Spread | None:
        """The geometry of a module, or None if the module spreads a window in another way."""
        if type(module) is nn.Conv2d:
            plain = module.dilation == (1, 1) and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
            kernel, stride, padding = module.kernel_size, module.stride, module.padding
            return cls(kernel, stride, padding, 0.0) if plain else None  # type: ignore[arg-type]
        if type(module) is nn.MaxPool2d:
            plain = pair(module.dilation) == (1, 1) and not module.ceil_mode and not module.return_indices
            geometry = pair(module.kernel_size), pair(module.stride), pair(module.padding)
            return cls(*geometry, -torch.inf) if plain else None
        if type(module) is nn.AvgPool2d:
            plain = pair(module.padding) == (0, 0) and not module.ceil_mode and module.divisor_override is None
            return cls(pair(module.kernel_size), pair(module.stride), (0, 0), 0.0) if plain else None
        return None

    def whole(self, shape: Sequence[int]) -> tuple[int, int]:
        """Size of the output's whole map, from the shape of the input, (B, C, H, W)."""
        height, width = (
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(shape[2:], self.padding, self.kernel, self.stride, strict=True)
        )
        return height, width

    def size(self, size: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
        """Size of the output's window, from the size of the input's window and of the output's whole map."""
        height, width = (
            min((n + k - 2) // s + 1, limit)
            for n, k, s, limit in zip(size, self.kernel, self.stride, whole, strict=True)
        )
        return height, width

    def patches(self, window: Window, padded: Tensor, image: Tensor, whole: tuple[int, int]) -> tuple[Tensor, Window]:
        """What the output's window is computed from.

        Args:
            window: of the input.
            padded: the clean input with its padding, (B, C, H + 2 p, W + 2 p).
            image: of each row, (S,).
            whole: size of the output's whole map.

        Returns:
            The faulty input around the windows, (S, C, ., .), to be run without padding, and the output's windows,
            with no contents yet.
        """
        size = self.size(window.size, whole)
        corners, starts, extent = [], [], []
        for d, corner in enumerate((window.top, window.left)):
            k, s, p = self.kernel[d], self.stride[d], self.padding[d]
            # The first output that reads the window's first pixel; moved so that the window lies within the map.
            first = torch.div(corner + p - k + s, s, rounding_mode="floor").clamp(0, whole[d] - size[d])
            corners.append(first)
            starts.append(first * s)
            extent.append((size[d] - 1) * s + k)
        patch = crop(window.covered(padded), image, starts[0], starts[1], (extent[0], extent[1]))
        inside = replace(
            window,
            top=window.top + self.padding[0] - starts[0],
            left=window.left + self.padding[1] - starts[1],
            channel=None,  # of the patch, which has no other
        )
        # With a stride, the last pixels of a window can lie beyond all that the outputs read.
        patch = inside.paste(patch) if self.stride == (1, 1) else overlay(patch, inside)
        return patch, replace(window, top=corners[0], left=corners[1], contents=patch)


def one_channel(module: nn.Module, value: Tensor, channel: int) -> Tensor | None:
    """One channel of a module's output, (B, C, H, W) -> (B, 1, H', W'); None if the module can't be cut so."""
    only = slice(channel, channel + 1)
    if not is_plain(module):
        return None
    if type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
        bias = None if module.bias is None else module.bias[only]
        weight = module.weight[only]
        found = nn.functional.conv2d(value, weight, bias, module.stride, module.padding, module.dilation)
        return formats.after(module, found)
    if type(module) is nn.BatchNorm2d and module.running_mean is not None and module.running_var is not None:
        return one_channel_normalised(module, value[:, only], channel)
    return None


def one_channel_normalised(module: nn.BatchNorm2d, value: Tensor, channel: int) -> Tensor:
    """Batch normalisation, in eval mode, of one channel: (B, 1, H, W)."""
    only = slice(channel, channel + 1)
    mean, var, weight, bias = (
        None if parameter is None else parameter[only]
        for parameter in (module.running_mean, module.running_var, module.weight, module.bias)
    )
    value = value.contiguous()  # PyTorch takes another, differently rounding, kernel for a slice of channels
    return formats.after(module, nn.functional.batch_norm(value, mean, var, weight, bias, False, 0.0, module.eps))


def unpadded(module: nn.Module, patch: Tensor) -> Tensor:
    """Run a convolution or pooling without its padding; to be called in the mode of batch invariance."""
    if isinstance(module, nn.Conv2d):
        found = nn.functional.conv2d(patch, module.weight, module.bias, module.stride, 0, 1, module.groups)
    elif isinstance(module, nn.MaxPool2d):
        found = nn.functional.max_pool2d(patch, module.kernel_size, module.stride)
    else:
        assert isinstance(module, nn.AvgPool2d)
        found = nn.functional.avg_pool2d(patch, module.kernel_size, module.stride)
    return formats.after(module, found)


def overlay(base: Tensor, window: Window) -> Tensor:
    """Put the contents into a base (S, C, H, W), leaving out the pixels that lie outside of it; a new tensor."""
    count, channels, height, width = base.shape
    canvas = base.new_empty(count, height + 1, width + 1, channels)  # outside pixels go to the last row and column
    canvas[:, :height, :width] = base.permute(0, 2, 3, 1)
    row = torch.arange(count, device=base.device)
    y = window.top[:, None] + torch.arange(window.size[0], device=base.device)
    x = window.left[:, None] + torch.arange(window.size[1], device=base.device)
    y = torch.where((y < 0) | (y >= height), height, y)
    x = torch.where((x < 0) | (x >= width), width, x)
    canvas[row[:, None, None], y[:, :, None], x[:, None, :]] = window.contents.permute(0, 2, 3, 1)
    return canvas[:, :height, :width].permute(0, 3, 1, 2)


def padded(clean: Tensor, spread: Spread) -> Tensor:
    """A clean value with its padding around it."""
    if spread.padding == (0, 0):
        return clean
    vertical, horizontal = spread.padding
    return nn.functional.pad(clean, (horizontal, horizontal, vertical, vertical), value=spread.fill)


_POINTWISE_MODULES = (
    *(nn.BatchNorm2d, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    Guard,
)
_POINTWISE_FUNCTIONS = {"relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid", "tanh", "dropout"}
_SUM_FUNCTIONS = {"add", "iadd"}


def function_name(node: fx.Node) -> str:
    """Name of the function or method that an operation calls; empty if it calls none."""
    return name_of(node.target).strip("_") if node.op == "call_function" else ""


def kind_of(node: fx.Node, module: nn.Module | None) -> Kind:
    """What an operation does to a window; ``module`` is the one that it calls, if it does."""
    if module is not None:
        if not is_plain(module):
            return Kind.OTHER
        if type(module) in _POINTWISE_MODULES:
            return Kind.POINTWISE
        return Kind.SPREAD if Spread.of(module) is not None else Kind.OTHER
    name = function_name(node)
    if name in _POINTWISE_FUNCTIONS and len(node.all_input_nodes) == 1:
        return Kind.POINTWISE
    if name in _SUM_FUNCTIONS and len(node.all_input_nodes) == 2:
        return Kind.SUM
    return Kind.OTHER


def is_plain(module: nn.Module) -> bool:
    """Whether the module does what its class does, and rounds it at most; a hook can do more."""
    hooked = module._forward_pre_hooks or any(not isinstance(hook, Rounding) for hook in module._forward_hooks.values())
    return not (hooked or "forward" in vars(module))


def pair(value: Any) -> tuple[Any, Any]:
    """One for each of two dimensions, of one for both, or of two."""
    return (value[0], value[-1]) if isinstance(value, tuple | list) else (value, value)
