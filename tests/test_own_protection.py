"""Codes over the bits of weights that matter most, protections of the user's own, and functions that can have none."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FewDigits, RunScript, TinyNet, random_images, scatter
from test_engines import assert_same, lively, sampled
from test_protections import PLACEMENT, protect
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from bitflip import BadInput, Campaign, Sampled
from bitflip import __main__ as program
from bitflip.campaign import correcting
from bitflip.engines.agreement import record
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.pool import Budget
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.faults.flips import TargetKind
from bitflip.network.layers import Layer, Parameter, Target
from bitflip.settings.protection import Protection


def made(run_script: RunScript, folder: Path, *more: str, script: str = "weight.py") -> Path:
    common = ("--dataset=digits", "--seed=5", "--no-plots", f"--output-path={folder}", "--batch-size=16")
    done = run_script(script, *common, "--fault-table", "--layer-num=0,1,2", "--repeats=6", *more)
    assert done.code == 0, done.err
    return next(folder.glob("*.json")).with_suffix(".csv")


def faults_of(table: Path) -> dict[str, np.ndarray[Any, Any]]:
    read = pq.read_table(table.with_name(f"{table.stem}_faults.parquet"))
    return {name: read.column(name).to_numpy(zero_copy_only=False) for name in read.column_names}


# --- codes ---


@pytest.mark.parametrize("more", [(), ("--number-format=int8", "--engine=reference", "--fault=stuck1")])
def test_a_flip_of_a_protected_bit_is_drawn_and_corrected(
    more: tuple[str, ...], run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(64)
    bare, coded = (made(run_script, tmp_path / name, *more, *way) for name, way in WAYS.items())
    before, after = faults_of(bare), faults_of(coded)
    facts = json.loads(coded.with_suffix(".json").read_text())
    weights = {
        layer["number"]: one for layer in facts["layers"] for one in layer["parameters"] if one["name"] == "weight"
    }
    whole = sum(int(np.prod(one["shape"])) * one["bits"] for one in weights.values())
    used, safe = 0, set()
    for rank in range(8):  # of the exponent, or of a whole number
        for layer, one in weights.items():
            used += int(np.prod(one["shape"]))
            if used <= 0.2 * whole:
                safe.add((layer, rank if one["bits"] == 8 else rank + 1))
    protected = sum(int(np.prod(weights[layer]["shape"])) for layer, _ in safe)
    assert facts["protection"]["protected_bits"] == protected
    assert facts["protection"]["bytes"] == -(-protected // 64)
    for name in ("layer", "image", "element", "bit", "original", "label", "clean_top1"):
        assert (before[name] == after[name]).all(), "a protection changes no fault"
    inside = np.array([cell in safe for cell in zip(after["layer"], after["bit"], strict=True)])
    assert inside.sum() > 10
    assert after["masked"][inside].all()
    assert (after["error"] == after["original"])[inside].all()
    for name in ("top1", "masked", "change"):
        assert (after[name] == before[name])[~inside].all(), name
    assert np.array_equal(after["error"][~inside], before["error"][~inside], equal_nan=True)
    if not more:
        assert (before["top1"] != before["clean_top1"])[inside].any(), "it was for something"


WAYS: dict[str, tuple[str, ...]] = {"bare": (), "coded": ("--protect=ecc:0.2",)}


def test_a_run_ranks_what_another_one_protects(run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> None:
    few_digits(64)
    bare = made(run_script, tmp_path / "bare")
    assert program.main(["budget", str(bare), f"--output-path={tmp_path}"]) == 0
    (ranking,) = tmp_path.glob("*_budget.csv")
    coded = made(run_script, tmp_path / "coded", f"--protect=ecc:0.2:{ranking}", "--seed=6")
    rows = [line.split(",") for line in ranking.read_text().splitlines()[2:]]
    safe = {(int(row[1]), int(row[6])) for row in rows if float(row[8]) <= 20.0}
    found = faults_of(coded)
    inside = np.array([(layer, bit) in safe for layer, bit in zip(found["layer"], found["bit"], strict=True)])
    corrected = (found["error"] == found["original"]) & found["masked"]
    assert inside.any()
    assert corrected[inside].all()
    assert not (found["error"] == found["original"])[~inside].any()
    head, none, *lines = ranking.read_text().splitlines()
    other = tmp_path / "of_int8.csv"
    other.write_text("\n".join([head, none, *(line for line in lines if int(line.split(",")[6]) < 8), ""]))
    done = run_script("weight.py", "--dataset=digits", f"--protect=ecc:0.2:{other}", f"--output-path={tmp_path}")
    assert done.code == 2
    assert "expected a ranking of all 32 bits of features.0.weight, got 8 of them in" in done.err


def test_bits_come_by_position_as_long_as_they_fit() -> None:
    values = [Parameter("weight", (10,), 32), Parameter("weight", (30,), 32), Parameter("weight", (5,), 8, "int8")]
    targets = [
        Target(i, Layer(i, f"l{i}", 0, "Linear", (3,), per_image=True, bits=32, parameters=(one,)), "weight")
        for i, one in enumerate(values)
    ]
    whole = 32 * 40 + 40
    found = correcting.choose(Protection.of("ecc:1"), targets)
    assert found.protected == found.whole == whole
    assert found.bytes == -(-whole // 64)
    for share in (10 / whole, 39 / whole):
        assert correcting.choose(Protection(ecc=share), targets).bits == {("l0", "weight"): {1}}
    found = correcting.choose(Protection(ecc=(45 + 45 + 10) / whole), targets)
    assert found.bits == {("l0", "weight"): {1, 2, 3}, ("l1", "weight"): {1, 2}, ("l2", "weight"): {0, 1}}
    with pytest.raises(BadInput, match=r"of at least 0\.00757576, which bit 1 of l0 takes"):
        correcting.choose(Protection(ecc=9 / whole), targets)


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        (
            "main.py",
            ["--protect=ecc:0.1"],
            "protect (--protect): expected with ecc faults of weights, which are stored",
        ),
        (
            "weight.py",
            ["--protect=ecc:0.1", "--fault=burst:2"],
            "expected with ecc fault (--fault) flip, stuck0 or stuck1",
        ),
        ("weight.py", ["--protect=ecc:0.1", "--bit-error-rate=1e-6"], "expected with ecc no bit_error_rate"),
        ("weight.py", ["--protect=ecc:0.1", "--protect-layers=ReLU"], "expected a protection of layers' outputs"),
        ("weight.py", ["--protect=ecc:0"], "protect (--protect): expected relu6, clamp:LOW:HIGH, ranger"),
        (
            "weight.py",
            ["--protect=ecc:0.1:none.csv"],
            "expected a file behind ecc:SHARE:, there is none named none.csv",
        ),
        ("main.py", ["--protect=none.py:make"], "protect (--protect): expected FILE.py:factory"),
        ("main.py", ["--protect=own:a:b"], "protect (--protect): expected FILE.py:factory"),
        ("main.py", ["--protect=relu6+none.py:make"], "protect (--protect): expected relu6, clamp:LOW:HIGH, ranger"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    script: str, arguments: list[str], sentence: str, run_script: RunScript, tmp_path: Path
) -> None:
    done = run_script(script, "--dataset=digits", *arguments, f"--output-path={tmp_path}")
    assert done.code == 2
    assert sentence in done.err


def test_a_list_of_what_a_code_does_not_correct_is_refused_by_line(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few_digits(4)
    listed = tmp_path / "list.csv"
    kinds = {"1": "stuck1", "1;9": "flip", "1;2": "stuck0", "": "value:2"}
    rows = [f"weight,features.0,0,3;0;2;1,{bit},all,{kind}" for bit, kind in kinds.items()]
    listed.write_text("\n".join(["target,layer,call,index,bit,image,fault", *rows, ""]))
    done = run_script(
        "weight.py", "--dataset=digits", f"--faults={listed}", "--protect=ecc:0.1", f"--output-path={tmp_path}"
    )
    assert done.code == 2
    said = "bit: expected one with protect (--protect) ecc, which corrects one bit, got"
    for (lines, got), error in zip({"3 and 1 more": "several", "5": "a whole value"}.items(), done.errors, strict=True):
        assert error.endswith(f"line {lines}: {said} {got}")
    given = ["--dataset=digits", f"--faults={listed}", "--with=ranger,ecc:0.1", f"--output-path={tmp_path / 'several'}"]
    assert program.main(["protect", "--target=weight", *given]) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.glob("several/unprotected/*")], "before the first run"


# --- the user's own ---

FILE = """
from torch import nn
import torch

