"""Faults strike where they should, as an obvious computation and the stock PyTorchFI say, and leave no trace."""

from __future__ import annotations

import copy
import logging
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import TinyNet, random_images, scatter
from pytorchfi.core import fault_injection
from torch import Tensor, nn
from torch.nn import functional as F

from bitflip.data import digits
from bitflip.engines.injection import Injector, WithInput
from bitflip.errors import BadInput
from bitflip.faults.flips import Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.network import bits
from bitflip.network.layers import Layer

SHAPE = (3, 8, 8)
TINY_LAYERS = [
    ("input", 0, "Identity", (3, 8, 8), None),
    ("conv1", 0, "Conv2d", (4, 8, 8), (4, 3, 3, 3)),
    ("bn1", 0, "BatchNorm2d", (4, 8, 8), (4,)),
    ("relu", 0, "ReLU", (4, 8, 8), None),
    ("conv2", 0, "Conv2d", (4, 8, 8), (4, 4, 3, 3)),
    ("bn2", 0, "BatchNorm2d", (4, 8, 8), (4,)),
    ("relu", 1, "ReLU", (4, 8, 8), None),
    ("pool", 0, "MaxPool2d", (4, 4, 4), None),
    ("drop", 0, "Dropout", (64,), None),
    ("linear", 0, "Linear", (10,), (10, 64)),
]
IDS = [f"{path}-call{call}" for path, call, *_ in TINY_LAYERS]


class Views(nn.Module):
    """Outputs of 2, 3 and 4 dimensions, some not contiguous, and weights of 1, 2, 3 and 4: (B, 3, 8, 8) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.turn = Turn()
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Conv1d(64, 6, 1)
        self.linear = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.turn(self.conv(x)).flatten(1, 2)  # (B, 8, 8, 4) -> (B, 64, 4)
        logits: Tensor = self.linear(self.mix(self.norm(x)).flatten(1))
        return logits


class Turn(nn.Module):
    """Channels last, as a view: (B, C, H, W) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the view."""
        return x.permute(0, 2, 3, 1)


def injector_of(model: nn.Module, batch_size: int = 8, *, with_input: bool = True) -> Injector:
    return Injector(WithInput(model) if with_input else model, batch_size, torch.zeros(1, *SHAPE))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN being equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether all parameters and buffers have the same bytes as before."""
    after = model.state_dict()
    return [*after] == [*before] and all(
        after[name].numpy().tobytes() == value.numpy().tobytes() for name, value in before.items()
    )


def hooks(model: nn.Module) -> int:
    """Number of hooks of all kinds on all modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def flipped(value: float, bit: int) -> float:
    """A float32 with one bit flipped, by way of its bytes."""
    (integer,) = struct.unpack(">I", struct.pack(">f", value))
    (error,) = struct.unpack(">f", struct.pack(">I", integer ^ (1 << (31 - bit))))
    return float(error)


def weight_shape(layer: Layer) -> tuple[int, ...] | None:
    weight = layer.parameter("weight")
    return None if weight is None else weight.shape


def struck(output: Tensor, flips: Flips) -> Tensor:
    """A layer's output with the flips in it, one value after the other."""
    rows = output.clone(memory_format=torch.contiguous_format)
    for row, element, bit in zip(rows, flips.element.tolist(), flips.bit.tolist(), strict=True):
        flat = row.view(-1)
        flat[element] = flipped(flat[element].item(), bit)
    return rows


# --- zero faults, zero effect ---


