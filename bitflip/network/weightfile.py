"""A file of weights -> the state of a model, without running any code that the file may hold.

A file holds tensors under the names that the model had when they were saved: perhaps in a wrapper, beside an optimiser,
or beside an average of them. What fits the model in one way only is taken, and everything else is refused by name.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitflip.errors import BadInput
from bitflip.network import forms

log = logging.getLogger(__name__)

WRAPPERS = {"module", "_orig_mod"}  # parts of a name: of DataParallel, DDP and AveragedModel, and of torch.compile
PREFIXES = ("", "model.", "net.", "network.")  # names that Lightning's modules and the like give to the network
DEPTH = 3  # of dicts in dicts
ROOM = 16  # times the model's values: moments of an optimiser and averages, in float64
SLACK = 1 << 26  # bytes; what else a file may hold
NAMED = 10  # keys that a sentence names


@dataclass(frozen=True)
class _Reading:
    """Tensors of a file, under the model's names.

    Attributes:
        place: of their dict in the file, and what their names began with; empty if it is all of the file.
        state: by the model's names.
        left: names that do not begin so.
        usual: whether it is plain that the names are the network's: nothing else is there, or they begin as usual.
        misfit: why they are no weights of the model; empty if they are.
    """

    place: str
    state: dict[str, Any]
    left: list[str]
    usual: bool
    misfit: str


def load(model: nn.Module, path: Path) -> None:
    """Load the weights of a file into a model.

    Args:
        model: not wrapped, see :func:`bitflip.network.forms.plain`.
        path: of a state dict, or of a dict that holds one, as ``torch.save`` writes it; or of ``.safetensors``.

    Raises:
        BadInput: if it can't be loaded safely, holds no weights of the model, or several.
    """
    content = _content(path, model)
    found = list(_readings(model, content))
    if not found:
        raise BadInput(f"weights (--weights): expected a state dict of tensors in {path}, got {_described(content)}")
    fitting = sorted((one for one in found if not one.misfit), key=lambda one: not one.usual)
    if not fitting or not fitting[0].usual:
        own = model.state_dict().keys()
        nearest = max((one for one in found if one.misfit), key=lambda one: len(own & one.state.keys()))
        inside = f", under {nearest.place}," if nearest.place else ""
        raise BadInput(f"weights (--weights): {path}{inside} does not fit the model: {nearest.misfit}")
    chosen, *others = fitting
    if not all(_same(chosen.state, other.state) for other in others):
        places = ", ".join(one.place or "the file itself" for one in fitting)
        raise BadInput(
            f"weights (--weights): expected one state dict in {path}, but several fit the model ({places}); save the "
            "one that is meant in a file of its own"
        )
    if chosen.left:
        log.warning("weights (--weights): left out of %s, as no part of the model: %s", path, _some(chosen.left))
    _say_what_is_rounded(model, chosen.state, path)
    model.load_state_dict(chosen.state)


def check(path: Path) -> list[str]:
    """One sentence if the file shows without loading anything that it can't be loaded."""
    if not path.is_file():
        return [f"weights (--weights): expected the path of a state dict, but there is no file {path}"]
    if path.suffix == ".safetensors" and importlib.util.find_spec("safetensors") is None:
        return [f"weights (--weights): {path} needs safetensors; install it with: pip install safetensors"]
    return []


# --- what is in a file ---


def _content(path: Path, model: nn.Module) -> Any:
    """All of a file, in which no tensor is on another device than the CPU.

    Raises:
        BadInput: if it can't be loaded safely.
    """
    if path.suffix == ".safetensors":
        import safetensors.torch

        read: Any = safetensors.torch.load_file
    else:
        _look_at_the_directory(path, model)
        read = functools.partial(torch.load, map_location="cpu", weights_only=True)
    try:
        with torch.serialization.safe_globals([(_LeftOut, name) for name in _LEFT_OUT]):
            return read(path)
    except Exception as error:  # torch.load raises whatever its unpickler meets in a damaged file
        raise BadInput(
            f"weights (--weights): {path} is no state dict that can be loaded safely: {reason(error)}"
        ) from error


def _look_at_the_directory(path: Path, model: nn.Module) -> None:
    """Refuse an archive that is something else, or far larger than its file; torch packs nothing.

    Raises:
        BadInput: if it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # in the form before zip files, or damaged: torch says so
    names = {name.partition("/")[2] or name for name in archive.namelist()}
    what = "a TorchScript archive" if "constants.pkl" in names else "a torch.export program"
    if names & {"constants.pkl", "archive_format", "serialized_exported_program.json"}:
        raise BadInput(
            f"weights (--weights): expected a state dict, but {path} is {what}; save the state_dict() of the model "
            "that it was made from"
        )
    size = sum(file.file_size for file in files)
    values = model.state_dict(keep_vars=True).values()
    if any(is_lazy(value) for value in values):
        needed = path.stat().st_size
    else:
        needed = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
    if size > ROOM * needed + SLACK:
        raise BadInput(
            f"weights (--weights): expected a state dict of {_mib(needed)}, but {path} ({_mib(path.stat().st_size)}) "
            f"unpacks to {_mib(size)}"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


class _LeftOut:
    """Stands for a value that is no weight: nothing is made of it; those of NumPy are not safe to make from a file."""

    def __new__(cls, *args: object, **kwargs: object) -> _LeftOut:
        """Whatever it would be made of."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Whatever it would hold."""


