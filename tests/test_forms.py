"""A network gives the same in every form that it can be wrapped in; what has no layers or values is refused."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.device_mesh
import torch.distributed.tensor
from conftest import FewDigits, RunScript, TinyNet, random_images, scatter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

from bitflip import BadInput, Campaign, Sampled
from bitflip.__main__ import main
from bitflip.engines import coverage
from bitflip.network import forms, models
from bitflip.settings import reading

COUNT = 8


class Nested(TinyNet):
    """A `TinyNet` of which parts are wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.DataParallel(self.conv1)  # type: ignore[assignment]
        self.linear = torch.compile(self.linear)  # type: ignore[assignment]


def plain() -> nn.Module:
    return scatter(TinyNet()).eval()


def nested() -> nn.Module:
    model = Nested().eval()
    forms.plain(copy.deepcopy(model)).load_state_dict(plain().state_dict())  # fits
    scatter(model)
    return model


def compiled_in_place() -> nn.Module:
    model = plain()
    model.compile()
    model.get_submodule("conv2").compile()
    return model


class Inside(TinyNet):
    """A `TinyNet` that compiles a function of its own, which nothing unwraps."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = Compiled()  # type: ignore[assignment]


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.function = torch.compile(torch.nn.functional.relu, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "DataParallel": lambda: nn.DataParallel(plain()),
    "compile": lambda: torch.compile(plain()),  # type: ignore[dict-item,return-value]
    "compile of DataParallel": lambda: torch.compile(nn.DataParallel(plain())),  # type: ignore[dict-item,return-value]
    "compile in place": compiled_in_place,
    "AveragedModel": lambda: AveragedModel(plain()).eval(),
    "parts": nested,
    "symbolic_trace": lambda: torch.fx.symbolic_trace(plain()),
}


def images() -> TensorDataset:
    inputs = random_images(COUNT, 3, 8, 8)
    with torch.no_grad():
        return TensorDataset(inputs, plain()(inputs).argmax(1))


def counted(model: nn.Module, target: Any) -> list[tuple[object, ...]]:
    campaign = Campaign(model, images(), batch_size=4, device="cpu")
    result = campaign.run(Sampled(target, seed=3, repeats=2, bit=1, parameters=None))
    rows = [(r.path, r.call, r.parameter, r.injections, r.masked, r.sdc1, r.misclassified) for r in result.layers]
    return [("engine", "wave" in result.facts["engine"]), *rows]


def state_of(model: nn.Module) -> list[object]:
    """All that unwrapping changes."""
    return [
        (name, id(module), [id(child) for child in module.children()], id(vars(module).get("_compiled_call_impl")))
        for name, module in model.named_modules()
    ]


def test_a_function_that_is_compiled_runs_as_it_is_and_nothing_of_ours_is_compiled() -> None:
    torch._dynamo.reset()
    before = Counter(torch._dynamo.utils.counters["frames"])
    found = counted(scatter(Inside()).eval(), "neuron")[1:]
    assert found == counted(plain(), "neuron")[1:]
    frames = Counter(torch._dynamo.utils.counters["frames"])
    assert 0 < frames["total"] - before["total"] <= 8  # relu itself, for batches of some sizes


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("form", WRAPPED)
def test_a_wrapped_model_gives_what_the_plain_one_gives(form: str, target: Any) -> None:
    expected = counted(plain(), target)
    model = WRAPPED[form]()
    before = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    assert counted(model, target) == expected
    assert len({row[-1] for row in expected[1:]}) > 2  # the flips do something
    assert state_of(model) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Of this process alone."""
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel() -> None:
    model = nn.parallel.DistributedDataParallel(plain())
    assert counted(model, "weight") == counted(plain(), "weight")


@pytest.mark.filterwarnings("ignore:FSDP is switching")
@pytest.mark.usefixtures("process_group")
def test_what_is_shared_out_over_processes_is_refused() -> None:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    model = plain()
    torch.distributed.tensor.distribute_module(model, mesh)
    with pytest.raises(BadInput, match=r"^model: expected .* values, but conv1.weight is a DTensor$"):
        Campaign(model, images())
    from torch.distributed.fsdp import FullyShardedDataParallel

    sharded = nn.Sequential(FullyShardedDataParallel(plain(), device_id=torch.device("cpu")))
    sentence = (
        r"^model: expected a network of modules, but 0 is shards of a network \(FullyShardedDataParallel\), whose"
    )
    with pytest.raises(BadInput, match=sentence):
        Campaign(sharded, images())


def test_the_wrappers_are_back_after_an_exception() -> None:
    model = nested()
    before = state_of(model)

    def fail() -> None:
        with forms.unwrapped(model) as inner:
            assert type(inner.get_submodule("linear")) is nn.Linear
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert state_of(model) == before


FACTORIES = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

