"""What a pass does is captured, whatever Python does on the way, and both engines agree on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import random_images, scatter
from torch import Tensor, nn

from bitflip.engines import coverage
from bitflip.engines.capture import Untraceable
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector, WithInput


class Network(nn.Module):
    """(B, 3, 8, 8) -> (B, 5), with something in the middle: (B, 6, 8, 8) -> (B, n, ., .)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.drop = nn.Dropout()
        self.scale = nn.Parameter(torch.ones(1))
        self.last = nn.LazyLinear(5)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.act(self.first(x)))
        logits: Tensor = self.last((x * self.scale).flatten(1))
        return logits


class BranchOnHeight(Network):
    def middle(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1)) if x.shape[2] > 4 and x.shape[3] % 2 == 0 else x


class PooledByInt(Network):
    def middle(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, int(x.size(3)))


class MathOfSizes(Network):
    def middle(self, x: Tensor) -> Tensor:
        side = max(2, math.ceil(math.sqrt(x.shape[-1] * x.shape[-2]) / 3))
        return F.adaptive_avg_pool2d(x, side)


class ChecksOfForm(Network):
    def middle(self, x: Tensor) -> Tensor:
        if x.shape[1] != 6 or x.dtype != torch.float32 or x.device.type != self.scale.device.type or x.ndim != 4:
            raise ValueError("another input")
        same: Tensor = x.to(self.scale.dtype)
        return same


class MadeInForward(Network):
    def middle(self, x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        places = torch.stack(torch.meshgrid(rows, rows, indexing="ij")).sum(0) + torch.tensor([0.5])
        return x * places[None, None]


@dataclass
class Answer:
    maps: Tensor
    sizes: tuple[int, int]


class Objects(Network):
    def middle(self, x: Tensor) -> Tensor:
        found: dict[str, Any] = {
            "answer": Answer(x * 2, (x.shape[2], x.shape[3])),
            "also": [x, x.mean(1, keepdim=True)],
        }
        first, second = found["also"]
        whole: Tensor = found["answer"].maps.reshape(len(x), -1, *found["answer"].sizes) + first * second
        return whole


class Windows(Network):
    """The windows of all images in one dimension, as in Swin."""

    def middle(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        windows = (
            x.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels)
        )
        assert windows.shape[0] == batch * 4
        mixed = windows.softmax(1) @ windows.new_ones(channels, channels)
        return mixed.view(batch, 2, 2, 4, 4, channels).permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


class Unpacked(Network):
    def middle(self, x: Tensor) -> Tensor:
        one, two = x.reshape(-1, 2, 3, 8, 8).transpose(0, 1)
        values, _ = x.max(dim=1, keepdim=True)
        return torch.cat([one, two + values, *x.chunk(2, dim=1)], 1)


class Assigned(Network):
    def middle(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :2] = x[:, 2:4] * 2
        x += 1
        x.mul_(0.5)
        return x


class CalledTwice(Network):
    def middle(self, x: Tensor) -> Tensor:
        done: Tensor = self.act(self.act(x - 0.1) - 0.2)
        return done


class BesideItself(Network):
    """A layer that returns what it was given: a fault in what it returns is none in what it was given."""

    def middle(self, x: Tensor) -> Tensor:
        done: Tensor = self.drop(x) + 2 * x
        return done


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x) + 1


class Scripted(Network):
    def middle(self, x: Tensor) -> Tensor:
        done: Tensor = scripted(x)
        return done


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh() * 3


class OfAutograd(Network):
    def middle(self, x: Tensor) -> Tensor:
        done: Tensor = Own.apply(x)
        return done


class OwnView(Network):
    """Changes a part of a value in place, and goes on with the whole."""

    def middle(self, x: Tensor) -> Tensor:
        x = x + 0
        x[:, 0].add_(1)
        return x


class BiasInPlace(Network):
    """What is made of a parameter is changed in place, as in Swin V2."""

    def middle(self, x: Tensor) -> Tensor:
        bias = (self.scale * 3 - 1).relu_()
        return x + bias.view(1, 1, 1, 1) * 0.5

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.middle(self.act(self.first(x))).flatten(1))
        return logits


CAPTURED = [
    *(BranchOnHeight, PooledByInt, MathOfSizes, ChecksOfForm, MadeInForward, Objects, Windows, Unpacked, Assigned),
    *(CalledTwice, BesideItself, Scripted, OfAutograd, BiasInPlace),
]


@pytest.mark.parametrize("network", CAPTURED)
def test_what_a_pass_does_runs_on_the_wave(network: type[Network]) -> None:
    found = coverage.of("", network(), (8,), check=0)
    assert found.engine == "wave"
    assert found.alone == 0
    assert found.faults == coverage.IMAGES * (found.neuron_layers + found.tensors)
    assert found.differing == 0


class HandsOver(Network):
    """Python is handed the value of a parameter."""

    def middle(self, x: Tensor) -> Tensor:
        return x * float(self.scale)


class HandsOverMade(Network):
    """Python is handed what was made of a parameter, in a list."""

    def middle(self, x: Tensor) -> Tensor:
        factor: float = (self.scale.exp() * 2).tolist()[0]
        return x * factor


@pytest.mark.parametrize("network", [HandsOver, HandsOverMade])
def test_a_parameter_that_python_is_handed_is_left_to_the_reference_engine(network: type[Network]) -> None:
    found = coverage.of("", network(), (8,), check=0)
    assert (found.engine, found.alone, found.differing) == ("wave", 1, 0)


class Growing(Network):
    def middle(self, x: Tensor) -> Tensor:
        return x.repeat(1, len(x) + 1, 1, 1)[:, :6]


class LongerForMore(Network):
    def middle(self, x: Tensor) -> Tensor:
        for _ in range(len(x)):
            x = x * 0.9
        return x


class OtherForThree(Network):
    def middle(self, x: Tensor) -> Tensor:
        return x.sin() if len(x) == 3 else x.cos()


class Divided(Network):
    def middle(self, x: Tensor) -> Tensor:
        return x * (1 / len(x))


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Growing, "what repeat gets has a number that is no multiple of the batch size"),
        (LongerForMore, "flatten is called for two images, mul for three"),
        (OtherForThree, "cos is called for two images, sin for three"),
        (Divided, "what mul gets depends on the batch"),
        (OwnView, "in place, which is still needed"),
    ],
)
def test_what_is_no_program_is_said(network: type[nn.Module], sentence: str) -> None:
    model = network()
    model(torch.zeros(1, 3, 8, 8))
    injector = Injector(WithInput(scatter(model)), 2, torch.zeros(1, 3, 8, 8))
    with pytest.raises(Untraceable, match=sentence):
        Program(injector.original_model, injector.modules, injector.layers, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("network", [*CAPTURED, LongerForMore])
def test_no_trace_is_left(network: type[Network]) -> None:
    call = nn.Module.__call__
    model = network().eval()
    images = random_images(2, 3, 8, 8)
    before = model(images)
    injector = Injector(model, 2, images)
    try:
        Program(model, injector.modules, injector.layers, images)
    except Untraceable:
        assert network is LongerForMore
    assert nn.Module.__call__ is call
    assert torch.equal(model(images), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