_LEFT_OUT = [  # which training scripts save beside the weights
    *("argparse.Namespace", "types.SimpleNamespace", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"{pathlib}.{path}Path" for pathlib in ("pathlib", "pathlib._local") for path in ("Posix", "Windows")),
    *(f"{pathlib}.Pure{path}Path" for pathlib in ("pathlib", "pathlib._local") for path in ("Posix", "Windows")),
]


def reason(error: Exception) -> str:
    """Why loading failed, in one line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's words are a page on how to load it unsafely
        met = re.search(r"GLOBAL (\S+)", str(error))
        return "the weights are damaged, or hold code beside tensors" + (f" ({met[1]})" if met else "")
    if isinstance(error, EOFError):  # which has no words
        return "the file is empty, or ends too early"
    return shortened(f"{type(error).__name__}: {error}")


def shortened(text: str, limit: int = 400) -> str:
    """A text in one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit] + " ..."


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return f"a dict of {_some([str(key) for key in content])}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# --- what of it are the model's weights ---


def _tensors(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict of tensors by names, with its place in the file; what else such a dict holds is left out."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor) or key.endswith("_extra_state")}
    if tensors or (not content and not place):
        yield place, tensors
    for key, value in named.items():
        yield from _tensors(value, f"{place}.{key}".lstrip("."), depth + 1)


def _readings(model: nn.Module, content: Any) -> Iterator[_Reading]:
    """All that a file may hold for the model."""
    for place, tensors in _tensors(content):
        own = {_bare(name): name for name in model.state_dict()}
        bare = {_bare(name): name for name in tensors}
        if len(bare) < len(tensors) or len(own) < len(model.state_dict()):  # `module` is a name of the model's
            own, bare = {name: name for name in model.state_dict()}, {name: name for name in tensors}
        bare = {name: key for name, key in bare.items() if name in own or name.rpartition(".")[2] != "n_averaged"}
        for prefix in _prefixes(own, bare):
            begun = {name.removeprefix(prefix): key for name, key in bare.items() if name.startswith(prefix)}
            state = {own.get(name, name): tensors[key] for name, key in begun.items()}
            left = [key for name, key in bare.items() if not name.startswith(prefix)]
            whole = f"{place}.{prefix}" if place and prefix else place or prefix
            usual = prefix in PREFIXES or not left
            twice = next((name for name in begun if prefix and name in own and name in bare), None)
            misfit = _misfit(model, state) if twice is None else f"it holds both {twice} and {prefix}{twice}"
            yield _Reading(whole.rstrip("."), state, left, usual, misfit)


def _prefixes(own: Collection[str], names: Collection[str]) -> list[str]:
    """What the names of the model's tensors may begin with: nothing, what is usual, and what stands before all."""
    some = next(iter(own), "")
    found = {name.removesuffix(some) for name in names if name.endswith(f".{some}")}
    usual = [prefix for prefix in PREFIXES if not prefix or any(name.startswith(prefix) for name in names)]
    whole = [prefix for prefix in found if all(f"{prefix}{name}" in names for name in own)]
    return [*usual, *sorted({*whole} - {*usual})]


def _bare(name: str) -> str:
    """A name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _misfit(model: nn.Module, state: dict[str, Any]) -> str:
    """Why a state is not the model's, in one line; empty if it is."""
    for name, own in model.state_dict(keep_vars=True).items():
        if isinstance(own, Tensor) and isinstance(state.get(name), Tensor) and (what := _not_of_kind(state[name], own)):
            return f"{name} is of {state[name].dtype} there, {what}"
    trial = copy.deepcopy(model) if forms.lazy(model) else model  # lazy modules take the first shape that they get
    try:
        trial.load_state_dict(state)
    except RuntimeError as error:
        _, _, misfits = str(error).partition("\n")
        return shortened(misfits) or shortened(str(error))
    return ""


def _not_of_kind(value: Tensor, own: Tensor) -> str:
    """What is wrong with values of another kind than the model's, which torch would cast without a word."""
    if value.is_meta:
        return "on the device meta, without values"
    if value.is_quantized or (value.is_complex() and not own.is_complex()):
        return "and not of real floating-point numbers" if own.is_floating_point() else f"and not of {own.dtype}"
    if own.is_floating_point() and not value.is_floating_point():
        return "and not of real floating-point numbers"
    if not own.is_floating_point() and value.is_floating_point() and bool((value != value.round()).any()):
        return f"and not of {own.dtype}"  # an average of whole numbers, such as of batches seen, can be whole
    return ""


def _same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in state.items()
    )


def _say_what_is_rounded(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    for name, own in model.state_dict(keep_vars=True).items():
        value = state.get(name)
        if not isinstance(value, Tensor) or not (own.is_floating_point() and value.is_floating_point()):
            continue
        if not torch.equal(value.to(own.dtype).to(value.dtype).nan_to_num(), value.nan_to_num()):
            log.warning("weights (--weights): %s of %s in %s is rounded to %s", name, value.dtype, path, own.dtype)
            return