class Net(nn.Module):
    def __init__(self, conv, linear):
        super().__init__()
        self.conv, self.bn, self.pool, self.linear = conv, nn.BatchNorm2d(4), nn.MaxPool2d(2), linear

    def forward(self, x):
        return self.linear(self.pool(self.bn(self.conv(x)).relu()).flatten(1))

def plain():
    torch.manual_seed(1)
    return Net(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 10))

def parallel():
    return nn.DataParallel(plain())

def compiled():
    return torch.compile(plain())

def averaged():
    return AveragedModel(plain())

def lazy():
    torch.manual_seed(1)
    return Net(nn.LazyConv2d(4, 3, padding=1), nn.LazyLinear(10))

def script():
    return torch.jit.script(plain())

def trace():
    return torch.jit.trace(plain().eval(), torch.zeros(1, 3, 8, 8))

def inside():
    return nn.Sequential(script())

def program():
    return torch.export.export(plain().eval(), (torch.zeros(2, 3, 8, 8),))

def of_program():
    return program().module()

def unflattened():
    return torch.export.unflatten(program())

def complex():
    model = plain()
    model.filter = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    return model

def meta():
    return plain().to("meta")

def nan():
    model = plain()
    nn.init.constant_(model.linear.bias, float("nan"))
    return model

def never_run():
    model = plain()
    model.head = nn.LazyLinear(3)
    return model

def subclass():
    class Own(torch.Tensor):
        pass
    model = plain()
    model.linear.bias = nn.Parameter(torch.zeros(10).as_subclass(Own))
    return model
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(FACTORIES)
    return str(tmp_path / "own.py")


def build(own: str, factory: str, *arguments: str) -> nn.Module:
    settings, _ = reading.read(["--dataset=digits", "--img-size=8", f"--model-name={own}:{factory}", *arguments])
    return models.load(settings, 10).model


@pytest.mark.parametrize("factory", ["parallel", "compiled", "averaged", "lazy"])
def test_a_factory_of_a_wrapped_model(factory: str, own: str) -> None:
    """A lazy one has the weights that its first pass gives it."""
    torch.manual_seed(1)
    expected, found = build(own, "plain"), build(own, factory)
    assert list(found.state_dict()) == list(expected.state_dict())
    if factory == "lazy":
        assert {type(module).__name__ for module in found.modules()} == {
            "Net",
            "Conv2d",
            "BatchNorm2d",
            "MaxPool2d",
            "Linear",
        }
        found.load_state_dict(expected.state_dict())
    inputs = random_images(4, 3, 8, 8)
    assert torch.equal(found(inputs), expected(inputs))


@pytest.mark.parametrize("script", ["neuron.py", "weight.py"])
def test_the_whole_way(script: str, own: str, tmp_path: Path, run_script: RunScript, few_digits: FewDigits) -> None:
    few_digits(8)
    torch.save(build(own, "plain").state_dict(), tmp_path / "weights.pt")
    tables = {}
    for factory in ("plain", "parallel", "compiled", "averaged", "lazy"):
        out = tmp_path / factory
        options = ["--dataset=digits", "--img-size=8", f"--model-name={own}:{factory}", "--seed=3", "--bit-flip-pos=1"]
        done = run_script(script, *options, f"--weights={tmp_path / 'weights.pt'}", "--output-path", out)
        assert (done.code, done.errors) == (0, []), done.err
        assert "wave engine" in done.out
        (table,) = (path for path in out.glob("*_3.csv"))
        tables[factory] = table.read_text()
    assert len(tables["plain"].splitlines()) > 3
    assert {table == tables["plain"] for table in tables.values()} == {True}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("script", "expected a network of modules, but it is TorchScript in OWN:script, .*; give the nn.Module"),
        ("trace", "expected a network of modules, but it is TorchScript in"),
        ("inside", "expected a network of modules, but 0 is TorchScript in"),
        ("program", "expected OWN:program to return an nn.Module, got ExportedProgram; give the nn.Module that it was"),
        ("of_program", "expected a network of modules, but it is a program of torch.export in"),
        ("unflattened", "expected a network of modules, but .* is a program of torch.export in"),
        ("complex", "expected a model of float64, .*, but filter is of torch.complex64 in OWN:complex$"),
        ("meta", "expected a model of float64, .*, but conv.weight has no values, on the device meta, in"),
        ("subclass", "expected a model of float64, .*, but linear.bias is a Own in"),
        ("nan", "expected numbers, but 10 of 10 values of linear.bias are NaN$"),
        ("never_run", "expected a model whose forward pass initialises all lazy modules, but head is a LazyLinear$"),
    ],
)
def test_what_can_not_be_struck(factory: str, what: str, own: str) -> None:
    sentence = rf"^model_name \(--model-name\): {what.replace('OWN', own)}"
    with pytest.raises(BadInput, match=sentence):
        build(own, factory)