@pytest.fixture
def no_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every fault be injected, and change nothing."""
    monkeypatch.setattr(bits, "changed", lambda values, masks: values.clone())


def run_all(injector: Injector, target: TargetKind, images: Tensor) -> list[Tensor]:
    """The top-1 of all images under a fault in each layer that the target has, layer by layer."""
    top1 = []
    for layer in injector.layers:
        if target == "weight" and layer.parameter("weight") is None:
            continue
        flips = (
            neuron_flips(1, layer, 0, len(images))
            if target == "neuron"
            else parameter_flip(1, layer, 0, parameter="weight")
        )
        with torch.no_grad(), injector.injected(flips):
            top1.append(injector.original_model(images).argmax(dim=1))
    return top1


@pytest.mark.usefixtures("no_flip")
@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("handed_over", ["eval", "train"])
def test_no_flip_no_misclassification(target: TargetKind, handed_over: str, digits_model: nn.Module) -> None:
    """A model that is handed over in training mode must not be run in it, not even by PyTorchFI's dummy image."""
    images, _ = digits.load("test")[:96]
    model = copy.deepcopy(digits_model).train(handed_over == "train")
    injector = Injector(WithInput(model) if target == "neuron" else model, 96, torch.zeros(1, 3, 32, 32))
    top1 = run_all(injector, target, images)
    assert len(top1) == (24 if target == "neuron" else 12)
    assert all(torch.equal(found, digits_model(images).argmax(dim=1)) for found in top1)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_flips_do_misclassify(target: TargetKind, digits_model: nn.Module) -> None:
    """The test above can fail."""
    images, _ = digits.load("test")[:96]
    injector = Injector(WithInput(digits_model) if target == "neuron" else digits_model, 96, torch.zeros(1, 3, 32, 32))
    assert any(
        not torch.equal(found, digits_model(images).argmax(dim=1)) for found in run_all(injector, target, images)
    )


@pytest.mark.parametrize("index", range(len(TINY_LAYERS)), ids=IDS)
def test_the_same_flip_twice_is_no_flip(index: int, tiny: nn.Module) -> None:
    injector, images = injector_of(tiny), random_images(8, *SHAPE)
    flips = neuron_flips(3, injector.layers[index], 0, 8)
    with torch.no_grad(), injector.neurons(flips), injector.neurons(flips):
        assert torch.equal(injector.original_model(images), tiny(images))


# --- the constructor ---


@pytest.mark.parametrize("handed_over", ["eval", "train"])
def test_constructor_leaves_the_model_as_it_was_but_in_eval_mode(handed_over: str) -> None:
    model = scatter(TinyNet()).train(handed_over == "train")
    before = state(model)
    injector = injector_of(model)
    assert same_state(model, before)
    assert not any(module.training for module in injector.original_model.modules())
    assert hooks(injector.original_model) == 0