class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, value):
        return torch.where(value.abs() > 3, value * self.scale, value)

def make(layer, path):
    if isinstance(layer, nn.ReLU):
        return nn.Hardtanh(0.0, 1.5)
    return Halved() if path.startswith("bn") else None

def nothing(layer, path):
    return None

def number(layer, path):
    return 3

def smaller(layer, path):
    return nn.Flatten(0) if path == "conv1" else None
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with protections."""
    found = tmp_path / "mine.py"
    found.write_text(FILE)
    return found


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_the_engines_agree_on_a_module_that_they_do_not_know(target: TargetKind, file: Path) -> None:
    model, images = PLACEMENT.model(lively(TinyNet())), PLACEMENT.inputs(random_images(6, 3, 8, 8))
    before = [(layer.path, layer.call) for layer in Injector(WithInput(TinyNet()), 6, images).layers]
    found = protect(model, images, protect=f"{file}:make")
    assert {path for path, _ in found.guarded} == {"relu", "bn1", "bn2"}
    assert found.code is not None
    injector = Injector(WithInput(model) if target == "neuron" else model, 6, images)
    if target == "neuron":
        assert [(layer.path, layer.call) for layer in injector.layers] == before
    assert all(not holder.path.endswith("guards.0") for holder in injector.holders), "its parameters are not struck"
    flips = sampled(injector, target, 6, 10)
    expected, _ = record(Reference(injector), images, flips)
    program = Program(injector.original_model, injector.modules, injector.layers, images)
    got, _ = record(Wave(injector, program, Budget(rows=16, bytes=1 << 28)), images, flips)
    assert_same(expected, got)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "got None for each of"),
        ("number", "got int for"),
        ("smaller", "expected a module that returns torch.float32 of shape"),
        ("missing", "mine.py:missing can't be imported: AttributeError"),
    ],
)
def test_what_is_no_protection_of_ones_own(name: str, sentence: str, file: Path) -> None:
    with pytest.raises(BadInput, match=r"protect \(--protect\): .*" + sentence):
        protect(scatter(TinyNet()), random_images(4, 3, 8, 8), protect=f"{file}:{name}")


def relu6(model: nn.Module) -> nn.Module:
    model.get_submodule("relu").forward = functional.relu6
    return model


def deeper(model: nn.Module) -> nn.Module:
    model.add_module("linear", nn.Sequential(model.get_submodule("linear"), nn.ReLU()))
    return model


def test_a_function_of_the_model_in_a_program() -> None:
    model, images = scatter(TinyNet()).eval(), random_images(32, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        labels = model(images).argmax(1)
    campaign = Campaign(model, TensorDataset(images, labels), batch_size=8)
    faults = Sampled("neuron", seed=3, repeats=3)
    own = campaign.run(faults, fault_table=True, protect=relu6)
    changed = Campaign(relu6(copy.deepcopy(model)), TensorDataset(images, labels), batch_size=8)
    runs = [own, changed.run(faults, fault_table=True), campaign.run(faults, fault_table=True)]
    mine, theirs, bare = (repr(pq.read_table(one.files.faults).to_pylist()) for one in runs)  # NaN equals no NaN
    assert mine == theirs
    assert mine != bare
    assert own.facts["protection"]["name"].startswith("own:relu6:")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.get_submodule("relu")(torch.tensor(9.0)) == 9, "it was a copy"
    with pytest.raises(BadInput, match=r"keeps the layers.*got linear.0 in the place of linear"):
        campaign.run(faults, protect=deeper)


# --- functions ---


class Functional(TinyNet):
    """Some of its activations are functions."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        logits: Tensor = self.linear(functional.gelu(self.pool(x).flatten(1)))
        return logits