def test_weights_that_are_no_numbers(own: str, tmp_path: Path) -> None:
    state = build(own, "plain").state_dict()
    state["linear.bias"][3] = torch.nan
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(
        BadInput, match=r"^weights \(--weights\): expected numbers, but 1 of 10 values of linear.bias are"
    ):
        build(own, "plain", f"--weights={tmp_path / 'weights.pt'}")


def test_lazy_modules_that_do_not_take_the_images(own: str, tmp_path: Path) -> None:
    torch.save(build(own, "plain").state_dict(), tmp_path / "weights.pt")
    sentence = (
        r"img_size, channels .*can't take 3 channels of 12 x 12 pixels, by which its lazy .* \(conv is a LazyConv2d"
    )
    with pytest.raises(BadInput, match=sentence):
        build(own, "lazy", "--img-size=12", f"--weights={tmp_path / 'weights.pt'}")


def broken(model: TinyNet) -> nn.Module:
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = torch.nan
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (torch.jit.script, "model: expected a network of modules, but it is TorchScript, whose"),
        (
            lambda m: torch.export.export(m, (torch.zeros(2, 3, 8, 8),)),
            "model: expected an nn.Module, got ExportedProgram; give the nn.Module that it was made from",
        ),
        (
            lambda m: torch.export.export(m, (torch.zeros(2, 3, 8, 8),)).module(),
            "model: expected a network of modules, but it is a program of torch.export, whose",
        ),
        (
            lambda m: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
            "model: expected initialised modules, but 1 is a LazyLinear; run one batch through the model first",
        ),
        (
            lambda m: nn.Sequential(m, nn.Linear(10, 10, dtype=torch.complex64)),
            "model: expected a model of float64, float32, float16 or bfloat16 values, but 1.weight is of torch.complex",
        ),
        (broken, "model: expected numbers, but 1 of 108 values of conv1.weight are NaN"),
    ],
    ids=["script", "export", "program", "lazy", "complex", "nan"],
)
def test_the_library_refuses_them_too(change: Callable[[Any], Any], sentence: str) -> None:
    with pytest.raises(BadInput) as refused:
        Campaign(change(plain()), images())
    assert str(refused.value).startswith(sentence)


class Reaches(TinyNet):
    """Calls what is in a wrapped part past the wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.DataParallel(self.drop)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 8, 8) -> (B, 10)."""
        self.drop.module(x)  # type: ignore[operator]
        return super().forward(x)


def test_a_model_that_reaches_into_a_wrapper() -> None:
    sentence = r"^img_size, .*: the model can't take 3 channels .*: 'Dropout' object has no attribute 'module'$"
    with pytest.raises(BadInput, match=sentence):
        Campaign(Reaches(), images()).run(Sampled())


# --- outputs ---


@dataclasses.dataclass
class Output(OrderedDict[str, Tensor]):
    """As those of transformers: a dict by names, whose values are attributes, too."""

    logits: Tensor

    def __post_init__(self) -> None:
        self["logits"] = self.logits


class ForImages(TinyNet):
    """Returns such an output."""

    def forward(self, x: Tensor) -> Output:  # type: ignore[override]
        """(B, 3, 8, 8) -> logits (B, 10)."""
        return Output(super().forward(x))


class Tuples(TinyNet):
    """Returns logits, and something else."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, 3, 8, 8) -> (B, 10), (B, 3, 8, 8)."""
        return super().forward(x), x


OUTPUT = (
    "model_name (--model-name): expected a classifier of 1 classes, whose output for one image has the shape (1, 1), "
    "got "
)


@pytest.mark.parametrize(
    ("factory", "what"),
    [(ForImages, "Output; wrap the model in a module that returns its logits"), (Tuples, "tuple")],
)
def test_an_output_that_is_no_tensor(factory: type[nn.Module], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput) as refused:
        Campaign(factory(), images()).run(Sampled())
    assert str(refused.value) == OUTPUT + what
    assert main(["coverage", "--check", "--sizes=8", f"{__file__}:{factory.__name__}"]) == 2
    assert capsys.readouterr().err == f"error: {OUTPUT}{what}\n"


# --- coverage ---


def lazy_volumes() -> nn.Module:
    """With parameters of five dimensions, and lazy."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.LazyConv3d(4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    )


def test_coverage_of_lazy_modules_and_parameters_of_five_dimensions() -> None:
    found = coverage.of("lazy", models.untrained(f"{__file__}:lazy_volumes")[0], (8,), check=0)
    assert found.parameters == found.scalars == 4 * 27 + 4 + 5 * 4 * 3 * 64 + 5
    assert (found.tensors, found.differing, found.engine) == (4, 0, "wave")


def test_coverage_of_what_can_not_be_struck(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coverage", "--sizes=8", f"{own}:of_program"]) == 2
    assert "it is a program of torch.export" in capsys.readouterr().err
