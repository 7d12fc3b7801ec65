"""Protections: what a layer puts out is cut to a range, or set to 0, before anything reads it.

A protected module stays where it is, with its name, in a wrapper that hands its output to a guard. So layers, their
order and their faults are those of the model as it was given, and a fault in a layer's output comes before the guard of
that layer. A module that is called several times has a guard for each call.

Cutting to a range is :func:`torch.clamp`, which lets NaN pass. To clip, and to remove NaN, sets values to 0.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.overrides import TorchFunctionMode

from bitflip.errors import BadInput
from bitflip.network import bits
from bitflip.network.layers import is_leaf
from bitflip.network.names import printable
from bitflip.settings.protection import Protection

SETTING = "protect_layers (--protect-layers)"
INSIDE = "unprotected_module"  # the name of a module in its wrapper
MANY = 5  # names in a sentence

Call = tuple[str, int]  # the path of a module, and which call of it in a pass

_NO_VALUES = (
    "MultiheadAttention",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "LogSoftmax",
)  # of a layer that cut off makes sense
ACTIVATIONS = frozenset(
    name
    for name, value in vars(activation).items()
    if isinstance(value, type) and issubclass(value, nn.Module) and value is not nn.Module and name not in _NO_VALUES
)
POOLING = frozenset({f"{kind}MaxPool{d}d" for kind in ("", "Adaptive") for d in (1, 2, 3)})


class Guard(nn.Module):
    """Cuts values to a range; it works on each value alone and rounds none.

    Args:
        protection: what becomes of values out of range.
        low, high: the range, one value for all, or one per channel, which dimension 1 counts.
        dtype: of the values.
    """

    low: Tensor
    high: Tensor

    def __init__(self, protection: Protection, low: Sequence[float], high: Sequence[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.protection = protection
        self._one = (float(low[0]), float(high[0])) if len(low) == 1 else None  # cut to faster than by a tensor
        ends = [*low, *high]
        self._zeroes = protection.clip and all(map(math.isfinite, ends))  # NaN and infinity, as well
        self.register_buffer("low", torch.tensor(low, dtype=torch.float64).to(dtype), persistent=False)
        self.register_buffer("high", torch.tensor(high, dtype=torch.float64).to(dtype), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """The same values, guarded: (B, ...) -> (B, ...)."""
        return self._guarded(value, slice(None))

    def of_channel(self, value: Tensor, channel: int) -> Tensor:
        """The same of one channel: (B, 1, H, W)."""
        return self._guarded(value, slice(channel, channel + 1))

    def _guarded(self, value: Tensor, channels: slice) -> Tensor:
        if self.protection.nan and not self._zeroes:
            value = value.nan_to_num(0.0, 0.0, 0.0)
        if self.protection.range is None:
            return value
        low: Any
        high: Any
        if self._one is not None:
            low, high = self._one
        else:
            low, high = (bound[channels].view(-1, *[1] * (value.dim() - 2)) for bound in (self.low, self.high))
        if self.protection.clip and self._one is not None and low == 0:
            return _up_to(value, high)
        if self.protection.clip:
            cut = value.clamp(low, high)
            inside = cut.clone().eq_(value)  # 1 or 0, and 0 for NaN; through bool it takes eight times as long on a CPU
            kept = bits.as_integers(cut)
            kept.bitwise_and_(inside.to(kept.dtype).neg_())
            return cut
        return value.clamp(low, high)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return str(self.protection)


def _up_to(value: Tensor, high: float) -> Tensor:
    """The values of a floating-point tensor that are in 0 ... high; 0 for others, and for NaN.

    Such values, taken for signed integers, have the same order, numbers below 0 are below them, and NaN is above.
    Without a mask it takes half as long on a CPU.
    """
    below = bits.as_integers(value).clamp_min(0).neg_()
    return torch.threshold_(below, -_as_integer(high, value.dtype) - 1, 0).neg_().view(value.dtype)


@functools.cache
def _as_integer(number: float, dtype: torch.dtype) -> int:
    return int(bits.as_integers(torch.tensor(number, dtype=dtype)))


class Functions(TorchFunctionMode):
    """Counts the activations in passes that are functions, such as ``F.relu``, which no path names: no layers.

    Args:
        model: that is run while this is open.
    """

    NAMES = frozenset({"relu", "relu_", "relu6", "leaky_relu", "gelu", "silu", "elu", "selu", "mish", "hardswish"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._inside = 0
        self._layers = [module for module in model.modules() if type(module).__name__ in ACTIVATIONS]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES and not self._inside:
            self.found[name.rstrip("_")] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """While open, passes are looked at."""

        def enter(*_: object) -> None:
            self._inside += 1

        def leave(*_: object) -> None:
            self._inside -= 1

        handles = [module.register_forward_pre_hook(enter) for module in self._layers]
        handles += [module.register_forward_hook(leave) for module in self._layers]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __str__(self) -> str:
        return ", ".join(f"{count} of {name}" for name, count in sorted(self.found.items()))


class Calls:
    """Counts the calls of each protected module in a pass."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, model: nn.Module, args: object) -> None:
        """The hook of the model, in front of each pass."""
        self._counts.clear()

    def next(self, path: str) -> int:
        """Which call of a module this is, from 0."""
        self._counts[path] += 1
        return self._counts[path] - 1


