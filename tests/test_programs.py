"""Programs that PT2E has quantised: what they store is struck, in both engines, as a plain loop does."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import RunScript, of_torchao
from torch import Tensor, fx, nn
from torch.utils.data import TensorDataset

import bitflip
from bitflip.engines.invariance import Invariant
from bitflip.errors import BadInput
from bitflip.network import programs

pt2e = of_torchao("torchao.quantization.pt2e.quantize_pt2e")
x86 = of_torchao("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
xnnpack = of_torchao("torchao.testing.pt2e._xnnpack_quantizer")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))
INTEGERS = {1: torch.int8, 4: torch.int32}


class Network(nn.Module):
    """With a branch, a module called once and functions, and a size taken from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Linear(128, 32), nn.ReLU(inplace=True), nn.Linear(32, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = torch.relu(self.other(x) + x)
        found: Tensor = self.block(nn.functional.avg_pool2d(x, 2).reshape(x.size(0), -1))
        return found


def unsigned() -> Any:
    """Outputs as uint8."""
    found = x86.X86InductorQuantizer()
    return found.set_global(x86.get_default_x86_inductor_quantization_config())


def signed() -> Any:
    """Outputs as int8, and those of more operations."""
    return xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))


def tensorwise() -> Any:
    """One scale for all of a weight."""
    return xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config())


QUANTISERS = {"unsigned": unsigned, "signed": signed, "tensorwise": tensorwise}


@functools.cache
def converted(quantiser: str, *, fixed: bool = False) -> fx.GraphModule:
    torch.manual_seed(4)
    sizes = None if fixed else ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(Network().eval(), (IMAGES[:4],), dynamic_shapes=sizes).module()
    prepared = pt2e.prepare_pt2e(exported, QUANTISERS[quantiser]())
    prepared(torch.randn(4, 3, 8, 8))
    found: fx.GraphModule = pt2e.convert_pt2e(prepared)
    return found


def table(program: nn.Module, engine: Any, faults: bitflip.Sampled, **more: Any) -> list[dict[str, Any]]:
    with torch.no_grad():
        images = TensorDataset(IMAGES, program(IMAGES).argmax(1))
    found = bitflip.Campaign(program, images, engine=engine, batch_size=4, device="cpu", **more).run(
        faults, fault_table=True
    )
    rows: list[dict[str, Any]] = pq.read_table(found.files.faults).to_pylist()
    return rows


def operations(program: fx.GraphModule) -> dict[str, Any]:
    """The program's own nodes that compute, by the paths that their layers have."""
    paths = {"conv2d": "conv", "relu": "relu", "conv2d_1": "other", "linear": "block.0", "relu_": "block.1"}
    found = {node.name: node for node in program.graph.nodes}
    paths |= {"linear_1": "block.2"}
    return {paths.get(name, name): node for name, node in found.items()}


def xored(values: Tensor, element: int, bit: int) -> Tensor:
    """The values with a bit of one of them flipped, counted from the most significant."""
    values = values.clone().contiguous()
    size = values.element_size()
    bits = values.view(INTEGERS[size]).view(-1)
    mask = 1 << (8 * size - 1 - bit)
    bits[element] ^= mask - (1 << (8 * size) if bit == 0 else 0)
    return values


class Struck(fx.Interpreter):
    """Runs a program node by node; what one of them makes has a bit flipped."""

    def __init__(self, program: fx.GraphModule, node: fx.Node, element: int, bit: int) -> None:
        super().__init__(program)
        self.node, self.element, self.bit = node, element, bit

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return xored(value, self.element, self.bit) if n is self.node else value


