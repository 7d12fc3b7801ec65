"""A model as a straight line of steps whose values know which of their dimensions is the batch.

The steps are those of two recorded passes. Two rehearsals on random images, with batches of different size and order,
show how every value depends on the batch, and that no image's values depend on another image. What does not fit is
refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from bitflip.data import inputs
from bitflip.data.inputs import Inputs, Packed
from bitflip.engines import memory, strides
from bitflip.engines.capture import Captured, Multiple, Pass, Untraceable, record
from bitflip.engines.invariance import Invariant, close
from bitflip.engines.windows import Kind, function_name, kind_of
from bitflip.errors import first_line
from bitflip.network import bits
from bitflip.network.formats import Rounding
from bitflip.network.layers import Layer, is_leaf
from bitflip.network.protections import Guard
from bitflip.network.quantised import memory_of
from bitflip.network.state import State

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, slice)
_MASKING_MODULES = ("torch.nn.modules.activation", "torch.nn.modules.pooling")
_MASKING_FUNCTION = re.compile(r"relu|pool|clamp|hard|silu|gelu|sigmoid|tanh")


@dataclass(frozen=True)
class Rows:
    """A tensor whose dimension ``dim`` holds the batch: ``fold`` entries per image, one image after the other."""

    dim: int
    fold: int


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the batch."""


Layout = Rows | Multiple | Constant | tuple[Any, ...] | list[Any]


@dataclass(frozen=True)
class Step:
    """One operation of the model.

    Attributes:
        node: the operation in the fx graph; also the key of its result.
        inputs: results that it reads.
        dead: results that no later step reads.
        layout: of its result.
        layer: the layer's (path, call) if the step is the call of a leaf module, otherwise None.
        bytes: memory of its result, per image of a batch.
        in_place: whether it changes one of its inputs.
        kind: what it does to a window of pixels.
        masks: whether it often makes different inputs equal (activation, pooling), and one tensor of rows comes out.
    """

    node: fx.Node
    inputs: tuple[fx.Node, ...]
    dead: tuple[fx.Node, ...]
    layout: Layout
    layer: tuple[str, int] | None
    bytes: int
    in_place: bool
    kind: Kind
    masks: bool


@dataclass(frozen=True)
class Entry:
    """Where a parameter reaches the values of the images.

    Attributes:
        step: place of the one step that does it.
        anew: the results before it, the same for all images, that depend on the parameter, such as a position bias.
    """

    step: int
    anew: frozenset[fx.Node]