def test_constructor_leaves_the_random_state_alone(tiny: nn.Module) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    injector_of(tiny)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_constructor_leaves_logging_alone(tiny: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorchFI sets up the root logger, when nobody has, with a format that asks for fields that no record has."""
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    injector_of(tiny)
    assert logging.root.handlers == []
    assert logging.root.level == level


def test_constructor_leaves_nothing_behind_when_the_model_can_not_take_the_image(tiny: nn.Module) -> None:
    before, random_state = state(tiny), torch.get_rng_state()
    with pytest.raises(BadInput, match=r"img_size, channels .*can't take 3 channels of 12 x 12 pixels: .*shapes"):
        Injector(tiny, 8, torch.zeros(1, 3, 12, 12))
    assert hooks(tiny) == 0
    assert same_state(tiny, before)
    assert torch.equal(torch.get_rng_state(), random_state)


# --- layers ---


@pytest.mark.parametrize("with_input", [True, False], ids=["with input", "without input"])
def test_layers_are_the_calls_in_order(with_input: bool, tiny: nn.Module) -> None:
    found = injector_of(tiny, with_input=with_input).layers
    expected = TINY_LAYERS if with_input else TINY_LAYERS[1:]
    assert [(la.path, la.call, la.type, la.shape, weight_shape(la)) for la in found] == expected
    assert [layer.position for layer in found] == list(range(len(expected)))
    assert {layer.bits for layer in found} == {32}
    assert {parameter.bits for layer in found for parameter in layer.parameters} == {32}


def test_a_module_of_the_name_input_is_not_taken_for_the_image() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Linear(192, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.input(x.flatten(1))
            return logits

    model, images = Named().eval(), random_images(4, *SHAPE)
    injector = injector_of(model)
    assert [(layer.path, layer.call) for layer in injector.layers] == [("input", 0), ("model.input", 0)]
    flips = neuron_flips(7, injector.layers[0], 0, 4, bit=0)
    with torch.no_grad(), injector.neurons(flips):
        assert torch.equal(injector.original_model(images), model(struck(images, flips)))


def test_outputs_that_are_no_floating_point_tensor_are_no_layers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 10, batch_first=True)
            self.choose = Choose()

        def forward(self, x: Tensor) -> Tensor:
            rows, _ = self.lstm(x[:, 0])
            self.choose(rows)
            last: Tensor = rows[:, -1]
            return last

    class Choose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(dim=-1)

    injector = injector_of(Odd())
    assert [layer.path for layer in injector.layers] == ["input", "lstm"]
    assert injector.logits_shape == (1, 10)


def test_a_model_that_is_a_single_layer_has_one() -> None:
    model = nn.Linear(8, 10)
    assert [(layer.path, layer.shape) for layer in injector_of(model).layers] == [
        ("input", SHAPE),
        ("model", (3, 8, 10)),
    ]
    assert [(layer.path, layer.shape) for layer in injector_of(model, with_input=False).layers] == [("", (3, 8, 10))]


@pytest.mark.parametrize("types", [None, ("Conv2d", "ReLU")], ids=["all", "some"])
def test_summary_is_pytorchfis_and_lists_the_layers(types: tuple[str, ...] | None, tiny: nn.Module) -> None:
    injector = injector_of(tiny, batch_size=48)
    text = injector.summary(types)
    assert "PYTORCHFI INIT SUMMARY" in text
    assert "Shape of input into the model: (3 8 8 )" in text
    assert "Batch Size: 48" in text
    rows = [line.split(maxsplit=3) for line in text.splitlines() if line.strip()[:1].isdigit()]
    kept = [layer for layer in injector.layers if types is None or layer.type in types]
    assert [row[:3] for row in rows] == [[str(i), la.type, str(1 + len(la.shape))] for i, la in enumerate(kept)]
    for (*_, shapes), layer in zip(rows, kept, strict=True):
        assert shapes.split() == f"{[*(weight_shape(layer) or ())]} {[1, *layer.shape]}".split()


def test_summary_is_not_printed(tiny: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    injector_of(tiny).summary(None)
    assert capsys.readouterr().out == ""


# --- the fault itself ---


def by_hand(model: TinyNet, x: Tensor, strike: Callable[[int, Tensor], Tensor]) -> Tensor:
    """`TinyNet` written out; ``strike`` gets the number and the output of each layer and returns what goes on."""
    x = strike(0, x)
    x = strike(1, F.conv2d(x, model.conv1.weight, model.conv1.bias, padding=1))
    x = strike(2, model.bn1(x))
    x = strike(3, F.relu(x))
    y = strike(4, F.conv2d(x, model.conv2.weight, model.conv2.bias, padding=1))
    y = strike(5, model.bn2(y))
    x = strike(6, F.relu(y + x))
    x = strike(7, F.max_pool2d(x, 2))
    x = strike(8, x.flatten(1))
    return strike(9, F.linear(x, model.linear.weight, model.linear.bias))


@pytest.mark.parametrize("bit", [None, 0, 1, 31], ids=["random bits", "bit 0", "bit 1", "bit 31"])
@pytest.mark.parametrize("index", range(len(TINY_LAYERS)), ids=IDS)
def test_neuron_faults_are_those_of_an_obvious_computation(index: int, bit: int | None) -> None:
    """The values before and after, and the logits."""
    model = scatter(TinyNet()).eval()
    assert isinstance(model, TinyNet)
    injector, images = injector_of(model), random_images(8, *SHAPE)
    flips = neuron_flips(7, injector.layers[index], 0, 8, bit)
    outputs: list[Tensor] = []

    def strike(number: int, output: Tensor) -> Tensor:
        if number != index:
            return output
        outputs.extend([output, struck(output, flips)])
        return outputs[1]

    with torch.no_grad():
        expected = by_hand(model, images, strike)
        with injector.neurons(flips) as injected:
            logits = injector.original_model(images)
    assert same_bits(logits, expected)
    assert injected.original is not None
    assert injected.error is not None
    where = torch.arange(8), torch.from_numpy(flips.element)
    assert same_bits(injected.original, outputs[0].flatten(1)[where])
    assert same_bits(injected.error, outputs[1].flatten(1)[where])


def test_each_image_has_a_fault_of_its_own_and_no_other(tiny: nn.Module) -> None:
    """An image's faulty logits do not depend on the others in the batch."""
    injector, images = injector_of(tiny), random_images(8, *SHAPE)
    layer = injector.layers[1]
    with torch.no_grad():
        with injector.neurons(neuron_flips(7, layer, 0, 8, bit=1)):
            together = injector.original_model(images)
        for i in range(8):
            with injector.neurons(neuron_flips(7, layer, i, 1, bit=1)):
                torch.testing.assert_close(
                    injector.original_model(images[i : i + 1]), together[i : i + 1], equal_nan=True
                )


def test_a_flip_in_the_second_call_leaves_the_first_alone(tiny: nn.Module) -> None:
    injector, images = injector_of(tiny), random_images(8, *SHAPE)
    first, second = (layer for layer in injector.layers if layer.path == "relu")
    seen: list[Tensor] = []
    handle = tiny.get_submodule("pool").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    conv2 = tiny.get_submodule("conv2").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        tiny(images)
        with injector.neurons(neuron_flips(7, second, 0, 8, bit=0)):
            injector.original_model(images)
        with injector.neurons(neuron_flips(7, first, 0, 8, bit=0)):
            injector.original_model(images)
    handle.remove()
    conv2.remove()
    (clean_1, clean_2), (second_1, second_2), (first_1, _) = zip(seen[::2], seen[1::2], strict=True)
    assert torch.equal(second_1, clean_1)
    assert (second_2.signbit() != clean_2.signbit()).flatten(1).sum(dim=1).tolist() == [1] * 8
    assert (first_1.signbit() != clean_1.signbit()).flatten(1).sum(dim=1).tolist() == [1] * 8


def test_a_flip_in_a_layer_that_returns_its_input_leaves_the_input_alone() -> None:
    """Dropout in eval mode and Identity return the very tensor that a residual branch goes on with."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1) * self.scale
            return torch.cat([self.drop(x), x], dim=1)

    model, images = Branch(), random_images(4, *SHAPE)
    injector = injector_of(model, with_input=False)
    flips = neuron_flips(7, injector.layers[0], 0, 4, bit=0)
    with torch.no_grad(), injector.neurons(flips):
        left, right = model(images).chunk(2, dim=1)
    assert torch.equal(right, images.flatten(1))
    assert (left != right).sum(dim=1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("path", ["conv", "turn", "norm", "mix", "linear"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dimensions_and_memory_formats(path: str, memory_format: torch.memory_format) -> None:
    """Exactly one element per image differs, it is the one that the fault names, and the memory format is kept."""
    model = scatter(Views()).eval().to(memory_format=memory_format)
    images = random_images(8, *SHAPE).contiguous(memory_format=memory_format)
    injector = injector_of(model, with_input=False)
    (layer,) = (layer for layer in injector.layers if layer.path == path)
    flips = neuron_flips(7, layer, 0, 8)
    outputs: list[Tensor] = []
    model.get_submodule(path).register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        model(images)
        clean = outputs[0].clone(memory_format=torch.preserve_format)
        with injector.neurons(flips):
            handle = model.get_submodule(path).register_forward_hook(lambda m, args, output: outputs.append(output))
            model(images)
            handle.remove()
    assert torch.equal(outputs[1], clean)  # what the layer itself returned
    assert same_bits(outputs[2], struck(clean, flips))
    assert outputs[2].stride() == outputs[0].stride()
    assert {len(la.shape) + 1 for la in injector.layers} == {2, 3, 4}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_value_types(dtype: torch.dtype) -> None:
    model = scatter(TinyNet()).eval().to(dtype)
    injector, images = injector_of(model), random_images(8, *SHAPE).to(dtype)
    assert {layer.bits for layer in injector.layers} == {bits.width(dtype)}
    flips = neuron_flips(7, injector.layers[4], 0, 8)
    with torch.no_grad(), injector.neurons(flips) as injected:
        injector.original_model(images)
    assert injected.original is not None
    assert injected.error is not None
    assert injected.original.dtype == injected.error.dtype == dtype
    for before, after, bit in zip(injected.original, injected.error, flips.bit.tolist(), strict=True):
        assert [i for i, (a, b) in enumerate(zip(bits.text(before), bits.text(after), strict=True)) if a != b] == [bit]


def test_rows_of_a_batch_that_is_folded_into_windows() -> None:
    """(B * windows, ...), as window attention has it: each image's flip is among its own windows."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.Linear(16, 16)
            self.linear = nn.Linear(192, 10)

        def forward(self, x: Tensor) -> Tensor:
            windows = self.attend(x.reshape(-1, 3, 16))  # (B, 3, 8, 8) -> (4 B, 3, 16)
            logits: Tensor = self.linear(windows.reshape(len(x), -1))
            return logits

    model, images = scatter(Windows()).eval(), random_images(8, *SHAPE)
    injector = injector_of(model, with_input=False)
    layer = injector.layers[0]
    assert (layer.path, layer.shape) == ("attend", (4, 3, 16))
    flips = neuron_flips(7, layer, 0, 8)
    with torch.no_grad():
        rows = F.linear(
            images.reshape(-1, 3, 16), *(model.get_parameter(f"attend.{name}") for name in ("weight", "bias"))
        )
        expected = model.get_submodule("linear")(struck(rows.reshape(8, 4, 3, 16), flips).reshape(8, -1))
        with injector.neurons(flips) as injected:
            assert same_bits(model(images), expected)
    assert torch.equal(injected.original, rows.reshape(8, -1)[torch.arange(8), torch.from_numpy(flips.element)])
    assert same_bits(injected.error, bits.flip(injected.original, torch.from_numpy(flips.bit)))


def test_a_batch_of_another_size_than_the_flips_is_an_error(tiny: nn.Module) -> None:
    injector = injector_of(tiny)
    with (
        pytest.raises(RuntimeError, match=r"conv1: 8 images of \(4, 8, 8\) expected, got \(7, 4, 8, 8\)"),
        injector.neurons(neuron_flips(7, injector.layers[1], 0, 8)),
    ):
        injector.original_model(random_images(7, *SHAPE))
    assert hooks(injector.original_model) == 0


WEIGHTS = [
    pytest.param(TinyNet, "conv1", 4, id="4 dimensions"),
    pytest.param(Views, "mix", 3, id="3 dimensions"),
    pytest.param(TinyNet, "linear", 2, id="2 dimensions"),
    pytest.param(TinyNet, "bn2", 1, id="1 dimension"),
]


@pytest.mark.parametrize("bit", [None, 0, 1, 31], ids=["random bit", "bit 0", "bit 1", "bit 31"])
@pytest.mark.parametrize(("kind", "path", "dimensions"), WEIGHTS)
def test_weight_faults_are_those_of_an_obvious_computation(
    kind: type[nn.Module], path: str, dimensions: int, bit: int | None
) -> None:
    model, images = scatter(kind()).eval(), random_images(8, *SHAPE)
    injector = injector_of(model, with_input=False)
    (layer,) = (layer for layer in injector.layers if layer.path == path)
    flips = parameter_flip(7, layer, 0, bit, parameter="weight")
    broken = copy.deepcopy(model)
    weight = broken.get_parameter(f"{path}.weight")
    assert weight.dim() == dimensions
    before = state(model)
    with torch.no_grad():
        flat = weight.view(-1)
        value = flat[int(flips.element[0])].item()
        flat[int(flips.element[0])] = error = flipped(value, int(flips.bit[0]))
        expected = broken(images)
        with injector.weight(flips) as injected:
            logits = model(images)
    assert same_bits(logits, expected)
    assert injected.original is not None
    assert injected.error is not None
    assert same_bits(injected.original, torch.tensor([value]))
    assert same_bits(injected.error, torch.tensor([error]))
    assert same_state(model, before)


# --- the stock tool says the same ---


def stock(model: nn.Module, kind: type[nn.Module]) -> fault_injection:
    """PyTorchFI 0.6.0 as its documentation uses it, on a copy of the model."""
    return fault_injection(copy.deepcopy(model), 8, list(SHAPE), layer_types=[kind])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear], ids=["Conv2d", "Linear"])
