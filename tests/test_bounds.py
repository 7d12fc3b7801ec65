"""No fault that a bound lets go of can change the class: norms, constants of networks, and whole runs."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import DEVICE, FewDigits, RunScript, random_images, scatter
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig

import bitflip
from benchmarks import networks
from bitflip import __main__ as command_line
from bitflip import csvs, engines
from bitflip.data import digits
from bitflip.engines import coverage, norms
from bitflip.engines.bounds import Bounds
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.proofs import Proof
from bitflip.engines.striking import Struck
from bitflip.engines.windows import Window
from bitflip.errors import BadInput
from bitflip.faults.flips import TargetKind, neuron_flips, parameter_flip
from bitflip.network.devices import Placement
from bitflip.network.layers import Target, targets
from bitflip.outcomes.batch import BatchOutcomes, Effect

CPU = Placement(DEVICE, torch.float32)


# --- norms ---


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (1, 5), (40, 40), (64, 30)])
def test_the_bound_of_a_matrix(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    matrices[2] *= 1e-3
    matrices[3, :, 0] *= 30
    true = float(torch.linalg.matrix_norm(matrices, 2).max())
    assert true <= norms.of_matrices(matrices) <= 1.05 * true


@pytest.mark.parametrize("matrix", [torch.zeros(2, 3, 3), torch.zeros(1, 0, 3)], ids=["zeros", "empty"])
def test_the_bound_of_nothing(matrix: Tensor) -> None:
    assert norms.of_matrices(matrix) == 0.0


def test_what_is_not_finite_has_no_bound() -> None:
    assert norms.of_matrices(torch.tensor([[[1.0, math.nan]]])) == math.inf


CONVOLUTIONS = pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (6, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (7, 7)),
        (nn.Conv2d(2, 5, 5, stride=2, padding=2), (9, 8)),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), (7, 6)),
        (nn.Conv2d(4, 4, 1, stride=2), (7, 6)),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 6)),
        (nn.Conv2d(3, 3, 7, stride=4, padding=3), (11, 11)),
        (nn.Conv2d(2, 3, (1, 5), padding=(0, 2)), (6, 9)),
        (nn.Conv2d(4, 8, 3, padding=1), (2, 2)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 3)),
        (nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6), (3, 5)),
    ],
    ids=str,
)


def operator(layer: nn.Conv2d, size: tuple[int, int]) -> tuple[Tensor, tuple[Any, ...]]:
    """A convolution with new weights as a matrix, from all values of a map to all others, and how norms takes it."""
    scatter(layer)
    values = layer.in_channels * math.prod(size)
    one = torch.eye(values, dtype=torch.float64).view(values, layer.in_channels, *size)
    weight = layer.weight.detach().double()
    whole = F.conv2d(one, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    geometry = (list(layer.stride), list(map(int, layer.padding)), list(layer.dilation), layer.groups)
    return whole.flatten(1).T, (weight, list(size), *geometry)


@CONVOLUTIONS
def test_the_bound_of_a_convolution(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    matrix, given = operator(layer, size)
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true <= norms.of_convolution(*given) <= 1.3 * true


@CONVOLUTIONS
def test_the_bounds_of_its_channels_and_of_single_numbers(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    matrix, given = operator(layer, size)
    channels, numbers = norms.of_columns(*given)
    most = 1 + 1e-6 if math.prod(size) <= norms.SMALL else 1.6
    for part, channel, number in zip(matrix.hsplit(layer.in_channels), channels, numbers, strict=True):
        true = float(torch.linalg.matrix_norm(part, 2))
        assert true <= channel <= most * true
        true = float(part.norm(dim=0).max())
        assert true <= number <= most * true


# --- constants of networks ---


class Shifted(nn.Module):
    """A layer of the user's own: (B, C, H, W) -> the same, with other channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, 2:], (0, 0, 0, 0, 1, 1))


