"""A file of weights is read for what it holds, whatever wraps it; what is not the model's is refused by name."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import io
import logging
import os
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet, scatter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bitflip.errors import BadInput
from bitflip.network import weightfile

State = dict[str, Tensor]


def given() -> State:
    """The weights that are saved."""
    return scatter(TinyNet(), seed=3).state_dict()


def other() -> State:
    """Others that fit as well."""
    return scatter(TinyNet(), seed=4).state_dict()


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def as_networks(state: State) -> State:
    """A compiled part in a parallel network, and a parallel one in it."""
    return {
        f"module.{name.replace('bn1.', 'bn1._orig_mod.').replace('conv2.', 'conv2.module.')}": value
        for name, value in state.items()
    }


def averaged() -> State:
    model = AveragedModel(scatter(TinyNet(), seed=3), use_buffers=True)
    model.update_parameters(scatter(TinyNet(), seed=3))
    return model.state_dict()


def in_float64(state: State) -> State:
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def optimiser() -> dict[str, Any]:
    """Of which the state holds tensors by names, too."""
    model = TinyNet()
    found = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    found.step()
    return found.state_dict()


def under(key: str) -> Callable[[], Any]:
    return lambda: {key: given(), "epoch": 3}


def behind(prefix: str) -> Callable[[], Any]:
    return lambda: prefixed(prefix, given())


FORMS: dict[str, Callable[[], Any]] = {
    "plain": given,
    **{f"under {key}": under(key) for key in ("state_dict", "net", "model", "model_state_dict")},
    "any key": lambda: {"the_weights": given()},
    "deep": lambda: {"checkpoint": {"nets": {"best": given()}}},
    **{prefix: behind(prefix) for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model.", "net.")},
    "any name in front": lambda: {"state_dict": prefixed("classifier.", given())},
    "Lightning": lambda: {
        "state_dict": prefixed("model._orig_mod.", given()),
        "optimizer_states": [optimiser()],
        "callbacks": {"best": {"score": torch.tensor(1.0)}},
        "hyper_parameters": {"lr": 0.1},
    },
    "wrappers in it": lambda: as_networks(given()),
    "averaged": averaged,
    "averaged, under a key": lambda: {"model_ema": averaged()},
    "beside an optimiser": lambda: {"model": given(), "optimizer": optimiser()},
    "Namespace": lambda: {"net": given(), "args": argparse.Namespace(lr=0.1, path=Path("data"))},
    "Windows": lambda: {"net": given(), "args": argparse.Namespace(path=PureWindowsPath("data"))},
    "SimpleNamespace": lambda: {"net": given(), "args": types.SimpleNamespace(lr=0.1)},
    "NumPy": lambda: {"net": given(), "acc": np.float64(0.9), "n": np.int64(3), "curve": np.arange(3.0), "b": np.True_},
    "numbers beside tensors": lambda: {**given(), "epoch": 3, "args": argparse.Namespace()},
    "twice the same": lambda: {"model": given(), "ema": given()},
    "of a script": lambda: torch.jit.script(scatter(TinyNet(), seed=3)).state_dict(),
    "float64": lambda: in_float64(given()),
    "before BatchNorm counted": lambda: {k: v for k, v in given().items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_logits(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(FORMS[form](), tmp_path / "own.pt")
    model, expected = TinyNet().eval(), TinyNet().eval()
    weightfile.load(model, tmp_path / "own.pt")
    expected.load_state_dict(given())
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), expected(images))
    assert caplog.messages == []


def test_a_model_with_a_part_named_as_a_wrapper(tmp_path: Path) -> None:
    """Whose names are left alone."""
    model, saved = (nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(prefixed("module.", saved.state_dict()), tmp_path / "own.pt")
    weightfile.load(model, tmp_path / "own.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
    twins = nn.ModuleDict({"module": nn.ModuleDict({"a": nn.Linear(2, 2)}), "a": nn.Linear(2, 2)})
    torch.save(scatter(twins).state_dict(), tmp_path / "twins.pt")
    expected = [value.clone() for value in twins.parameters()]
    scatter(twins, seed=5)
    weightfile.load(twins, tmp_path / "twins.pt")
    assert all(torch.equal(a, b) for a, b in zip(twins.parameters(), expected, strict=True))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_names_that_the_model_knows_are_still_loaded(tmp_path: Path) -> None:
    old = nn.utils.weight_norm(nn.Linear(3, 2))
    torch.save({"state_dict": old.state_dict()}, tmp_path / "own.pt")
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    weightfile.load(model, tmp_path / "own.pt")
    assert torch.equal(model(torch.ones(1, 3)), old(torch.ones(1, 3)))


def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"state_dict": {**prefixed("model.", given()), "loss.weight": torch.ones(10)}}, tmp_path / "own.pt")
    weightfile.load(TinyNet(), tmp_path / "own.pt")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].endswith("own.pt, as no part of the model: loss.weight")


def test_what_is_rounded_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = in_float64(given())
    state["bn1.bias"] += 1e-12
    torch.save(state, tmp_path / "own.pt")
    weightfile.load(TinyNet(), tmp_path / "own.pt")
    (message,) = caplog.messages
    assert "bn1.bias of torch.float64 in " in message
    assert message.endswith("own.pt is rounded to torch.float32")


# --- what is refused ---


@dataclasses.dataclass
class Options:
    """A class of the user's."""

    lr: float = 0.1


