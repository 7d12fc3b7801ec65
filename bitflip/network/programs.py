"""Programs that PT2E has quantised, as networks of modules: what they store are parameters, what they compute layers.

Such a program, which ``convert_pt2e`` of torchao returns, is a graph of PyTorch's operations, without modules. Each
becomes a module, named and called as the module whose only operation it was, so that layers have the names that they
have in the network before it was exported. Codes that the program dequantises are a parameter of the operation that
reads them. Where what an operation puts out is quantised and read as nothing else, that is how the output of its layer
is stored. The same operations run, on the same numbers, so that the bits are the program's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.node import map_arg

from bitflip.network.formats import Rounding, Storage, Stored
from bitflip.network.quantised import Quantised

_QUANTISED = "quantized_decomposed"
_PLAIN = {_QUANTISED, "aten", "prims"}  # namespaces of operations that pack nothing
_FORMS = {torch.int8: "int8", torch.uint8: "uint8"}
_FROM_CODES = ("dequantize_per_tensor", "dequantize_per_channel")


def is_converted(value: object) -> bool:
    """Whether something is a program that PT2E has quantised, lowered or not."""
    return any(_operation(node)[0] in (_QUANTISED, "onednn") for node in _nodes(value))


def problem(program: nn.Module) -> str:
    """Why such a program can't be taken, and what to do instead; nothing if it can."""
    for node in _nodes(program):
        space, name = _operation(node)
        if space and space not in _PLAIN:
            return f"calls {space}::{name}, which keeps weights packed; give what convert_pt2e returned"
        if node.op == "placeholder" and isinstance(first := _first_size(node), int):
            return (
                f"takes {first} image{'s' * (first != 1)} at a time and no other number; export it with "
                'dynamic_shapes=({0: torch.export.Dim("batch")},)'
            )
        if node.op != "get_attr":
            continue
        value = _value(program, node)
        if not isinstance(value, Tensor):
            return f"calls {node.target}, a program in it"
        other = [user for user in node.users if value.element_size() == 1 and not _reads_codes(program, user)]
        if other:
            return f"reads the {value.dtype} of {node.target} by {other[0].target}, not by a scale"
    return ""


@dataclass(frozen=True)
class _Read:
    """In an operation's arguments: one of the values that the module is called with."""

    place: int


@dataclass(frozen=True)
class _Held:
    """In an operation's arguments: a tensor that the module holds."""

    name: str


@dataclass(frozen=True)
class _Codes:
    """How codes are read: where their scales lie, and the type of what they become."""

    form: str
    axis: int | None
    dtype: torch.dtype