class Program:
    """The steps of a model.

    Args:
        model: in eval mode.
        modules: the leaf modules by the paths that the layers have.
        layers: the layers of the model, in call order.
        images: any batch of at least one image, for its form and device; see :func:`bitflip.data.inputs.random`.
        whole: which modules are one step.

    Raises:
        Untraceable: if the model can't be run step by step.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, nn.Module],
        layers: Sequence[Layer],
        images: Inputs,
        whole: Callable[[nn.Module], bool] = is_leaf,
    ) -> None:
        self.model = Packed(model, images)
        self._modules: dict[str, nn.Module] = dict(self.model.named_modules())
        self._whole = {id(module): name for name, module in self._modules.items() if whole(module)}
        self._state = State.of(model)
        self.mode = Invariant()
        three = inputs.random(3, images)
        two = inputs.rows(three, torch.tensor([1, 0], device=inputs.device(three)))
        captured = Captured(self._recorded(two), self._recorded(three), self._names())
        self._constants = captured.constants
        paths = {id(module): path for path, module in modules.items()}
        nodes = list(captured.graph.nodes)
        self.placeholder, self.logits = nodes[0], captured.logits
        if not isinstance(self.logits, fx.Node):
            raise Untraceable("it does not return one tensor")
        last_use = {used: i for i, node in enumerate(nodes) for used in node.all_input_nodes}
        self._bytes: dict[fx.Node, int] = {}
        self._invariant = set(nodes)  # that have to be run in it; the rehearsal leaves out the others
        self._in_place: set[fx.Node] = set()
        try:
            layouts = self._rehearse(nodes, _deaths(nodes, last_use), two, three)
        finally:
            self._state.restore()
        # To make constants anew for a flipped parameter, what they are made from must still be there.
        for node in reversed(nodes[1:-1]):
            for used in node.all_input_nodes:
                if not is_data(layouts[node]) and not is_data(layouts[used]):
                    last_use[used] = max(last_use[used], last_use.get(node, 0))
        dead = _deaths(nodes, last_use)
        calls: Counter[str] = Counter()
        self.steps: list[Step] = []
        for i, node in enumerate(nodes[1:-1], start=1):
            layer = None
            module = self.module(node) if node.op == "call_module" else None
            path = paths.get(id(module))
            if path is not None:
                layer = (path, calls[path])
                calls[path] += 1
            layout = layouts[node]
            masks = isinstance(layout, Rows) and layout.dim == 0 and _masks(node, module)
            masks = masks and not self._guarded(node)  # behind whose guard rows are looked at, once is enough
            kind = kind_of(node, module) if layout == Rows(0, 1) else Kind.OTHER
            read, ends = tuple(node.all_input_nodes), tuple(dead.get(i, ()))
            size, in_place = self._bytes[node], node in self._in_place
            self.steps.append(Step(node, read, ends, layout, layer, size, in_place, kind, masks))
        self.layouts = layouts
        missing = {(item.path, item.call) for item in layers} - {step.layer for step in self.steps}
        if missing:
            raise Untraceable(f"its recorded form does not call {sorted(missing)[0][0]}")
        self._reads = [self._parameters_read(step.node) for step in self.steps]
        self._handed = self._handed_to_python(captured.read)
        self._entries: dict[int, Entry | Literal["none", "several"]] = {}

    def run(self, node: fx.Node, load: Callable[[fx.Node], Any]) -> Any:
        """Carry out one operation; ``load`` gives the results that it reads."""
        if node.op == "get_attr":
            return self._constants[str(node.target)]
        args, kwargs = map_arg(node.args, load), map_arg(node.kwargs, load)
        if node not in self._invariant:  # it costs a little
            return self._carry_out(node, args, kwargs)
        with self.mode:
            return self._carry_out(node, args, kwargs)

    def _carry_out(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            return self.module(node)(*args, **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _guarded(self, node: fx.Node) -> bool:
        return bool(node.users) and all(
            user.op == "call_module" and isinstance(self.module(user), Guard) for user in node.users
        )

    def module(self, node: fx.Node) -> nn.Module:
        """The module that an operation calls."""
        return self._modules[str(node.target)]

    def entry(self, parameter: Tensor) -> Entry | Literal["none", "several"]:
        """Where a parameter, or another one that shares its memory, reaches the values of the images.

        ``none`` if no step reads it; ``several`` if it can't be said to be one step.
        """
        place = memory_of(parameter)
        if place not in self._entries:
            self._entries[place] = self._find_entry(place)
        return self._entries[place]

    def entry_of(self, path: str) -> Entry | Literal["several"]:
        """The step that calls a module, if it is one."""
        found = [i for i, step in enumerate(self.steps) if step.layer is not None and step.layer[0] == path]
        alone = len(found) == 1 and not self.steps[found[0]].in_place
        return Entry(found[0], frozenset()) if alone else "several"

    def _find_entry(self, place: int) -> Entry | Literal["none", "several"]:
        anew: set[fx.Node] = set()
        found = []
        for i, step in enumerate(self.steps):
            if place not in self._reads[i] and anew.isdisjoint(step.inputs):
                continue
            own = not is_data(step.layout) and anew.issuperset(step.inputs)  # made anew, it may be changed in place
            if (step.in_place and not own) or place in self._handed:
                return "several"
            if is_data(step.layout):
                found.append(i)
            elif any(is_data(self.layouts[node]) for node in step.inputs):
                return "several"  # made from values of the images that are no longer there
            else:
                anew.add(step.node)
        if not found:
            return "several" if anew or place in self._handed else "none"
        return Entry(found[0], frozenset(anew)) if len(found) == 1 else "several"

    def run_anew(self, entry: Entry, clean: Mapping[fx.Node, Any]) -> Any:
        """Carry out the step through which a flipped parameter reaches the images, on clean values but for that."""
        made: dict[fx.Node, Any] = {}

        def load(node: fx.Node) -> Any:
            if node not in entry.anew:
                return clean[node]
            if node not in made:
                made[node] = self.run(node, load)
            return made[node]

        return self.run(self.steps[entry.step].node, load)

    def _parameters_read(self, node: fx.Node) -> set[int]:
        """Where the memory is of the parameters that an operation reads."""
        if node.op == "call_module":
            return {memory_of(parameter) for parameter in self.module(node).parameters()}
        if node.op == "get_attr":
            return {memory_of(self._constants[str(node.target)])}
        return set()

    def _recorded(self, images: Inputs) -> Pass:
        self._state.restore()
        try:
            return record(self.model, self.model.pack(inputs.clone(images)), self._whole, self.mode)
        except Exception as error:  # the model's own code can raise anything
            if isinstance(error, Untraceable) or memory.ran_out(error):
                raise
            raise Untraceable(f"it fails on a batch of another size ({first_line(error)})") from error
        finally:
            self._state.restore()

    def _names(self) -> dict[int, str]:
        """Of the tensors that the model holds, by their identity."""
        held = [*self.model.model.named_buffers(), *self.model.model.named_parameters()]
        return {id(tensor): name for name, tensor in held}

    def _handed_to_python(self, read: Sequence[fx.Node]) -> set[int]:
        """Where the memory is of the parameters whose values, or what was made of them, Python was handed.

        Raises:
            Untraceable: if it was handed what was made of the images.
        """
        waiting, seen = list(read), set(read)
        while waiting:
            node = waiting.pop()
            if node is self.placeholder:
                raise Untraceable("Python is handed values of the images")
            new = set(node.all_input_nodes) - seen
            seen |= new
            waiting += new
        return {place for node in seen for place in self._parameters_read(node)}

    def _rehearse(
        self, nodes: list[fx.Node], dead: dict[int, list[fx.Node]], two: Inputs, three: Inputs
    ) -> dict[fx.Node, Layout]:
        a: dict[fx.Node, Any] = {nodes[0]: self.model.pack(two)}
        b: dict[fx.Node, Any] = {nodes[0]: self.model.pack(three)}
        layouts: dict[fx.Node, Layout] = {nodes[0]: _layout(a[nodes[0]], b[nodes[0]], "the input")}
        with torch.no_grad():
            for i, node in enumerate(nodes[1:-1], start=1):
                versions = {n: _version(v) for n, v in b.items()}
                met = self.mode.met
                try:
                    a[node], b[node] = self.run(node, a.__getitem__), self.run(node, b.__getitem__)
                except Exception as error:  # the model's own code can raise anything
                    raise Untraceable(f"{node} fails on a batch of another size ({first_line(error)})") from error
                if self.mode.met == met:
                    self._invariant.discard(node)
                layouts[node] = _layout(a[node], b[node], str(node))
                self._bytes[node] = bytes_of(a[node]) // 2
                changed = [other for other, before in versions.items() if _version(b[other]) != before]
                if changed:
                    self._in_place.add(node)
                if kept := next((other for other in changed if other.op == "get_attr"), None):
                    raise Untraceable(f"{node} changes {kept.target} in place, which the model keeps")
                for used in dead.get(i, ()):
                    del a[used], b[used]
                for other in changed:
                    if other in b:
                        raise Untraceable(f"{node} changes {other} in place, which is still needed")
            # Being recorded, it may have chosen another way: see that it did no harm.
            self._state.restore()
            with self.mode:
                whole = self.model(self.model.pack(inputs.clone(three)))
            if not close(whole, b[self.logits]):
                raise Untraceable("its recorded form computes something else")
            if not torch.equal(bits.exact(whole), bits.exact(b[self.logits])):
                raise Untraceable("its recorded form rounds otherwise")
        if layouts[self.logits] != Rows(0, 1):
            raise Untraceable("its output is not one row per image")
        return layouts


def _masks(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        rounds = any(isinstance(hook, Rounding) for hook in module._forward_hooks.values())
        return rounds or type(module).__module__ in _MASKING_MODULES or isinstance(module, Guard)
    return bool(_MASKING_FUNCTION.search(function_name(node)))


def _deaths(nodes: Sequence[fx.Node], last_use: Mapping[fx.Node, int]) -> dict[int, list[fx.Node]]:
    """The results that are no longer needed after each operation."""
    dead: dict[int, list[fx.Node]] = {}
    for i, node in enumerate(nodes[1:-1], start=1):
        dead.setdefault(last_use.get(node, i), []).append(node)  # at once, if nothing reads it
    return dead


def _like(value: Any, parts: list[Any]) -> Any:
    """The parts as a list, tuple, named tuple or size, as ``value`` is."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def take(value: Any, layout: Layout, images: Tensor) -> Any:
    """The part of a batch's value that belongs to the given images, (R,), which may repeat."""
    if isinstance(layout, Rows):
        if layout.fold > 1:
            folds = torch.arange(layout.fold, device=images.device)
            images = (images[:, None] * layout.fold + folds).flatten()
        return strides.pick(value, layout.dim, images)
    if isinstance(layout, Multiple):
        return layout.factor * len(images)
    if isinstance(layout, Constant):
        return value
    return _like(value, [take(v, part, images) for v, part in zip(value, layout, strict=True)])


