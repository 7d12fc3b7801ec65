"""What a model keeps from one forward pass to the next, and how to put it back.

Some models keep what their first pass computed (position biases of attention), the state of their neurons (spiking
networks), or averages of what they saw. A fault then does not reach what was kept, or reaches the images after it. So
every pass starts from the state in which the model was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitflip.network import bits, quantised

_TORCHS = frozenset(nn.Module().__dict__) - {"training"}  # parameters, modules, hooks
_PLAIN = (int, float, complex, str, bytes)
_DEEPEST = 3  # containers in containers
_ABSENT = object()


@dataclass(frozen=True)
class _Tensor:
    """A tensor, its memory, and what was in it."""

    itself: Tensor
    data: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Container:
    """A list, dict, set or deque, and what was in it; of a dict, its keys and values."""

    itself: Any
    contents: tuple[Any, ...]


@dataclass(frozen=True)
class _Place:
    """The attributes, or the buffers, of a module: what they are now, and what all, or some, of them were."""

    path: str
    module: nn.Module
    now: dict[str, Any]
    were: Mapping[str, Any]
    some: bool = False

    def changed(self) -> dict[str, Any]:
        """What is no longer what it was, as it was."""
        new = () if self.some else (name for name in self.now if name not in self.were and name not in _TORCHS)
        names = [*self.were, *new]
        before = {name: self.were.get(name, _ABSENT) for name in names}
        return {name: was for name, was in before.items() if not _same(was, self.now.get(name, _ABSENT))}


class State:
    """What the modules of a model hold beside parameters: attributes of their own, and buffers.

    Args:
        places: where.
    """

    def __init__(self, places: Sequence[_Place] = ()) -> None:
        self._places = places

    @classmethod
    def of(cls, model: nn.Module) -> State:
        """The state that a model is in."""
        struck = {quantised.memory_of(parameter) for parameter in model.parameters()}
        return cls(
            [
                _Place(path, module, now, {k: _frozen(v, struck) for k, v in now.items() if k not in _TORCHS})
                for path, module in model.named_modules()
                for now in (module._buffers, vars(module))
            ]
        )

    def changed(self) -> State:
        """Only what is no longer as it was."""
        return State([_Place(p.path, p.module, p.now, were, True) for p in self._places if (were := p.changed())])

    @property
    def names(self) -> list[tuple[str, nn.Module, str]]:
        """Paths of modules, the modules, and the names of what they hold."""
        return [(place.path, place.module, name) for place in self._places for name in place.were]

    def restore(self) -> None:
        """Put it back."""
        for place in self._places:
            for name, was in place.changed().items():
                if was is _ABSENT:
                    del place.now[name]
                else:
                    place.now[name] = _thawed(was)


def _frozen(value: Any, struck: set[int], depth: int = 0) -> Any:
    """A value with a copy of what can change in it; not of parameters, or what shares their memory."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or quantised.memory_of(value) in struck:
            return value
        return _Tensor(value, value.data, value.detach().clone())
    if depth == _DEEPEST or not isinstance(value, list | dict | set | deque):
        return value
    return _Container(value, tuple(_frozen(part, struck, depth + 1) for part in _flat(value)))


def _flat(value: Any) -> list[Any]:
    """What is in a container; of a dict, the keys, then the values."""
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, _Tensor):
        return now is was.itself and now.data_ptr() == was.data.data_ptr() and _equal(now, was.values)
    if isinstance(was, _Container):
        if now is not was.itself:
            return False
        there = _flat(now)
        return len(there) == len(was.contents) and all(map(_same, was.contents, there))
    return now is was or (isinstance(was, _PLAIN) and type(now) is type(was) and now == was)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(bits.exact(a), bits.exact(b))


def _thawed(was: Any) -> Any:
    if isinstance(was, _Tensor):
        if not _same(was, was.itself):
            was.itself.data = was.data
            was.data.copy_(was.values)
        return was.itself
    if isinstance(was, _Container):
        contents = [_thawed(part) for part in was.contents]
        was.itself.clear()
        if isinstance(was.itself, dict):
            half = len(contents) // 2
            was.itself.update(zip(contents[:half], contents[half:], strict=True))
        elif isinstance(was.itself, set):
            was.itself.update(contents)
        else:
            was.itself.extend(contents)
        return was.itself
    return was
