"""PyTorchFI's injector with the gaps of release 0.6.0 closed.

What 0.6.0 lacks, and this subclass adds: inputs other than one tensor of floating-point values (its constructor draws
one), layer types without a weight and ``all`` (it reads ``layer.weight`` of every chosen layer), one layer per call of
a reused module, attention, every parameter tensor of the model with any number of dimensions (BatchNorm's have one), a
constructor that leaves model, random state and logging as they were, and faults that are undone, bit for bit, without
a copy of the model.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from pytorchfi.core import fault_injection
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitflip.data import inputs
from bitflip.data.inputs import Given, Inputs
from bitflip.engines import memory, parameters
from bitflip.engines.modes import Reads
from bitflip.engines.parameters import Injected, Values
from bitflip.engines.striking import flip_rows, flippable_part, strike
from bitflip.errors import BadInput, first_line
from bitflip.faults.flips import Flips
from bitflip.network import bits, formats, protections, quantised
from bitflip.network.formats import Storage, Stored
from bitflip.network.layers import Layer, Parameter, is_leaf, printable
from bitflip.network.quantised import Quantised, memory_of
from bitflip.network.state import State


class WithInput(nn.Module):
    """A model with an Identity in front, so that layer 0 is the input image; of several inputs, one for each.

    Args:
        model: any.
        names: of its inputs if it takes several, see :func:`bitflip.data.inputs.names`.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.input = nn.Module() if names else nn.Identity()
        for name in names:
            self.input._modules[name] = nn.Identity()  # `add_module` refuses the names that modules have for themselves
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Logits of a batch, such as (B, C, H, W) -> (B, classes)."""
        by_place = [self._through(str(place), x) for place, x in enumerate(args)]
        return self.model(*by_place, **{name: self._through(name, x) for name, x in kwargs.items()})

    def _through(self, name: str, x: Any) -> Any:
        identity = self.input._modules.get(name, self.input)
        assert identity is not None
        return identity(x)


class Injector(fault_injection):
    """Finds the injectable layers of a model and flips bits of their outputs or weights.

    Args:
        model: any classifier of batches; put into eval mode, and left there, before anything runs through it.
        batch_size: images per batch, for PyTorchFI's bounds checks and summary.
        example: a batch of at least one image, for its form; see :func:`bitflip.data.inputs.random`.
        storage: how its numbers are stored; None as they are.

    Raises:
        BadInput: if the model can't take such images.

    Attributes:
        layers: every call of every leaf module that returns floating-point values, in call order. Of what attention
            returns, the first tensor counts.
        holders: the other modules that hold parameters, in the model's own order.
        modules: the leaf modules by path.
        logits_shape: shape of the model's output for one image; empty if that is no tensor.
        kept: what passes change in the state of the model; it is put back before each one.
        corrected: bits of the values of parameters, by path and name, whose flips are corrected when they are read.
    """

    def __init__(self, model: nn.Module, batch_size: int, example: Inputs, storage: Storage | None = None) -> None:
        # PyTorchFI's constructor runs a dummy image through the model: in training mode that would shift the
        # statistics of BatchNorm, and the faulty model would be wrong with no fault at all.
        model.eval()
        self._storage = storage
        self.corrected: Mapping[tuple[str, str], frozenset[int]] = {}
        self.layers: list[Layer] = []
        self.holders: list[Layer] = []
        self.modules: dict[str, nn.Module] = {}
        self._paths: dict[str, nn.Module] = {}
        self._listed: set[tuple[int, ...]] = set()
        self._read = Reads()
        self.logits_shape: tuple[int, ...] = ()
        self._own = {id(tensor): _place(tensor) for tensor in model.parameters()}  # a pass may move them
        before, values = State.of(model), _checksums(model)
        self._returned = ""
        self._calls: Counter[str] = Counter()
        self._seen: dict[tuple[str, int], Tensor] | None = None
        self._profiling: list[RemovableHandle] = []
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        example = inputs.to(inputs.of(example), device, bits.dtype_of(model))
        try:
            with (
                _logging_untouched(),
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.no_grad(),
            ):
                profiled, shape = _for_a_dummy(model, example)
                super().__init__(profiled, batch_size, shape, layer_types=["all"], use_cuda=device.type == "cuda")
                self.original_model, self._input_shape = model, _shape(example)
                self._find_shared_outputs(inputs.random(2, example), before)
                if self._may_be_kept(model):
                    model.train()
                    model.eval()  # lets timm's models forget position biases
                    before = State.of(model)
                    self._find_shared_outputs(inputs.random(2, example), before)
            self._find_holders()
            self.kept = before.changed()
            self._overwritten = {name for name, value in _checksums(model).items() if values[name] != value}
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:
            if memory.ran_out(error):
                raise
            raise BadInput(f"{_refused(example)}: {first_line(error)}") from error
        finally:
            before.restore()
            for handle in self._profiling:
                handle.remove()

    def logits(self, batch: Inputs) -> Any:
        """A forward pass over a batch, which is left as it is, from the state in which the model was given."""
        self.kept.restore()
        return inputs.call(self.original_model, inputs.clone(batch))  # some change their input

    def _traverse_model_set_hooks(
        self, model: nn.Module, layer_types: Sequence[Any]
    ) -> tuple[list[RemovableHandle], list[Any], list[Any]]:
        """PyTorchFI's hook for its dummy pass: record the layers of the model, in call order."""
        model = model.model if isinstance(model, Given) else model
        inside: set[nn.Module] = set()  # of a leaf
        for name, module in protections.named_modules(model):
            path = printable(self._path_in(model, name))
            self._paths[path] = module
            if is_leaf(module) and module not in inside:
                inside.update(module.modules())
                self.modules[path] = module
                self._profiling.append(
                    module.register_forward_hook(lambda m, _, out, path=path: self._record(path, m, out))
                )
        self._profiling.append(model.register_forward_hook(self._record_logits))
        return [], [], []  # PyTorchFI would remove the hooks too early

    @property
    def paths(self) -> dict[nn.Module, str]:
        """All modules, with the paths that the user knows."""
        return {module: path for path, module in self._paths.items()}

    @property
    def layer_that_keeps(self) -> str | None:
        """The first layer that keeps something from one pass to the next; others may do so around their layers."""
        inside = {part: path for path, module in self.modules.items() for part in module.modules()}
        return next((inside[module] for _, module, _ in self.kept.names if module in inside), None)

    def _path_in(self, model: nn.Module, name: str) -> str:
        """The path that a module has in the model as the user knows it."""
        if not isinstance(model, WithInput):
            return name
        if name == "model" and not is_leaf(model.model):
            return ""
        path = name.removeprefix("model.")
        return name if path in self._paths else path  # the model has an ``input`` of its own

    def _find_shared_outputs(self, images: Inputs, state: State) -> None:
        """Mark the layers in whose output there is nothing of one image to flip.

        It does not grow with the batch, or is folded in an order in which the first image does not come first.
        """
        both: dict[tuple[str, int], Tensor] = {}
        alone: dict[tuple[str, int], Tensor] = {}
        for seen, batch in ((both, images), (alone, inputs.rows(images, slice(1)))):
            self._seen = seen
            self._calls.clear()
            state.restore()
            with self._read:
                inputs.call(self.original_model, inputs.clone(batch))
        for i, layer in enumerate(self.layers):
            key = layer.path, layer.call
            if key not in alone or key not in both:
                expected = "model_name (--model-name): expected a model that calls the same layers for all images"
                raise BadInput(f"{expected}, not {layer.path}")
            one, two = alone[key], both[key]
            per_image = len(two) == 2 * len(one)
            if per_image and len(one) > 1:  # folded
                scale = float(one.abs().nan_to_num().max())
                per_image = torch.allclose(two[: len(one)], one, rtol=0, atol=1e-2 * scale, equal_nan=True)
            self.layers[i] = replace(layer, per_image=per_image)

    def _may_be_kept(self, model: nn.Module) -> bool:
        """Whether passes leave parameters unread, perhaps for what the model keeps from a pass before it was given."""
        own_mode = any(type(module).train is not nn.Module.train for module in model.modules())
        return own_mode and any(memory_of(tensor) not in self._read.storages for tensor in model.parameters())

    def _record_logits(self, module: nn.Module, args: object, output: object) -> None:
        if self._seen is not None:
            return
        self.logits_shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        self._returned = str(self.logits_shape) if isinstance(output, Tensor) else _described(output)

    def require_logits(self, classes: int, hint: str = "") -> None:
        """Check that the model returns one row of logits for an image.

        Args:
            classes: that it tells apart, at least.
            hint: for the end of the sentence if it does not.

        Raises:
            BadInput: if it returns something else.
        """
        if len(self.logits_shape) != 2 or self.logits_shape[1] < classes:
            raise BadInput(
                f"model_name (--model-name): expected a classifier of {classes} classes, whose output for one "
                f"image has the shape (1, {classes}), got {self._returned}{hint}"
            )

    def _record(self, path: str, module: nn.Module, output: object) -> None:
        call = self._calls[path]
        self._calls[path] += 1
        output = flippable_part(module, output)
        if not isinstance(output, Tensor) or not bits.is_flippable(output.dtype) or output.dim() == 0:
            return
        if self._seen is not None:  # a later pass
            self._seen[path, call] = output.clone()  # a later step may change it in place
            return
        self._save_output_size(module, None, output)
        stored = None if self._storage is None else self._storage.outputs.get(id(module))
        self.layers.append(
            Layer(
                position=len(self.layers),
                path=path,
                call=call,
                type=printable(type(module).__name__),
                # Of one image; window attention folds its windows into the first dimension.
                shape=tuple(output.shape[1:] if output.shape[0] == 1 else output.shape),
                per_image=True,  # until the second pass shows otherwise
                bits=bits.width(output.dtype) if stored is None else formats.WIDTH,
                parameters=(*self._own_parameters(module), *formats.of_output(stored if call == 0 else None)),
                format=bits.name(output.dtype) if stored is None else stored.form,
            )
        )

    def _own_parameters(self, module: nn.Module) -> tuple[Parameter, ...]:
        """The parameters that a module holds itself and that are not listed yet."""
        found = []
        for name, tensor in module._parameters.items():  # not one that is computed anew for each pass
            codes = None if tensor is None else self._codes(tensor)
            if tensor is None or not (bits.is_flippable(tensor.dtype) or codes) or tensor.numel() == 0:
                continue
            key = self._own.get(id(tensor)) or _place(tensor)
            if key not in self._listed:
                self._listed.add(key)
                found += parameters.listed(name, tensor, self._stored_parameter(tensor), codes)
        return tuple(found)

    def _find_holders(self) -> None:
        """List the parameters of modules that are not called, or have no output that can be flipped."""
        for path, module in self._paths.items():
            parameters = self._own_parameters(module)
            if parameters:
                position, name = len(self.layers) + len(self.holders), printable(type(module).__name__)
                self.holders.append(Layer(position, path, 0, name, (), per_image=False, bits=0, parameters=parameters))

    def summary(self, types: Sequence[str] | None) -> str:
        """PyTorchFI's layer summary of the layers that ``types`` (class names, None for all) leaves."""
        kept = [i for i, layer in enumerate(self.layers) if types is None or layer.type in types]
        view = object.__new__(fault_injection)  # the summary of 0.6.0 reads these attributes and nothing else
        view._inj_layer_types = ["all"] if types is None else list(types)
        view._input_shape, view._batch_size, view.use_cuda = self._input_shape, self._batch_size, self.use_cuda
        view.output_size = [self.output_size[i] for i in kept]
        view.layers_type = [self.layers[i].type for i in kept]
        view.layers_dim = [self.layers_dim[i] for i in kept]
        weights = [self.layers[i].parameter("weight") for i in kept]
        view.weights_size = [() if weight is None else weight.shape for weight in weights]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it returns
            return str(view.print_pytorchfi_layer_summary())

    @property
    def without_neurons(self) -> list[str]:
        """The modules without children that are called, but return no tensor in which an image has its own values."""
        having = {layer.path for layer in self.layers if layer.per_image}
        return [path for path in self.modules if self._calls[path] and path not in having]

    @property
    def everything(self) -> list[Layer]:
        """All layers, and what else holds parameters."""
        return [*self.layers, *self.holders]

    def tensor_of(self, layer: Layer, parameter: str) -> Tensor:
        """The tensor that the network reads a parameter of a layer, or the scales of one, from."""
        tensor = self._paths[layer.path]._parameters[formats.parts(parameter)[0]]
        assert tensor is not None
        return tensor

    def values_of(self, layer: Layer, parameter: str) -> Values:
        """The values of a parameter of a layer, to be struck."""
        kind = formats.parts(parameter)[1]
        if formats.is_of_output(parameter):
            return parameters.of_output(self.modules[layer.path], kind)
        tensor = self.tensor_of(layer, parameter)
        return parameters.of(tensor, kind, self._stored_parameter(tensor), self._codes(tensor))

    def _codes(self, tensor: Tensor) -> Quantised | None:
        found = quantised.of(tensor)
        return found if found is not None or self._storage is None else self._storage.codes.get(id(tensor))

    def _stored_parameter(self, tensor: Tensor) -> Stored | None:
        return None if self._storage is None else self._storage.parameters.get(id(tensor))

    def stored(self, layer: Layer) -> Stored | None:
        """How a layer's output is stored; None as it is."""
        return None if self._storage is None else self._storage.outputs.get(id(self.modules[layer.path]))

    def stored_at(self, layer: Layer, parameter: str, element: int) -> Stored | None:
        """How a value of a layer's output, or of a parameter of it, is stored, given its flat place."""
        if not parameter:
            return self.stored(layer)
        return self.values_of(layer, parameter).at(torch.tensor([element]))

    def reads(self, layer: Layer, parameter: str) -> bool:
        """Whether a forward pass reads a parameter tensor of a layer; an auxiliary head is not run in eval mode."""
        return formats.is_of_output(parameter) or memory_of(self.tensor_of(layer, parameter)) in self._read.storages

    def overwrites(self, layer: Layer, parameter: str) -> bool:
        """Whether a forward pass assigns new values to a parameter tensor of a layer, so that a flip does not last."""
        constant = formats.is_of_output(parameter)
        return not constant and id(self.tensor_of(layer, parameter)) in self._overwritten

    def injected(self, flips: Flips) -> AbstractContextManager[Injected]:
        """While open, forward passes of the model have the flips; see :meth:`neurons` and :meth:`weight`."""
        return self.weight(flips) if flips.parameter else self.neurons(flips)

    @contextlib.contextmanager
    def neurons(self, flips: Flips) -> Iterator[Injected]:
        """While open, forward passes of the model have a value of each image's output of ``flips.layer`` struck.

        The batch must have the images that ``flips`` names. The hook is always removed.
        """
        injected = Injected(torch.empty(0), torch.empty(0))
        calls = 0

        def flip_output(module: nn.Module, args: object, output: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 != flips.layer.call:
                return None
            struck = strike(flippable_part(module, output), flips, self.stored(flips.layer))
            injected.original, injected.error = struck.original, struck.error
            return flip_rows(output, struck)

        handle = self.modules[flips.layer.path].register_forward_hook(flip_output)
        try:
            yield injected
        finally:
            handle.remove()

    def weight(self, flips: Flips) -> AbstractContextManager[Injected]:
        """While open, elements of a parameter are struck, mostly one; they are always restored."""
        safe = self.corrected.get((flips.layer.path, flips.parameter), frozenset())
        return self.values_of(flips.layer, flips.parameter).struck(flips, safe)


def _for_a_dummy(model: nn.Module, example: Inputs) -> tuple[nn.Module, list[int]]:
    """What PyTorchFI can profile, and the shape that it makes its dummy image in, of floating-point values."""
    codes_first = next(model.parameters()).dtype == torch.int8  # in whose type it would make the image
    if isinstance(example, Tensor) and example.is_floating_point() and not codes_first:
        return model, list(example.shape[1:])
    return Given(model, inputs.random(1, example)), [1]


def _described(output: object) -> str:
    """What a model returned that is no tensor."""
    name = type(output).__name__
    if isinstance(getattr(output, "logits", None), Tensor):  # as models of transformers return
        return f"{name}; wrap the model in a module that returns its logits"
    return name


def _shape(example: Inputs) -> list[Any]:
    """The shape of one image, or the shapes of its parts."""
    shapes = [list(part.shape[1:]) for part in inputs.parts(example)]
    return shapes[0] if isinstance(example, Tensor) else shapes


def _refused(example: Inputs) -> str:
    """That the model can't take such images, in the words of who chose them."""
    if isinstance(example, Tensor) and example.is_floating_point() and example.dim() == 4:
        channels, height, width = example.shape[1:]
        return (
            f"img_size, channels (--img-size, --channels): the model can't take {channels} channels of "
            f"{height} x {width} pixels"
        )
    return f"inputs: the model can't take {inputs.described(example)}"


def _checksums(model: nn.Module) -> dict[int, tuple[int, int]]:
    """Of each parameter tensor, by its identity: where it is, and a sum of its bits."""
    return {
        id(tensor): (memory_of(tensor), sum(map(bits.checksum, quantised.stored_parts(tensor.detach()))))
        for tensor in model.parameters()
    }


def _place(tensor: Tensor) -> tuple[int, ...]:
    """The same for tensors that share all of their memory."""
    return memory_of(tensor), int(quantised.stored_parts(tensor)[0].storage_offset()), tensor.numel()


@contextlib.contextmanager
def _logging_untouched() -> Iterator[None]:
    """PyTorchFI sets up the root logger with a format that no ordinary record can fill; undo that."""
    before, disabled = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(max(disabled, logging.INFO))  # and it logs the layers, to whoever listens
    try:
        yield
    finally:
        logging.root.handlers[:] = before
        logging.disable(disabled)
