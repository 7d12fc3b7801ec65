"""A user's own protection: a function of layers in a file, or in a program one of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bitflip.errors import BadInput, first_line
from bitflip.network import code
from bitflip.network.names import label
from bitflip.network.protections import Call
from bitflip.settings.hyperparameters import Hyperparameters

SETTING = "protect (--protect)"
EXPECTED = (
    "expected FILE.py:factory, where factory takes a layer and its path, and returns a module for its output, or None"
)

Factory = Callable[[nn.Module, str], object]


def check(settings: Hyperparameters) -> list[str]:
    """One sentence if the file of a user's own protection, or the one that ranks bits, is not there."""
    found = settings.protection
    if found is None:
        return []
    problems = []
    if found.own and not file_of(found.own).is_file():
        problems.append(f"{SETTING}: {EXPECTED}; there is no file {file_of(found.own)}")
    if found.ranking and not Path(found.ranking).is_file():
        problems.append(f"{SETTING}: expected a file behind ecc:SHARE:, there is none named {found.ranking}")
    return problems


def file_of(name: str) -> Path:
    """The file of ``FILE.py:factory``."""
    return Path(name.rpartition(":")[0])


def factory_of(name: str) -> Factory:
    """What makes modules for layers, given as ``FILE.py:factory``.

    Raises:
        BadInput: if it can't be imported.
    """
    try:
        found: Factory = getattr(code.imported(file_of(name)), name.rpartition(":")[2])
    except Exception as error:  # the user's code can raise anything
        raise BadInput(f"{SETTING}: {name} can't be imported: {type(error).__name__}: {first_line(error)}") from error
    return found


def made(name: str, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that a user's factory makes, by the paths of the layers that they are for.

    Raises:
        BadInput: if it makes something else, or none at all.
    """
    factory = factory_of(name)
    found: dict[str, nn.Module] = {}
    for path, module in modules.items():
        try:
            guard = factory(module, path)
        except Exception as error:  # the user's code can raise anything
            raise BadInput(
                f"{SETTING}: {name} fails for {path}: {type(error).__name__}: {first_line(error)}"
            ) from error
        if guard is not None and not isinstance(guard, nn.Module):
            raise BadInput(f"{SETTING}: {EXPECTED}; got {type(guard).__name__} for {path}")
        if guard is not None:
            found[path] = guard.eval()
    if not found:
        raise BadInput(f"{SETTING}: {EXPECTED}; got None for each of {len(modules)} layers")
    return found


def require_alike(call: Call, guard: nn.Module, output: Any) -> None:
    """See that a user's module leaves the form of what a layer puts out.

    Raises:
        BadInput: if it does not, or fails.
    """
    try:
        guarded = guard(output)
    except Exception as error:  # the user's code can raise anything
        raise BadInput(
            f"{SETTING}: the module for {label(*call)} fails: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(guarded, Tensor) or (guarded.shape, guarded.dtype) != (output.shape, output.dtype):
        form = (
            f"{guarded.dtype} of shape {tuple(guarded.shape)}"
            if isinstance(guarded, Tensor)
            else type(guarded).__name__
        )
        raise BadInput(
            f"{SETTING}: expected a module that returns {output.dtype} of shape {tuple(output.shape)} for "
            f"{label(*call)}, as it is given, got {form}"
        )
