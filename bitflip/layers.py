"""The injectable layers of a model: one per call of a module without children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bitflip.errors import BadInput, nearest


@dataclass(frozen=True)
class Layer:
    """One call of one leaf module in a forward pass.

    Attributes:
        position: place in the model's full call order; it keys the layer's random numbers, so that a choice
            of layers changes no fault.
        path: the module's path in the model, such as ``features.3``; ``input`` is the input image.
        call: 0 for the module's first call in a forward pass, 1 for its second, ...
        type: class name of the module, such as ``Conv2d``.
        shape: shape of one image's output, without the batch dimension.
        per_image: whether each image has an output of its own; not so in a module that computes a position bias.
        bits: width of one output value in bits.
        weight_shape: shape of the module's ``weight``, or None.
        weight_bits: width of one weight in bits; 0 without a weight.
    """

    position: int
    path: str
    call: int
    type: str
    shape: tuple[int, ...]
    per_image: bool
    bits: int
    weight_shape: tuple[int, ...] | None
    weight_bits: int


@dataclass(frozen=True)
class Numbered:
    """A chosen layer and the number that the user knows it by: its place among those that layer_type leaves.

    Attributes:
        parameter: the tensor of its module that flips hit; empty if they hit its output.
    """

    number: int
    layer: Layer
    parameter: str = ""


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


def of_types(layers: Sequence[Layer], types: Sequence[str] | None) -> list[Numbered]:
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
    return [Numbered(number, layer) for number, layer in enumerate(left)]


def of_numbers(layers: Sequence[Numbered], numbers: Sequence[int] | None) -> list[Numbered]:
    """The layers that ``numbers`` (None for all) chooses.

    Raises:
        BadInput: if a number is out of range.
    """
    outside = [str(n) for n in numbers or () if n >= len(layers)]
    if outside:
        raise BadInput(
            f"layer_num (--layer-num): expected numbers from 0 to {len(layers) - 1} "
            f"(layer_type leaves {len(layers)} layers), got {', '.join(outside)}"
        )
    return [layers[n] for n in numbers] if numbers is not None else list(layers)