def first(value: Any, layout: Layout, count: int) -> Any:
    """The part of a batch's value that belongs to its first images, without a copy."""
    if isinstance(layout, Rows):
        return value.narrow(layout.dim, 0, count * layout.fold)
    if isinstance(layout, Constant | Multiple):
        return value
    return _like(value, [first(v, part, count) for v, part in zip(value, layout, strict=True)])


def join(values: Sequence[Any], layout: Layout) -> Any:
    """The values of several groups of rows as the value of one group."""
    if isinstance(layout, Rows):
        return strides.join(values, layout.dim)
    if isinstance(layout, Constant | Multiple):
        return values[0]
    return _like(values[0], [join([value[i] for value in values], part) for i, part in enumerate(layout)])


def copied(value: Any) -> Any:
    """A value with a copy of each tensor in it."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def by_image(value: Tensor, layout: Rows) -> Tensor:
    """A tensor of rows as one line per image, (R, ...) -> (R, elements), in any order of the elements."""
    assert layout.dim == 0
    dims = strides.order(value)
    if dims[0] == 0:
        value = value.permute(dims)
    return value.reshape(value.shape[0] // layout.fold, -1)


def bytes_of(value: Any) -> int:
    """Memory of all tensors in a value."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def is_data(layout: Layout) -> bool:
    """Whether the value holds data of the images, not only sizes and constants."""
    return isinstance(layout, Rows) or (isinstance(layout, tuple | list) and any(is_data(part) for part in layout))