class Everything(nn.Module):
    """(B, 3, 16, 16) -> (B, 5), with all that has a constant, and something that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.leaky = nn.LeakyReLU(0.2)
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.silu, self.gelu, self.swish, self.six = nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.ReLU6()
        self.average = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.adaptive = nn.AdaptiveAvgPool2d(3)
        self.shifted = Shifted()
        self.hidden = nn.Linear(72, 12)
        self.last = nn.Linear(12 + 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.leaky(self.norm(self.first(x))))
        x = x + 0.5 * self.silu(self.point(self.depth(x)))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([self.gelu(b), a - b / 4], 1)
        averages = self.average(self.swish(self.shifted(x)))
        x = F.avg_pool2d(self.six(x), 2) + averages
        x = x.view(-1, 2, 4, 4, 4).transpose(1, 2).reshape(-1, 8, 4, 4)
        features = torch.tanh(self.hidden(self.adaptive(x).flatten(1)))
        logits: Tensor = self.last(torch.cat([features, x.mean((2, 3)), self.also(x)], 1))
        return logits

    def also(self, x: Tensor) -> Tensor:
        """What has no constant, and is multiplied by 0."""
        return x.amax((2, 3)) * 0


class Plain(Everything):
    """The same without what has none."""

    def also(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def prepared(model: nn.Module, images: Tensor) -> tuple[Injector, Program]:
    injector = Injector(WithInput(model.eval().requires_grad_(False)), len(images), images)
    return injector, Program(injector.original_model, injector.modules, injector.layers, images)


class Placed(nn.Module):
    """(B, 3, 16, 16) -> (B, 5), whose channels come to stand elsewhere, and are read with different weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, 2, padding=1)
        self.third = nn.Conv2d(10, 6, 3, 2, padding=1)
        self.hidden, self.last = nn.Linear(96, 12), nn.Linear(12, 5)
        for layer in (self.third, self.second):
            layer.weight.data *= 10 ** torch.rand(layer.weight.shape[1])[:, None, None]
        self.hidden.weight.data *= (10 ** torch.rand(6)).repeat_interleave(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat([self.second(x), F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))], dim=1)
        logits: Tensor = self.last(self.hidden(torch.relu(self.third(x)).flatten(1)))
        return logits


@contextlib.contextmanager
def moving(module: nn.Module, size: float, direction: Tensor | None, part: tuple[Any, ...]) -> Iterator[list[Tensor]]:
    """While open, a part of a module's output for each image moves by so much in a direction, or a random one."""
    moved: list[Tensor] = []

    def move(module: nn.Module, args: object, output: Tensor) -> Tensor:
        only = torch.zeros_like(output)
        only[part] = 1.0
        chosen = only * (random_images(*output.shape).double() if direction is None else direction)
        if bool((chosen.flatten(1).norm(dim=1) == 0).any()):
            chosen = only
        unit = chosen / chosen.flatten(1).norm(dim=1).view(-1, *[1] * (output.dim() - 1))
        moved.append((size * unit).requires_grad_())
        return output.detach() + moved[0]

    handle = module.register_forward_hook(move)
    try:
        yield moved
    finally:
        handle.remove()


