"""A model's name -> a classifier in eval mode, with its weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitflip.data import digits
from bitflip.data.datasets import NUM_CLASSES
from bitflip.errors import BadInput, nearest
from bitflip.network import bits, code, forms, quantised, weightfile
from bitflip.settings.hyperparameters import Hyperparameters

HUB_REPOSITORY = "chenyaofo/pytorch-cifar-models"
HUB_COMMIT = "d1c8e99b911da7d412979600c84d2a4fe3728473"  # code from the network is pinned
HUB_MODELS = (
    *("resnet20", "resnet32", "resnet44", "resnet56", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("mobilenetv2_x0_5", "mobilenetv2_x0_75", "mobilenetv2_x1_0", "mobilenetv2_x1_4"),
    *("shufflenetv2_x0_5", "shufflenetv2_x1_0", "shufflenetv2_x1_5", "shufflenetv2_x2_0"),
    *("repvgg_a0", "repvgg_a1", "repvgg_a2"),
)
TIMM = "timm:"
SETTING = "model_name (--model-name)"


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode and where it came from.

    Attributes:
        model: on the CPU, in eval mode, without gradients.
        source: where the code came from, in words.
        weights: where the weights came from, in words.
        sha256: of all parameters and buffers, so that a run can be tied to exact weights.
        code: SHA-256 of the source of the user's own model; None if it came with a package.
    """

    model: nn.Module
    source: str
    weights: str
    sha256: str
    code: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's parameters, and so of the images that it takes."""
        return bits.dtype_of(self.model)


def is_custom(name: str) -> bool:
    """Whether the name is the user's own model, ``FILE.py:factory`` or ``package.module:factory``, or timm's."""
    return ":" in name


def check(settings: Hyperparameters) -> list[str]:
    """One sentence per mistake in model_name, weights and hub_path that shows without loading anything."""
    name = str(settings.model_name)
    problems = []
    if name.endswith((".py", ".py:")):
        problems.append(
            "model_name (--model-name): expected FILE.py:factory, where factory is what makes the model in "
            f"FILE.py, got {name!r} without a factory"
        )
    elif name.startswith(TIMM):
        if importlib.util.find_spec("timm") is None:
            problems.append(f"model_name (--model-name): {name} needs timm; install it with: pip install timm")
    elif is_custom(name):
        file = Path(name.rpartition(":")[0])
        if file.suffix == ".py" and not file.is_file():
            problems.append(f"model_name (--model-name): expected FILE.py:factory, but there is no file {file}")
    elif settings.hub_path is None:  # what a local checkout has shows when it is loaded
        known = _known(settings)
        if name not in known:
            problems.append(
                f"model_name (--model-name): {settings.dataset} has no model {name!r}; {nearest(name, known)} "
                "(or your own as FILE.py:factory)"
            )
    size, channels = settings.img_size, settings.channels
    if name == digits.NAME and (size not in digits.SIDES or channels != 3):
        problems.append(
            f"img_size, channels (--img-size, --channels): {name} takes 3 channels of {digits.SIDES[0]} to "
            f"{digits.SIDES[-1]} pixels a side, got {channels} of {size}"
        )
    if settings.weights is not None:
        problems += weightfile.check(settings.weights)
    if settings.hub_path is not None and not (settings.hub_path / "hubconf.py").is_file():
        problems.append(
            f"hub_path (--hub-path): expected a checkout of {HUB_REPOSITORY}, but {settings.hub_path} has no hubconf.py"
        )
    return problems


def _known(settings: Hyperparameters) -> tuple[str, ...]:
    if settings.dataset == "digits":
        return (digits.NAME,)
    if settings.dataset in ("imagenet", "folder"):
        return torchvision_names()
    return HUB_MODELS


def torchvision_names() -> tuple[str, ...]:
    """All classifiers of torchvision.models."""
    from torchvision import models  # takes a second, which other models do without

    return tuple(models.list_models(module=models))


