"""The library: campaigns on a model and a test set of one's own, and nothing that leaks out of them."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import parsers
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, TinyNet, random_images, scatter
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import bitflip
from bitflip import BadInput, Campaign, Sampled
from bitflip.campaign.executor import Here

COUNT = 24


def some(count: int) -> TensorDataset:
    return TensorDataset(random_images(count, 3, 8, 8), torch.arange(count) % 10)


@pytest.fixture
def campaign(tiny: nn.Module) -> Campaign:
    return Campaign(tiny, some(COUNT), batch_size=8, device="cpu")


def counted(campaign: Campaign, faults: Any, **options: Any) -> list[tuple[object, ...]]:
    result = campaign.run(faults, **options)
    return [(r.path, r.call, r.parameter, r.injections, r.masked, r.sdc1, r.misclassified) for r in result.layers]


# --- what comes out ---


def test_layers_are_named_and_numbered(campaign: Campaign) -> None:
    first, *rest = campaign.layers
    assert (first.number, first.path, first.type, first.shape) == (0, "input", "Identity", (3, 8, 8))
    assert [layer.number for layer in rest] == list(range(1, len(rest) + 1))
    assert ("relu", 1) in {(layer.path, layer.call) for layer in rest}
    (linear,) = (layer for layer in rest if layer.type == "Linear")
    assert (linear.shape, linear.parameters) == ((10,), ("weight", "bias"))


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_each_flip_does_what_a_plain_loop_says(target: Any, campaign: Campaign, tiny: nn.Module) -> None:
    """The top bit of the exponent of a value of the last layer, flipped by hand."""
    result = campaign.run(Sampled(target, seed=3, layer_type=["Linear"], bit=1), fault_table=True, detailed_log=True)
    (row,) = result.layers
    images, labels = some(COUNT).tensors
    with torch.no_grad():
        clean = tiny(images)
    right = clean.argmax(1) == labels
    assert (row.path, row.type, row.correct) == ("linear", "Linear", int(right.sum()))
    assert row.injections == COUNT
    assert row.masked is not None
    assert row.benign is not None
    assert row.masked + row.benign + row.sdc1 == row.harmless + row.sdc1 == COUNT
    assert result.facts["images"] == COUNT
    assert sum(bit.injections for bit in result.bits) == COUNT
    assert {bit.bit for bit in result.bits} == {1}
    wrong = 0
    for fault in table_of(result):
        logits = clean[fault["image"]].clone()
        if target == "neuron":
            logits.view(torch.int32)[fault["element"]] ^= 1 << 30
        else:
            weight = tiny.get_parameter("linear.weight").detach().clone()
            weight.view(-1).view(torch.int32)[fault["element"]] ^= 1 << 30
            with torch.no_grad():
                logits = torch.func.functional_call(tiny, {"linear.weight": weight}, images[fault["image"]][None])[0]
        assert int(logits.argmax()) == fault["top1"]
        wrong += bool(right[fault["image"]]) and int(logits.argmax()) != int(clean[fault["image"]].argmax())
    assert row.misclassified == wrong


def table_of(result: bitflip.Result) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(result.files.faults).to_pylist()
    assert rows
    return rows


def test_a_list_says_what_is_struck(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(
        "target,layer,call,index,bit,image\nweight,conv1,0,0;0;0;0,1,all\nbias,linear,0,3,0,0-5\n"
    )
    result = campaign.run(bitflip.read_faults(tmp_path / "mine.csv"))
    assert [(r.path, r.parameter, r.injections) for r in result.layers] == [
        ("conv1", "weight", COUNT),
        ("linear", "bias", 6),
    ]
    (tmp_path / "mine.csv").write_text("target,layer,call,index,bit,image\nneuron,relu,1,3;0;2,1,4\n")
    (row,) = campaign.run(bitflip.read_faults(str(tmp_path / "mine.csv"))).layers
    assert (row.path, row.call, row.parameter, row.flips) == ("relu", 1, "", 1)


@pytest.mark.parametrize(
    ("target", "fault", "said", "form"),
    [
        ("neuron", "stuck1", "stuck1", "float32"),
        ("neuron", "flips:2", "", "float32"),
        ("neuron", "value:1e30", "value:0x714a", "bfloat16"),
        ("weight", "value:1e30", "value:0x7149f2ca", "float32"),
        ("weight", lambda values, words: values + 1e30, "own", "float32"),
        ("weight", "burst:3", "", "bfloat16"),
    ],
)
def test_the_detailed_log_says_what_the_fault_table_says(
    target: Any, fault: Any, said: str, form: Any, tiny: nn.Module, tmp_path: Path
) -> None:
    """And in its further lines what sets a fault apart."""
    images = random_images(COUNT, 3, 8, 8)
    with torch.no_grad():
        labels = tiny(images).argmax(1)
    campaign = Campaign(tiny, TensorDataset(images, labels), batch_size=8, device="cpu", number_format=form)
    sampled = Sampled(target, seed=1, repeats=3, fault=fault, parameters=["weight", "bias"])
    if target == "neuron":
        sampled = replace(sampled, parameters=("weight",))
    result = campaign.run(sampled, detailed_log=True, fault_table=True)
    written = {path.name.rpartition("_1")[2]: path for path in result.save(tmp_path, plots=False)}
    rows = pq.read_table(written["_faults.parquet"]).to_pylist()
    broken = [row for row in rows if row["clean_top1"] == row["label"] != row["top1"]]
    text = written["_detailed.txt"].read_text()
    if target == "neuron":
        blocks = [(block, block) for block in parsers.neurons(text)]
    else:
        flips = parsers.weights(text)
        assert len(flips) == sum(row.flips for row in result.layers)
        blocks = [({**flip, **image}, flip) for flip, of in flips for image in of]
    assert len(blocks) == len(broken) > 0
    keys = ("layer", "path", "call", "parameter", "image", "original", "error", "label", "top1")
    assert sorted(str([row[key] for key in keys]) for row in broken) == sorted(
        str(
            [
                int(block["Layer"]),
                block["Path"],
                int(block.get("Call", 0)),
                block.get("Parameter", "" if target == "neuron" else "weight"),
                int(block["Test image"]),
                float(block["Original value"]),
                float(block["Error value"]),
                int(block["Label"]),
                int(block["Model output"]),
            ]
        )
        for block, _ in blocks
    )
    assert {flip.get("Fault", "") for _, flip in blocks} == {said}
    assert {flip.get("Number format", "float32") for _, flip in blocks} == {form}
    assert {flip.get("Repeat", "0") for _, flip in blocks} == {"0", "1", "2"}


def test_files_are_those_of_the_scripts(campaign: Campaign, tmp_path: Path) -> None:
    result = campaign.run(Sampled(seed=1, layer_num=[1, 2]), detailed_log=True)
    stem = "TinyNet_TensorDataset_1"
    written = result.save(tmp_path / "plain", plots=False)
    ends = [".txt", ".csv", "_bits.csv", ".json", "_detailed.txt"]
    assert sorted(path.name for path in written) == sorted(stem + end for end in ends)
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == sorted(path.name for path in written)
    assert {path.suffix for path in result.save(tmp_path / "drawn")} == {
        ".txt",
        ".csv",
        ".json",
        ".png",
        ".svg",
        ".html",
    }
    picture = result.plot("bits")
    picture.save(tmp_path / "bits.svg")
    assert (tmp_path / "bits.svg").read_bytes().startswith(b"<?xml")
    assert picture._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match=r"expected a name that ends in \.png or \.svg"):
        picture.save(tmp_path / "bits.pdf")


def test_two_results_are_compared_fault_by_fault(tmp_path: Path) -> None:
    one, other = (Campaign(scatter(TinyNet(), seed), some(COUNT), device="cpu") for seed in (0, 1))
    first, second = (c.run(Sampled(seed=1, layer_num=[1]), fault_table=True) for c in (one, other))
    assert bitflip.compare(first, second).paired
    (path, *_) = second.save(tmp_path, plots=False)
    assert bitflip.compare(first, path.with_suffix(".json")).paired


def test_rows_become_a_data_frame(campaign: Campaign) -> None:
    pandas = pytest.importorskip("pandas")
    rows = campaign.run(Sampled(seed=1, layer_num=[1, 2])).layers
    frame = rows.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["rate"].tolist() == [row.rate for row in rows]


# --- what goes in ---


def test_a_loader_is_a_data_set_in_batches(tiny: nn.Module) -> None:
    faults = Sampled("weight", seed=1, layer_num=[1])
    expected = counted(Campaign(tiny, some(COUNT), batch_size=8, device="cpu"), faults)
    assert counted(Campaign(tiny, DataLoader(some(COUNT), batch_size=8), device="cpu"), faults) == expected
    short = Campaign(tiny, DataLoader(some(COUNT), batch_size=10, drop_last=True), device="cpu")
    assert counted(short, faults)[0][3] == 20


def test_a_loader_may_put_batches_together_itself(tiny: nn.Module) -> None:
    def halved(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image / 2 for image, _ in items]), torch.stack([label for _, label in items])

    images, labels = some(COUNT).tensors
    loader: DataLoader[Any] = DataLoader(some(COUNT), batch_size=8, collate_fn=halved)
    faults = Sampled(seed=1, layer_num=[1])
    expected = counted(Campaign(tiny, TensorDataset(images / 2, labels), batch_size=8, device="cpu"), faults)
    assert counted(Campaign(tiny, loader, device="cpu"), faults) == expected


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda m: Campaign(m, DataLoader(some(COUNT), shuffle=True)),
            "expected a DataLoader that does not shuffle",
        ),
        (lambda m: Campaign(m, Endless()), "expected a data set with a length"),
        (lambda m: Campaign(m, DataLoader(Endless())), "expected a data set with a length"),
        (lambda m: Campaign(m, some(0)), "expected at least one input"),
        (lambda m: Campaign("resnet18", some(COUNT)), "model: expected an nn.Module, got str"),  # type: ignore[arg-type]
        (
            lambda m: Campaign(m, some(COUNT), batch_size=0),
            r"batch_size \(--batch-size\): expected a whole number",
        ),
        (
            lambda m: Campaign(m, some(COUNT), device="tpu"),
            r"device \(--device\): expected auto, cpu, cuda or cuda:N",
        ),
        (lambda m: Campaign(m, some(COUNT), device="cuda:99"), r"device \(--device\): expected .* is there"),
        (lambda m: run(m, Sampled("input")), "target: expected neuron or weight, got 'input'"),  # type: ignore[arg-type]
        (lambda m: run(m, Sampled(seed=-1)), "seed: expected a whole number from 0"),
        (lambda m: run(m, Sampled(seed="1")), "seed: expected a whole number from 0, got '1'"),  # type: ignore[arg-type]
        (lambda m: run(m, "neuron"), "faults: expected Sampled"),  # type: ignore[arg-type]
        (
            lambda m: run(m, Sampled(parameters=["bias"])),
            "parameters: expected weight with faults of neurons, got bias",
        ),
        (lambda m: rates(m, "weigth"), "target: expected neuron or weight, got 'weigth'"),
        (lambda m: rates(m, "neuron", parameters=["bias"]), "parameters: expected weight with faults of neurons"),
        (lambda m: rates(m, "weight", seed=-1), "seed: expected a whole number from 0"),
        (lambda m: run(m, Sampled(layer_type="Conv3d")), "the model has no Conv3d layer"),
        (lambda m: run(m, Sampled(layer_type=[nn.Conv3d])), "the model has no Conv3d layer"),  # type: ignore[list-item]
        (lambda m: run(m, Sampled(layer_num=99)), "expected numbers from 0 to"),  # type: ignore[arg-type]
        (
            lambda m: Campaign(m, some(COUNT), device="cpu").run(Sampled(), folder=__file__),
            "folder: expected a folder that can be written to, got .* \\(File exists\\)",
        ),
        (
            lambda m: run(m, Sampled(), TensorDataset(random_images(2, 3, 8, 8), torch.tensor([1.7, 1.0]))),
            "expected a whole number as the label of each input, got a batch of torch.float32",
        ),
        (
            lambda m: run(m, Sampled(), [(image, "cat") for image in random_images(2, 3, 8, 8)]),
            "expected a whole number as the label of each input, got a batch of tuple",
        ),
        (lambda m: run(m, Sampled(), random_images(2, 3, 8, 8)), "expected items of two parts, an input and its label"),
        (lambda m: run(m, Sampled(bit=32)), r"bit_flip_pos \(--bit-flip-pos\): expected a bit from 0 to 31"),
        (lambda m: run(m, Sampled(layer_type=["Conv3d"])), r"layer_type \(--layer-type\): the model has no Conv3d"),
        (lambda m: run(m, Sampled(layer_num=[99])), r"layer_num \(--layer-num\): expected numbers from 0 to"),
        (
            lambda m: run(m, Sampled(), TensorDataset(random_images(2, 3, 8, 8), torch.tensor([1, 10]))),
            "labels from 0 to",
        ),
        (lambda m: run(m, Sampled(), TensorDataset(random_images(2, 5), torch.tensor([1, 1]))), "can't take"),
    ],
)
def test_a_mistake_is_a_sentence(make: Any, sentence: str, tiny: nn.Module) -> None:
    with pytest.raises(BadInput, match=sentence):
        make(tiny)


def test_a_single_name_or_number_is_a_list_of_one(tiny: nn.Module) -> None:
    campaign = Campaign(tiny, some(COUNT), device="cpu")
    (one,) = campaign.run(Sampled(layer_type="Conv2d", layer_num=0)).layers  # type: ignore[arg-type]
    (listed,) = campaign.run(Sampled(layer_type=["Conv2d"], layer_num=[0])).layers
    assert one == listed
    faults = Sampled(seed=np.int64(0), layer_type=["Conv2d"], layer_num=[0])  # type: ignore[arg-type]
    (numbered,) = campaign.run(faults).layers
    assert numbered == listed
    points = campaign.error_rates("weight", 1e-3, patterns=1)  # type: ignore[arg-type]
    assert [point.rate for point in points] == [1e-3]


def rates(model: nn.Module, target: Any, **more: Any) -> None:
    Campaign(model, some(COUNT), device="cpu").error_rates(target, [1e-3], patterns=1, **more)


def run(model: nn.Module, faults: Sampled, data: Any = None) -> None:
    Campaign(model, some(COUNT) if data is None else data, device="cpu").run(faults)


# --- what does not leak ---


def torch_state() -> tuple[object, ...]:
    nnpack = torch.backends.nnpack.set_flags(True)  # type: ignore[no-untyped-call]
    torch.backends.nnpack.set_flags(*nnpack)  # type: ignore[no-untyped-call]
    cudnn = torch.backends.cudnn
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.mha.get_fastpath_enabled(),
        *(cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic),
        nnpack,
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


@pytest.fixture
def other_settings() -> Iterator[None]:
    """PyTorch's settings are not what a campaign makes them."""
    before = torch_state()
    torch.set_float32_matmul_precision("high")
    torch.backends.mha.set_fastpath_enabled(True)
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = True, True, False
    torch.backends.nnpack.set_flags(True)  # type: ignore[no-untyped-call]
    yield
    torch.set_float32_matmul_precision(str(before[0]))
    torch.backends.mha.set_fastpath_enabled(bool(before[1]))
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = map(bool, before[2:5])
    torch.backends.nnpack.set_flags(False)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("fails", [False, True], ids=["to its end", "failing"])
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_nothing_leaks(
    target: Any,
    fails: bool,
    other_settings: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("seed", "77")
    monkeypatch.setenv("layer_type", "Conv3d")
    monkeypatch.setenv("output_path", "/nowhere")
    model = scatter(TinyNet()).train()
    model.bn1.eval()  # type: ignore[union-attr]
    model.conv1.weight.requires_grad_(False)  # type: ignore[union-attr]
    tensors = [*model.parameters(), *model.buffers()]
    before = [(t.data_ptr(), t.stride(), t.requires_grad, t.clone()) for t in tensors]
    modes, settings = [module.training for module in model.modules()], torch_state()
    campaign = Campaign(model, some(COUNT), batch_size=8, device="cpu")
    assert len(campaign.layers) == 10
    if fails:

        def fail(self: Here, *args: Any) -> Any:
            raise RuntimeError("something broke")

        monkeypatch.setattr(Here, "run", fail)
        with pytest.raises(RuntimeError, match="something broke"):
            campaign.run(Sampled(target, seed=1))
    else:
        assert "seed 1" in repr(campaign.run(Sampled(target, seed=1)))
    assert [module.training for module in model.modules()] == modes
    for tensor, now, (place, stride, grad, value) in zip(
        tensors, [*model.parameters(), *model.buffers()], before, strict=True
    ):
        assert tensor is now
        assert (tensor.data_ptr(), tensor.stride(), tensor.requires_grad) == (place, stride, grad)
        assert torch.equal(tensor, value)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch_state() == settings
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_what_there_is_to_say_is_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else x + 0)

    run(scatter(Branching()), Sampled(seed=1, layer_num=[1]))
    assert "the model lets Python choose a way by the values of images" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_run_in_a_folder_goes_on_where_it_was(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Sampled("weight", seed=1, layer_num=[1, 2])
    whole = campaign.run(faults)
    real = Here.run

    def interrupted(self: Here, *args: Any) -> Any:
        for number, found in enumerate(real(self, *args)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(Here, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            campaign.run(faults, folder=tmp_path)
    assert list(tmp_path.glob("*.unfinished"))
    other = Campaign(scatter(TinyNet(), 5), some(COUNT), batch_size=8, device="cpu")
    with pytest.raises(BadInput, match="holds an unfinished run with other settings"):
        other.run(faults, folder=tmp_path)
    assert campaign.run(faults, folder=tmp_path).layers == whole.layers
    assert not list(tmp_path.glob("*.unfinished"))


def test_importing_is_quick() -> None:
    code = "import sys, bitflip; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic', 'tqdm')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_names_are_those_that_are_documented() -> None:
    assert set(dir(bitflip)) == set(bitflip.__all__)
    assert all(hasattr(bitflip, name) for name in bitflip.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bitflip.nothing
