"""Forms of a model: what wraps a network is taken off, and what holds no layers or values to strike is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from bitflip.errors import BadInput, first_line
from bitflip.network import programs, quantised

_AROUND = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)  # whose ``module`` is the network
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def plain(model: nn.Module) -> nn.Module:
    """The network in what wraps it, wherever in it: in place, but for a wrapper around the whole, and not compiled.

    A wrapper computes what the network does, but in the names of layers, in tracing and in hooks it is in the way.
    """
    model = inside(model)
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = inside(child)
    for module in model.modules():
        if _compiled(module) is not None:
            module._compiled_call_impl = None
    return model


@contextlib.contextmanager
def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The network in what wraps it, see :func:`plain`; the model is as it was when the block ends."""
    modules = list(model.modules())
    children = [dict(module._modules) for module in modules]
    compiled = [_compiled(module) for module in modules]
    try:
        yield plain(model)
    finally:
        for module, names, call in zip(modules, children, compiled, strict=True):
            module._modules.update(names)
            if call is not None:
                module._compiled_call_impl = call


def inside(model: nn.Module) -> nn.Module:
    """What is in the wrappers around a module; the module itself if there are none."""
    if type(model).__name__ == "OptimizedModule":  # of torch.compile; its class is slow to import
        original = model._modules["_orig_mod"]
        assert original is not None
        return inside(original)
    if isinstance(model, fx.GraphModule) and programs.is_converted(model):
        return programs.modules_of(model)
    return inside(model.module) if isinstance(model, _AROUND) else model


def _compiled(module: nn.Module) -> Any:
    """What ``module.compile()`` made, which hooks do not reach."""
    return vars(module).get("_compiled_call_impl")


def instead_of(value: object) -> str:
    """What was expected and what was given, for what is no module."""
    hint = _AS_IT_WAS if type(value).__name__ in ("ExportedProgram", "ScriptFunction") else ""
    hint = "; give its module()" if programs.is_converted(value) else hint
    return f"an nn.Module, got {type(value).__name__}{hint}"


def check(model: nn.Module, setting: str, name: str = "") -> None:
    """Refuse what is no network of modules with parameters that are floating-point numbers of its own.

    Args:
        model: what was given as one.
        setting: that it was given by.
        name: of the model, if it has one.

    Raises:
        BadInput: if it is none.
    """
    whose = f" in {name}" if name else ""
    programs_in = [path for path, module in model.named_modules() if programs.is_converted(module)]
    for path in programs_in:
        if why := programs.problem(model.get_submodule(path)):
            raise BadInput(f"{setting}: expected a program as convert_pt2e returns it, but {path or 'it'}{whose} {why}")
    for path, module in model.named_modules():
        if not _is_in(path, programs_in) and (what := _without_layers(module)):
            raise BadInput(
                f"{setting}: expected a network of modules, but {path or 'it'} is {what}{whose}, whose layers can't be "
                f"struck{_AS_IT_WAS}"
            )
    if other := _other_values(model, programs_in):
        more = f"; of quantised models, those are taken that {_TAKEN}" if other.narrow else ""
        raise BadInput(
            f"{setting}: expected a model of float64, float32, float16 or bfloat16 values, but {other.text}{whose}"
            f"{more}"
        )


_TAKEN = "torchao's quantize_ has made, with int8 or float8 weights of linear layers"
_AS_IT_WAS = "; give the nn.Module that it was made from"


@dataclass(frozen=True)
class _Other:
    """Values in which no flips are made, and whether they are quantised."""

    text: str
    narrow: bool = False


def _is_in(path: str, parts: Sequence[str]) -> bool:
    """Whether a path is in one of some parts of a model."""
    return any(not part or f"{path}.".startswith(f"{part}.") for part in parts)


def _other_values(model: nn.Module, but: Sequence[str]) -> _Other | None:
    """The first part of a model, but for some, that holds other values than flips are made in."""
    for path, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            return _Other(f"{path or 'it'} is a quantised {type(module).__name__}", narrow=True)
    for path, value in model.named_parameters():
        if is_lazy(value) or _is_in(path, but):
            continue
        if quantised.is_torchaos(value):
            if why := quantised.unknown(value):
                return _Other(f"{path} is {why}", narrow=True)
            continue
        if value.is_complex() or value.element_size() == 1:
            return _Other(f"{path} is of {value.dtype}", narrow=not value.is_complex())
        if value.is_meta:
            return _Other(f"{path} has no values, on the device meta,")
        if type(value.data) is not Tensor:
            return _Other(f"{path} is a {type(value.data).__name__}")
    return None


def _without_layers(module: nn.Module) -> str:
    """What a module is if hooks and faults can't reach the layers in it; otherwise nothing."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    if type(module).__name__ == "FullyShardedDataParallel":
        return "shards of a network (FullyShardedDataParallel)"
    graph = module.graph if isinstance(module, fx.GraphModule) else vars(module).get("graph")
    if isinstance(graph, fx.Graph) and any(isinstance(node.target, OpOverload) for node in graph.nodes):
        return "a program of torch.export"
    return ""


def lazy(model: nn.Module) -> str | None:
    """The first lazy module, in words; None if all know their sizes."""
    found = (f"{path or 'it'} is a {type(m).__name__}" for path, m in model.named_modules() if _is_lazy(m))
    return next(found, None)


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin)


def initialise(model: nn.Module, example: Tensor) -> None:
    """Let lazy modules find out their sizes by one forward pass, in eval mode.

    Args:
        model: any.
        example: an image, (1, C, H, W).

    Raises:
        BadInput: if the model can't take it.
    """
    what = lazy(model)
    if what is None:
        return
    try:
        with torch.no_grad():
            model.eval()(example)
    except Exception as error:  # the user's code can raise anything
        _, channels, height, width = example.shape
        raise BadInput(
            f"img_size, channels (--img-size, --channels): the model can't take {channels} channels of {height} x "
            f"{width} pixels, by which its lazy modules are initialised ({what}): {first_line(error)}"
        ) from error
    if (left := lazy(model)) is not None:
        raise BadInput(
            f"model_name (--model-name): expected a model whose forward pass initialises all lazy modules, but {left}"
        )


def check_values(model: nn.Module, setting: str) -> None:
    """Refuse weights that are not numbers, of which nothing can be told.

    Raises:
        BadInput: if there is a NaN among the parameters or the buffers that are saved.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        for part in quantised.stored_parts(value):
            if not part.is_floating_point() or part.element_size() == 1:
                continue
            count = int(part.isnan().sum())
            if count:
                raise BadInput(f"{setting}: expected numbers, but {count} of {part.numel()} values of {name} are NaN")