def _version(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value._version, value.data_ptr()  # an assignment to its data has no version
    return tuple(_version(v) for v in value) if isinstance(value, tuple | list) else 0


def _layout(two: Any, three: Any, name: str) -> Layout:
    """How a value depends on the batch, from its values on images (1, 0) and (0, 1, 2)."""
    if isinstance(two, Tensor):
        return _tensor_layout(two, three, name)
    if isinstance(two, tuple | list):
        if len(two) != len(three):
            raise Untraceable(f"the length of {name} depends on the batch")
        parts = [_layout(v, w, name) for v, w in zip(two, three, strict=True)]
        if all(part == Constant() for part in parts):
            return Constant()
        return parts if isinstance(two, list) else tuple(parts)
    if type(two) is int and two != three:
        if two * 3 != three * 2 or two % 2:
            raise Untraceable(f"{name} is a number that is no multiple of the batch size")
        return Multiple(two // 2)
    if not isinstance(two, _PLAIN):
        raise Untraceable(f"{name} is a {type(two).__name__}")
    if two != three:
        raise Untraceable(f"{name} depends on the batch")
    return Constant()


def _tensor_layout(two: Tensor, three: Tensor, name: str) -> Layout:
    if two.dim() != three.dim():
        raise Untraceable(f"the shape of {name} depends on the batch")
    dims = [d for d, (m, n) in enumerate(zip(two.shape, three.shape, strict=True)) if m != n]
    if not dims:
        if not close(two, three):
            raise Untraceable(f"{name} mixes the images of a batch")
        return Constant()
    dim = dims[0]
    fold, rest = divmod(two.shape[dim], 2)
    if len(dims) > 1 or rest or fold * 3 != three.shape[dim]:
        raise Untraceable(f"the shape of {name} is no multiple of the batch size")
    layout = Rows(dim, fold)
    images = torch.tensor([1, 0], device=two.device)
    if not close(take(two, layout, images), take(three, layout, torch.arange(2, device=two.device))):
        raise Untraceable(f"{name} mixes the images of a batch")
    return layout
