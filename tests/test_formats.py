"""Number formats: what is stored, that flips hit the stored bits, and that all engines agree on it."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FewDigits, Refused, RunScript
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bitflip
from bitflip import __main__ as command_line
from bitflip.data import digits
from bitflip.engines import exactness, windows
from bitflip.engines.exactness import Exactness
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector
from bitflip.engines.invariance import Invariant
from bitflip.engines.windows import Kind
from bitflip.errors import BadInput
from bitflip.faults import kinds
from bitflip.faults.allocation import allocation
from bitflip.network import calibration, formats
from bitflip.network.fields import regions
from bitflip.network.formats import NARROW, Stored

CODES = torch.arange(-128, 128, dtype=torch.int8)
FLOATS = {"float8_e4m3fn": (4, 3, 7), "float8_e5m2": (5, 2, 15)}  # exponent, mantissa, bias
narrow = pytest.mark.parametrize("form", NARROW)


def number(code: int, form: str) -> float:
    """What a code stands for, worked out by hand."""
    if form == "int8":
        return float(code)
    exponents, mantissas, bias = FLOATS[form]
    raw = code & 255
    sign, exponent, mantissa = raw >> 7, raw >> mantissas & (1 << exponents) - 1, raw & (1 << mantissas) - 1
    last = (1 << exponents) - 1
    if form == "float8_e4m3fn" and exponent == last and mantissa == 7:
        return math.nan
    if form == "float8_e5m2" and exponent == last:
        return math.nan if mantissa else (-1) ** sign * math.inf
    scale = 2.0 ** (max(exponent, 1) - bias)
    return float((-1) ** sign * scale * (mantissa / (1 << mantissas) + (exponent > 0)))


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(1e30), b.nan_to_num(1e30))


@narrow
@pytest.mark.parametrize("scale", [1.0, 0.037, 3e-9, 41.5])
def test_every_bit_of_every_code(form: str, scale: float) -> None:
    stored = Stored(form, torch.tensor(scale))
    values = stored.decode(CODES)
    by_hand = torch.tensor([number(int(code), form) for code in CODES]) * scale
    assert same(values, by_hand)
    for bit in range(8):
        change = kinds.FLIP.at(np.full((256, 1), bit), 8)
        found = change(values, torch.from_numpy(change.arrays), stored)
        finite = values.isfinite()  # a NaN has several codes, and infinity is cut off; neither is in a clean network
        flipped = [
            number(((int(code) & 255) ^ 1 << (7 - bit)) if form != "int8" else _flipped(int(code), bit), form)
            for code in CODES
        ]
        assert same(found[finite], (torch.tensor(flipped) * scale)[finite])


def _flipped(code: int, bit: int) -> int:
    raw = (code & 255) ^ 1 << (7 - bit)
    return raw - 256 if raw > 127 else raw


@narrow
def test_codes_come_back_from_what_they_stand_for(form: str) -> None:
    for scale in np.geomspace(1e-12, 1e6, 200):
        for zero in (0, -128, 37) if form == "int8" else (0,):
            stored = Stored(form, torch.tensor(float(scale)), zero)
            values = stored.decode(CODES)
            kept = values.isfinite()
            again = stored.encode(values)
            zeros = values == 0  # -0 and 0 are different codes of a float8
            assert torch.equal(again[kept & ~zeros], CODES[kept & ~zeros])
            assert same(stored.rounded(values)[kept], values[kept])


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.1), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_outputs_are_rounded_as_pytorch_does(low: float, high: float) -> None:
    stored = formats.of_outputs(low, high, "int8", torch.zeros(1))
    values = torch.linspace(low - 1, high + 1, 1001)
    expected = torch.fake_quantize_per_tensor_affine(values, float(stored.scale), int(stored.zero), -128, 127)
    found = stored.rounded(values)
    apart = (found - expected).abs() / stored.scale
    assert float(apart.max()) <= 1.001  # ties and products by 1 / scale may fall to the neighbour
    assert float((apart > 0.5).double().mean()) < 0.01
    assert stored.rounded(torch.zeros(1)) == 0
    inside = torch.linspace(min(low, 0), max(high, 0), 101)
    assert float((stored.rounded(inside) - inside).abs().max()) <= 0.5001 * float(stored.scale)
    assert same(
        stored.rounded(torch.tensor([math.nan, math.inf])), torch.tensor([math.nan, float(stored.decode(CODES[-1:]))])
    )


@narrow
def test_weights_have_a_scale_for_each_channel(form: str) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(5, 4)
    with torch.no_grad():
        linear.weight *= torch.tensor([1.0, 10.0, 1e-3, 0.0])[:, None]
    before = linear.weight.detach().clone()
    storage = formats.store(linear, form, formats.Ranges())
    (stored,) = storage.parameters.values()
    largest = before.abs().amax(1)
    assert torch.allclose(linear.weight.detach().abs().amax(1), largest, rtol=1e-6)
    step = (
        largest / 127
        if form == "int8"
        else before.abs().amax(1) * {"float8_e4m3fn": 1 / 14, "float8_e5m2": 1 / 7}[form]
    )
    assert ((linear.weight - before).abs() <= 0.5001 * step[:, None] + 1e-12).all()
    assert int(stored.at(torch.arange(4)).encode(linear.weight.T).abs().max() if form == "int8" else 0) <= 127


# --- the engines ---


def network() -> nn.Sequential:
    torch.manual_seed(4)
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)]
    return nn.Sequential(*parts).eval().requires_grad_(False)


IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
OTHERS = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def labelled(images: Tensor) -> TensorDataset:
    return TensorDataset(images, network()(images).argmax(1))


def campaign(form: Any, engine: Any, **more: Any) -> bitflip.Campaign:
    own: dict[str, Any] = {"batch_size": 4, "device": "cpu", "calibration": labelled(OTHERS)}
    return bitflip.Campaign(network(), labelled(IMAGES), engine=engine, number_format=form, **(own | more))


class Plain:
    """The same network in a format, made of PyTorch alone: an image at a time, hooks that round, its own codes."""

    def __init__(self, form: str) -> None:
        self.form, self.model = form, network()
        ends: dict[str, tuple[float, float]] = {"input": (float(OTHERS.min()), float(OTHERS.max()))}
        handles = [
            module.register_forward_hook(
                lambda m, a, output, name=name: ends.__setitem__(name, (float(output.min()), float(output.max())))
            )
            for name, module in self.model.named_children()
        ]
        with Invariant():
            self.model(OTHERS)
        for handle in handles:
            handle.remove()
        self.grids = {name: self._grid(*pair) for name, pair in ends.items()}
        self.rows: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.dim() > 1:
                size = parameter.abs().flatten(1).amax(1)
                self.rows[name] = size / (127 if form == "int8" else torch.finfo(getattr(torch, form)).max)
                shape = (-1, *[1] * (parameter.dim() - 1))
                scale = self.rows[name].view(shape)
                parameter.copy_(self.value(self.code(parameter / scale, 0, -127), 0) * scale)

    def _grid(self, low: float, high: float) -> tuple[Tensor, int]:
        if self.form == "int8":
            low, high = min(low, 0.0), max(high, 0.0)
            return torch.tensor((high - low) / 255), round(-128 - low / ((high - low) / 255))
        return torch.tensor(max(abs(low), abs(high)) / torch.finfo(getattr(torch, self.form)).max), 0

    def code(self, numbers: Tensor, zero: int, lowest: int = -128) -> Tensor:
        """int8 codes of numbers in units of the scale."""
        if self.form == "int8":
            return (numbers.round() + zero).clamp(lowest, 127).to(torch.int8)
        dtype = getattr(torch, self.form)
        limit = torch.finfo(dtype).max
        return numbers.clamp(-limit, limit).to(dtype).view(torch.int8)

    def value(self, codes: Tensor, zero: int) -> Tensor:
        if self.form == "int8":
            return codes.float() - zero
        return codes.view(getattr(torch, self.form)).float()

    def logits(self, image: Tensor, name: str, element: int, code: Any) -> Tensor:
        """Those of one image; ``code`` changes the code of one element of a layer's output or a parameter."""
        model = copy.deepcopy(self.model)

        def struck(value: Tensor, scale: Tensor, zero: int) -> Tensor:
            flat = value.flatten().clone()
            before = self.code(flat[element : element + 1] / scale, zero)
            flat[element] = (self.value(code(before), zero) * scale)[0]
            return flat.view(value.shape)

        def grid(where: str, value: Tensor) -> Tensor:
            scale, zero = self.grids[where]
            value = self.value(self.code(value / scale, zero), zero) * scale
            return struck(value, scale, zero) if where == name else value

        if name in self.rows:
            parameter = model.get_parameter(name)
            row = self.rows[name][element // parameter[0].numel()]
            parameter.copy_(struck(parameter, row, 0))
        image = grid("input", image)
        with Invariant():  # what rounds otherwise in a batch can fall to another number of the format
            for where, module in model.named_children():
                image = grid(where, module(image))
        return image

    def under(self, image: Tensor, path: str, parameter: str, element: int, value: float) -> Tensor:
        """The logits of one image with another scale, or zero point, of a weight's channel or of a layer's output."""
        model, grids = copy.deepcopy(self.model), dict(self.grids)
        if parameter == "weight.scale":
            name = f"{path}.weight"
            channel = model.get_parameter(name)[element]
            codes = self.code(channel / self.rows[name][element], 0, -127)
            channel.copy_(self.value(codes, 0) * torch.tensor(value))
        else:
            scale, zero = grids[path]
            grids[path] = (scale, int(value)) if parameter.endswith("zero_point") else (torch.tensor(value), zero)

        def grid(where: str, values: Tensor) -> Tensor:
            scale, zero = grids[where]
            return self.value(self.code((values / scale).nan_to_num(0.0, math.inf, -math.inf), zero), zero) * scale

        image = grid("input", image)
        with Invariant():
            for where, module in model.named_children():
                image = grid(where, module(image))
        return image


@narrow
def test_scales_are_targets_of_their_own(form: str) -> None:
    """Both engines, and a plain loop: a flip in the scale of a channel changes all of it, one in an output's, all."""
    plain, tables = Plain(form), []
    names = ["weight.scale", "output.scale", *(["output.zero_point"] if form == "int8" else [])]
    for engine in ("wave", "reference"):
        sampled = bitflip.Sampled("weight", seed=3, repeats=2, parameters=["weight", *names])
        found = campaign(form, engine).run(sampled, fault_table=True)
        tables.append(pq.read_table(found.files.faults).to_pylist())
    assert str(tables[0]) == str(tables[1])
    assert {row["parameter"] for row in tables[0]} == {"weight", *names}
    decided = 0
    for row in tables[0]:
        name, value = row["parameter"], row["error"]
        if name == "weight":
            continue
        grid = plain.grids[row["path"]] if name != "weight.scale" else ()
        before = grid[names.index(name) - 1] if grid else plain.rows[f"{row['path']}.weight"][row["element"]]
        assert row["original"] == float(before)
        width, kind = (8, "b") if name.endswith("zero_point") else (32, "f")
        stored = (
            [struct.unpack(f">{'B' if width == 8 else 'I'}", struct.pack(f">{kind}", v)) for v in (before, value)]
            if kind == "f"
            else [(int(v) & 255,) for v in (before, value)]
        )
        assert stored[0][0] ^ stored[1][0] == 1 << (width - 1 - row["bit"])
        logits = plain.under(IMAGES[row["image"]][None], row["path"], name, row["element"], value)
        if bool(logits.isfinite().all()):
            assert int(logits.argmax(1)) == row["top1"], row
            decided += 1
    assert decided > 60


@pytest.mark.parametrize(
    ("form", "name", "sentence"),
    [
        (
            "int8",
            "weight.zero_point",
            r"no parameter tensor weight.zero_point; .* symmetric, so that its zero point",
        ),
        (None, "weight.scale", r"no parameter tensor weight.scale; .* scales are stored with number_format .* int8"),
    ],
)
def test_scales_that_there_are_not(form: Any, name: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        campaign(form, "wave").run(bitflip.Sampled("weight", seed=3, parameters=[name]))


def test_rounding_hides_no_kernel(monkeypatch: pytest.MonkeyPatch, no_verdicts: None) -> None:
    """Whether windows have the bits of whole maps is found out before they are rounded, and holds for float32 too."""
    model = network()
    storage = formats.store(model, "int8", formats.observe(model, lambda: [OTHERS], Invariant))
    injector = Injector(model, len(IMAGES), IMAGES, storage)
    program = Program(injector.original_model, injector.modules, injector.layers, IMAGES)
    step = next(step for step in program.steps if step.kind is Kind.SPREAD)
    real = windows.unpadded

    def slightly_other(module: nn.Module, patch: Tensor) -> Tensor:
        with formats.unrounded(module):
            found = real(module, patch)
        return formats.after(module, found * (1 + 2**-20))

    monkeypatch.setattr(exactness, "unpadded", slightly_other)
    assert not Exactness(program).window(step, (1, 1), None, IMAGES)
    assert all(len(program.module(step.node)._forward_hooks) == 1 for step in program.steps if step.layer is not None)


def test_a_fault_that_is_drawn_twice_is_two() -> None:
    """A zero point has 8 bits, so that 12 faults of a batch can't all be others."""
    sampled = bitflip.Sampled("weight", seed=3, repeats=12, parameters=["weight", "output.zero_point"])
    found = campaign("int8", "wave").run(sampled, fault_table=True)
    against = bitflip.compare(found, found)
    assert len({(difference.low, difference.high) for _, difference in against.layers}) == 1
    faults = sum(row.flips for row in found.layers)
    assert abs(found.budget().flips - faults / 2) <= len(found.budget().cells) / 2


@pytest.mark.parametrize("percentile", [99.0, 80.0])
def test_ranges_leave_out_what_lies_beyond_a_percentile(percentile: float) -> None:
    model, seen = network(), dict[nn.Module, Tensor]()
    for module in model:
        module.register_forward_hook(lambda m, a, output: seen.__setitem__(m, output.flatten().clone()))
    with Invariant():
        model(OTHERS)
    for module in model:
        module._forward_hooks.clear()
    batches = torch.split(OTHERS, 7)
    ranges = formats.observe(model, lambda: batches, Invariant, percentile)
    places: list[tuple[nn.Module | int, Tensor]] = [*seen.items(), (0, OTHERS.flatten())]
    for where, values in places:
        low, high = ranges.inputs[where] if isinstance(where, int) else ranges.outputs[where]
        width = float(values.max() - values.min()) / calibration.BINS
        for end, share in ((low, 1 - percentile / 100), (high, percentile / 100)):
            expected = float(values.sort().values[int(share * (len(values) - 1))])
            neighbour = float(values.sort().values[min(len(values) - 1, int(share * (len(values) - 1)) + 1)])
            assert min(expected, neighbour) - 2 * width <= end <= max(expected, neighbour) + 2 * width


def test_a_run_takes_its_ranges_at_the_percentile_that_it_is_given() -> None:
    found = campaign("int8", "wave").run(bitflip.Sampled("neuron", seed=3), fault_table=True, percentile=80)
    rows = pq.read_table(found.files.faults).to_pylist()
    ranges = formats.observe(network(), lambda: [OTHERS], Invariant, 80.0)
    last = [row["original"] for row in rows if row["path"] == "8"]
    low, high = ranges.outputs[next(module for module in ranges.outputs if isinstance(module, nn.Linear))]
    step = (high - low) / 255
    assert last
    assert all(low - step <= value <= high + step for value in last)
    assert float(network()(IMAGES).max()) > high + step


def test_all_parameters_are_not_their_scales() -> None:
    found = campaign("int8", "wave").run(bitflip.Sampled("weight", seed=3, parameters=None), fault_table=True)
    assert {row["parameter"] for row in pq.read_table(found.files.faults).to_pylist()} == {"weight", "bias"}


@narrow
@pytest.mark.parametrize("kind", ["flip", "stuck1", "flips:3", "burst:2", "random", "zero", "value:0.25"])
def test_both_engines_and_a_plain_loop_agree(form: str, kind: str) -> None:
    plain = Plain(form)
    for target in ("neuron", "weight"):
        tables = []
        for engine in ("wave", "reference"):
            found = campaign(form, engine).run(
                bitflip.Sampled(target, seed=7, repeats=2, fault=kind, parameters=["weight"]),
                fault_table=True,
            )
            tables.append(pq.read_table(found.files.faults).to_pylist())
        assert len(tables[0]) > 90
        differ = [(a, b) for a, b in zip(*tables, strict=True) if str(a) != str(b)]
        assert not differ
        rows = [row for row in tables[0] if target == "neuron" or f"{row['path']}.weight" in plain.rows]
        for row in rows[:: 3 if target == "weight" else 5]:
            name = f"{row['path']}.weight" if target == "weight" else row["path"]
            scale = (
                plain.rows[name][row["element"] // plain.model.get_parameter(name)[0].numel()]
                if target == "weight"
                else plain.grids[name][0]
            )
            zero = 0 if target == "weight" else plain.grids[name][1]

            def code(before: Tensor, row: Any = row, scale: Tensor = scale, zero: int = zero) -> Tensor:
                before_value = float((plain.value(before, zero) * scale)[0])
                assert before_value == row["original"] or (before_value == 0 == row["original"])
                if kind == "flip":
                    return before ^ torch.tensor([-128 if row["bit"] == 0 else 1 << (7 - row["bit"])], dtype=torch.int8)
                return plain.code(torch.tensor([row["error"]], dtype=torch.float32) / scale, zero)

            if kind != "flip" and not math.isfinite(row["error"]):
                continue  # has several codes
            logits = plain.logits(IMAGES[row["image"]][None], name, row["element"], code)
            assert int(logits.argmax(1)) == row["top1"], row


@narrow
def test_the_users_model_comes_back_as_it_was(form: Any) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = bitflip.Campaign(model, labelled(IMAGES), number_format=form, calibration=labelled(OTHERS), device="cpu")
    found.run(bitflip.Sampled("weight", seed=1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_format_that_needs_other_images_says_so() -> None:
    with pytest.raises(
        BadInput, match=r"calibration_set: expected a data set with a length, of inputs that are not those of the test"
    ):
        campaign("int8", "wave", calibration=None).run(bitflip.Sampled("neuron", seed=1))


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_a_format_and_a_protection(target: Any) -> None:
    """Together: both engines agree, and the guards, which are no layers, change neither numbers nor faults."""
    tables = {}
    for engine in ("wave", "reference"):
        for protect in (None, "nan+ranger"):
            found = campaign("float8_e5m2", engine).run(
                bitflip.Sampled(target, seed=7), fault_table=True, protect=protect
            )
            tables[engine, protect] = pq.read_table(found.files.faults).to_pylist()
    assert str(tables["wave", None]) == str(tables["reference", None])
    assert str(tables["wave", "nan+ranger"]) == str(tables["reference", "nan+ranger"])
    places = [
        [(r["path"], r["element"], r["bit"], r["original"]) for r in tables["wave", p]] for p in (None, "nan+ranger")
    ]
    assert places[0] == places[1]


@pytest.mark.parametrize("form", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_a_format_that_is_computed_in(form: Any, target: Any) -> None:
    """Both engines, and a plain loop in that type."""
    tables = []
    for engine in ("wave", "reference"):
        found = campaign(form, engine, calibration=None).run(bitflip.Sampled(target, seed=7), fault_table=True)
        tables.append(pq.read_table(found.files.faults).to_pylist())
    assert str(tables[0]) == str(tables[1])
    width = torch.finfo(getattr(torch, form)).bits
    assert {row["bit"] for row in tables[0]} <= set(range(width))
    assert max(row["bit"] for row in tables[0]) > width // 2
    values = [row["original"] for row in tables[0]]
    assert values == [float(torch.tensor(value, dtype=torch.float64).to(getattr(torch, form))) for value in values]


# --- the scripts ---


@pytest.mark.parametrize(("form", "target"), [("int8", "weight"), ("int8", "neuron"), ("float8_e5m2", "neuron")])
def test_a_run_on_digits(form: str, target: str, tmp_path: Path, few_digits: FewDigits, run_script: RunScript) -> None:
    few_digits(100)
    given = ["--dataset", "digits", "--number-format", form, "--batch-size", "50"]
    listed = tmp_path / "list.csv"
    first = [*given, "--seed", "2", "--layer-type", "Conv2d,Linear", "--save-faults", listed, "--repeats", "4"]
    assert run_script(f"{target}.py", *first, "--detailed-log", "--output-path", tmp_path / "first").code == 0
    rows = list(csv.DictReader(next((tmp_path / "first").glob("*_2.csv")).open()))
    assert int(rows[0]["correct"]) >= 4 * 98
    text = next((tmp_path / "first").glob("*_detailed.txt")).read_text()
    assert text.count(f"Number format: {form}\n") == text.count("Original binary: ")
    found = re.findall(r"Original binary: (\d+)\nFlip bit: (\d+)\n.*\nError binary:    (\d+)\n", text)
    assert found or (form, target) == ("int8", "neuron")
    for before, bit, after in found:
        assert len(before) == len(after) == 8
        assert [i for i in range(8) if before[i] != after[i]] == [int(bit)]
    assert run_script(f"{target}.py", *given, "--faults", listed, "--output-path", tmp_path / "again").code == 0
    other = next(path for path in (tmp_path / "again").glob("*.csv") if path.name.endswith("list-list.csv"))
    assert len(rows) == 7
    for before, after in zip(rows, csv.DictReader(other.open()), strict=True):
        assert (before["misclassified"], before["masked"]) == (after["misclassified"], after["masked"])


def test_formats_side_by_side(tmp_path: Path, few_digits: FewDigits, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has the rates of the runs, which lie beside it; the plot has every format."""
    few_digits(40)
    given = ["formats", "--dataset=digits", "--seed=3", "--with=float32,int8", f"--output-path={tmp_path}"]
    assert command_line.main([*given, "--layer-type=BatchNorm2d,Linear", "--fault=stuck1"]) == 0
    printed = capsys.readouterr().out
    assert "rates under a fault in one random bit, in percent" in printed
    (table,) = tmp_path.glob("*_formats.csv")
    rows = list(csv.DictReader(table.open()))
    assert {(row["format"], row["target"]) for row in rows} == {
        (form, target) for form in ("float32", "int8") for target in ("neuron", "weight")
    }
    for form in ("float32", "int8"):
        for stem, target in (("digits_vgg", "neuron"), ("weight_digits_vgg", "weight")):
            run = tmp_path / form / f"{stem}_digits_3"
            facts = json.loads(run.with_suffix(".json").read_text())
            assert facts["settings"]["number_format"] == form
            mine = [row for row in rows if (row["format"], row["target"]) == (form, target)]
            layers = list(csv.DictReader(run.with_suffix(".csv").open()))
            assert [(r["path"], r["rate"]) for r in mine if r["scope"] == "layer"] == [
                (r["path"], r["seed_3"]) for r in layers
            ]
            (network,) = (row for row in mine if row["scope"] == "network")
            mean = next(one for one in facts["means"] if one["of"] == "network")
            assert float(network["rate"]) == pytest.approx(mean["rate"], abs=1e-6)
            assert re.search(rf"{form} +{target} +{network['clean_correct']}/40 ", printed)
            bits = [int(row["bit"]) for row in mine if row["scope"] == "bit"]
            assert max(bits) < (32 if form == "float32" else 8), "batch normalisation's float32 beside int8 is not int8"
    drawn = table.with_suffix(".svg").read_text()
    assert all(f"<!-- {words} -->" in drawn for words in ("float32", "int8", "neurons", "weights"))


def test_whole_values_are_no_random_bits(
    tmp_path: Path, few_digits: FewDigits, capsys: pytest.CaptureFixture[str]
) -> None:
    few_digits(8)
    given = ["formats", "--dataset=digits", "--with=int8", "--target=neuron", "--layer-type=Linear", "--fault=value:3"]
    assert command_line.main([*given, f"--output-path={tmp_path}"]) == 0
    assert "misclassification rates under fault value:3, in percent" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["int8,int4", ""])
def test_formats_that_there_are_not(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["formats", "--dataset=digits", f"--with={text}"]) == 2
    assert "with (--with): expected number formats of float32, float64" in capsys.readouterr().err


def test_accuracy_of_int8_is_within_a_point(digits_model: nn.Module) -> None:
    images, labels = (tensor[:300] for tensor in digits.load("test").tensors)
    model = copy.deepcopy(digits_model).eval()
    before = float((model(images).argmax(1) == labels).float().mean())
    formats.store(model, "int8", formats.observe(model, lambda: [digits.load("train").tensors[0][:200]], Invariant))
    assert abs(float((model(images).argmax(1) == labels).float().mean()) - before) <= 0.01


def test_the_bit_that_matters_most_gets_a_third() -> None:
    assert allocation(8, "integer").tolist()[0] == pytest.approx(1 / 3)
    assert allocation(8).tolist()[1] == pytest.approx(1 / 3)


def test_parts_of_a_number() -> None:
    assert regions(8, "int8") == [("sign", 0, 0), ("magnitude", 1, 7)]
    assert regions(8, "float8_e5m2") == [("sign", 0, 0), ("exponent", 1, 5), ("mantissa", 6, 7)]
    assert regions(16, "bfloat16") == [("sign", 0, 0), ("exponent", 1, 8), ("mantissa", 9, 15)]
    assert regions(32, "int8") == regions(32) == [("sign", 0, 0), ("exponent", 1, 8), ("mantissa", 9, 31)]
    assert regions(16) == []


def test_layers_know_their_format(digits_model: nn.Module) -> None:
    model = copy.deepcopy(digits_model)
    storage = formats.store(model, "int8", formats.observe(model, lambda: [torch.zeros(1, 3, 32, 32)], Invariant))
    layers = Injector(model, 4, torch.zeros(1, 3, 32, 32), storage).layers
    assert {(layer.bits, layer.format) for layer in layers} == {(8, "int8")}
    weights = {(p.bits, p.format) for layer in layers for p in layer.parameters if len(p.shape) > 1}
    assert weights == {(8, "int8")}
    assert {p.format for layer in layers for p in layer.parameters if len(p.shape) == 1} == {"float32"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--number-format", "int4"], r"number_format \(--number-format\): expected one of float32, .* got 'int4'"),
        (["--number-format", "int8", "--bit-flip-pos", "8"], r"bit_flip_pos .* from 0 to 7 of a value of 8 bits"),
        (["--number-format", "bfloat16", "--bit-flip-pos", "16"], r"bit_flip_pos .* 0 to 15 of a value of 16 bits"),
        (["--number-format", "int8", "--fault", "burst:9"], r"fault .* a kind that fits 8 bits, got burst:9"),
        (["--number-format", "bfloat16", "--percentile", "99"], r"percentile .* or a number_format .* of 8 bits"),
        (["--number-format", "int8", "--prove"], r"number_format .* expected float32 or float64 with prove"),
    ],
)
def test_what_does_not_fit_is_refused(given: list[str], sentence: str, refused: Refused) -> None:
    refused(given, sentence)