def test_a_run_says_which_activations_it_can_not_protect(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bitflip"):
        protect(scatter(TinyNet()), random_images(4, 3, 8, 8), protect="relu6")
        assert not caplog.messages
        protect(scatter(Functional()), random_images(4, 3, 8, 8), protect="relu6")
    assert len(caplog.messages) == 1
    assert "functions, which are no layers and can't be protected (1 of gelu, 1 of relu)" in caplog.messages[0]
    model = scatter(Functional())
    model.add_module("relu", nn.Identity())
    with pytest.raises(BadInput, match=r"the model has no ReLU that is a module(.|\n)*1 of gelu, 1 of relu"):
        protect(model, random_images(4, 3, 8, 8), protect="relu6")


# --- side by side, in a program ---


def test_several_side_by_side() -> None:
    model, images = scatter(TinyNet()).eval(), random_images(24, 3, 8, 8)
    with torch.no_grad():
        labels = model(images).argmax(1)
    data = TensorDataset(images, labels)
    campaign = Campaign(model, data, batch_size=8, calibration=data)
    faults = Sampled("weight", seed=3, bit=1, repeats=4)
    found = campaign.compare_protections(faults, ["ranger", "ecc:1", relu6], percentile=99.0)
    assert [one.name for one in found.rows] == ["unprotected", "ranger", "ecc:1", "relu6"]
    alone = campaign.run(faults, protect="ranger", percentile=99.0)
    assert found.results["ranger"].layers == alone.layers
    for one in found.rows[1:]:
        assert one.against is not None
        assert one.against.paired
    assert {row.misclassified for row in found.results["ecc:1"].layers} == {0}
    assert found["unprotected"].rate is not None
    assert found["unprotected"].rate.value
    assert found.plot().png.startswith(b"\x89PNG")
    with pytest.raises(BadInput, match="protections: expected each once, got relu6 again"):
        campaign.compare_protections(faults, ["relu6", relu6])
    with pytest.raises(BadInput, match="prove: expected no value"):
        campaign.compare_protections(faults, ["relu6"], prove=True)
    with pytest.raises(BadInput, match="protections: expected functions, or texts"):
        campaign.compare_protections(faults, ["relu7"])
