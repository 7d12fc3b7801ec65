"""Number formats of fewer bits than a network computes in: what is stored, and what it stands for.

What is emulated is the storage. Weights and the outputs of layers are numbers of the format, ``int8`` or ``float8``,
times a scale; they are computed with as the float32 numbers that they stand for, as after dequantisation. A flip hits
the stored bits.

- ``int8``: weights symmetric, a scale for each output channel (the first dimension), codes -127 to 127; outputs
  asymmetric, one scale and zero point for each layer, codes -128 to 127. Nagel et al. 2021, "A white paper on neural
  network quantization", sections 2 and 3.
- ``float8_e4m3fn``, ``float8_e5m2``: a scale for each output channel, or layer, that maps the largest magnitude to the
  largest number of the format. Micikevicius et al. 2022, "FP8 formats for deep learning".

Parameters of one dimension (biases, normalisation) stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bitflip.data.inputs import Inputs
from bitflip.errors import BadInput
from bitflip.network import bits, calibration, protections
from bitflip.network.calibration import Mode
from bitflip.network.layers import SCALE, ZERO_POINT, Parameter, is_leaf
from bitflip.network.protections import Call
from bitflip.network.quantised import Quantised
from bitflip.settings.hyperparameters import NARROW as NARROW

FLOATS = {name: bits.named(name) for name in ("float64", "float32", "float16", "bfloat16")}
WIDTH = 8
UNSIGNED = "uint8"
WHOLE = ("int8", UNSIGNED)
OUTPUT = "output"  # in the names of what belongs to a layer's output: ``output.scale``

Range = tuple[float, float]


@dataclass(frozen=True)
class Stored:
    """How the values of a tensor are stored.

    Attributes:
        form: one of :data:`NARROW`, or ``uint8``, whose codes are kept as the same bits of int8.
        scale: what the number 1 of the format stands for: of each index of the first dimension, (C,), or of all, ().
        zero: the code of whole numbers that stands for 0, or one for each value.
        lowest: code of them.
    """

    form: str
    scale: Tensor
    zero: int | Tensor = 0
    lowest: int = -128

    def at(self, first: Tensor | int) -> Stored:
        """How some values are stored, given their indices in the first dimension."""
        return replace(self, scale=self.scale[first]) if self.scale.dim() else self

    def encode(self, values: Tensor) -> Tensor:
        """The codes of values, as int8 of the same shape; the nearest there are."""
        numbers = values / self.scale
        if self.form == "int8":
            return (numbers.round() + self.zero).nan_to_num(0.0).clamp(self.lowest, 127).to(torch.int8)
        if self.form == UNSIGNED:
            return (numbers.round() + self.zero).nan_to_num(0.0).clamp(0, 255).to(torch.uint8).view(torch.int8)
        dtype = bits.named(self.form)
        largest = torch.finfo(dtype).max
        return numbers.clamp(-largest, largest).to(dtype).view(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        """The values that codes stand for."""
        if self.form in WHOLE:
            numbers = codes.view(torch.uint8) if self.form == UNSIGNED else codes
            return (numbers.to(self.scale.dtype) - self.zero) * self.scale
        return codes.view(bits.named(self.form)).to(self.scale.dtype) * self.scale

    def rounded(self, values: Tensor) -> Tensor:
        """The nearest values that can be stored, in the memory format that they have; a NaN stays one."""
        numbers = values / self.scale
        if self.form == "int8":
            whole = numbers.round_().add_(self.zero).clamp_(self.lowest, 127)
            return whole.sub_(self.zero).mul_(self.scale)
        dtype = bits.named(self.form)
        largest = torch.finfo(dtype).max
        return numbers.clamp_(-largest, largest).to(dtype).to(values.dtype).mul_(self.scale)


CODE = Stored("int8", torch.tensor(1.0))
"""Of a zero point, which is a code itself."""


def parts(parameter: str) -> tuple[str, str]:
    """The name of a parameter, and :data:`SCALE` or :data:`ZERO_POINT` if that of it is meant; otherwise nothing."""
    kind = next((end for end in (SCALE, ZERO_POINT) if parameter.endswith(end)), "")
    return parameter.removesuffix(kind), kind


def is_of_output(parameter: str) -> bool:
    """Whether it is a constant of a layer's output, and of no tensor."""
    name, kind = parts(parameter)
    return bool(kind) and name == OUTPUT


