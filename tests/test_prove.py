"""Every bit of every value: what is proved harmless is, and is counted as the engine decides it one by one."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import FewDigits, random_images
from torch import nn

from bitflip import __main__ as command_line
from bitflip import engines
from bitflip.engines import coverage
from bitflip.engines.exhaustive import Exhaustive
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.wave import Wave
from bitflip.faults.flips import TargetKind
from bitflip.network import bits
from bitflip.network.layers import Target, targets

IMAGES = 5


def small() -> nn.Module:
    """(B, 3, 6, 6) -> (B, 4): a convolution with groups, a strided one, normalisation, pooling, linear layers."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1, groups=2)]
    layers += [nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)]
    return coverage.enlivened(nn.Sequential(*layers)).eval().requires_grad_(False)


def prepared(target: TargetKind, model: nn.Module | None = None) -> tuple[Wave, list[Target], torch.Tensor]:
    images = random_images(IMAGES, 3, 6, 6)
    model = small() if model is None else model.eval().requires_grad_(False)
    injector = Injector(WithInput(model) if target == "neuron" else model, IMAGES, images)
    wave, note = engines.build("wave", injector, images, audit=0.0)
    assert isinstance(wave, Wave)
    assert note is None
    return wave, targets([Target(i, layer) for i, layer in enumerate(injector.everything)], target, None), images


def read_by(model: nn.Module, images: torch.Tensor, modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """What each module reads in a pass."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, path=path: found.__setitem__(path, args[0].clone()))
        for path, module in modules.items()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def test_no_flip_of_a_weight_that_is_proved_harmless_changes_a_class() -> None:
    wave, items, images = prepared("weight")
    assert wave.prover is not None
    exhaustive = Exhaustive(wave, items)
    exhaustive.add(images[:2])
    exhaustive.add(images[2:])
    model, reach = wave.injector.original_model, wave.prover.reach(wave.prover.clean(images))
    clean = model(images).argmax(1)
    steps = {step.layer: step for step in wave.program.steps if step.layer is not None}
    inputs = read_by(model, images, wave.injector.modules)
    for one in exhaustive.finish():
        layer, name = one.target.layer, one.target.parameter
        tensor, step = wave.injector.tensor_of(layer, name), steps[layer.path, layer.call]
        pairs, everywhere = torch.zeros(32), torch.zeros(32)
        for place in range(tensor.numel()):
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), tensor.shape))
            apart = wave.prover.bounds.moved(step, name, index, inputs[layer.path])
            each = wave.prover.bounds.onward(step.node).at(torch.tensor(index[:1]), number=False)
            assert apart is not None
            before = tensor[index].clone()
            for bit in range(32):
                after = bits.flip(before, torch.tensor(bit))
                change = (after.double() - before.double()).abs()
                harmless = wave.prover.bounds.harmless(change * apart, step, torch.arange(IMAGES), reach, each)
                tensor[index] = after
                assert torch.equal(model(images).argmax(1)[harmless], clean[harmless]), (layer.path, index, bit)
                tensor[index] = before
                pairs[bit] += harmless.sum()
                everywhere[bit] += harmless.all()
        assert torch.equal(one.pairs.float(), pairs), layer.path
        assert one.everywhere is not None
        assert torch.equal(one.everywhere.float(), everywhere), layer.path
        assert one.images == IMAGES
        assert 0 < one.pairs.sum() < one.values * IMAGES * 32


class Shared(nn.Module):
    """(B, 3, 6, 6) -> (B, 4), with one weight in two layers, and a padding that repeats values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.last = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.second(self.first(self.mirrored(x)).relu()).mean((2, 3)))
        return logits


def test_a_weight_that_reaches_further_than_its_layer_is_not_proved() -> None:
    torch.manual_seed(1)
    wave, items, images = prepared("weight", Shared())
    exhaustive = Exhaustive(wave, items)
    exhaustive.add(images)
    found = {one.target.label: float(one.pairs.sum()) for one in exhaustive.finish()}
    assert found.pop("first") == found.pop("mirrored") == 0
    assert found["last"] > 0