def untrained(name: str, hub_path: Path | None = None) -> tuple[nn.Module, tuple[int, ...]]:
    """A model with random weights, for as small an input as it can be built, and the image sizes of its own, if known.

    Args:
        name: of torchvision.models, ``digits_vgg``, an entry of the checkout ``hub_path``, ``timm:NAME`` or
            ``FILE.py:factory``.
        hub_path: a checkout with a hubconf.py.

    Raises:
        BadInput: if there is no such model.
    """
    torch.manual_seed(0)
    if hub_path is not None:
        with _explained(f"{name} of {hub_path}"):
            load: Callable[..., nn.Module] = torch.hub.load
            model = load(str(hub_path), name, source="local", pretrained=False, verbose=False)
        return _plain(model, name), ()
    if name.startswith(TIMM):
        model, _, _ = _timm(name, NUM_CLASSES["imagenet"], published=False)
        own: Any = model.pretrained_cfg
        return model, (own["input_size"][-1],)
    if is_custom(name):
        return _plain(_custom(name, NUM_CLASSES["imagenet"]), name), ()
    if name == digits.NAME:
        return digits.build(), (digits.SIDES[0],)
    if name not in torchvision_names():
        raise BadInput(f"MODEL: torchvision.models has no {name!r}; {nearest(name, torchvision_names())}")
    options = dict(_UNINITIALISED.get(name, {}))
    sizes: tuple[int, ...] = ()
    if name.startswith("vit_"):  # its position embedding is made for one size
        sizes = (2 * int(name.rpartition("_")[2]),)
        options["image_size"] = sizes[0]
    from torchvision import models

    return models.get_model(name, weights=None, **options), sizes


def timm_families() -> Iterator[str]:
    """The model with the fewest parameters of each family of timm, which is a module of its source, as ``timm:NAME``.

    Raises:
        BadInput: if timm is not there.
    """
    timm, _ = _with_timm("--timm", "coverage")
    for family in timm.list_modules():
        sizes = {}
        for entry in timm.list_models(module=family):
            with torch.device("meta"):
                model = timm.create_model(entry, pretrained=False)
            sizes[f"{TIMM}{entry}"] = sum(parameter.numel() for parameter in model.parameters())
        if sizes:
            yield min(sizes, key=lambda name: (sizes[name], name))


def load(settings: Hyperparameters, classes: int | None = None) -> Classifier:
    """Load the model and its weights.

    Args:
        settings: of the run.
        classes: of the test set; None for those of the data set's name.

    Raises:
        BadInput: if the model or its weights can't be had, or don't fit each other.
    """
    name = str(settings.model_name)
    published = settings.weights is None
    file: Path | None = None  # of the user's own code
    classes = NUM_CLASSES[settings.dataset] if classes is None else classes
    if name.startswith(TIMM):
        model, source, weights = _timm(name, classes, published=published)
    elif is_custom(name):
        model, source, weights = _custom(name, classes), name, "as the factory made it"
        file = _file_of(name)
    elif settings.dataset == "digits":
        model, source, weights = digits.build(), "bitflip.digits", digits.WEIGHTS.name
        if published:
            weightfile.load(model, digits.WEIGHTS)
    elif settings.dataset in ("imagenet", "folder"):
        model, source, weights = _torchvision(settings, classes)
    else:
        model, source, weights = _hub(settings, f"{settings.dataset}_{name}", published)
        file = None if settings.hub_path is None else settings.hub_path / "hubconf.py"
    model = _plain(model, name)
    if settings.weights is not None:
        weightfile.load(model, settings.weights)
        weights = str(settings.weights)
    if forms.lazy(model):
        assert settings.img_size is not None
        example = torch.zeros(1, settings.channels, settings.img_size, settings.img_size, dtype=bits.dtype_of(model))
        forms.initialise(model, example)
    forms.check_values(model, SETTING if settings.weights is None else "weights (--weights)")
    if next(model.parameters(), None) is None:
        raise BadInput(f"model_name (--model-name): expected a model with parameters, {name} has none")
    model.eval().requires_grad_(False)
    return Classifier(model, source, weights, _digest(model), code.sha256(file))


def given(model: nn.Module) -> Classifier:
    """A model that is there already, as it is."""
    kind = type(model)
    torch_s = kind.__module__.partition(".")[0] == "torch"  # such as Sequential: the version says all
    file = None if torch_s else getattr(sys.modules.get(kind.__module__), "__file__", None)
    source = f"{kind.__module__}.{kind.__qualname__}"
    return Classifier(model, source, "as given", _digest(model), code.sha256(None if file is None else Path(file)))


def _file_of(name: str) -> Path | None:
    """The file of a user's own model, which has been imported."""
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    file = getattr(sys.modules[place], "__file__", None)
    return None if file is None else Path(file)


def _custom(name: str, classes: int) -> Any:
    place, _, attribute = name.rpartition(":")
    path = Path(place)
    try:
        module = code.imported(path) if path.suffix == ".py" else importlib.import_module(place)
        factory: Callable[..., object] = getattr(module, attribute)
        takes = inspect.signature(factory).parameters
        model = factory(num_classes=classes) if "num_classes" in takes else factory()
    except Exception as error:  # the user's code can raise anything
        raise BadInput(f"model_name (--model-name): {name} can't be built: {weightfile.reason(error)}") from error
    return model