def changed(**values: Tensor) -> State:
    return {**given(), **{name.replace("__", "."): value for name, value in values.items()}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(
            lambda: {"model": given(), "model_ema": other()},
            r"expected one state dict in .*own.pt, but several fit the model \(model, model_ema\); save the one",
            id="two",
        ),
        pytest.param(
            lambda: {"state_dict": {**prefixed("model.", given()), **prefixed("net.", other())}},
            r"several fit the model \(state_dict.model, state_dict.net\)",
            id="two networks",
        ),
        pytest.param(
            lambda: {**given(), **prefixed("model.", other())},
            "does not fit the model: (Unexpected .*model.conv1|it holds both conv1.weight and model.conv1.weight)",
            id="two networks, one in front",
        ),
        pytest.param(
            lambda: {**prefixed("model.", given()), **prefixed("ema_model.", other()), "loss.weight": torch.ones(1)},
            r"several fit the model \(model, ema_model\)",
            id="network and average",
        ),
        pytest.param(
            lambda: {**prefixed("student.", given()), **prefixed("loss.", {"weight": torch.ones(1)})},
            "does not fit the model: Missing",
            id="a part of something",
        ),
        pytest.param(
            lambda: {**given(), "ema": other()}, r"several fit the model \(the file itself, ema\)", id="beside"
        ),
        pytest.param(
            lambda: {**given(), **prefixed("module.", other())},
            "does not fit the model: .*module.bn1",
            id="both",
        ),
        pytest.param(
            lambda: {"epoch": 3, "encoder": [given()], "lr": 0.1},
            r"expected a state dict of tensors in .*own.pt, got a dict of epoch, encoder, lr$",
            id="no tensors",
        ),
        pytest.param(
            lambda: {f"key{i}": i for i in range(40)}, r"got a dict of key0, .*, key9 and 30 more$", id="many keys"
        ),
        pytest.param(lambda: [given()], r"expected a state dict of tensors in .*own.pt, got list$", id="list"),
        pytest.param(
            lambda: {"teacher": {"conv2.weight": given()["conv2.weight"]}, "lr": 0.1},
            r"own.pt, under teacher, does not fit the model: Missing .*conv1.weight",
            id="another network",
        ),
        pytest.param(
            lambda: changed(conv1__weight=given()["conv1.weight"].long()),
            "does not fit the model: conv1.weight is of torch.int64 there, and not of real floating-point numbers$",
            id="integers",
        ),
        pytest.param(
            lambda: changed(conv1__weight=given()["conv1.weight"] > 0), "conv1.weight is of torch.bool there", id="bool"
        ),
        pytest.param(
            lambda: changed(conv1__weight=given()["conv1.weight"].to(torch.complex64)),
            "does not fit the model: conv1.weight is of torch.complex64 there, and not of real floating-point numbers$",
            id="complex",
        ),
        pytest.param(
            lambda: changed(bn1__num_batches_tracked=torch.tensor(0.5)),
            "bn1.num_batches_tracked is of torch.float32 there, and not of torch.int64$",
            id="fractions",
        ),
        pytest.param(
            lambda: changed(conv1__weight=given()["conv1.weight"].to("meta")),
            "conv1.weight is of torch.float32 there, on the device meta, without values$",
            id="meta",
        ),
        pytest.param(
            lambda: {"net": given(), "options": Options()},
            r"is no state dict that can be loaded safely: .*hold code beside tensors \(\w*test_weightfile.Options\)$",
            id="a class of the user's",
        ),
    ],
)
def test_what_is_not_plainly_the_models(content: Callable[[], Any], sentence: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "own.pt")
    with pytest.raises(BadInput, match=rf"^weights \(--weights\): .*{sentence}") as refused:
        weightfile.load(TinyNet(), tmp_path / "own.pt")
    assert "\n" not in str(refused.value)