def with_a_bit_flipped(program: fx.GraphModule, row: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The program with the row's bit flipped by hand, in its own tensors, or in what one of its nodes makes."""
    node = operations(program)[row["path"]]
    if not row["parameter"]:
        (user, *others) = node.users
        if not others and "quantize_per_tensor" in str(user.target):
            node = user  # what is stored are its codes
        return Struck(program, node, row["element"], row["bit"]).run
    program = copy.deepcopy(program)
    node = operations(program)[row["path"]]
    name, _, kind = row["parameter"].partition(".")
    source = node.args[1 if name == "weight" else 2]
    if name == "weight":
        source = source.args[{"": 0, "scale": 1, "zero_point": 2}[kind]]
    if not isinstance(source, fx.Node):  # a number in the program's code
        dequantise, place = node.args[1], {"scale": 1, "zero_point": 2}[kind]
        number = torch.tensor([source], dtype=torch.float32 if kind == "scale" else torch.int8)
        dequantise.update_arg(place, xored(number, row["element"], row["bit"]).item())
        program.recompile()
        return program
    holder = program.get_submodule(str(source.target).rpartition(".")[0])
    tensor = getattr(holder, str(source.target).rpartition(".")[2])
    struck = tensor.to(torch.int8) if kind == "zero_point" else tensor
    with torch.no_grad():
        tensor.copy_(xored(struck, row["element"], row["bit"]))
    return program


def with_bits_flipped(program: fx.GraphModule, rows: list[dict[str, Any]]) -> Iterator[Callable[[Tensor], Tensor]]:
    """For each row, see above; neighbours of one weight fault share a copy."""
    fault, struck = None, None
    for row in rows:
        found = tuple(row[name] for name in ("path", "parameter", "element", "bit"))
        if struck is None or not row["parameter"] or found != fault:
            fault, struck = found, with_a_bit_flipped(program, row)
        yield struck


@pytest.mark.parametrize(
    ("quantiser", "target"),
    [
        ("unsigned", "neuron"),
        ("signed", "neuron"),
        ("unsigned", "weight"),
        ("signed", "weight"),
        ("tensorwise", "weight"),
    ],
)
def test_what_is_stored_is_struck(quantiser: str, target: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Both engines agree with each other and with a loop over the program itself, and leave it as it was."""
    program = converted(quantiser)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    names = ["weight", "weight.scale", "weight.zero_point", "bias"] if target == "weight" else None
    faults = bitflip.Sampled(target, seed=1, parameters=names)
    tables = [table(program, engine, faults) for engine in ("wave", "reference")]
    assert str(tables[0]) == str(tables[1])
    assert "using the reference engine" not in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
    layers = {"conv", "other", "block.0", "block.2"}
    more = {"relu", "add", "relu_1", "avg_pool2d", "reshape", "block.1", "quantize_per_tensor_default"}
    assert {row["path"] for row in tables[0]} == (layers if target == "weight" else {*layers, *more, "input"})
    clean = {number: program(IMAGES[number][None]) for number in range(len(IMAGES))}
    rows = [row for row in tables[0] if row["path"] != "input"]
    differ = 0
    for row, struck in zip(rows, with_bits_flipped(program, rows), strict=True):
        with Invariant(), torch.no_grad():
            logits = struck(IMAGES[row["image"]][None])
        differ += not torch.equal(logits, clean[row["image"]])
        assert int(logits.argmax(1)) == row["top1"], row
    assert differ > len(rows) / 8
    assert {row["bit"] for row in rows if row["parameter"] == "weight" or row["path"] == "relu"} <= set(range(8))


def test_it_computes_what_the_program_does_in_its_layers() -> None:
    """Bit for bit, and in layers that have the names and classes of the network's own."""
    for quantiser in QUANTISERS:
        program = converted(quantiser)
        network = programs.modules_of(program)
        with torch.no_grad():
            assert torch.equal(network(IMAGES), program(IMAGES))
    images = TensorDataset(IMAGES, torch.zeros(8, dtype=torch.int64))
    found = {la.path: la.type for la in bitflip.Campaign(program, images, device="cpu").layers}
    own = {path: type(module).__name__ for path, module in Network().named_modules() if not list(module.children())}
    assert own.items() <= found.items()


def test_a_stuck_bit_is_one_of_the_code() -> None:
    """Also of a code that has no sign: bit 0 of 200 is 1."""
    for name, keep, toggle in (("stuck0", 0x7F, 0), ("stuck1", 0x7F, 0x80)):
        program = converted("unsigned")
        faults = bitflip.Sampled("neuron", seed=3, bit=0, fault=name, repeats=4)
        rows = [row for row in table(program, "wave", faults) if row["path"] == "relu"]
        write = next(iter(operations(program)["relu"].users))
        for row in rows:
            image = IMAGES[row["image"]][None]
            codes = fx.Interpreter(program)
            codes.garbage_collect_values = False
            codes.run(image)
            code = int(codes.env[write].view(-1)[row["element"]])
            scale, zero = write.args[1:3]
            assert row["error"] == pytest.approx(((code & keep | toggle) - zero) * scale)
        assert {row["original"] == row["error"] for row in rows} == {True, False}


def test_the_scale_of_an_output_lies_in_one_place() -> None:
    """What writes the codes and what reads them use the struck one, as with number formats."""
    program = converted("signed")
    faults = bitflip.Sampled("weight", seed=1, parameters=["output.scale", "output.zero_point"])
    tables = [table(program, engine, faults) for engine in ("wave", "reference")]
    assert str(tables[0]) == str(tables[1])
    for row in tables[0][::4]:  # one image of each fault's batch
        struck = copy.deepcopy(program)
        node = operations(struck)[row["path"]]
        write = node if "quantize" in str(node.target) else next(iter(node.users))
        place = 1 if row["parameter"] == "output.scale" else 2
        number = torch.tensor([write.args[place]], dtype=torch.float32 if place == 1 else torch.int8)
        for other in (write, *write.users):
            other.update_arg(place, xored(number, 0, row["bit"]).item())
        struck.recompile()
        with Invariant(), torch.no_grad():
            assert int(struck(IMAGES[row["image"]][None]).argmax(1)) == row["top1"], row


def test_a_saved_one_is_the_same() -> None:
    """As is one in another module; what is not called yet is named."""
    program, faults = converted("signed"), bitflip.Sampled("weight", seed=1, parameters=["weight"])
    exported = torch.export.export(program, (IMAGES[:4],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded: Any = torch.export.load(file)
    expected = [row["top1"] for row in table(program, "wave", faults)]
    for other in (loaded.module(), nn.Sequential(program, nn.Identity())):
        assert [row["top1"] for row in table(other, "wave", faults)] == expected
    with pytest.raises(BadInput, match=r"model: expected an nn.Module, got ExportedProgram; give its module\(\)"):
        bitflip.Campaign(loaded, TensorDataset(IMAGES, torch.zeros(8)))


def lowered() -> nn.Module:
    program = copy.deepcopy(converted("unsigned"))
    operations(program)["conv"].target = torch.ops.onednn.qconv_pointwise.default
    return program


def read_otherwise() -> nn.Module:
    program = copy.deepcopy(converted("unsigned"))
    operations(program)["conv"].args[1].target = torch.ops.aten.alias.default
    return program


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: converted("unsigned", fixed=True), r"it takes 4 images at a time and no other number; export it with"),
        (lowered, r"it calls onednn::qconv_pointwise, which keeps weights packed; give what convert_pt2e returned"),
        (
            lambda: nn.Sequential(read_otherwise()),
            r"0 reads the torch.int8 of _frozen_param0 by aten.alias.default, no",
        ),
    ],
    ids=["fixed", "lowered", "read"],
)
def test_what_can_not_be_taken_says_why(make: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(BadInput, match=r"^model: expected a program as convert_pt2e returns it, but " + why):
        bitflip.Campaign(make(), TensorDataset(IMAGES, torch.zeros(8)))


def test_another_format_does_not_go_with_it() -> None:
    with pytest.raises(BadInput, match=r"number_format .* expected none with a model that is quantised already, as"):
        table(converted("unsigned"), "wave", bitflip.Sampled("weight", seed=1), number_format="bfloat16")


def test_a_factory_of_one(tmp_path: Path, run_script: RunScript) -> None:
    """A script runs it, protected or not."""
    documented = Path(__file__).parents[1] / "docs" / "formats.md"
    code = next(
        part.partition("```")[0] for part in documented.read_text().split("```python\n") if "convert_pt2e" in part
    )
    made = (
        "import torch\nfrom torch import nn\n\n\ndef make_model():\n    torch.manual_seed(1)\n"
        "    parts = [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(900, 10)]\n"
        "    return nn.Sequential(*parts)\n\n\nimages = torch.rand(8, 3, 32, 32)\n\n\n"
    )
    (tmp_path / "own.py").write_text(made + code)
    given = ["--dataset", "digits", "--max-images", "40", "--seed", "1", "--fault-table"]
    for more in ([], ["--protect", "clip"]):
        place = tmp_path / f"out{len(more)}"
        model = ["--model-name", f"{tmp_path / 'own.py'}:build"]
        done = run_script("weight.py", *given, *model, *more, "--output-path", place)
        assert done.code == 0, done.err
        rows = pq.read_table(next(place.glob("*.parquet"))).to_pylist()
        assert {row["path"] for row in rows} == {"0", "3"}
        assert all(row["bit"] < 8 for row in rows)