def test_stock_pytorchfi_gives_the_same_logits_for_neurons(kind: type[nn.Module], seed: int, tiny: nn.Module) -> None:
    injector, images = injector_of(tiny, with_input=False), random_images(8, *SHAPE)
    chosen = [layer for layer in injector.layers if layer.type == kind.__name__]
    for number, layer in enumerate(chosen):
        flips = neuron_flips(seed, layer, 0, 8)
        with torch.no_grad():
            with injector.neurons(flips) as injected:
                logits = tiny(images)
            assert injected.error is not None
            places = [[*flips.coordinates(i), None, None][:3] for i in range(8)]
            corrupted = stock(tiny, kind).declare_neuron_fi(
                batch=list(range(8)),
                layer_num=[number] * 8,
                dim1=[place[0] for place in places],
                dim2=[place[1] for place in places],
                dim3=[place[2] for place in places],
                value=injected.error.tolist(),
            )
            assert same_bits(corrupted(images), logits)
            assert not same_bits(tiny(images), logits)


@pytest.mark.parametrize("seed", [1, 2])
def test_stock_pytorchfi_gives_the_same_logits_for_weights(seed: int, tiny: nn.Module) -> None:
    injector, images = injector_of(tiny, with_input=False), random_images(8, *SHAPE)
    for number, layer in enumerate([layer for layer in injector.layers if layer.type == "Conv2d"]):
        flips = parameter_flip(seed, layer, 0, bit=1, parameter="weight")
        with torch.no_grad():
            with injector.weight(flips) as injected:
                logits = tiny(images)
            assert injected.error is not None
            k, *place = flips.coordinates(0)
            corrupted = stock(tiny, nn.Conv2d).declare_weight_fi(
                layer_num=[number],
                k=[k],
                dim1=[place[0]],
                dim2=[place[1]],
                dim3=[place[2]],
                value=injected.error.tolist(),
            )
            assert same_bits(corrupted(images), logits)
            assert not same_bits(tiny(images), logits)


