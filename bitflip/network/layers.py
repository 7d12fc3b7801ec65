"""The injectable layers of a model: one per call of a module without children, and the parameter tensors they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.nn.utils import parametrize

from bitflip.errors import BadInput, nearest
from bitflip.network.names import label, named
from bitflip.network.names import printable as printable

MANY = 5  # numbers in a sentence
SCALE, ZERO_POINT = ".scale", ".zero_point"  # ends of the names of what the codes of a parameter are read with


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one layer, however it works inside.

    Attention is: it reads the weight of its out projection, but never calls it. So is a module whose only children
    compute its parameters.
    """
    inside = [name for name, _ in module.named_children()]
    return (
        not inside
        or type(module).forward is nn.MultiheadAttention.forward
        or (inside == ["parametrizations"] and parametrize.is_parametrized(module))
    )


@dataclass(frozen=True)
class Parameter:
    """A parameter tensor of a module.

    Attributes:
        name: in the module, such as ``weight`` or ``in_proj_bias``.
        shape: of the tensor.
        bits: width of one value in bits.
        format: of the values, such as ``float32``.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    format: str = "float32"


@dataclass(frozen=True)
class Layer:
    """One call of one leaf module in a forward pass, or a module that holds parameters and has no such call.

    The latter (a vision transformer, which holds its class token; the out projection of attention, whose weight is
    read by the attention) has no output that could be flipped. They come after all calls.

    Attributes:
        position: place in the model's full call order; it keys the layer's random numbers, so that a choice
            of layers changes no fault.
        path: the module's path in the model, such as ``features.3``; ``input`` is the input image, or other tensor, and
            ``input.0`` or ``input.NAME`` one of several.
        call: 0 for the module's first call in a forward pass, 1 for its second, ...
        type: class name of the module, such as ``Conv2d``.
        shape: shape of one image's output, without the batch dimension; of a tuple, of its first tensor.
        per_image: whether each image has an output of its own; not so in a module that computes a position bias.
        bits: width of one output value in bits; 0 without an output.
        parameters: the tensors of the module that can be flipped. What several layers share, such as the weight of a
            module that is called twice, or a tied weight, is listed with the first of them and nowhere else.
        format: of the output's values, such as ``float32``.
    """

    position: int
    path: str
    call: int
    type: str
    shape: tuple[int, ...]
    per_image: bool
    bits: int
    parameters: tuple[Parameter, ...] = ()
    format: str = "float32"

    def parameter(self, name: str) -> Parameter | None:
        """The parameter tensor of a name, or None if the layer lists none."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


@dataclass(frozen=True)
class Target:
    """A chosen layer and the number that the user knows it by: its place among those that layer_type leaves.

    Attributes:
        parameter: the tensor of its module that flips hit; empty if they hit its output.
    """

    number: int
    layer: Layer
    parameter: str = ""

    @property
    def where(self) -> tuple[Layer, str]:
        """What flips hit; equal to :attr:`bitflip.faults.flips.Flips.where` of flips there."""
        return self.layer, self.parameter

    @property
    def label(self) -> str:
        """What flips hit, for people: ``layer1.0.relu (2nd call)``, ``conv1.bias``."""
        return label(self.layer.path, self.layer.call, self.parameter)

    @property
    def named(self) -> str:
        """The target as sentences name it: ``#5 Linear (path 4)``."""
        return named(self.number, self.layer.type, self.layer.path, self.layer.call, self.parameter)

    @property
    def bits(self) -> int:
        """Width of one value of what flips hit, in bits."""
        parameter = self.layer.parameter(self.parameter)
        return self.layer.bits if parameter is None else parameter.bits

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what flips hit: one image's output, or the parameter."""
        parameter = self.layer.parameter(self.parameter)
        return self.layer.shape if parameter is None else parameter.shape

    @property
    def format(self) -> str:
        """Number format of what flips hit, such as ``float32``."""
        parameter = self.layer.parameter(self.parameter)
        return self.layer.format if parameter is None else parameter.format