def _plain(model: object, name: str) -> nn.Module:
    """The network itself, if it is one whose layers and values can be struck."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"{SETTING}: expected {name} to return {forms.instead_of(model)}")
    forms.check(model, SETTING, name)
    return forms.plain(model)


# Random numbers that are overwritten anyway take a minute.
_UNINITIALISED: dict[str, dict[str, Any]] = {name: {"init_weights": False} for name in ("googlenet", "inception_v3")}


def _with_timm(setting: str, what: str) -> tuple[Any, str]:
    """The package, and its name with its version."""
    try:
        import timm
    except ImportError as error:
        raise BadInput(f"{setting}: {what} needs timm; install it with: pip install timm ({error})") from error
    return timm, f"timm {timm.__version__}"


def _timm(name: str, classes: int, *, published: bool) -> tuple[nn.Module, str, str]:
    timm, source = _with_timm("model_name (--model-name)", name)
    entry = name.removeprefix(TIMM)
    if not timm.is_model(entry):
        raise BadInput(f"model_name (--model-name): timm has no model {entry!r}; {nearest(entry, timm.list_models())}")
    if not published:
        with _explained(f"{entry} of {source}"):
            return timm.create_model(entry, pretrained=False, num_classes=classes), source, ""
    with _explained(f"{entry} of {source}"):
        model = timm.create_model(entry, pretrained=True)
    found: Any = model.num_classes
    if found != classes:
        raise BadInput(_other_classes(name, found, classes))
    return model, source, f"published with {entry}"


def _other_classes(name: str, found: int, expected: int) -> str:
    return (
        f"weights (--weights): expected a state dict of {name} for {expected} classes, since the published weights "
        f"have {found}"
    )


def _torchvision(settings: Hyperparameters, classes: int) -> tuple[nn.Module, str, str]:
    import torchvision

    name, published = str(settings.model_name), settings.weights is None
    enum = torchvision.models.get_model_weights(name)
    # IMAGENET1K_V1 is what resize 256, centre crop 224 was made for; a few models were only published otherwise.
    weights = getattr(enum, "IMAGENET1K_V1", None) or enum.DEFAULT
    source = f"torchvision {torchvision.__version__}"
    options: dict[str, Any] = dict(_UNINITIALISED.get(name, {}))
    if not published:
        if options and settings.dataset == "imagenet":
            options["transform_input"] = True  # as the published weights expect it
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **options), source, ""
    if len(weights.meta["categories"]) != classes:
        raise BadInput(_other_classes(name, len(weights.meta["categories"]), classes))
    with _explained(f"{name} of {source}"):
        return torchvision.models.get_model(name, weights=weights), source, str(weights)


def _hub(settings: Hyperparameters, entry: str, published: bool) -> tuple[nn.Module, str, str]:
    load_entry: Callable[..., nn.Module]
    if settings.hub_path is not None:
        source = str(settings.hub_path)
        load_entry = functools.partial(torch.hub.load, source, entry, source="local")
    else:
        source = f"{HUB_REPOSITORY}:{HUB_COMMIT}"
        load_entry = functools.partial(torch.hub.load, source, entry, skip_validation=True, trust_repo=True)
    with _explained(f"{entry} of {source}"), _safe_downloads():
        model = load_entry(pretrained=published, verbose=False)
    return model, source, f"published with {entry}"


@contextlib.contextmanager
def _safe_downloads() -> Iterator[None]:
    """Make hub code load tensors only (no pickled code), and check the hash that is part of the file's name."""
    original = torch.hub.load_state_dict_from_url
    safe = functools.partial(original, weights_only=True, check_hash=True, map_location="cpu")
    torch.hub.load_state_dict_from_url = safe
    try:
        yield
    finally:
        torch.hub.load_state_dict_from_url = original


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn a failed download, or code or weights that fail, into a sentence."""
    try:
        yield
    except OSError as error:  # URLError, HTTPError, a time-out and a closed connection are all OSErrors
        raise BadInput(
            f"model_name (--model-name): {what} can't be downloaded ({error}); run where there is a network, or give a "
            "local checkout with --hub-path (CIFAR) and a state dict with --weights, or try --dataset digits, "
            "which needs no download"
        ) from error
    except Exception as error:  # a checkout's code can raise anything, and so can a damaged file of weights
        raise BadInput(f"model_name (--model-name): {what} can't be loaded: {weightfile.reason(error)}") from error


def _digest(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode() + os.fsencode(str(value.dtype)))
        for part in quantised.stored_parts(value):
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