class Forged:
    """A number of NumPy whose type says that its bytes are the address of an object."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.float64(0).__reduce__()[0], (ForgedType(), b"\1" * 8)


class ForgedType:
    """The type: float64 with the flags of objects."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("f8", False, True), (3, "<", None, None, None, 8, 8, 1)


def test_what_is_left_out_is_not_made(tmp_path: Path) -> None:
    """NumPy would follow a forged address."""
    torch.save({"net": given(), "args": argparse.Namespace(loss=Forged())}, tmp_path / "own.pt")
    content = weightfile._content(tmp_path / "own.pt", TinyNet())
    assert type(content["args"]) is weightfile._LeftOut
    assert vars(content["args"]) == {}
    weightfile.load(TinyNet(), tmp_path / "own.pt")


class Touches:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_code_among_what_is_left_out_is_not_run(tmp_path: Path) -> None:
    torch.save({"net": given(), "args": argparse.Namespace(x=Touches(tmp_path / "made"))}, tmp_path / "own.pt")
    with pytest.raises(BadInput, match=r"hold code beside tensors"):
        weightfile.load(TinyNet(), tmp_path / "own.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("save", "what"),
    [
        (lambda m, path: torch.jit.save(torch.jit.script(m), path), "a TorchScript archive"),
        (
            lambda m, path: torch.export.save(torch.export.export(m, (torch.zeros(2, 3, 8, 8),)), path),
            "a torch.export program",
        ),
    ],
    ids=["script", "export"],
)
def test_a_file_of_a_program(save: Callable[[Any, Path], None], what: str, tmp_path: Path, tiny: nn.Module) -> None:
    path = tmp_path / "own.pt2"
    save(tiny, path)
    with pytest.raises(BadInput) as refused:
        weightfile.load(TinyNet(), path)
    assert str(refused.value) == (
        f"weights (--weights): expected a state dict, but {path} is {what}; save the state_dict() of the model that it "
        "was made from"
    )


def packed(path: Path, size: int) -> None:
    """The file of a state dict of so many bytes of zeros, packed, as torch never does."""
    plain = path.with_suffix(".plain")
    torch.save({**given(), "conv1.weight": torch.zeros(size // 4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    plain.unlink()


def test_a_file_that_unpacks_to_far_more_than_the_model_needs(tmp_path: Path) -> None:
    """It is refused by its directory: nothing of it is unpacked."""
    path = tmp_path / "own.pt"
    packed(path, 200 << 20)
    assert path.stat().st_size < 2 << 20
    start = time.perf_counter()
    with pytest.raises(
        BadInput, match=r"expected a state dict of 0.0 MiB, but .*own.pt \(\d.\d MiB\) unpacks to 200.0 M"
    ):
        weightfile.load(TinyNet(), path)
    assert time.perf_counter() - start < 1
    with pytest.raises(BadInput, match="unpacks to"):
        weightfile.load(nn.LazyLinear(10), path)
    with pytest.raises(BadInput, match="does not fit the model"):  # but of a model of that size, it would be read
        weightfile.load(nn.Linear(1 << 12, 1 << 10), path)


def test_room_for_what_training_saves(tmp_path: Path) -> None:
    """Weights, their average and two moments, in float64: more than the slack that small files have."""
    model = nn.Linear(1 << 12, 1 << 10)
    state = in_float64(model.state_dict())
    torch.save(
        {"model": state, "average": {"of": state}, "moments": [value.clone() for value in state.values()] * 2},
        tmp_path / "own.pt",
    )
    weightfile.load(model, tmp_path / "own.pt")


# --- safetensors ---


@pytest.fixture
def safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for safetensors, which is optional, where it is not installed."""
    if importlib.util.find_spec("safetensors") is None:
        package, module = types.ModuleType("safetensors"), types.ModuleType("safetensors.torch")

        def load_file(path: Path) -> Any:
            return torch.load(io.BytesIO(path.read_bytes()), weights_only=True)

        module.load_file, module.save_file = load_file, torch.save  # type: ignore[attr-defined]
        package.torch, package.__spec__ = module, importlib.util.spec_from_loader("safetensors", None)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "safetensors", package)
        monkeypatch.setitem(sys.modules, "safetensors.torch", module)


@pytest.mark.usefixtures("safetensors")
def test_safetensors(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file(prefixed("model.", given()), path)
    assert weightfile.check(path) == []
    model = TinyNet()
    weightfile.load(model, path)
    assert all(torch.equal(value, given()[name]) for name, value in model.state_dict().items())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"weights \(--weights\): .*own.safetensors is no state dict that can be loaded"):
        weightfile.load(model, path)


def test_safetensors_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert weightfile.check(path) == [
        f"weights (--weights): {path} needs safetensors; install it with: pip install safetensors"
    ]