class Operation(nn.Module):
    """One operation of a program, with the tensors that it reads and no other operation makes.

    Args:
        target: the operation.
        args, kwargs: what it is called with, :class:`_Read` and :class:`_Held` among them.

    Attributes:
        kept_as: how its output is stored; None as it is.
    """

    def __init__(self, target: Any, args: Any, kwargs: Any) -> None:
        super().__init__()
        self._target, self._args, self._kwargs = target, args, kwargs
        self._codes: dict[str, _Codes] = {}
        self.kept_as: Stored | None = None

    def hold(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor of the program: parameters and codes as parameters, others as buffers."""
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)

    def hold_codes(self, name: str, codes: nn.Parameter, scale: Tensor, zero: Tensor, how: _Codes) -> None:
        """Hold codes, and what they are read with."""
        self.register_parameter(name, codes)
        self.register_buffer(f"{name}_scale", scale)
        self.register_buffer(f"{name}_zero_point", zero)
        self._codes[name] = how

    def forward(self, *values: Any) -> Any:
        """What the operation makes of the values."""
        return self._target(*self._filled(self._args, values), **self._filled(self._kwargs, values))

    def _filled(self, given: Any, values: tuple[Any, ...]) -> Any:
        if isinstance(given, _Read):
            return values[given.place]
        if isinstance(given, _Held):
            return self._held(given.name)
        if isinstance(given, tuple | list):
            return type(given)(self._filled(part, values) for part in given)
        return {key: self._filled(part, values) for key, part in given.items()} if isinstance(given, dict) else given

    def _held(self, name: str) -> Any:
        if name not in self._codes:
            return getattr(self, name)
        held = self.stored(name)
        assert held.zero is not None
        return Stored(held.form, held.scale, held.zero).decode(held.codes).to(self._codes[name].dtype)

    def stored(self, name: str) -> Quantised:
        """What is stored of a parameter that is codes."""
        how, codes = self._codes[name], self._parameters[name]
        assert codes is not None
        beside = [1] * codes.dim()
        if how.axis is not None:
            beside[how.axis] = -1
        scale, zero = (getattr(self, f"{name}_{kind}").view(beside) for kind in ("scale", "zero_point"))
        return Quantised(codes.data, how.form, scale, zero)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return str(self._target)


class Quantising(Rounding):
    """A hook that does to what an operation returns what the program does: quantise it, and read it back.

    Args:
        stored: how it is stored, as far as the bits of float32 go.
        scale: the same, as the program has it.
        write, read: the operations, and what they get behind a tensor, a scale and a zero point.
    """

    def __init__(self, stored: Stored, scale: float, write: tuple[Any, Any], read: tuple[Any, Any]) -> None:
        super().__init__(stored)
        self._given, self._scale, self._write, self._read = stored, scale, write, read

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """The output as what reads it gets it."""
        struck = self.stored.scale is not self._given.scale
        constants = float(self.stored.scale) if struck else self._scale, self.stored.zero
        for operation, more in (self._write, self._read):
            output = operation(output, *constants, *more)
        return output


def modules_of(program: fx.GraphModule) -> fx.GraphModule:
    """The program as a network of modules, which share the memory of its tensors; see the module."""
    return _Made(program).network()


def storage(model: nn.Module) -> Storage | None:
    """How the numbers of the programs in a network are stored; None if there are none."""
    found = [module for module in model.modules() if isinstance(module, Operation)]
    if not found:
        return None
    codes = {id(module._parameters[name]): module.stored(name) for module in found for name in module._codes}
    outputs = {id(module): module.kept_as for module in found if module.kept_as is not None}
    return Storage({}, outputs, codes)


class _Made:
    """A program's operations as modules.

    Args:
        program: that :func:`problem` has nothing against.
    """

    def __init__(self, program: fx.GraphModule) -> None:
        self._program = program
        self._graph = fx.Graph()
        self._graph._codegen = program.graph._codegen  # how arguments are given
        self._modules: dict[str, nn.Module] = {}
        self._nodes: dict[fx.Node, fx.Node] = {}  # the new node of each old one
        self._parameters: dict[str, nn.Parameter] = {}
        self._used = _ancestors(program.graph)
        self._names = _names([node for node in program.graph.nodes if self._is_operation(node)])

    def network(self) -> fx.GraphModule:
        """The network."""
        for node in self._program.graph.nodes:
            if node in self._nodes or node not in self._used:
                continue
            if node.op == "placeholder":
                self._nodes[node] = self._graph.node_copy(node)
            elif node.op == "output":
                self._graph.node_copy(node, self._nodes.__getitem__)
            elif node.op == "call_module":
                self._modules[node.target] = self._program.get_submodule(node.target)
                self._nodes[node] = self._graph.node_copy(node, self._nodes.__getitem__)
            elif self._is_operation(node):
                self._add(node)
            elif _operation(node)[1] == "sym_size":
                args = map_arg(node.args, self._nodes.__getitem__)
                self._nodes[node] = self._graph.call_method("size", args)
            elif node.op != "get_attr" and not self._is_from_codes(node):
                self._nodes[node] = self._graph.node_copy(node, self._nodes.__getitem__)
        return fx.GraphModule(self._modules, self._graph).eval()

    def _is_from_codes(self, node: fx.Node) -> bool:
        return bool(node.all_input_nodes) and _reads_codes(self._program, node)

    def _is_operation(self, node: fx.Node) -> bool:
        space, name = _operation(node)
        return bool(space) and name != "sym_size" and node in self._used and not self._is_from_codes(node)

    def _add(self, node: fx.Node) -> None:
        """Add an operation, and with it what quantises its output and reads it back."""
        path, kind = self._names[node]
        read = [other for other in node.all_input_nodes if other in self._nodes]
        held: dict[fx.Node, str] = {}
        target: Any = node.target
        names = [argument.name for argument in target._schema.arguments]
        for place, value in [*zip(names, node.args, strict=False), *node.kwargs.items()]:
            for number, other in enumerate(part for part in _flat(value) if part not in read):
                held[other] = held.get(other, f"{place}_{number}" if isinstance(value, tuple | list) else place)

        def known(other: fx.Node) -> Any:
            return _Held(held[other]) if other in held else _Read(read.index(other))

        args, kwargs = map_arg((node.args, node.kwargs), known)
        reads = _read_back(node)
        module = type(kind, (Operation,), {})(_same if reads else target, args[:1] if reads else args, kwargs)
        for other, name in held.items():
            if other.op == "get_attr":
                module.hold(name, self._tensor(other))
            else:
                self._hold_codes(module, name, other)
        write = node
        if not reads and len(node.users) == 1:
            (write,) = node.users
            reads = _read_back(write)
        if reads:
            self._quantise(module, write, reads[0])
        self._modules[path] = module
        new = self._graph.call_module(path, tuple(self._nodes[other] for other in read))
        self._nodes |= dict.fromkeys([node, write, *reads] if reads else [node], new)

    def _tensor(self, node: fx.Node) -> Tensor:
        value: Tensor = _value(self._program, node)
        if not isinstance(value, nn.Parameter):
            return value
        return self._parameters.setdefault(str(node.target), nn.Parameter(value.detach(), requires_grad=False))

    def _hold_codes(self, module: Operation, name: str, node: fx.Node) -> None:
        source, scale, zero, *more = _arguments(node)
        codes = _value(self._program, source)
        parameter = self._parameters.setdefault(
            str(source.target), nn.Parameter(codes.detach().view(torch.int8), requires_grad=False)
        )
        axis = more[0] if _operation(node)[1] == "dequantize_per_channel" else None
        dtype: Any = node.kwargs.get("out_dtype") or torch.float32
        scale = _value(self._program, scale) if isinstance(scale, fx.Node) else torch.tensor(scale)
        zero = _value(self._program, zero) if isinstance(zero, fx.Node) else torch.tensor(zero)
        module.hold_codes(name, parameter, scale, zero.to(torch.int8), _Codes(_FORMS[codes.dtype], axis, dtype))

    def _quantise(self, module: Operation, write: fx.Node, read: fx.Node) -> None:
        _, scale, zero, lowest, _, dtype = _arguments(write)
        module.kept_as = Stored(_FORMS[dtype], torch.tensor(scale), zero, lowest)
        ways = [(node.target, node.args[3:]) for node in (write, read)]
        module.register_forward_hook(Quantising(module.kept_as, scale, ways[0], ways[1]))


def _same(value: Tensor) -> Tensor:
    """What quantises a value does nothing else."""
    return value


def _read_back(write: fx.Node) -> list[fx.Node]:
    """What reads the codes that an operation makes of a tensor, to 8 bits; nothing if it is, or they are, otherwise."""
    constants, reads = _arguments(write)[1:], list(write.users)
    if str(write.target) != f"{_QUANTISED}.quantize_per_tensor.default" or constants[-1] not in _FORMS:
        return []
    alike = all(
        str(read.target) == f"{_QUANTISED}.dequantize_per_tensor.default"
        and _arguments(read)[1:] == constants
        and not read.kwargs
        for read in reads
    )
    return reads if alike else []


def _reads_codes(program: nn.Module, node: fx.Node) -> bool:
    """Whether an operation dequantises codes that the program keeps, in a way that is known."""
    if _operation(node) not in [(_QUANTISED, name) for name in _FROM_CODES]:
        return False
    source, scale, zero, *_ = _arguments(node)
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return False
    if any(isinstance(part, fx.Node) and part.op != "get_attr" for part in (scale, zero)):
        return False
    codes = _value(program, source)
    zeros = [zero] if isinstance(zero, int) else _value(program, zero).flatten().tolist()
    return codes.dtype in _FORMS and all(-128 <= value <= 127 for value in zeros)


def _names(operations: list[fx.Node]) -> dict[fx.Node, tuple[str, str]]:
    """The path of each operation, and the name of its kind: those of the module that it is all of, or its own."""
    stacks = {node: _module_of(node) for node in operations}
    count = Counter(path for path, _ in stacks.values())
    found = {}
    for node, (path, kind) in stacks.items():
        inside = any(other.startswith(f"{path}.") for other in count)
        if path and count[path] == 1 and not inside:
            found[node] = path, kind
        else:
            found[node] = f"{path}.{node.name}" if path else node.name, _operation(node)[1]
    return found


def _module_of(node: fx.Node) -> tuple[str, str]:
    """The path and the class of the module that an operation was exported from; nothing if it is not known."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack or _operation(node)[0] == _QUANTISED:
        return "", ""
    path, kind = stack[-1]
    path = ".".join(part for part in str(path).partition("@")[0].split(".") if part.isidentifier() or part.isdigit())
    kind = kind if isinstance(kind, str) else kind.__name__
    return path, kind.rpartition(".")[2]


def _ancestors(graph: fx.Graph) -> set[fx.Node]:
    """What is needed for the output, or changes something in place; not the guards of sizes."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        changes = isinstance(node.target, OpOverload) and node.target._schema.is_mutable
        if node.op in ("output", "placeholder") or changes or any(user in found for user in node.users):
            found.add(node)
    return found


def _nodes(program: object) -> Iterator[fx.Node]:
    held: Any = program
    if isinstance(program, fx.GraphModule) or type(program).__name__ == "ExportedProgram":
        yield from held.graph.nodes


def _operation(node: fx.Node) -> tuple[str, str]:
    """Namespace and name of an operation; nothing if a node is none."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return "", ""
    space, _, name = node.target._schema.name.partition("::")
    return space, name


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """What an operation is called with, by place; of any type."""
    return node.args


def _first_size(node: fx.Node) -> Any:
    shape = getattr(node.meta.get("val"), "shape", None)
    return shape[0] if shape else None


def _value(program: nn.Module, node: Any) -> Any:
    """What a node reads from the program, a tensor unless it is another program."""
    value: Any = program
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _flat(value: Any) -> list[fx.Node]:
    """The nodes in an argument."""
    found: list[fx.Node] = []
    map_arg(value, lambda node: found.append(node))
    return found
