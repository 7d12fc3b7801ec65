"""What a forward pass does, as a graph: the calls of layers, and of PyTorch's functions between them.

Passes over batches of two sizes are recorded as they run, so whatever Python does on the way, such as an ``if`` on a
height or a number made of sizes, is done. Only what depends on the batch must be told from what does not: numbers that
are in proportion to the two batches are multiples of the batch size, and all else must be the same in both passes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bitflip.engines.invariance import Invariant, close
from bitflip.engines.modes import Mode
from bitflip.network import quantised

_METADATA = {
    *("shape", "ndim", "dtype", "device", "layout", "requires_grad", "itemsize", "nbytes", "names", "grad_fn", "grad"),
    *("size", "dim", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device", "ndimension"),
    *("__len__", "__hash__", "__repr__", "has_names", "result_type", "data_ptr", "_version", "type"),
}
"""What says nothing about a tensor's values; nor does what begins with ``is_``, but for ``is_nonzero``."""


class Untraceable(Exception):
    """The model can't be run step by step; says why."""


@dataclass(frozen=True)
class Result:
    """A tensor that a pass made.

    Attributes:
        call: place of the call that returned it; -1 for the pass's input.
        path: of indices in what the call returned.
    """

    call: int
    path: tuple[int, ...] = ()


@dataclass(frozen=True)
class Call:
    """A call of a layer or a function; tensors that the pass made are :class:`Result` in its arguments."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Pass:
    """What was recorded of a forward pass.

    Attributes:
        calls: in their order.
        output: what it returned.
        read: tensors whose values Python was handed, or whose memory.
    """

    calls: list[Call] = field(default_factory=list)
    output: Any = None
    read: list[Any] = field(default_factory=list)


def assigned(value: Tensor, index: Any, new: Any) -> Tensor:
    """The tensor after an assignment to a part of it."""
    value[index] = new
    return value


def batch_size(value: Any) -> int:
    """The number of rows of a batch."""
    return len(value[0] if isinstance(value, tuple) else value)


class _Recorder(TorchFunctionMode):
    """Records what a pass calls: layers, PyTorch's functions, and operations that no function shows."""

    def __init__(self, layers: Mapping[int, str]) -> None:
        super().__init__()
        self.seen = Pass()
        self._layers = layers
        self._inside = False
        self._made: dict[int, Result] = {}
        self._alive: list[Any] = []  # as long as it is, an identity is not given to another tensor

    def begin(self, value: Any) -> None:
        """Take note of the pass's input."""
        self._returned(-1, value)

    def end(self, output: Any) -> None:
        """Take note of what the pass returned."""
        self.seen.output = self._known(output)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__iter__:
            return iter(self.note(torch.unbind, args, {}))
        if func is Tensor.__setitem__:
            self.note(assigned, args, {})
            return None
        return self.note(func, args, kwargs or {})

    def call_of(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        """What takes the place of a module's call: it keeps a layer whole."""

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._inside or id(module) not in self._layers:
                return usual(module, *args, **kwargs)
            # As in a pass that nobody records; torchao's tensors compute in functions of their own.
            own = any(quantised.is_torchaos(tensor) for tensor in module.parameters(recurse=False))
            with nullcontext() if own else torch._C.DisableTorchFunction():
                return self.note(module, args, kwargs, lambda: usual(module, *args, **kwargs))

        return call

    def note(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any] | None = None
    ) -> Any:
        """Carry out a call and record it, unless it is part of another one."""
        if self._inside:
            return target(*args, **kwargs) if run is None else run()
        known_args, known_kwargs = self._known(args), self._known(kwargs)
        before = [(tensor, tensor._version) for tensor in _tensors((args, kwargs))]
        self._inside = True
        try:
            output = target(*args, **kwargs) if run is None else run()
            if isinstance(target, nn.Module) and isinstance(output, Tensor | tuple):
                output = _mapped(output, self._distinct)
        finally:
            self._inside = False
        if _tensors(output):
            path = self._layers.get(id(target)) if isinstance(target, nn.Module) else None
            self.seen.calls.append(Call(target if path is None else path, known_args, known_kwargs))
            self._returned(len(self.seen.calls) - 1, output)
        elif any(tensor._version != version for tensor, version in before):
            raise Untraceable(f"{name_of(target)} changes a tensor and returns none")
        elif not _is_metadata(name_of(target)):
            self.seen.read += [self._known(tensor) for tensor, _ in before]
        return output

    def _distinct(self, leaf: Any) -> Any:
        """What a layer returned: if it is its own input, a fault in the one is none in the other."""
        return leaf.view_as(leaf) if isinstance(leaf, Tensor) and id(leaf) in self._made else leaf

    def _returned(self, call: int, output: Any) -> None:
        self._alive.append(output)
        for path, tensor in _leaves(output):
            if isinstance(tensor, Tensor):
                self._made[id(tensor)] = Result(call, path)

    def _known(self, value: Any) -> Any:
        """A value with what the pass made in place of the tensors."""
        self._alive.append(value)
        return _mapped(value, lambda x: self._made.get(id(x), x) if isinstance(x, Tensor) else x)