# --- everything is undone ---


class Boom(nn.Module):
    """Fails when it is run while armed."""

    armed = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        if self.armed:
            raise RuntimeError("boom")
        return x


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_an_exception_in_the_block_is_passed_on_and_leaves_nothing(
    target: TargetKind, error: type[BaseException], tiny: nn.Module
) -> None:
    injector, images = injector_of(tiny, with_input=False), random_images(8, *SHAPE)
    before, clean = state(tiny), tiny(images)
    for layer in injector.layers:
        if target == "weight" and layer.parameter("weight") is None:
            continue
        flips = (
            neuron_flips(7, layer, 0, 8, 1)
            if target == "neuron"
            else parameter_flip(7, layer, 0, 1, parameter="weight")
        )
        with pytest.raises(error), injector.injected(flips):  # noqa: PT012 - the block is what is tested
            tiny(images)
            assert hooks(tiny) == 1 if target == "neuron" else not same_state(tiny, before)
            raise error
        assert hooks(tiny) == 0
        assert same_state(tiny, before)
        assert torch.equal(tiny(images), clean)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_an_exception_in_the_model_leaves_nothing(target: TargetKind, tiny: nn.Module) -> None:
    boom = Boom()
    model = nn.Sequential(tiny, boom).eval()
    injector, before = injector_of(model, with_input=False), state(model)
    boom.armed = True
    layer = injector.layers[0]
    flips = neuron_flips(7, layer, 0, 8) if target == "neuron" else parameter_flip(7, layer, 0, parameter="weight")
    with pytest.raises(RuntimeError, match="boom"), injector.injected(flips):
        model(random_images(8, *SHAPE))
    assert hooks(model) == 0
    assert same_state(model, before)


def test_a_weight_that_is_nan_gets_its_payload_back(tiny: nn.Module) -> None:
    weight = tiny.get_parameter("bn1.weight")
    payload = torch.tensor([0x7F800001, -0x800000 + 5, -0x80000000, 1], dtype=torch.int32)  # NaN, NaN, -0.0, subnormal
    with torch.no_grad():
        weight.copy_(payload.view(torch.float32))
    injector = injector_of(tiny, with_input=False)
    for batch in range(12):
        with injector.weight(parameter_flip(7, injector.layers[1], batch, parameter="weight")):
            assert not torch.equal(weight.detach().view(torch.int32), payload)
        assert torch.equal(weight.detach().view(torch.int32), payload)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_faults_in_all_layers_leave_nothing(target: TargetKind, digits_model: nn.Module) -> None:
    model = copy.deepcopy(digits_model)
    before = state(model)
    injector = Injector(WithInput(model) if target == "neuron" else model, 8, torch.zeros(1, 3, 32, 32))
    run_all(injector, target, random_images(8, 3, 32, 32))
    assert hooks(injector.original_model) == 0
    assert same_state(model, before)