@contextlib.contextmanager
def flipped(module: nn.Module, place: int, bit: int) -> Iterator[list[torch.Tensor]]:
    """While open, a bit of one value of a module's output flips for each image; yields the sizes of the changes."""
    changes: list[torch.Tensor] = []

    def flip(m: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        values = output.clone().reshape(IMAGES, -1)
        after = bits.flip(values[:, place], torch.tensor(bit))
        changes.append((after.double() - values[:, place].double()).abs())
        values[:, place] = after
        return values.reshape(output.shape)

    handle = module.register_forward_hook(flip)
    try:
        yield changes
    finally:
        handle.remove()


def test_no_flip_of_a_neuron_that_is_proved_harmless_changes_a_class() -> None:
    wave, items, images = prepared("neuron")
    assert wave.prover is not None
    exhaustive = Exhaustive(wave, items)
    exhaustive.add(images)
    model, reach = wave.injector.original_model, wave.prover.reach(wave.prover.clean(images))
    clean = model(images).argmax(1)
    steps = {step.layer: step for step in wave.program.steps if step.layer is not None}
    for one in exhaustive.finish():
        layer, pairs = one.target.layer, torch.zeros(32)
        step, module = steps[layer.path, layer.call], wave.injector.modules[layer.path]
        for place in range(0, one.values, 7):  # some are run
            for bit in range(32):
                with flipped(module, place, bit) as change:
                    top1 = model(images).argmax(1)
                harmless = wave.prover.bounds.harmless(change[0], step, torch.arange(IMAGES), reach)
                assert torch.equal(top1[harmless], clean[harmless]), (layer.path, place, bit)
                pairs[bit] += harmless.sum()
        assert one.everywhere is None
        assert bool((pairs <= one.pairs).all())
        assert 0 < pairs.sum() <= one.pairs.sum() < one.values * IMAGES * 32


@pytest.mark.parametrize("target", ["weight", "neuron"])
def test_the_command(target: str, few_digits: FewDigits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few_digits(20)
    table = tmp_path / "proved.csv"
    flags = ["--dataset", "digits", "--target", target, "--csv", str(table), "--layer-type", "Conv2d,Linear"]
    assert command_line.main(["prove", *flags]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"digits_vgg on digits: every bit of every {target}, 20 images\n")
    assert re.search(r"^#0 +Conv2d +features\.0 +(432|16,384) +\d+\.\d\d %", out, re.MULTILINE)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    proved = sum(int(row["values"]) * int(row["images"]) * float(row["proved"]) / 100 for row in rows)
    whole = sum(int(row["values"]) * int(row["images"]) for row in rows)
    (said,) = re.findall(r"Of all ([\d,]+) faults \(values x bits x images\), (\d+\.\d\d) % are proved harmless\.", out)
    assert int(said[0].replace(",", "")) == whole
    assert float(said[1]) == pytest.approx(100 * proved / whole, abs=0.006)
    assert {row["bit"] for row in rows} == {str(bit) for bit in range(32)}
    everywhere = [row["everywhere"] for row in rows]
    if target == "neuron":
        assert set(everywhere) == {""}
    else:
        assert all(float(row["everywhere"]) <= float(row["proved"]) + 1e-6 for row in rows)


def test_what_a_code_corrects_is_harmless(few_digits: FewDigits, tmp_path: Path) -> None:
    few_digits(5)
    found = []
    for more in ([], ["--protect=ecc:0.04"]):  # of 2 x 32 bits, the first of the exponent
        table = tmp_path / f"{len(more)}.csv"
        given = ["--dataset=digits", "--layer-type=Linear", f"--csv={table}"]
        assert command_line.main(["prove", *given, *more]) == 0
        found.append(list(csv.DictReader(table.read_text().splitlines())))
    for bare, coded in zip(*found, strict=True):
        if int(bare["bit"]) != 1:
            assert coded == bare
        else:
            assert float(bare["proved"]) < 100
            assert coded == {**bare, "proved": coded["proved"], "everywhere": coded["everywhere"]}
            assert float(coded["proved"]) == float(coded["everywhere"]) == 100


@pytest.mark.parametrize(("command", "flag"), [("prove", "--fault"), ("prove", "--by-layer"), ("plan", "--by-layer")])
def test_what_means_nothing_here_is_no_flag(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main([command, "--help"])
    assert not re.search(rf"^ +{flag}\b", capsys.readouterr().out, re.MULTILINE)


def test_a_model_without_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", "digits", "--model-name", f"{__file__}:changes_what_it_reads"]
    assert command_line.main(["prove", *flags]) == 2
    assert "expected a model that the wave engine runs with bounds" in capsys.readouterr().err


class ChangesWhatItReads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        part = x[:, :2]
        x.relu_()
        logits: torch.Tensor = self.last(torch.cat([part, x[:, 2:]], 1).mean((2, 3)))
        return logits


def changes_what_it_reads() -> nn.Module:
    return ChangesWhatItReads()