def check_types(types: Sequence[str] | None) -> list[str]:
    """One sentence per name that is no ``torch.nn`` class. Custom classes are only known once the model is there."""
    known = {name for name, value in vars(nn).items() if isinstance(value, type) and issubclass(value, nn.Module)}
    return [
        f"layer_type (--layer-type): expected 'all' or torch.nn class names, got {name!r}; {_hint(name, known)}"
        for name in types or ()
        if name not in known
    ]


def _hint(name: str, known: set[str]) -> str:
    return nearest(name, known).split("valid:")[0].strip() or "such as Conv2d, Linear, BatchNorm2d, ReLU, MaxPool2d"


def of_types(layers: Sequence[Layer], types: Sequence[str] | None) -> list[Target]:
    """The layers that ``types`` (class names, None for all) leaves, numbered from 0.

    Raises:
        BadInput: if a type has no layer in the model.
    """
    present = {layer.type for layer in layers}
    missing = [name for name in types or () if name not in present]
    if missing:
        raise BadInput(
            f"layer_type (--layer-type): the model has no {', '.join(missing)} layer; "
            f"valid: {', '.join(sorted(present))}"
        )
    left = [layer for layer in layers if types is None or layer.type in types]
    return [Target(number, layer) for number, layer in enumerate(left)]


def of_numbers(layers: Sequence[Target], numbers: Sequence[int] | None) -> list[Target]:
    """The layers that ``numbers`` (None for all) chooses.

    Raises:
        BadInput: if a number is out of range.
    """
    outside = [str(n) for n in numbers or () if n >= len(layers)]
    outside = [*outside[: MANY - 1], "...", outside[-1]] if len(outside) > MANY else outside
    if outside:
        raise BadInput(
            f"layer_num (--layer-num): expected numbers from 0 to {len(layers) - 1} "
            f"(layer_type leaves {len(layers)} layers), got {', '.join(outside)}"
        )
    return [layers[n] for n in numbers] if numbers is not None else list(layers)


def with_parameters(layers: Sequence[Layer], names: Sequence[str] | None) -> list[Layer]:
    """Those of the layers that have a parameter of one of the names; None for any.

    Raises:
        BadInput: if no layer has a parameter of a name.
    """
    present = {parameter.name for layer in layers for parameter in layer.parameters}
    missing = [name for name in names or () if name not in present]
    if missing:
        raise BadInput(
            f"parameters (--parameters): the model has no parameter tensor {', '.join(missing)}; "
            f"valid: all, {', '.join(sorted(present))}{_why_none(missing, present)}"
        )
    return [layer for layer in layers if chosen_parameters(layer, names)]


def is_beside(parameter: str) -> bool:
    """Whether it is a scale or zero point of what is struck itself, which ``all`` leaves out."""
    return parameter.endswith((SCALE, ZERO_POINT))


def _why_none(missing: Sequence[str], present: set[str]) -> str:
    """Why there are no scales or zero points, for the end of a sentence."""
    scaled = any(name.endswith(SCALE) for name in present)
    if scaled and any(name.endswith(ZERO_POINT) for name in missing):
        return "; what has a scale only is symmetric, so that its zero point is 0 and is not stored"
    if not scaled and any(map(is_beside, missing)):
        return "; scales are stored with number_format (--number-format) int8, float8_e4m3fn or float8_e5m2"
    return ""


def chosen_parameters(layer: Layer, names: Sequence[str] | None) -> list[str]:
    """Names of a layer's parameters, in the module's order, among ``names``; None for all."""
    if names is None:
        return [parameter.name for parameter in layer.parameters if not is_beside(parameter.name)]
    return [parameter.name for parameter in layer.parameters if parameter.name in names]


def targets(chosen: Sequence[Target], target: Literal["neuron", "weight"], names: Sequence[str] | None) -> list[Target]:
    """What can be flipped in the chosen layers: outputs that each image has of its own, or parameters of the names."""
    if target == "neuron":
        return [item for item in chosen if item.layer.per_image]
    return [replace(item, parameter=name) for item in chosen for name in chosen_parameters(item.layer, names)]