class _Operations(Mode):
    """Shows a recorder what no function does: of scripted functions, or functions of autograd."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, op: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._recorder.note(op, args, kwargs or {})


def record(model: nn.Module, value: Any, layers: Mapping[int, str], mode: Invariant) -> Pass:
    """A forward pass, recorded.

    Args:
        model: in eval mode.
        value: its input.
        layers: the names of the modules that are kept whole, by their identity.
        mode: in which the pass runs.

    Raises:
        Untraceable: if it can't be.
    """
    recorder = _Recorder(layers)
    recorder.begin(value)
    usual = nn.Module.__call__
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        stack.enter_context(_Operations(recorder))
        stack.enter_context(mock.patch.object(nn.Module, "__call__", recorder.call_of(usual)))
        stack.enter_context(recorder)
        output = model(value)
    recorder.end(output)
    return recorder.seen


@dataclass(frozen=True)
class Multiple:
    """An integer that is ``factor`` times the batch size."""

    factor: int


class Captured:
    """What two passes do alike, as a graph.

    Args:
        two, three: passes over batches of two and three.
        names: of tensors that the model keeps, by their identity.

    Attributes:
        graph: of placeholder (the batch), calls of layers and functions, ``get_attr`` of constants, and output.
        logits: what the model returns.
        constants: the tensors that no pass made, by name.
        read: operations whose values Python was handed.

    Raises:
        Untraceable: if they do something else.
    """

    def __init__(self, two: Pass, three: Pass, names: Mapping[int, str]) -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._names = names
        self._constants: dict[int, fx.Node] = {}
        self._input = self.graph.placeholder("inputs")
        self._made: dict[Result, fx.Node] = {Result(-1): self._input}
        self._factors: dict[int, fx.Node] = {}
        for i, (a, b) in enumerate(_pairs(two, three)):
            args, kwargs = (self._arguments(v, w, a) for v, w in ((a.args, b.args), (a.kwargs, b.kwargs)))
            kind = "call_module" if isinstance(a.target, str) else "call_function"
            name = re.sub(r"\W+", "_", name_of(a.target)).strip("_") or "function"
            self._made[Result(i)] = self.graph.create_node(kind, a.target, args, kwargs, name)
        self.read = [self._load(tensor) for tensor in two.read]
        self.logits = self._load(_merged(two.output, three.output, "the output"))
        self.graph.output(self.logits)

    def _arguments(self, two: Any, three: Any, call: Call) -> Any:
        merged = _merged(two, three, f"what {name_of(call.target)} gets")
        return _mapped(merged, self._load)

    def _load(self, leaf: Any) -> Any:
        if isinstance(leaf, Result):
            return self._result(leaf)
        if isinstance(leaf, Multiple):
            return self._multiple(leaf.factor)
        return self._constant(leaf) if isinstance(leaf, Tensor) else leaf

    def _result(self, result: Result) -> fx.Node:
        if result not in self._made:
            whole = self._result(Result(result.call, result.path[:-1]))
            self._made[result] = self.graph.call_function(operator.getitem, (whole, result.path[-1]))
        return self._made[result]

    def _multiple(self, factor: int) -> fx.Node:
        if factor not in self._factors:
            if not self._factors:
                with self.graph.inserting_after(self._input):
                    self._factors[1] = self.graph.call_function(batch_size, (self._input,))
            if factor != 1:
                with self.graph.inserting_after(self._factors[1]):
                    self._factors[factor] = self.graph.call_function(operator.mul, (self._factors[1], factor))
        return self._factors[factor]

    def _constant(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._constants:
            name = self._names.get(id(tensor), f"constant_{len(self.constants)}")
            self.constants[name] = tensor
            self._constants[id(tensor)] = self.graph.create_node("get_attr", name)
        return self._constants[id(tensor)]


def _pairs(two: Pass, three: Pass) -> Iterator[tuple[Call, Call]]:
    for a, b in zip(two.calls, three.calls, strict=False):
        if a.target != b.target:
            raise Untraceable(f"{name_of(a.target)} is called for two images, {name_of(b.target)} for three")
    if len(two.calls) != len(three.calls):
        raise Untraceable(f"{len(two.calls)} functions are called for two images, {len(three.calls)} for three")
    return zip(two.calls, three.calls, strict=True)


def _merged(two: Any, three: Any, what: str) -> Any:
    """What both passes have, with :class:`Multiple` where it is in proportion to the batch."""
    if isinstance(two, Result | str | bool | float | None):
        if two == three or (two != two and three != three):
            return two
    elif type(two) is type(three) is int:
        if two == three:
            return two
        if two * 3 == three * 2 and two % 2 == 0:
            return Multiple(two // 2)
        raise Untraceable(f"{what} has a number that is no multiple of the batch size")
    elif isinstance(two, Tensor) and isinstance(three, Tensor):
        if two is three or close(two, three):
            return two
    elif isinstance(two, slice) and isinstance(three, slice):
        ends = zip((two.start, two.stop, two.step), (three.start, three.stop, three.step), strict=True)
        return slice(*(_merged(a, b, what) for a, b in ends))
    elif isinstance(two, dict) and isinstance(three, dict):
        if two.keys() == three.keys():
            return {key: _merged(two[key], three[key], what) for key in two}
    elif isinstance(two, tuple | list) and type(two) is type(three):
        if len(two) == len(three):
            return _like(two, [_merged(a, b, what) for a, b in zip(two, three, strict=True)])
    elif two is three or (isinstance(two, _SIMPLE) and two == three):
        return two
    elif type(two) is type(three):
        raise Untraceable(f"{what} has a {type(two).__name__}")
    raise Untraceable(f"{what} depends on the batch")


_SIMPLE = (torch.dtype, torch.device, torch.layout, torch.memory_format, complex, type(...), bytes)


def _like(value: Any, parts: list[Any]) -> Any:
    """The parts as a list, tuple or named tuple, as ``value`` is."""
    if isinstance(value, list):
        return parts
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with all that is in its containers changed."""
    if isinstance(value, tuple | list):
        return _like(value, [_mapped(part, change) for part in value])
    if type(value) is dict:
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(part, change) for part in (value.start, value.stop, value.step)))
    return change(value)


def _leaves(value: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """What is in tuples and lists, with its path."""
    if isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _leaves(part, (*path, i))
    else:
        yield path, value


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a value."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _is_metadata(name: str) -> bool:
    return name in _METADATA or (name.startswith("is_") and name != "is_nonzero")


def name_of(target: Any) -> str:
    """A function's name; of a property, that of the property; of a layer, its path."""
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return str(target.overloadpacket.__name__)
    name = str(getattr(target, "__name__", type(target).__name__))
    return str(getattr(target.__self__, "__name__", name)) if name in ("__get__", "__set__") else name
