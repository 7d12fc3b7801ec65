"""Models come by name, from a hub checkout or cache, or from a file; weights are loaded safely or refused."""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import RunScript, TinyNet, random_images, scatter
from torch import nn

from bitflip.data import digits
from bitflip.errors import BadInput
from bitflip.network import models
from bitflip.network.models import Classifier
from bitflip.results import paths
from bitflip.settings import reading

# As the repository's: an entry per data set and model, and weights by a function that it imports from torch.hub.
HUBCONF = """
dependencies = ["torch"]

import torch
from torch import nn
from torch.hub import load_state_dict_from_url


def _net(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, classes))


def _build(classes, name, pretrained=False, progress=True):
    model = _net(classes)
    if pretrained:
        url = f"https://example.invalid/{name}.pt"
        model.load_state_dict(load_state_dict_from_url(url, progress=progress))
    return model


def cifar10_resnet20(**kwargs):
    return _build(10, "cifar10_resnet20-0123abcd", **kwargs)


def cifar100_resnet20(**kwargs):
    return _build(100, "cifar100_resnet20-0123abcd", **kwargs)


def cifar10_own(**kwargs):
    return _build(10, "own", **kwargs)
"""


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def load(dataset: str, name: str, *arguments: object, classes: int | None = None) -> Classifier:
    settings, problems = reading.read(
        ["--dataset", dataset, "--model-name", name, *(str(argument) for argument in arguments)]
    )
    assert problems == {}
    assert models.check(settings) == []
    return models.load(settings, classes)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def hub_net(classes: int) -> nn.Module:
    """The network of `HUBCONF`, with random weights."""
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, classes)
    return scatter(nn.Sequential(*layers), seed=classes)


# --- the hub ---


@pytest.fixture
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of torch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