@pytest.mark.parametrize("build", [Plain, Placed, networks.resnet20])
def test_nothing_moves_the_features_further_than_its_constant_says(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = coverage.enlivened(build()).double()
    images = random_images(2, 3, 16, 16).double()
    injector, program = prepared(model, images)
    bounds = Bounds(program, images)
    last = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
    shapes = {(layer.path, layer.call): (1, *layer.shape) for layer in injector.layers}
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    whole = injector.original_model
    whole(images)
    clean = seen.pop()
    calls = Counter(step.layer[0] for step in program.steps if step.layer is not None)
    for step in program.steps:
        if step.layer is None or step.node is program.logits or calls[step.layer[0]] > 1:
            continue
        onward, shape = bounds.onward(step.node), shapes[step.layer]
        assert math.isfinite(onward.whole), step.node
        parts: list[tuple[float, tuple[Any, ...]]] = [(onward.whole, (...,))]
        for channel in range(shape[1]) if shape[1] <= 10 else (shape[1] // 2,):
            of = torch.tensor([channel])
            place = [slice(None), channel, *(size // 2 for size in shape[2:])]
            parts.append((float(onward.at(of, number=False)), (slice(None), channel)))
            parts.append((float(onward.at(of, number=True)), tuple(place)))
        for size, (constant, part) in itertools.product((1e-4, 1.0, 100.0), parts):
            move: Tensor | None = None
            for _ in range(6 if constant == onward.whole else 3):  # towards the direction that moves them most
                with torch.enable_grad(), moving(injector.modules[step.layer[0]], size, move, part) as moved:
                    whole(images)
                    far = (seen.pop() - clean).flatten(1).norm(dim=1)
                    assert bool((far <= constant * size * (1 + 1e-9)).all()), (step.node, part, far, constant * size)
                    (move,) = torch.autograd.grad(far.sum(), moved[0])
    handle.remove()


def test_a_channel_and_a_number_have_their_own_constants() -> None:
    torch.manual_seed(0)
    images = random_images(2, 3, 16, 16)
    _, program = prepared(Placed(), images)
    bounds = Bounds(program, images)
    for step in program.steps[:-2]:  # behind the last but one, nothing but the last linear layer comes
        onward = bounds.onward(step.node)
        assert bool((onward.number <= onward.channel).all()), step.node
        assert bool((onward.channel <= onward.whole).all()), step.node
        assert float(onward.number.mean()) < 0.7 * onward.whole, step.node
        assert len(set(onward.number.tolist())) == bounds.shapes[step.node][1], step.node


class OneStep(nn.Module):
    """(B, 3, 6, 6) -> (B, 5), with one step whose channels are read with different weights."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.first, self.hidden, self.last = nn.Conv2d(3, 4, 1), nn.LazyLinear(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.hidden(self.step(self.first(x)).flatten(1)))
        return logits


@pytest.mark.parametrize(
    ("step", "tight"),
    [
        (nn.Identity(), True),
        (scatter(nn.BatchNorm2d(4)), True),
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d(3, 1), False),
        (lambda x: F.max_pool2d(x, 3, stride=2, padding=1), False),
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(3, 1), False),
        (nn.AvgPool2d(2, divisor_override=1), False),
        (lambda x: F.avg_pool2d(x, 3, 3, 1, count_include_pad=False), False),
        (nn.AdaptiveAvgPool2d(1), True),
        (lambda x: x.mean((2, 3)), True),
        (lambda x: x + x / 2, True),
        (lambda x: x[:, :, ::2, 1:], True),
        (lambda x: F.pad(x, (1, 0, 0, 2)), True),
        (lambda x: F.pad(x, (0, 0, 1, 0, 1, 2)), True),
        (lambda x: torch.cat([x[:, :, :3, :3], F.max_pool2d(x, 2)], 1), True),
        (lambda x: x[:, 1:], False),  # whose channels are not followed
        (lambda x: x.transpose(1, 2), False),
    ],
)
def test_one_number_moves_the_features_no_further_than_that(step: Callable[[Tensor], Tensor], tight: bool) -> None:
    torch.manual_seed(0)
    model, images = OneStep(step), random_images(2, 3, 6, 6)
    model(images)
    scatter(model.hidden)
    read = model.hidden.in_features
    model.hidden.weight.data *= torch.tensor([1.0, 8.0, 2.0, 5.0]).repeat_interleave(-(-read // 4))[:read]
    model = model.double().eval().requires_grad_(False)
    _, program = prepared(model, images.double())
    (first,) = (one for one in program.steps if one.layer == ("first", 0))
    found = Bounds(program, images.double()).onward(first.node).at(torch.arange(4), number=True)
    value = model.first(images.double())[:1]
    every = 1e6 * torch.eye(value.numel(), dtype=torch.float64).view(-1, *value.shape[1:])
    moved = model.hidden(step((value + every).contiguous()).flatten(1)) - model.hidden(step(value).flatten(1))
    true = moved.norm(dim=1).view(4, -1).amax(1) / 1e6
    assert bool((true <= found * (1 + 1e-5)).all())  # all values are moved up, from near 0
    if tight:
        assert bool((found <= 2 * true).all())


def test_what_has_no_constant_is_not_decided() -> None:
    model = coverage.enlivened(Everything())
    images = random_images(2, 3, 16, 16)
    _, program = prepared(model, images)
    bounds = Bounds(program, images)
    constants = {step.layer[0]: bounds.onward(step.node).whole for step in program.steps if step.layer is not None}
    assert constants["first"] == math.inf  # what it moves goes through a largest value of the map
    assert math.isfinite(constants["hidden"])


@pytest.mark.parametrize(
    ("change", "bounded"),
    [
        (lambda x: x / 2, True),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), False),
        (lambda x: x.view(torch.int32).view(torch.float32), False),
        (lambda x: F.pad(x, (1, 1, 1, 1)), True),
        (lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), False),
        (lambda x: x[:, :3], True),
        (lambda x: x[:, [0, 0, 1]], False),
    ],
)
def test_a_function_that_jumps_or_repeats_has_no_constant(change: Callable[[Tensor], Tensor], bounded: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.LazyLinear(5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(change(self.first(x)).flatten(1))
            return logits

    model, images = Network(), random_images(2, 3, 8, 8)
    model(images)
    _, program = prepared(scatter(model), images)
    bounds = Bounds(program, images)
    (first,) = (step for step in program.steps if step.layer == ("first", 0))
    assert math.isfinite(bounds.onward(first.node).whole) == bounded


# --- runs ---


def trained() -> nn.Module:
    model = digits.build()
    model.load_state_dict(torch.load(digits.WEIGHTS, map_location="cpu", weights_only=True))
    return model


CONVNEXT = [CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 1), CNBlockConfig(96, 192, 2), CNBlockConfig(192, None, 1)]
MOBILE = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2], [6, 48, 2, 1]]
EFFICIENT = [
    MBConvConfig(1, 3, 1, 32, 16, 1),
    MBConvConfig(6, 3, 2, 16, 24, 2),
    MBConvConfig(6, 5, 2, 24, 40, 2),
    MBConvConfig(6, 3, 2, 40, 48, 1),
]

# Those of torchvision with all of their kinds of layers and connections, and fewer channels and blocks where it can be.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits": trained,
    "plain": Plain,
    "resnet20": networks.resnet20,
    "mobilenet_v2": lambda: torchvision.models.MobileNetV2(10, inverted_residual_setting=MOBILE),
    "densenet": lambda: torchvision.models.DenseNet(12, (3, 4, 4, 3), 24, num_classes=10),
    "efficientnet": lambda: torchvision.models.EfficientNet(EFFICIENT, 0.2, num_classes=10),
    "convnext": lambda: torchvision.models.ConvNeXt(CONVNEXT, num_classes=10),
}
SOME = 6  # layers of a large network


def outcomes(
    injector: Injector, images: Tensor, target: TargetKind, audit: float | None, pool_bytes: int | None = None
) -> BatchOutcomes:
    engine, note = engines.build("wave", injector, images, pool_bytes, audit)
    assert note is None
    items = targets([Target(i, layer) for i, layer in enumerate(injector.everything)], target, None)
    items = items[:: max(1, len(items) // SOME)]
    count = len(images)
    if target == "neuron":
        flips = [neuron_flips(seed, item.layer, 0, count) for item in items for seed in range(2)]
    else:
        flips = [parameter_flip(s, item.layer, 0, parameter=item.parameter) for item in items for s in range(2)]
    done: list[int] = []
    found = BatchOutcomes(torch.zeros(count, dtype=torch.int64, device=images.device), flips, 0, done.append)
    with torch.no_grad():
        engine.run(images, flips, found)
    found.to_host()  # complains of audited faults that change the class
    assert sum(done) == len(flips) * count, "progress counts every fault once"
    return found


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_classes_with_bounds_as_without(name: str, target: TargetKind) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    model = CPU.model((model if name == "digits" else coverage.enlivened(model)).eval().requires_grad_(False))
    images = digits.load("test", 32, 3).tensors[0][:4] if name == "digits" else random_images(4, 3, 32, 32)
    images = CPU.inputs(images[..., :16, :16] if name == "plain" else images)
    injector = Injector(WithInput(model) if target == "neuron" else model, 4, images)
    plain, proved = outcomes(injector, images, target, None), outcomes(injector, images, target, 0.0)
    tight, audited = outcomes(injector, images, target, 0.0, 1 << 20), outcomes(injector, images, target, 1.0)
    for found in (proved, tight, audited):
        assert torch.equal(found.top1, plain.top1)
        for effect in (Effect.SDC1, Effect.SDC5, Effect.NONFINITE, Effect.DUE):
            assert torch.equal(found.having(effect), plain.having(effect)), effect
        assert torch.equal(found.having(Effect.PROVED), proved.having(Effect.PROVED)), "whatever they travel with"
    for effect in (Effect.CHANGED, Effect.SDC10, Effect.SDC20):
        assert torch.equal(audited.having(effect), plain.having(effect)), effect
    assert not proved.having(Effect.AUDITED).any()
    assert audited.having(Effect.AUDITED)[audited.having(Effect.PROVED)].all()
    if name == "digits":
        assert proved.having(Effect.PROVED).float().mean() > 0.7


def test_rows_that_are_left_travel_as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are filled up to a number of rows that kernels are known for: whole maps take twice as long."""
    model, images = trained().eval().requires_grad_(False), digits.load("test", 32, 3).tensors[0][:8]
    injector = Injector(WithInput(CPU.model(model)), 8, CPU.inputs(images))
    seen: list[int] = []
    around = Window.around

    def noted(output: Tensor, struck: Struck) -> Window:
        seen.append(len(struck.original))
        return around(output, struck)

    monkeypatch.setattr(Window, "around", noted)
    monkeypatch.setattr(Proof, "left_at_fork", lambda self, slot, step, struck, image: image[:3])
    outcomes(injector, CPU.inputs(images), "neuron", 0.0)
    assert len(seen) >= SOME
    assert min(seen) >= 3


def test_an_audit_that_finds_one_ends_the_run() -> None:
    found = BatchOutcomes(torch.zeros(2, dtype=torch.int64), [], 7, lambda count: None)
    layer = Injector(Plain().eval(), 2, random_images(2, 3, 16, 16)).layers[3]
    found = BatchOutcomes(torch.zeros(2, dtype=torch.int64), [neuron_flips(0, layer, 7, 2)], 7, lambda count: None)
    found.clean(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    found.let_go(torch.tensor([0, 1]), torch.tensor([False, True]), before=True)
    found.finished(torch.tensor([1]), torch.tensor([[0.0, 1.0]]))
    with pytest.raises(BadInput, match=r"a fault in pool changes the class of image 8"):
        found.to_host()


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = (path for path in folder.glob("*_4.csv"))
    table = csvs.Table(path, ended=True)
    return [{name: row[name] for name in table.header} for _, row in table.values(lambda row: row)]


@pytest.mark.parametrize("script", ["neuron.py", "weight.py"])
def test_a_run_with_bounds(script: str, run_script: RunScript, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for name, flags in (("plain", []), ("prove", ["--prove", "--audit=0.2"])):
        done = run_script(
            script, "--dataset=digits", "--seed=4", "--batch-size=16", f"--output-path={tmp_path / name}", *flags
        )
        assert done.code == 0, done.err
        found[name] = rows(tmp_path / name)
    shared = found["plain"][0].keys() & found["prove"][0].keys()
    assert {"misclassified", "correct", "sdc1", "sdc5", "due", "low", "high", "seed_4", "injections"} <= shared
    assert [{k: row[k] for k in shared} for row in found["plain"]] == [
        {k: row[k] for k in shared} for row in found["prove"]
    ]
    for plain, proved in zip(found["plain"], found["prove"], strict=True):
        assert int(proved["harmless"]) == int(plain["masked"]) + int(plain["benign"])
        assert 0 < int(proved["audited"]) < int(proved["proved"]) <= int(proved["harmless"])
    assert not {"masked", "benign", "sdc10", "sdc20", "largest_change"} & found["prove"][0].keys()


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_a_list_with_bounds(target: TargetKind, run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> None:
    """Of every kind of fault, some of which strike several faults of one place, and only some images."""
    few_digits(40)
    kinds = (
        ("flip", "1"),
        ("flip", "9"),
        ("flip", "20"),
        ("stuck1", "2"),
        ("stuck0", "1;5"),
        ("zero", ""),
        ("value:9", ""),
    )
    rows = ["target,layer,call,index,bit,image,fault"]
    for place in range(6):
        for i, (kind, bit) in enumerate(kinds):
            index = f"{place};{i};1" if target == "neuron" else f"{place};{place};1;1"
            rows.append(f"{target},features.8,0,{index},{bit},{'all' if i % 2 else '3-17'},{kind}")
    faults = tmp_path / "list.csv"
    faults.write_text("\n".join(rows) + "\n")
    found = []
    for name, flags in (("plain", []), ("prove", ["--prove", "--audit=0.3"])):
        folder = tmp_path / name
        done = run_script(f"{target}.py", "--dataset=digits", f"--faults={faults}", f"--output-path={folder}", *flags)
        assert done.code == 0, done.err
        found.append([*csv.DictReader(next(folder.glob("*_faults.csv")).read_text().splitlines())])
    plain, proved = found
    assert len(plain) == len(proved) == 42
    assert proved[0].keys() - plain[0].keys() == {"harmless", "proved", "audited"}
    assert plain[0].keys() - proved[0].keys() == {"masked", "benign", "sdc10", "sdc20", "largest_change"}
    for one, other in zip(plain, proved, strict=True):
        assert {k: v for k, v in one.items() if k in other} == {k: v for k, v in other.items() if k in one}
        assert int(other["harmless"]) == int(one["masked"]) + int(one["benign"])
    assert 0 < sum(int(row["audited"]) for row in proved) < sum(int(row["proved"]) for row in proved)
    assert sum(int(row["critical"]) for row in plain) > 0
    assert command_line.main(["report", str(next((tmp_path / "prove").glob("*.json")).with_suffix(".csv"))]) == 0


@pytest.mark.parametrize("script", ["neuron.py", "weight.py"])
def test_the_same_bytes_whatever_travels_together(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(90)
    flags = ["--dataset=digits", "--seed=4", "--batch-size=30", "--repeats=2", "--prove", "--audit=0.3"]
    found = []
    for name, more in (("whole", []), ("pieces", ["--pool-mib=1"])):
        done = run_script(script, *flags, f"--output-path={tmp_path / name}", *more)
        assert done.code == 0, done.err
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.csv")})
    assert len(found[0]) == 2
    assert found[0] == found[1]


def test_in_a_notebook(digits_model: nn.Module, tmp_path: Path) -> None:
    images, labels = digits.load("test", 32, 3).tensors
    campaign = bitflip.Campaign(digits_model, TensorDataset(images[:60], labels[:60]), batch_size=30, device="cpu")
    faults = bitflip.Sampled("neuron", seed=1, layer_type=["Conv2d"])
    plain, proved = campaign.run(faults), campaign.run(faults, prove=True, audit=0.5)
    assert [row.misclassified for row in proved.layers] == [row.misclassified for row in plain.layers]
    for row in proved.layers:
        assert (row.masked, row.benign, row.largest_change) == (None, None, None)
        assert row.harmless == row.injections - row.sdc1 - row.due
        assert 0 < row.audited < row.proved
    assert all(row.proved == row.audited == 0 for row in plain.layers)
    (page,) = (path for path in proved.save(tmp_path) if path.suffix == ".html")
    words = page.read_text()
    assert re.search(
        r"faulty inferences were proved unable to change the class, by a bound; \d+ of them were run", words
    )
    assert "harmless: the class is the same" in words
    assert "Masked" not in words
    with pytest.raises(BadInput, match=r"engine .* expected wave with prove"):
        bitflip.Campaign(digits_model, TensorDataset(images[:9], labels[:9]), engine="reference").run(
            faults, prove=True
        )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--audit=0.1"], "audit (--audit): expected prove (--prove) with it: it audits what is proved"),
        (["--prove", "--audit=2"], "audit (--audit): expected a number from 0 to 1, got '2'"),
        (
            ["--prove", "--engine=reference"],
            "engine (--engine): expected wave with prove (--prove), which does not run every fault",
        ),
        (
            ["--prove", "--fault-table"],
            "fault_table (--fault-table): expected none with prove (--prove), which does not run every fault",
        ),
    ],
)
def test_mistakes(flags: list[str], sentence: str, run_script: RunScript, tmp_path: Path) -> None:
    done = run_script("neuron.py", "--dataset=digits", f"--output-path={tmp_path}", *flags)
    assert (done.code, done.errors) == (2, [sentence])
