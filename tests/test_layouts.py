"""The memory format of weights: which convolutions get another one, and that it changes nothing but the kernel."""

from __future__ import annotations

import pytest
import torch
from conftest import random_images
from torch import Tensor, nn

from bitflip import engines
from bitflip.engines.agreement import differing, record
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.invariance import Invariant
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.faults.flips import neuron_flips, parameter_flip
from bitflip.network import layouts
from bitflip.network.devices import Placement

IMAGES = 5
PLACEMENT = Placement(torch.device("cpu"), torch.float32)


class Narrows(nn.Module):
    """Maps of 8 x 8 to 1 x 1; one layer that is called on two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 192, 3, padding=1)  # 8 x 8
        self.norm = nn.BatchNorm2d(192)
        self.halve = nn.Conv2d(192, 192, 3, stride=2, padding=1)  # 4 x 4
        self.twice = nn.Conv2d(192, 192, 3, padding=1)
        self.pixel = nn.Conv2d(192, 192, 1)
        self.apart = nn.Conv2d(192, 192, 3, padding=1, groups=192)
        self.small = nn.Conv2d(192, 192, 3, padding=1)  # 2 x 2
        self.few = nn.Conv2d(192, 16, 3, padding=1)
        self.last = nn.Conv2d(192, 192, 2)  # 1 x 1
        self.head = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.halve(self.twice(x).relu()).relu()
        x = self.apart(self.pixel(self.twice(x).relu()))
        x = nn.functional.max_pool2d(x.relu(), 2)
        x = self.small(x).relu() + self.few(x).mean(1, keepdim=True)
        out: Tensor = self.head(self.last(x).flatten(1))
        return out


@pytest.fixture
def narrows() -> nn.Module:
    torch.manual_seed(0)
    return PLACEMENT.model(Narrows().eval().requires_grad_(False))


@pytest.mark.parametrize(("kernels", "chosen"), [("AVX512", ["halve", "small"]), ("AVX2", []), ("DEFAULT", [])])
def test_large_convolutions_whose_maps_are_all_small_are_chosen_where_their_kernels_gain(
    kernels: str, chosen: list[str], narrows: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    injector = Injector(narrows, IMAGES, torch.zeros(1, 3, 8, 8))
    assert layouts.suit(injector.modules, injector.layers) == chosen
    for name, module in narrows.named_children():
        if isinstance(module, nn.Conv2d):
            assert layouts.is_default(module.weight) == (name in chosen), name


def test_a_weight_gets_its_input_in_its_own_format(narrows: nn.Module) -> None:
    halve = narrows.halve
    assert isinstance(halve, nn.Conv2d)
    images = random_images(IMAGES, 192, 8, 8).contiguous(memory_format=torch.channels_last)
    with Invariant():
        last = halve(images)
        halve.weight.data = halve.weight.data.contiguous()
        first = halve(images)
        given = halve(images.contiguous())
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert torch.equal(first, given)
    assert torch.allclose(first, last, atol=1e-4)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_engines_agree(target: str, narrows: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    images = PLACEMENT.inputs(random_images(IMAGES, 3, 8, 8))
    injector = Injector(WithInput(narrows) if target == "neuron" else narrows, IMAGES, images)
    assert len(layouts.suit(injector.modules, injector.layers)) == 2
    wave, why = engines.build("wave", injector, images)
    assert isinstance(wave, Wave), why
    flips = [
        neuron_flips(3, layer, 0, IMAGES, bit, repeat)
        if target == "neuron"
        else parameter_flip(3, layer, 0, bit, repeat, parameter="weight")
        for layer in injector.layers
        if target == "neuron" or layer.parameter("weight") is not None
        for repeat, bit in enumerate([1, 3, 9, 20])
    ]
    expected, got = (record(engine, images, flips)[0] for engine in (Reference(injector), wave))
    assert not differing(expected, got).any()
    assert (expected.top1 != expected.top1[0]).any()