def put_cached_weights(hub_home: Path, name: str, content: object) -> None:
    (hub_home / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(content, hub_home / "hub" / "checkpoints" / name)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A local checkout of a hub repository."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


@pytest.fixture
def cached_checkout(hub_home: Path) -> Path:
    """The repository where torch.hub keeps it, at the pinned commit."""
    folder = hub_home / "hub" / f"chenyaofo_pytorch-cifar-models_{models.HUB_COMMIT}"
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_from_the_hub_cache(
    dataset: str, classes: int, cached_checkout: Path, hub_home: Path, no_network: list[object]
) -> None:
    expected = hub_net(classes)
    put_cached_weights(hub_home, f"{dataset}_resnet20-0123abcd.pt", expected.state_dict())
    classifier = load(dataset, "resnet20")
    assert same_weights(classifier.model, expected)
    assert models.HUB_COMMIT in classifier.source
    assert classifier.weights == f"published with {dataset}_resnet20"
    assert no_network == []


def test_from_a_local_checkout(checkout: Path, hub_home: Path, no_network: list[object]) -> None:
    """Which may have models that the published repository has not."""
    expected = hub_net(10)
    put_cached_weights(hub_home, "own.pt", expected.state_dict())
    classifier = load("cifar10", "own", "--hub-path", checkout)
    assert same_weights(classifier.model, expected)
    assert str(checkout) in classifier.source
    assert no_network == []


def test_own_weights_ask_for_no_published_ones(
    checkout: Path, hub_home: Path, tmp_path: Path, no_network: list[object]
) -> None:
    torch.save(hub_net(10).state_dict(), tmp_path / "own.pt")
    classifier = load("cifar10", "resnet20", "--hub-path", checkout, "--weights", tmp_path / "own.pt")
    assert same_weights(classifier.model, hub_net(10))
    assert classifier.weights == str(tmp_path / "own.pt")
    assert no_network == []


def test_a_checkout_without_the_model(checkout: Path) -> None:
    with pytest.raises(BadInput, match=rf"model_name .*: cifar10_vgg16_bn of {checkout} can't be loaded: .*vgg16_bn"):
        load("cifar10", "vgg16_bn", "--hub-path", checkout)


@pytest.mark.parametrize("code", ["import absent_package", "1 / 0", "def :", "dependencies = ['absent_package']"])
def test_a_broken_checkout(code: str, checkout: Path) -> None:
    (checkout / "hubconf.py").write_text(f"{code}\n{HUBCONF}" if "dep" not in code else f"{HUBCONF}\n{code}\n")
    with pytest.raises(BadInput, match=rf"model_name .*: cifar10_resnet20 of {checkout} can't be loaded: \w+: .+"):
        load("cifar10", "resnet20", "--hub-path", checkout)


def test_weights_that_are_neither_cached_nor_downloadable(
    checkout: Path, hub_home: Path, no_network: list[object]
) -> None:
    with pytest.raises(BadInput, match=r"can't be downloaded \(.*no network.*--weights, or try --dataset digits"):
        load("cifar10", "resnet20", "--hub-path", checkout)
    assert no_network


def test_hub_weights_can_not_run_code(checkout: Path, hub_home: Path, tmp_path: Path, no_network: list[object]) -> None:
    put_cached_weights(hub_home, "own.pt", {"bomb": Bomb(tmp_path / "exploded")})
    with pytest.raises(
        BadInput, match=rf"cifar10_own of {checkout} can't be loaded: the weights are damaged, or hold code"
    ):
        load("cifar10", "own", "--hub-path", checkout)
    assert not (tmp_path / "exploded").exists()


def test_hub_weights_of_another_network(checkout: Path, hub_home: Path, no_network: list[object]) -> None:
    put_cached_weights(hub_home, "own.pt", hub_net(11).state_dict())
    with pytest.raises(BadInput, match=r"cifar10_own of .* can't be loaded: RuntimeError: .*size mismatch"):
        load("cifar10", "own", "--hub-path", checkout)


def test_the_hub_is_left_as_it_was(checkout: Path, hub_home: Path, no_network: list[object]) -> None:
    before = torch.hub.load_state_dict_from_url
    with pytest.raises(BadInput):
        load("cifar10", "resnet20", "--hub-path", checkout)
    assert torch.hub.load_state_dict_from_url is before


def test_the_whole_way_from_a_checkout(
    checkout: Path, hub_home: Path, tmp_path: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_cached_weights(hub_home, "own.pt", hub_net(10).state_dict())
    images = torch.utils.data.TensorDataset(random_images(8, 3, 32, 32), torch.arange(8))
    monkeypatch.setattr("bitflip.data.datasets.load", lambda settings: images)
    arguments = ["--dataset=cifar10", "--model-name=own", f"--hub-path={checkout}", "--seed=5"]
    done = run_script("main.py", *arguments, "--output-path", tmp_path / "out")
    assert done.code == 0
    assert (tmp_path / "out" / "own_cifar10_5.csv").is_file()


# --- torchvision ---


def test_torchvision_by_name_with_own_weights(tmp_path: Path, no_network: list[object]) -> None:
    expected = scatter(torchvision.models.squeezenet1_1(weights=None))
    torch.save(expected.state_dict(), tmp_path / "own.pt")
    classifier = load("imagenet", "squeezenet1_1", "--weights", tmp_path / "own.pt")
    assert same_weights(classifier.model, expected)
    assert classifier.source == f"torchvision {torchvision.__version__}"
    assert no_network == []


@pytest.mark.parametrize(
    ("name", "weights"),
    [("vgg19_bn", "VGG19_BN_Weights.IMAGENET1K_V1"), ("resnet50", "ResNet50_Weights.IMAGENET1K_V1")],
)
def test_torchvision_weights_are_those_of_the_usual_preprocessing(
    name: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later ones were published for other resizing."""
    asked: list[object] = []

    def get_model(name: str, weights: object) -> nn.Module:
        asked.append(weights)
        return nn.Linear(1, 1)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    assert load("imagenet", name).weights == weights
    assert [str(given) for given in asked] == [weights]


def test_torchvision_without_a_network(hub_home: Path, no_network: list[object]) -> None:
    with pytest.raises(BadInput, match=r"squeezenet1_1 of torchvision .* can't be downloaded \(.*no network"):
        load("imagenet", "squeezenet1_1")
    assert no_network


def test_damaged_torchvision_weights_in_the_cache(hub_home: Path, no_network: list[object]) -> None:
    put_cached_weights(hub_home, "squeezenet1_1-b8a52dc0.pth", {})
    (hub_home / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"half of it")
    with pytest.raises(BadInput, match=r"squeezenet1_1 of torchvision .* can't be loaded: .+"):
        load("imagenet", "squeezenet1_1")
    assert no_network == []


# --- what any classifier is ---


def test_a_classifier_is_in_eval_mode_without_gradients() -> None:
    model = load("digits", "digits_vgg").model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_shipped_weights_are_loaded(digits_model: nn.Module) -> None:
    classifier = load("digits", "digits_vgg")
    assert same_weights(classifier.model, digits_model)
    assert classifier.dtype == torch.float32


def test_the_code_of_torch_itself_is_told_by_its_version() -> None:
    """Its source is far too much to be read."""
    assert models.given(nn.Sequential(nn.Linear(2, 2))).code is None
    assert models.given(TinyNet()).code is not None


def test_the_digest_tells_weights_apart(digits_model: nn.Module, tmp_path: Path) -> None:
    """One bit in one weight, and one in a statistic of BatchNorm."""
    digests = {load("digits", "digits_vgg").sha256, load("digits", "digits_vgg").sha256}
    assert len(digests) == 1
    for name in ("features.0.weight", "features.1.running_mean"):
        state = copy.deepcopy(digits_model.state_dict())
        state[name].view(-1)[0] += 1e-6
        torch.save(state, tmp_path / "other.pt")
        digests.add(load("digits", "digits_vgg", "--weights", tmp_path / "other.pt").sha256)
    assert len(digests) == 3


# --- weights from a file ---


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="plain"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 3}, id="under state_dict"),
        pytest.param(lambda state: {"model": state, "optimizer": {"lr": 0.1}}, id="under model"),
        pytest.param(lambda state: {f"module.{k}": v for k, v in state.items()}, id="module prefixes"),
        pytest.param(lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}, id="both"),
    ],
)
def test_weights_from_a_file(wrap: Callable[[dict[str, torch.Tensor]], object], tmp_path: Path) -> None:
    expected = scatter(digits.build(), seed=3)
    torch.save(wrap(expected.state_dict()), tmp_path / "own.pt")
    assert same_weights(load("digits", "digits_vgg", "--weights", tmp_path / "own.pt").model, expected)


def without(name: str) -> dict[str, torch.Tensor]:
    """The shipped state dict less one entry."""
    state = digits.build().state_dict()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            lambda: digits.build(7).state_dict(), "does not fit the model: .*size mismatch.*classifier.3", id="shape"
        ),
        pytest.param(
            lambda: without("features.0.bias"), "does not fit the model: Missing.*features.0.bias", id="missing key"
        ),
        pytest.param(
            lambda: {**digits.build().state_dict(), "extra": torch.ones(1)},
            "does not fit the model: Unexpected.*extra",
            id="unexpected key",
        ),
        pytest.param(lambda: {}, "does not fit the model: Missing", id="empty"),
        pytest.param(lambda: torch.ones(3), "expected a state dict of tensors in .*, got Tensor", id="tensor"),
        pytest.param(lambda: {"lr": 0.1}, "expected a state dict of tensors in .*own.pt", id="no tensors"),
        pytest.param(lambda: {3: torch.ones(1)}, "expected a state dict of tensors in .*own.pt", id="no names"),
        pytest.param(lambda: digits.build(), "is no state dict that can be loaded safely: ", id="whole model"),
    ],
)
def test_weights_that_do_not_fit(content: Callable[[], object], message: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "own.pt")
    with pytest.raises(BadInput, match=rf"^weights \(--weights\): .*{message}") as error:
        load("digits", "digits_vgg", "--weights", tmp_path / "own.pt")
    assert len(str(error.value)) < 700
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 10, 1000, 800_000], ids="{} bytes".format)
def test_a_damaged_weights_file(kept: int, tmp_path: Path) -> None:
    (tmp_path / "own.pt").write_bytes(digits.WEIGHTS.read_bytes()[:kept])
    with pytest.raises(
        BadInput, match=r"^weights \(--weights\): .*own.pt is no state dict that can be loaded safely: .+"
    ) as error:
        load("digits", "digits_vgg", "--weights", tmp_path / "own.pt")
    assert not str(error.value).rstrip().endswith("Error:"), "it says why"


@pytest.mark.parametrize(
    "save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))], ids=["torch", "pickle"]
)
def test_a_weights_file_can_not_run_code(save: Callable[[object, Path], object], tmp_path: Path) -> None:
    save({"bomb": Bomb(tmp_path / "exploded")}, tmp_path / "own.pt")
    with pytest.raises(BadInput, match="is no state dict that can be loaded safely"):
        load("digits", "digits_vgg", "--weights", tmp_path / "own.pt")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()  # it would have


# --- one's own model ---

OWN = """
from dataclasses import dataclass

from torch import nn

@dataclass
class Sizes:
    side: int = 32

def build(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * Sizes().side ** 2, num_classes))

def fixed():
    return build(12)
"""


@pytest.mark.parametrize(("factory", "classes"), [("build", 10), ("fixed", 12)])
def test_a_factory_in_a_file(factory: str, classes: int, tmp_path: Path) -> None:
    """It gets the number of classes if it takes it."""
    (tmp_path / "own.py").write_text(OWN)
    model = load("digits", f"{tmp_path / 'own.py'}:{factory}").model
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    assert not model.training


def test_a_factory_in_a_package() -> None:
    model = load("digits", "bitflip.data.digits:build").model
    assert isinstance(model, digits.DigitsVGG)


def test_a_factory_with_weights(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    expected = scatter(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32**2, 10)))
    torch.save(expected.state_dict(), tmp_path / "own.pt")
    classifier = load("digits", f"{tmp_path / 'own.py'}:build", "--weights", tmp_path / "own.pt")
    assert same_weights(classifier.model, expected)


def test_a_factory_of_a_model_without_parameters(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\n\ndef build():\n    return nn.Flatten()\n")
    with pytest.raises(BadInput, match="expected a model with parameters"):
        load("digits", f"{tmp_path / 'own.py'}:build")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("vgg19_bn", "vgg19_bn"),
        ("/home/me/my net.py:build", "my_net-build"),
        ("package.module:build", "package.module-build"),
        ("../odd/näme.py:f", "n_me-f"),
    ],
)
def test_the_model_in_file_names(name: str, stem: str) -> None:
    assert paths.model_stem(name) == stem


# --- heads, quantised models, timm ---


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every enum of torchvision's weights hold random ones, as if they had been downloaded."""

    def get_state_dict(self: Any, *args: object, **kwargs: object) -> dict[str, Any]:
        name = type(self).__name__.removesuffix("_Weights").lower()
        state: dict[str, Any] = scatter(models.untrained(name)[0]).state_dict()
        return state

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("name", "size"), [("googlenet", 224), ("inception_v3", 299)])
def test_auxiliary_heads_with_published_weights(name: str, size: int, no_network: list[object]) -> None:
    """Both were published for images normalised in another way, and convert them themselves."""
    settings, _ = reading.read(["--dataset=imagenet", f"--model-name={name}"])
    assert settings.img_size == size
    classifier = models.load(settings)
    assert vars(classifier.model)["transform_input"] is True
    assert classifier.model(random_images(1, 3, 96, 96)).shape == (1, 1000)


def test_auxiliary_heads_with_own_weights(tmp_path: Path) -> None:
    torch.save(models.untrained("googlenet")[0].state_dict(), tmp_path / "own.pt")
    as_published = load("imagenet", "googlenet", "--weights", tmp_path / "own.pt").model
    as_built = load("folder", "googlenet", "--weights", tmp_path / "own.pt", classes=1000).model
    assert [vars(model)["transform_input"] for model in (as_published, as_built)] == [True, False]


@pytest.mark.usefixtures("published")
def test_published_weights_of_other_classes() -> None:
    sentence = r"weights \(--weights\): expected a state dict of resnet18 for 3 classes, .* published weights have 1000"
    with pytest.raises(BadInput, match=sentence):
        load("folder", "resnet18", classes=3)


def test_own_weights_of_own_classes(tmp_path: Path) -> None:
    expected = scatter(torchvision.models.squeezenet1_1(weights=None, num_classes=3))
    torch.save({"model": expected.state_dict()}, tmp_path / "own.pt")
    assert same_weights(load("folder", "squeezenet1_1", "--weights", tmp_path / "own.pt", classes=3).model, expected)


QUANTISED = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 10))


