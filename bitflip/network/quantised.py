"""Parameters that torchao has quantised: a tensor that holds codes, and the scales and zero points of blocks of them.

Such a tensor is computed with by torchao's own kernels. What is stored is struck in place, whatever they make of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitflip.network import bits
from bitflip.settings.hyperparameters import NARROW

_CLASSES = {"Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor"}


@dataclass(frozen=True)
class Quantised:
    """What is stored of a tensor.

    Attributes:
        codes: as int8, (...).
        form: what they are codes of, one of :data:`NARROW`, or ``uint8``, of which these are the same bits.
        scale: of each block of codes, in as many dimensions.
        zero: the code that stands for 0, of each block; None if that is the code 0.
    """

    codes: Tensor
    form: str
    scale: Tensor
    zero: Tensor | None = None

    def block(self, element: Tensor) -> tuple[Tensor, ...]:
        """The blocks, as an index, in which some codes are, whose flat places are given, (N,)."""
        places = torch.unravel_index(element.to(self.codes.device), self.codes.shape)
        sizes = [size // blocks for size, blocks in zip(self.codes.shape, self.scale.shape, strict=True)]
        return tuple(place // size for place, size in zip(places, sizes, strict=True))


def is_torchaos(tensor: Tensor) -> bool:
    """Whether it is a tensor of a class of torchao."""
    return type(tensor).__module__.partition(".")[0] == "torchao"


def of(tensor: Tensor) -> Quantised | None:
    """What is stored of a tensor that torchao has quantised; None of another one."""
    if not is_torchaos(tensor) or unknown(tensor):
        return None
    held: Any = tensor
    zero = getattr(held, "zero_point", None)
    if zero is not None and (zero.dtype != torch.int8 or zero.shape != held.scale.shape):
        zero = None
    return Quantised(held.qdata.view(torch.int8), bits.name(held.qdata.dtype), held.scale, zero)


def unknown(tensor: Tensor) -> str:
    """Why what is stored of a tensor of torchao is not known; nothing if it is."""
    kind = type(tensor).__name__
    if kind not in _CLASSES:
        return f"a {kind} of torchao"
    target, codes, scale = (getattr(tensor, name, None) for name in ("target_dtype", "qdata", "scale"))
    if target not in (None, torch.int8):
        return f"a {kind} of {target}"
    if not isinstance(codes, Tensor) or bits.name(codes.dtype) not in NARROW or codes.dim() != 2:
        return f"a {kind} of other codes than those of a linear layer"
    if (
        not isinstance(scale, Tensor)
        or scale.dim() != codes.dim()
        or not bits.is_flippable(scale.dtype)
        or any(size % blocks for size, blocks in zip(codes.shape, scale.shape, strict=True))
    ):
        return f"a {kind} whose scales are not those of blocks of codes"
    return ""


def stored_parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is made of, its codes first; itself, if it is one."""
    if not is_torchaos(tensor):
        return [tensor]
    held: Any = tensor
    names, _ = held.__tensor_flatten__()
    return [part for name in names for part in stored_parts(getattr(held, name))]


def memory_of(tensor: Tensor) -> int:
    """Where a tensor's memory is; of one that is quantised, that of its codes."""
    return stored_parts(tensor)[0].untyped_storage().data_ptr()


def first_in(model: nn.Module) -> str | None:
    """The path of the first parameter of a model that is quantised."""
    found = model.named_parameters()
    return next((path for path, tensor in found if is_torchaos(tensor) or tensor.dtype == torch.int8), None)