def of_parameter(name: str, tensor: Tensor, stored: Stored | None) -> list[Parameter]:
    """What of a parameter can be struck, given how it is stored: the tensor, and the scales."""
    shape = tuple(tensor.shape)
    if stored is None:
        return [Parameter(name, shape, bits.width(tensor.dtype), bits.name(tensor.dtype))]
    return [Parameter(name, shape, WIDTH, stored.form), scale_of(name, stored.scale)]


def of_output(stored: Stored | None) -> list[Parameter]:
    """What of a layer's output is constant and can be struck, given how it is stored."""
    if stored is None:
        return []
    zero = [zero_point_of(OUTPUT, torch.tensor(stored.zero))] if stored.form == "int8" else []
    return [scale_of(OUTPUT, stored.scale), *zero]


def zero_point_of(name: str, zero: Tensor) -> Parameter:
    """The zero points of a parameter of a name, to be struck."""
    return Parameter(name + ZERO_POINT, tuple(zero.shape), WIDTH, "int8")


def scale_of(name: str, scale: Tensor) -> Parameter:
    """The scales of a parameter of a name, to be struck."""
    return Parameter(name + SCALE, tuple(scale.shape), bits.width(scale.dtype), bits.name(scale.dtype))


def of_weights(weight: Tensor, form: str) -> Stored:
    """How a parameter of two or more dimensions is stored, with a scale for each index of the first."""
    largest = weight.detach().abs().flatten(1).amax(1)
    unit = 127.0 if form == "int8" else torch.finfo(bits.named(form)).max
    return Stored(form, torch.where(largest > 0, largest / unit, 1.0), lowest=-127)


def of_outputs(low: float, high: float, form: str, like: Tensor) -> Stored:
    """How the outputs of a layer are stored, given the smallest and the largest of them."""
    if form == "int8":
        low, high = min(low, 0.0), max(high, 0.0)  # 0 is exact, as padding needs it
        scale = (high - low) / 255 or 1.0
        return Stored(form, torch.tensor(scale, dtype=like.dtype, device=like.device), round(-128 - low / scale))
    scale = max(abs(low), abs(high)) / torch.finfo(bits.named(form)).max or 1.0
    return Stored(form, torch.tensor(scale, dtype=like.dtype, device=like.device))


class Rounding:
    """A hook that rounds what a module returns to numbers that can be stored; it works on each value alone."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """The output, or the first tensor of it, rounded."""
        if isinstance(output, tuple):
            return self(module, args, output[0]), *output[1:]
        return self.stored.rounded(output) if _is_real(output) else output


class RoundingInputs:
    """A hook that rounds what a model is given, where no layer stands for its input."""

    def __init__(self, stored: Sequence[Stored]) -> None:
        self._stored = stored

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        """The arguments, rounded."""
        waiting = iter(self._stored)
        return tree_map(lambda leaf: next(waiting).rounded(leaf) if _is_real(leaf) else leaf, (args, kwargs))


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


@contextlib.contextmanager
def unrounded(module: nn.Module) -> Iterator[None]:
    """While open, a module returns what it computes, which its hooks do not round."""
    rounding = {key: hook for key, hook in module._forward_hooks.items() if isinstance(hook, Rounding)}
    for key in rounding:
        del module._forward_hooks[key]
    try:
        yield
    finally:
        module._forward_hooks.update(rounding)


def after(module: nn.Module, value: Tensor) -> Tensor:
    """What becomes of a module's output that was computed without its hooks."""
    for hook in module._forward_hooks.values():
        assert isinstance(hook, Rounding)
        value = hook(module, (), value)
    return value