def dynamic():
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def narrow(dtype):
    model = net()
    model[1].weight = nn.Parameter(model[1].weight.to(dtype), requires_grad=False)
    return model


def int8():
    return narrow(torch.int8)


def float8():
    return narrow(torch.float8_e4m3fn)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize")
@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("dynamic", "1 is a quantised Linear"),
        ("int8", "1.weight is of torch.int8"),
        ("float8", "1.weight is of torch.float8_e4m3fn"),
    ],
)
def test_quantised_models_are_refused(factory: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(QUANTISED)
    with pytest.raises(BadInput) as refused:
        load("cifar10", f"{tmp_path / 'own.py'}:{factory}")
    (sentence,) = refused.value.problems
    assert sentence.startswith("model_name (--model-name): expected a model of float64, float32, float16 or bfloat16")
    assert f"but {what} in " in sentence


class Timm(types.ModuleType):
    """Stands in for timm, which is optional: one model, published for 10 classes."""

    __version__ = "1.0"

    @staticmethod
    def is_model(name: str) -> bool:
        return name == "tiny.v1"

    @staticmethod
    def list_models() -> list[str]:
        return ["tiny"]

    @staticmethod
    def create_model(name: str, *, pretrained: bool, num_classes: int = 10) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
        model.num_classes = num_classes  # type: ignore[assignment]
        return scatter(model, seed=int(pretrained))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Timm("timm")
    module.__spec__ = importlib.machinery.ModuleSpec("timm", None)
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("timm")
def test_timm(tmp_path: Path) -> None:
    classifier = load("cifar10", "timm:tiny.v1")
    assert (classifier.source, classifier.weights) == ("timm 1.0", "published with tiny.v1")
    assert same_weights(classifier.model, Timm.create_model("tiny.v1", pretrained=True))
    expected = Timm.create_model("tiny.v1", pretrained=False, num_classes=3)
    torch.save(expected.state_dict(), tmp_path / "own.pt")
    assert same_weights(load("folder", "timm:tiny.v1", "--weights", tmp_path / "own.pt", classes=3).model, expected)
    with pytest.raises(BadInput, match=r"expected a state dict of timm:tiny.v1 for 100 classes, .* have 10"):
        load("cifar100", "timm:tiny.v1")
    with pytest.raises(BadInput, match=r"model_name \(--model-name\): timm has no model 'tinny'; did you mean 'tiny'"):
        load("cifar10", "timm:tinny")


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings, _ = reading.read(["--model-name=timm:resnet18"])
    assert models.check(settings) == [
        "model_name (--model-name): timm:resnet18 needs timm; install it with: pip install timm"
    ]
