"""What a model takes: a batch of inputs of any fixed shape, of one kind or several.

A batch is one tensor, a tuple of tensors that the model takes by position, or a dict of tensors that it takes by name.
The first dimension of each is the batch: images (B, C, H, W), volumes (B, C, D, H, W), signals (B, C, L), tables
(B, F), token numbers (B, L) of int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bitflip.errors import BadInput

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Batch = TypeVar("Batch", bound=Inputs)
Draw = Callable[[int, Tensor, torch.Generator], Tensor]
"""Makes so many rows in the form of those of a tensor."""


def of(value: object) -> Inputs:
    """What a data loader yields as the input of a batch; it makes lists of tuples.

    Raises:
        BadInput: if it is no tensor, tuple or dict of tensors, or they have no, or not the same, number of rows.
    """
    batch: Any = dict(value) if isinstance(value, Mapping) else tuple(value) if isinstance(value, list) else value
    found = parts(batch) if isinstance(batch, Tensor | tuple | dict) else [batch]
    if not found or not all(isinstance(part, Tensor) for part in found):
        kinds = ", ".join(sorted({type(part).__name__ for part in found})) or "nothing"
        raise BadInput(f"inputs: expected a tensor, or a tuple or dict of tensors, for a batch, got {kinds}")
    if isinstance(batch, dict) and not all(isinstance(name, str) for name in batch):
        raise BadInput(f"inputs: expected a dict by names of what the model takes, got {list(batch)}")
    if len({part.shape[:1] for part in found}) != 1 or found[0].dim() == 0:
        shapes = " and ".join(str(tuple(part.shape)) for part in found)
        raise BadInput(f"inputs: expected the batch in the first dimension of every tensor, got shapes {shapes}")
    return cast(Inputs, batch)


def parts(batch: Inputs) -> list[Tensor]:
    """All tensors."""
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values() if isinstance(batch, dict) else batch)


def count(batch: Inputs) -> int:
    """Number of rows, B."""
    return len(parts(batch)[0])


def device(batch: Inputs) -> torch.device:
    """Where the batch is."""
    return parts(batch)[0].device


def rows(batch: Batch, which: slice | Tensor) -> Batch:
    """Some rows: of a slice as a view, of an index tensor as a copy."""
    return _each(batch, lambda tensor: tensor[which])


def join(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches of one form."""
    first = batches[0]
    if isinstance(first, Tensor):
        return cast(Batch, torch.cat(cast("list[Tensor]", list(batches))))
    joined = [torch.cat(tensors) for tensors in zip(*map(parts, batches), strict=True)]
    if isinstance(first, dict):
        return cast(Batch, dict(zip(first, joined, strict=True)))
    return cast(Batch, tuple(joined))


def clone(batch: Batch) -> Batch:
    """A copy."""
    return _each(batch, Tensor.clone)


def on_host(batch: Batch) -> Batch:
    """The batch in the memory of the host."""
    return _each(batch, Tensor.cpu)


def to(batch: Batch, device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> Batch:
    """The batch on a device, without gaps; floating-point values of a type, and maps of them channels last if asked."""

    def moved(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point()
        last = channels_last and floating and tensor.dim() == 4
        return tensor.to(
            device=device,
            dtype=dtype if floating else tensor.dtype,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )

    return _each(batch, moved)


def call(model: Callable[..., Any], batch: Inputs) -> Any:
    """What a model returns for a batch."""
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, dict) else model(*batch)


def names(batch: Inputs) -> tuple[str, ...]:
    """Names of several inputs, ``0``, ``1``, ... by position; none of a single tensor."""
    return () if isinstance(batch, Tensor) else tuple(map(str, _keys(batch)))


def described(batch: Inputs) -> str:
    """The form of one row, in words.

    >>> described({"tokens": torch.zeros(8, 16, dtype=torch.int64), "age": torch.zeros(8, 1)})
    'tokens: (16,) of int64, age: (1,) of float32'
    """
    forms = [f"{tuple(part.shape[1:])} of {str(part.dtype).removeprefix('torch.')}" for part in parts(batch)]
    if isinstance(batch, dict):
        forms = [f"{name}: {form}" for name, form in zip(batch, forms, strict=True)]
    return ", ".join(forms)


def normal(count: int, form: Tensor, generator: torch.Generator) -> Tensor:
    """So many rows of normal values, of the shape, type and device of those of a tensor."""
    return torch.randn(count, *form.shape[1:], generator=generator).to(form)


def random(count: int, form: Batch, draw: Draw = normal) -> Batch:
    """So many rows of the same form, always the same ones.

    Floating-point values are random. Others are those of ``form``, row by row, from the first again if there are too
    few: a random token may not be in the vocabulary. So what is tried on them shows more if ``form`` has several rows.
    """
    generator = torch.Generator().manual_seed(0)

    def made(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return draw(count, tensor, generator)
        return tensor[torch.arange(count, device=tensor.device) % len(tensor)]

    return _each(form, made)


class Packed(nn.Module):
    """A model that takes its inputs as one value: the tensor, or a tuple of several, in the order of an example."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.model = model
        self._keys = None if isinstance(example, Tensor) else _keys(example)
        self._by_name = isinstance(example, dict)

    def pack(self, batch: Any) -> Tensor | tuple[Tensor, ...]:
        """The value for a batch; the order of a dict makes no difference."""
        return cast(Tensor, batch) if self._keys is None else tuple(batch[key] for key in self._keys)

    def forward(self, value: Any) -> Any:
        """What the model returns."""
        if self._keys is None:
            return self.model(value)
        taken = {key: value[i] for i, key in enumerate(self._keys)}  # what stands for it in tracing has no length
        return self.model(**taken) if self._by_name else self.model(*taken.values())


class Given(nn.Module):
    """A model that runs on a given batch, whatever it is called with."""

    def __init__(self, model: nn.Module, batch: Inputs) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(0), requires_grad=False)  # whose type PyTorchFI gives what it calls with
        self.model = model
        self._batch = batch

    def forward(self, other: object) -> Any:
        """What the model returns for the given batch."""
        return call(self.model, self._batch)


def _keys(batch: tuple[Tensor, ...] | dict[str, Tensor]) -> Sequence[Any]:
    return list(batch) if isinstance(batch, dict) else range(len(batch))


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    changed: Inputs
    if isinstance(batch, Tensor):
        changed = change(batch)
    elif isinstance(batch, dict):
        changed = {name: change(part) for name, part in batch.items()}
    else:
        changed = tuple(map(change, batch))
    return cast(Batch, changed)