@dataclass(frozen=True)
class Storage:
    """How a network's numbers are stored.

    Attributes:
        parameters: by the identity of the parameter.
        outputs: by the identity of the module.
        codes: of parameters that the network keeps as codes, by their identity.
    """

    parameters: dict[int, Stored]
    outputs: dict[int, Stored]
    codes: dict[int, Quantised] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranges:
    """The smallest and the largest values in passes over some images.

    Attributes:
        outputs: that each layer returns, over all its calls.
        inputs: that the model is given, of each tensor of floating-point values.
    """

    outputs: dict[nn.Module, Range] = field(default_factory=dict)
    inputs: list[Range] = field(default_factory=list)


def store(model: nn.Module, form: str, ranges: Ranges) -> Storage:
    """Round a network's weights, and from now on what it is given and what its layers return, in place.

    Args:
        model: in float32.
        form: one of :data:`NARROW`.
        ranges: of its values.
    """
    parameters, like = {}, next(model.parameters())
    for tensor in model.parameters():
        if tensor.dim() > 1 and tensor.is_floating_point():
            stored = of_weights(tensor, form)
            parameters[id(tensor)] = stored
            shaped = replace(stored, scale=stored.scale.view(-1, *[1] * (tensor.dim() - 1)))
            with torch.no_grad():
                tensor.copy_(shaped.rounded(tensor))
    found = {}
    for module, (low, high) in ranges.outputs.items():
        found[id(module)] = of_outputs(low, high, form, like)
        module.register_forward_hook(Rounding(found[id(module)]))
    given = [of_outputs(low, high, form, like) for low, high in ranges.inputs]
    model.register_forward_pre_hook(RoundingInputs(given), with_kwargs=True)
    return Storage(parameters, found)


def observe(model: nn.Module, batches: Callable[[], Iterable[Inputs]], mode: Mode, percentile: float = 100.0) -> Ranges:
    """Look at the values in passes over some images.

    Args:
        model: in eval mode; its state is as it was afterwards.
        batches: the images, on the model's device and of its type, anew at each call.
        mode: in which the passes run.
        percentile: of the values, that a range's upper end is; the lower one is as far from the other end. 100: the
            largest and the smallest.

    Raises:
        BadInput: if one of them is not finite.
    """
    ends: dict[nn.Module | int, tuple[Tensor, Tensor]] = {}

    def widen(where: nn.Module | int, values: Tensor) -> None:
        low, high = values.aminmax(dim=1)
        if not (bool(low.isfinite()) and bool(high.isfinite())):
            what = "the model is given" if isinstance(where, int) else f"a {type(where).__name__} returns"
            raise BadInput(f"number_format (--number-format): on the images for calibration, {what} what is not finite")
        before = ends.get(where, (low, high))
        ends[where] = torch.minimum(before[0], low), torch.maximum(before[1], high)

    _look(model, batches(), mode, widen)
    if percentile < 100:
        ends = calibration.cut(ends, percentile, lambda see: _look(model, batches(), mode, see))
    found = Ranges()
    for where, (low, high) in ends.items():
        if isinstance(where, int):
            found.inputs.append((float(low), float(high)))
        else:
            found.outputs[where] = float(low), float(high)
    return found


def _look(
    model: nn.Module, batches: Iterable[Inputs], mode: Mode, see: Callable[[nn.Module | int, Tensor], None]
) -> None:
    """See what layers return, and the parts of what the model is given by their places: (1, N) each."""
    layers = {path: module for path, module in protections.named_modules(model) if is_leaf(module)}

    def returned(call: Call, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if _is_real(output):
            see(layers[call[0]], output.detach().reshape(1, -1))

    def given(module: nn.Module, args: Any, kwargs: Any) -> None:
        for place, leaf in enumerate(filter(_is_real, tree_leaves((args, kwargs)))):
            see(place, leaf.detach().reshape(1, -1))

    handle = model.register_forward_pre_hook(given, with_kwargs=True)
    try:
        calibration.passes(model, layers, batches, returned, mode)
    finally:
        handle.remove()
