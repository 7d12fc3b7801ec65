"""No parameter of a known architecture is out of reach, and both engines agree on a fault in every place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from bitflip import __main__ as command_line
from bitflip.engines import coverage
from bitflip.errors import BadInput
from bitflip.network import models

TABLE = Path(__file__).parents[1] / "docs" / "coverage.md"
QUICK = ("googlenet", "mnasnet0_5", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")
EVERY = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in models.torchvision_names()
]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", EVERY)
def test_every_target_of_a_torchvision_classifier(name: str) -> None:
    model, own = models.untrained(name)
    found = coverage.of(name, model, (*coverage.SIZES, *own), check=0)
    assert found.scalars == found.parameters, "a parameter is out of reach"
    assert found.faults == coverage.IMAGES * (found.neuron_layers + found.tensors)
    assert found.differing == 0
    assert found.engine == "wave"


def rows() -> dict[str, list[str]]:
    """The rows of the committed table by model."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in cells if row[0] != "model"}


def test_the_table_has_every_classifier() -> None:
    missing = {*models.torchvision_names(), *(f"cifar10_{name}" for name in models.HUB_MODELS)} - rows().keys()
    assert not missing or torchvision.__version__.split("+")[0] not in TABLE.read_text()
    assert {row[7] for row in rows().values()} == {"100 %"}
    assert all(row[9].startswith("on all ") for row in rows().values())


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1"])
def test_the_table_is_what_the_command_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["coverage", "--rows", name]) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.strip().strip("|").split("|")]
    assert row[:9] == rows()[name][:9]


def test_no_heading_comes_before_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["coverage", "nosuch"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: MODEL: torchvision.models has no 'nosuch'")


def test_the_shipped_network(digits_model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["coverage", "--rows", "digits_vgg"]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.strip().strip("|").split("|")]
    assert cells[0] == "digits_vgg"
    assert f"{sum(parameter.numel() for parameter in digits_model.parameters()):,}" in cells


def test_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["coverage", "--check", "--sizes=32", f"{__file__}:tied"]) == 0
    *_, header, _, row = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | side | layers ")
    assert row.endswith("| 32 | 4 | 4 | 3 | 0 | 87 | 100 % | wave, 1 tensors on reference | on all 14 |")


def test_what_is_out_of_reach_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["coverage", "--rows", f"{__file__}:counts"]) == 1
    out, err = capsys.readouterr()
    assert "| 92 | 98.92 % |" in out
    assert err == "not every parameter is reachable, or the engines disagree; see the table\n"


class Tied(nn.Module):
    """(B, 3, H, W) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.pool(self.second(torch.relu(self.first(x)))).flatten(1)
        return logits


def tied() -> nn.Module:
    return Tied()


def counts() -> nn.Module:
    """A whole number is a parameter that can't be flipped."""
    model = Tied()
    model.second = nn.Conv2d(3, 2, 1)
    model.second.register_parameter("steps", nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False))
    return model


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet19"], r"MODEL: torchvision.models has no 'resnet19'; did you mean .*'resnet18'.*"),
        (["resnet18", "--sizes=big"], r"--sizes: expected whole numbers of at least 1, comma-separated, got 'big'"),
    ],
    ids=["model", "sizes"],
)
def test_mistakes(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["coverage", *arguments]) == 2
    assert re.fullmatch(f"error: {sentence}\n", capsys.readouterr().err)


def test_a_model_that_takes_no_image() -> None:
    with pytest.raises(BadInput, match=r"img_size, channels .* can't take 3 channels of 8 x 8 pixels"):
        coverage.of("linear", nn.Sequential(nn.Flatten(), nn.Linear(5, 5)), (4, 8))