class Protected(nn.Module):
    """A module and the guards of its output.

    Args:
        module: to be protected.
        guards: one for each of its calls in a pass.
        path: of the module.
        calls: of the model.
    """

    def __init__(self, module: nn.Module, guards: Sequence[nn.Module], path: str, calls: Calls) -> None:
        super().__init__()
        self.add_module(INSIDE, module)
        self.guards = nn.ModuleList(guards)
        self._path, self._calls = path, calls
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns, guarded."""
        output = self._modules[INSIDE](*args, **kwargs)  # type: ignore[misc]
        return self.guards[min(self._calls.next(self._path), len(self.guards) - 1)](output)

    def __getattr__(self, name: str) -> Any:
        """What others ask of the module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(INSIDE), name)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of a model with the paths that they have without protections, which are left out."""
    ours: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, Protected):
            ours |= {module, *module.guards.modules()}
        if module not in ours:
            yield name.replace(f".{INSIDE}", ""), module


def chosen(model: nn.Module, protection: Protection, types: Sequence[str] | None) -> dict[str, nn.Module]:
    """The modules to be protected, by path.

    Args:
        model: any; it is not protected itself, since its output is the logits.
        protection: of them; ``relu6`` is for each ReLU.
        types: class names of layers or blocks; None for activations and max pooling.

    Raises:
        BadInput: if there is none, or none of a type.
    """
    parts = {part for module in model.modules() if is_leaf(module) for part in module.modules() if part is not module}
    all_of = {path: module for path, module in model.named_modules() if path and module not in parts}
    if protection.own and not types:  # which chooses for itself
        return {path: module for path, module in all_of.items() if is_leaf(module)}
    wanted = set(types or (["ReLU"] if protection.range == "relu6" else ACTIVATIONS | POOLING))
    found = {path: module for path, module in all_of.items() if printable(type(module).__name__) in wanted}
    missing = wanted - {printable(type(module).__name__) for module in found.values()}
    if (types and missing) or not found:
        there = sorted({printable(type(module).__name__) for module in all_of.values()})
        what = ", ".join(sorted(missing)) if types else "activation or max pooling that is a module"
        what = "ReLU that is a module" if not types and protection.range == "relu6" else what
        raise BadInput(f"{SETTING}: the model has no {what}; valid: {', '.join(there)}")
    return found


def apply(model: nn.Module, modules: Mapping[str, nn.Module], guards: Mapping[Call, nn.Module]) -> None:
    """Put modules into wrappers with their guards, in place; :func:`taken_off` undoes it.

    Args:
        model: that they are in.
        modules: by path.
        guards: of their calls; a module without a call has none, and stays as it is.
    """
    calls = Calls()
    wrappers: dict[nn.Module, Protected] = {}
    for path, module in modules.items():
        own = [guard for (where, _), guard in sorted(guards.items(), key=lambda item: item[0]) if where == path]
        if own:
            wrappers[module] = Protected(module, own, path, calls)
    for module in [*model.modules()]:
        for name, child in module._modules.items():
            if child in wrappers and not isinstance(module, Protected):
                module._modules[name] = wrappers[child]
    model.register_forward_pre_hook(calls.begin)


@contextlib.contextmanager
def taken_off(model: nn.Module) -> Iterator[None]:
    """When the block ends, the model has no protections."""
    try:
        yield
    finally:
        for module in [*model.modules()]:
            for name, child in module._modules.items():
                if isinstance(child, Protected) and not isinstance(module, Protected):
                    module._modules[name] = child._modules[INSIDE]
        hooks = model._forward_pre_hooks
        for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Calls)]:
            del hooks[key]


def watched(
    run: Callable[[], object], modules: Mapping[str, nn.Module], see: Callable[[Call, Any], None]
) -> Counter[str]:
    """Run a pass and see what modules return, each call of them; how often each was called."""
    calls: Counter[str] = Counter()

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Any) -> None:
            calls[path] += 1
            see((path, calls[path] - 1), output)

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in modules.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return calls
