"""The constants of single steps: by how much, at most, an output moves for each unit that an input moves (L2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from bitflip.engines import norms
from bitflip.engines.windows import function_name, pair
from bitflip.network.protections import Guard

SLOPES: dict[type[nn.Module], float] = {
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Unflatten), 1.0),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Tanh, nn.Softsign, nn.Softplus, nn.Hardtanh, nn.Softshrink), 1.0),
    **{nn.Sigmoid: 0.25, nn.Hardsigmoid: 1 / 6, nn.Hardswish: 1.5, nn.SiLU: 1.1, nn.GELU: 1.13, nn.Mish: 1.09},
    **{nn.SELU: 1.7581},
}
FUNCTION_SLOPES = {"neg": 1.0, "abs": 1.0, **{module.__name__.lower(): slope for module, slope in SLOPES.items()}}
MOVES = {
    *("flatten", "view", "reshape", "permute", "transpose", "contiguous", "clone", "squeeze", "unsqueeze", "unflatten"),
    *("getitem", "chunk", "split", "unbind", "narrow", "select", "swapaxes", "movedim", "view_as", "reshape_as", "pad"),
    *("cat", "concat", "concatenate", "stack", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "detach", "T"),
}
"""Functions that put values elsewhere, each at most once, or leave them out."""
_POOLING = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
ADDS = {"add", "iadd", "sub", "isub", "radd", "rsub"}
SCALE = {"mul", "imul", "rmul", "div", "truediv", "idiv", "itruediv"}


def each_once(name: str, call: fx.Node, data: list[fx.Node]) -> bool:
    """Whether a call puts each value in one place at most."""
    if name in ("cat", "concat", "concatenate", "stack"):
        return True
    if name == "pad":
        return "constant" in (*call.args[2:3], call.kwargs.get("mode")) or (len(call.args) == 2 and not call.kwargs)
    if name == "getitem":
        index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        return all(part is None or part is ... or isinstance(part, int | slice) for part in index)
    # A view as values of another type is none of the same values.
    return not data and not any(isinstance(leaf, torch.dtype) for leaf in arguments(call))


@dataclass(frozen=True)
class Pooling:
    """What pooling, or a mean over the map, does.

    Attributes:
        constant: of it.
        apart: whether no two windows share a pixel. A pixel then moves one average of n, by 1 / n of what it moves
            itself, where the constant is the root of that; or one largest value, by no more than it moves itself.
    """

    constant: float
    apart: bool


def of_module(module: nn.Module, shape: torch.Size | None, scales: Tensor | None) -> float:
    """That of a module of PyTorch, or a guard; infinity where there is none.

    Args:
        module: that does what its class does.
        shape: of its input.
        scales: of a convolution's output channels, to be taken along; None if there are none.
    """
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and shape is not None and len(shape) == 4:
        return norms.of_convolution(**convolution(module, shape, scales))
    if type(module) is nn.Linear:
        return norms.of_linear(module.weight)
    if type(module) in (nn.BatchNorm2d, nn.BatchNorm1d):
        own = norms.scales_of(module)  # type: ignore[arg-type]
        return math.inf if own is None else float(own.abs().max())
    if type(module) is nn.LeakyReLU:
        return max(1.0, abs(module.negative_slope))
    if type(module) in (nn.ELU, nn.CELU):
        return max(1.0, abs(float(module.alpha)))  # type: ignore[arg-type]
    if type(module) is Guard:
        return math.inf if module.protection.jumps else 1.0
    found = pooling(module, shape)
    return SLOPES.get(type(module), math.inf) if found is None else found.constant


def convolution(module: nn.Conv2d, shape: torch.Size, scales: Tensor | None) -> dict[str, Any]:
    """What :func:`bitflip.engines.norms.of_convolution` takes of one with zero padding; see :func:`of_module`."""
    weight = module.weight.detach().double().cpu()
    if scales is not None:
        weight = weight * scales[:, None, None, None]
    padding = module.padding
    if isinstance(padding, str):
        extent = [(k - 1) * d for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        padding = (0, 0) if padding == "valid" else tuple(-(-e // 2) for e in extent)  # of 'same', at most
    geometry = {"size": shape[2:], "stride": module.stride, "padding": padding, "dilation": module.dilation}
    return {"weight": weight, "groups": module.groups} | {name: list(pair) for name, pair in geometry.items()}


def pooling(what: nn.Module | fx.Node, shape: torch.Size | None) -> Pooling | None:
    """That of a module, or of the call of a function; None where it is no pooling, or has no constant."""
    if shape is None:
        return None
    return _pooled(what, shape) if isinstance(what, fx.Node) else _of_pooling(what, shape)


def _of_pooling(module: Any, shape: torch.Size) -> Pooling | None:
    if type(module) in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        return _adaptive(pair(module.output_size), shape, average=type(module) is nn.AdaptiveAvgPool2d)
    if type(module) in (nn.MaxPool2d, nn.AvgPool2d):
        name = "max_pool2d" if type(module) is nn.MaxPool2d else "avg_pool2d"
        return _windows(name, **{argument: getattr(module, argument) for argument in _POOLING[name]})
    return None


def _pooled(call: fx.Node, shape: torch.Size) -> Pooling | None:
    """Pooling, and means over the map, as functions."""
    name = function_name(call)
    if name in _POOLING:
        given: dict[str, Any] = dict(zip(_POOLING[name], call.args[1:], strict=False)) | call.kwargs
        return _windows(name, **given) if given.keys() <= set(_POOLING[name]) else None
    if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d") and len(call.args) == 2 and not call.kwargs:
        return _adaptive(pair(call.args[1]), shape, average=name == "adaptive_avg_pool2d")
    if name == "mean":
        dims: Any = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        if isinstance(dims, tuple | list) and all(isinstance(d, int) and d % len(shape) for d in dims):
            return Pooling(1 / math.sqrt(math.prod(shape[d] for d in dims)), apart=True)
    return None


def _windows(
    name: str,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    return_indices: bool = False,
) -> Pooling | None:
    """Of pooling: so many windows share a pixel; an average of n is at most 1 / sqrt(n) of their norm."""
    if pair(dilation) != (1, 1) or return_indices or divisor_override is not None:
        return None
    kernel, steps = pair(kernel_size), pair(kernel_size if stride is None or stride == [] else stride)
    shared = math.prod(-(-k // s) for k, s in zip(kernel, steps, strict=True))
    same = not ceil_mode and (pair(padding) == (0, 0) or count_include_pad)  # all averages are of as many pixels
    average = name == "avg_pool2d" and same
    return Pooling(math.sqrt(shared / math.prod(kernel) if average else shared), apart=shared == 1)


def _adaptive(sizes: tuple[Any, Any], shape: torch.Size, *, average: bool) -> Pooling:
    """Of adaptive pooling, whose windows are of several sizes and may overlap."""
    found, apart = 1.0, True
    for size, length in zip(sizes, shape[2:], strict=True):
        shares = [0.0] * length
        for i in range(length if size is None else size):
            start, stop = i * length // (size or length), -(-(i + 1) * length // (size or length))
            for pixel in range(start, stop):
                shares[pixel] += 1 / (stop - start) if average else 1.0
        found *= math.sqrt(max(shares))
        apart &= length % (size or length) == 0
    return Pooling(found, apart)


def arguments(call: fx.Node) -> list[Any]:
    """All that a call is given."""
    return tree_leaves((call.args, call.kwargs))
