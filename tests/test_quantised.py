"""Models that torchao has quantised: what they store is struck, in both engines, as a plain loop does."""

from __future__ import annotations

import copy
import struct
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import RunScript, of_torchao
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bitflip
from bitflip.engines.invariance import Invariant
from bitflip.errors import BadInput
from bitflip.network import models

torchao = of_torchao("torchao.quantization")

CONFIGS = {
    "int8": torchao.Int8WeightOnlyConfig(),
    "dynamic": torchao.Int8DynamicActivationInt8WeightConfig(),
    "groups": torchao.IntxWeightOnlyConfig(granularity=torchao.PerGroup(32)),
    "float8": torchao.Float8WeightOnlyConfig(),
}
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def network() -> nn.Sequential:
    torch.manual_seed(4)
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 6)).eval().requires_grad_(False)


def quantised(config: str) -> nn.Sequential:
    model = network()
    torchao.quantize_(model, CONFIGS[config])
    return model


def table(model: nn.Module, engine: Any, faults: bitflip.Sampled, **more: Any) -> list[dict[str, Any]]:
    images = TensorDataset(IMAGES, network()(IMAGES).argmax(1))
    found = bitflip.Campaign(model, images, engine=engine, batch_size=4, device="cpu", **more).run(
        faults, fault_table=True
    )
    rows: list[dict[str, Any]] = pq.read_table(found.files.faults).to_pylist()
    return rows


def held_by(tensor: Any) -> list[Tensor]:
    names = ("qdata", "scale", "zero_point")
    return [part for name in names if (part := getattr(tensor, name, None)) is not None] or [tensor]


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def flipped(model: nn.Module, row: dict[str, Any]) -> nn.Module:
    """A copy with the row's bit flipped by hand, in what torchao keeps."""
    model = copy.deepcopy(model)
    weight: Any = model.get_parameter(f"{row['path']}.weight")
    held = {"weight": weight.qdata, "weight.scale": weight.scale} if row["path"] != "0" else {"weight": weight}
    if row["parameter"] == "weight.zero_point":
        held["weight.zero_point"] = weight.zero_point
    values = held[row["parameter"]]
    width = 8 * values.element_size()
    whole = values.view(torch.int8 if width == 8 else torch.int32).view(-1)
    (mask,) = struct.unpack("b" if width == 8 else "i", (1 << (width - 1 - row["bit"])).to_bytes(width // 8, "little"))
    whole[row["element"]] ^= mask
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_stored_is_struck(config: str) -> None:
    """Both engines agree with each other and with a loop over copies, and leave the model as it was."""
    model = quantised(config)
    parts = [part for tensor in model.state_dict().values() for part in held_by(tensor)]
    before = [part.clone() for part in parts]
    names = ["weight", "weight.scale", *(["weight.zero_point"] if config == "groups" else [])]
    faults = bitflip.Sampled("weight", seed=1, repeats=3, parameters=names)
    tables = [table(model, engine, faults) for engine in ("wave", "reference")]
    assert str(tables[0]) == str(tables[1])
    assert {row["parameter"] for row in tables[0]} == set(names)
    assert all(torch.equal(bits_of(a), bits_of(b)) for a, b in zip(parts, before, strict=True))
    differ = 0
    for row in tables[0]:
        image = IMAGES[row["image"]][None]
        with Invariant():
            logits = flipped(model, row)(image)
            differ += not torch.equal(logits, model(image))
        assert int(logits.argmax(1)) == row["top1"], row
    assert differ > 50
    assert {row["bit"] for row in tables[0] if row["path"] != "0" and row["parameter"] == "weight"} <= set(range(8))
    assert max(row["bit"] for row in tables[0] if row["parameter"] == "weight.scale") > 7


def test_bits_that_were_drawn_unequally_weigh_as_what_is_stored() -> None:
    """A third of the faults of codes are in the sign, which is an eighth of their bits."""
    images = TensorDataset(IMAGES, network()(IMAGES).argmax(1))
    campaign = bitflip.Campaign(quantised("int8"), images, batch_size=4, device="cpu")
    found = campaign.run(
        bitflip.Sampled("weight", seed=1, repeats=20, bit_sampling="importance", layer_type=["Linear"]),
        fault_table=True,
    )
    rows = pq.read_table(found.files.faults).to_pylist()
    for layer in found.layers:
        rate = {True: 0.0, False: 0.0}
        for top in rate:
            own = [row for row in rows if row["layer"] == layer.layer and (row["bit"] == 0) == top]
            rate[top] = sum(row["top1"] != row["label"] for row in own) / len(own)
        assert layer.rate == pytest.approx(100 * (rate[True] + 7 * rate[False]) / 8)
    assert found.budget().cells


@pytest.mark.parametrize("config", ["int8", "dynamic"])
def test_outputs_of_its_layers_are_struck(config: str) -> None:
    tables = [table(quantised(config), engine, bitflip.Sampled("neuron", seed=1)) for engine in ("wave", "reference")]
    assert str(tables[0]) == str(tables[1])
    assert {row["path"] for row in tables[0]} >= {"4", "5", "6"}


def test_a_factory_of_one(tmp_path: Path, run_script: RunScript) -> None:
    """A script runs it."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\nfrom torchao.quantization import Int8WeightOnlyConfig, quantize_\n\n\n"
        "def build():\n    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 32), nn.ReLU(), nn.Linear(32, 10))\n"
        "    quantize_(model, Int8WeightOnlyConfig())\n    return model\n"
    )
    given = ["--dataset", "digits", "--model-name", f"{tmp_path / 'own.py'}:build", "--max-images", "40"]
    done = run_script("weight.py", *given, "--seed", "1", "--fault-table", "--output-path", tmp_path / "out")
    assert done.code == 0, done.err
    rows = pq.read_table(next((tmp_path / "out").glob("*.parquet"))).to_pylist()
    assert {row["path"] for row in rows} == {"1", "3"}
    assert all(row["bit"] < 8 for row in rows)


def test_another_format_does_not_go_with_it() -> None:
    with pytest.raises(
        BadInput, match=r"number_format .* expected none with a model .* quantised already, as 4.weight"
    ):
        table(quantised("int8"), "wave", bitflip.Sampled("weight", seed=1), number_format="bfloat16")


def test_bounds_do_not_go_with_it() -> None:
    images = TensorDataset(IMAGES, torch.zeros(12, dtype=torch.int64))
    campaign = bitflip.Campaign(quantised("int8"), images, device="cpu")
    with pytest.raises(BadInput, match=r"prove .* expected none with a model that is quantised already, as 4.weight"):
        campaign.run(bitflip.Sampled("weight", seed=1), prove=True)


def test_what_is_stored_otherwise_is_refused() -> None:
    model = network()
    torchao.quantize_(model, torchao.IntxWeightOnlyConfig(weight_dtype=vars(torch)["int4"]))
    with pytest.raises(BadInput, match=r"but 4.weight is a IntxUnpackedToInt8Tensor of torch.int4; of quantised"):
        table(model, "wave", bitflip.Sampled("weight", seed=1))


def test_other_codes_are_another_model() -> None:
    """The sum that ties a run to its weights is of what is stored."""
    model = quantised("int8")
    first = models.given(model).sha256
    assert models.given(copy.deepcopy(model)).sha256 == first
    weight: Any = model[4].weight
    weight.scale[3] *= 2
    second = models.given(model).sha256
    weight.qdata[3, 5] ^= 1
    assert len({first, second, models.given(model).sha256}) == 3
