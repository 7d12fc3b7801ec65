"""Every parameter tensor is a target, once, wherever it is held; both engines agree on a flip in each."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import DEVICE, FewDigits, RunScript, random_images, scatter
from torch import Tensor, nn

from bitflip import engines
from bitflip.engines.agreement import differing, record
from bitflip.engines.graph import Entry, Program
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput
from bitflip.faults.flips import TargetKind, neuron_flips, parameter_flip
from bitflip.network.devices import Placement
from bitflip.network.layers import Layer, Parameter, Target, targets, with_parameters
from bitflip.outcomes.batch import BatchOutcomes

SHAPE = (3, 8, 8)
SCALARS = "parameters that no layer lists, or that are listed twice"


class Attends(nn.Module):
    """Held in all places: a class token, attention, a table read by index, a scale, a tied and a reused weight."""

    index: Tensor
    mean: Tensor

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.table = nn.Parameter(torch.zeros(20, 8))
        self.register_buffer("index", torch.arange(17).flip(0))
        self.register_buffer("mean", torch.zeros(8))
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, add_bias_kv=True)
        self.twice = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.twice.weight
        self.scale = Scale()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.unread = nn.Linear(8, 5)
        self.head = nn.Linear(8, 5)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, 3, 8, 8) -> (B, 5)."""
        x = self.patches(x).flatten(2).transpose(1, 2)  # (B, 16, 8)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.table[self.index] - self.mean
        y = x if self.batch_first else x.transpose(0, 1)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + (y if self.batch_first else y.transpose(0, 1))
        x = self.twice(torch.relu(self.twice(x))) + self.tied(x)
        x = self.normed(self.scale(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Scale(nn.Module):
    """Multiplies by a parameter, around a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(8))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x) * self.gamma
        return out


def attends(*, batch_first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return scatter(Attends(batch_first=batch_first)).eval().requires_grad_(False)


def every(injector: Injector) -> list[Target]:
    """All parameter tensors that can be flipped."""
    layers = [*injector.layers, *injector.holders]
    return targets([Target(number, layer) for number, layer in enumerate(layers)], "weight", None)


def full_name(item: Target) -> str:
    return f"{item.layer.path}.{item.parameter}".lstrip(".")


@pytest.mark.parametrize("with_input", [True, False], ids=["with input", "without input"])
def test_every_parameter_is_a_target_once(with_input: bool) -> None:
    model = attends()
    injector = Injector(WithInput(model) if with_input else model, 2, torch.zeros(1, *SHAPE))
    names = [full_name(item) for item in every(injector)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters()), SCALARS
    tensors = [injector.tensor_of(item.layer, item.parameter) for item in every(injector)]
    assert sum(t.numel() for t in tensors) == sum(p.numel() for p in model.parameters()), SCALARS
    for name, item, tensor in zip(names, every(injector), tensors, strict=True):
        parameter = item.layer.parameter(item.parameter)
        assert tensor is model.get_parameter(name)
        assert parameter == Parameter(item.parameter, tuple(tensor.shape), 32)


def test_what_only_holds_parameters_comes_after_all_calls() -> None:
    injector = Injector(attends(), 2, torch.zeros(1, *SHAPE))
    positions = [layer.position for layer in [*injector.layers, *injector.holders]]
    assert positions == list(range(len(positions)))
    assert [layer.path for layer in injector.holders] == [
        *("", "attention.out_proj", "scale", "normed.parametrizations.weight", "unread"),
    ]
    assert not any(layer.per_image for layer in injector.holders)
    assert ("attention", "MultiheadAttention") in [(layer.path, layer.type) for layer in injector.layers]


def test_a_shared_tensor_is_listed_with_the_first_layer() -> None:
    injector = Injector(attends(), 2, torch.zeros(1, *SHAPE))
    twice = [layer for layer in injector.layers if layer.path == "twice"]
    assert [[parameter.name for parameter in layer.parameters] for layer in twice] == [["weight", "bias"], []]
    (tied,) = (layer for layer in injector.layers if layer.path == "tied")
    assert [parameter.name for parameter in tied.parameters] == ["bias"]


def test_only_layers_with_a_chosen_parameter() -> None:
    injector = Injector(attends(), 2, torch.zeros(1, *SHAPE))
    layers = [*injector.layers, *injector.holders]
    assert [layer.path for layer in with_parameters(layers, ["class_token", "gamma"])] == ["", "scale"]
    with pytest.raises(BadInput, match=r"parameters \(--parameters\): .* tensor wieght; valid: all, .*gamma"):
        with_parameters(layers, ["wieght"])


def test_unread_parameters_are_known() -> None:
    injector = Injector(attends(), 2, torch.zeros(1, *SHAPE))
    unread = {full_name(item) for item in every(injector) if not injector.reads(item.layer, item.parameter)}
    assert unread == {"unread.weight", "unread.bias"}


# --- faults ---

LAYER = Layer(3, "a", 0, "Linear", (4,), True, 32, (Parameter("weight", (7, 4), 32), Parameter("bias", (7, 4), 32)))


def test_parameters_have_faults_of_their_own() -> None:
    def drawn(parameter: str) -> list[tuple[int, int]]:
        flips = [parameter_flip(5, LAYER, batch, parameter=parameter) for batch in range(32)]
        assert {one.parameter for one in flips} == {parameter}
        return [(int(one.element[0]), int(one.bit[0])) for one in flips]

    assert drawn("weight") != drawn("bias")
    assert drawn("bias") == drawn("bias")


def test_the_documented_counter() -> None:
    words = np.random.Philox(
        key=np.array([5, 3], dtype=np.uint64),
        counter=np.array([9, 1, 2, 2**32 + zlib.crc32(b"bias")], dtype=np.uint64),
    ).random_raw(2)
    flips = parameter_flip(5, LAYER, 9, repeat=2, parameter="bias")
    assert [int(flips.element[0]), int(flips.bit[0])] == [int(words[0]) * 28 >> 64, int(words[1]) * 32 >> 64]


def test_one_bit_of_one_parameter_differs_and_is_restored() -> None:
    model = attends()
    injector = Injector(model, 2, torch.zeros(1, *SHAPE))
    before = copy.deepcopy(dict(model.named_parameters()))
    for item in every(injector):
        flips = parameter_flip(5, item.layer, 0, parameter=item.parameter)
        with pytest.raises(KeyboardInterrupt), injector.weight(flips):  # noqa: PT012 - the block is what is tested
            changed = {
                name: (a.view(torch.int32) ^ before[name].view(torch.int32)).flatten()
                for name, a in model.named_parameters()
                if not torch.equal(a.view(torch.int32), before[name].view(torch.int32))
            }
            assert list(changed) == [full_name(item)]
            difference = changed[full_name(item)]
            assert difference.nonzero().tolist() == [[int(flips.element[0])]]
            assert int(difference[flips.element[0]]) & 0xFFFFFFFF == 1 << (31 - int(flips.bit[0]))
            raise KeyboardInterrupt
        assert all(torch.equal(a, before[name]) for name, a in model.named_parameters())


def test_a_flip_of_attention_is_one_of_its_output() -> None:
    model, images = attends(), random_images(4, *SHAPE)
    injector = Injector(model, 4, torch.zeros(1, *SHAPE))
    (layer,) = (layer for layer in injector.layers if layer.type == "MultiheadAttention")
    assert (layer.shape, layer.per_image, layer.bits) == ((17, 8), True, 32)
    flips = neuron_flips(5, layer, 0, 4, bit=0)

    def by_hand(module: nn.Module, args: object, output: tuple[Tensor, None]) -> tuple[Tensor, None]:
        rows = output[0].clone().flatten(1)
        rows[torch.arange(4), torch.from_numpy(flips.element)] *= -1
        return rows.view_as(output[0]), None

    with torch.no_grad():
        clean = model(images)
        with injector.neurons(flips):
            struck = model(images)
        handle = model.get_submodule("attention").register_forward_hook(by_hand)
        expected = model(images)
        handle.remove()
    assert torch.equal(struck, expected)
    assert not torch.equal(struck, clean)


def test_attention_with_the_batch_second_has_no_output_of_one_image() -> None:
    """Its rows could not be told from images."""
    injector = Injector(attends(batch_first=False), 2, torch.zeros(1, *SHAPE))
    (layer,) = (layer for layer in injector.layers if layer.type == "MultiheadAttention")
    assert not layer.per_image


class Recurs(nn.Module):
    """(B, 3, 8, 6) -> (B, 5): the rows of an image are a sequence."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool = True) -> None:
        super().__init__()
        self.recurrent = kind(18, 7, batch_first=batch_first)  # type: ignore[arg-type, call-arg]
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(0, 2, 1, 3).flatten(2)
        output: Tensor = self.recurrent(steps if self.recurrent.batch_first else steps.transpose(0, 1))[0]
        logits: Tensor = self.head(output.mean(1 if self.recurrent.batch_first else 0))
        return logits


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_neurons_of_a_recurrent_layer_are_its_output_at_every_step(kind: type[nn.RNNBase]) -> None:
    model, images = Recurs(kind).eval(), random_images(4, 3, 8, 6)
    scatter(model)
    injector = Injector(model, 4, images)
    (layer,) = (layer for layer in injector.layers if layer.path == "recurrent")
    assert (layer.type, layer.shape, injector.without_neurons) == (kind.__name__, (8, 7), [])
    flips = [neuron_flips(seed, layer, 0, 4) for seed in range(30)]
    expected = torch.empty(30, 4, dtype=torch.int64)
    for slot, one in enumerate(flips):
        for i in range(4):
            output = model.recurrent(images[i : i + 1].permute(0, 2, 1, 3).flatten(2))[0].detach().contiguous()
            values = output.view(torch.int32).view(-1).numpy().view(np.uint32)
            values[one.element[i]] ^= np.uint32(1 << (31 - int(one.bit[i])))
            expected[slot, i] = model.head(output.mean(1)).argmax()
    for name in ("reference", "wave"):
        engine, _ = engines.build(name, injector, images)
        found = BatchOutcomes(torch.zeros(4, dtype=torch.int64), flips, 0, lambda count: None)
        with torch.no_grad():
            engine.run(images, flips, found)
        found.to_host()
        assert torch.equal(found.top1, expected), name


def test_a_layer_without_neurons_is_named() -> None:
    injector = Injector(Recurs(nn.LSTM, batch_first=False).eval(), 4, random_images(4, 3, 8, 6))
    assert injector.without_neurons == ["recurrent"]


# --- the engines ---


class Encodes(nn.Module):
    """PyTorch's own encoder layer, which in eval mode has a shortcut that calls none of its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x.flatten(2).transpose(1, 2)[..., :8].reshape(len(x), -1, 8)).mean(1))
        return logits


class Bakes(nn.Module):
    """Keeps a parameter in a list of its own, where the names of the model do not lead."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8, 1, 1))
        self.kept = [self.shift]
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head((self.conv(x) + torch.exp(self.kept[0])).mean((2, 3)))
        return logits


MODELS: dict[str, Callable[[], nn.Module]] = {
    "attends": attends,
    "batch second": lambda: attends(batch_first=False),
    "encodes": lambda: scatter(Encodes()),
    "bakes": lambda: scatter(Bakes()),
}


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_engines_agree_on_every_target(name: str, dtype: torch.dtype, target: TargetKind) -> None:
    placement = Placement(DEVICE, dtype)
    model = placement.model(MODELS[name]().to(dtype).eval().requires_grad_(False))
    images = placement.inputs(random_images(3, *SHAPE))
    injector = Injector(WithInput(model) if target == "neuron" else model, 3, torch.zeros(1, *SHAPE))
    if target == "neuron":
        flips = [neuron_flips(5, la, 0, 3, repeat=r) for la in injector.layers if la.per_image for r in range(4)]
    else:
        flips = [
            parameter_flip(5, it.layer, 0, repeat=r, parameter=it.parameter) for it in every(injector) for r in range(4)
        ]
    engine, _ = engines.build("wave", injector, images)
    expected, _ = record(Reference(injector), images, flips)
    got, done = record(engine, images, flips)
    assert done == len(flips) * len(images), "progress counts every fault once"
    assert not differing(expected, got).any()
    changed = (expected.logits() != expected.clean_logits).any(dim=2)
    assert changed.any(dim=1).float().mean() > 0.3, "next to nothing changes: no fault is told from none"


def test_the_wave_knows_where_a_parameter_reaches_the_images() -> None:
    model = attends()
    injector = Injector(model, 2, torch.zeros(1, *SHAPE))
    engine, note = engines.build("wave", injector, random_images(2, *SHAPE))
    assert note is None
    assert isinstance(engine, Wave)
    entries = {full_name(i): engine.program.entry(injector.tensor_of(i.layer, i.parameter)) for i in every(injector)}
    assert {name for name, entry in entries.items() if entry == "several"} == {"twice.weight", "twice.bias"}
    assert {name for name, entry in entries.items() if entry == "none"} == {"unread.weight", "unread.bias"}
    table = entries["table"]
    assert isinstance(table, Entry)
    assert len(table.anew) == 2, "the table itself and what is taken from it"


def test_what_is_made_of_a_parameter_alone_is_made_anew() -> None:
    model = scatter(Bakes()).eval()
    injector = Injector(model, 2, torch.zeros(1, *SHAPE))
    program = Program(model, injector.modules, injector.layers, random_images(2, *SHAPE))
    entry = program.entry(model.get_parameter("shift"))
    assert isinstance(entry, Entry)
    assert {node.name for node in entry.anew} == {"shift", "exp"}


# --- runs ---


def test_a_run_over_chosen_parameters(run_script: RunScript, few_digits: FewDigits, tmp_path: object) -> None:
    few_digits(32)
    flags = [
        "--dataset=digits",
        "--seed=3",
        "--batch-size=16",
        f"--output-path={tmp_path}",
        "--layer-num=0,1,2",
        "--fresh",
    ]
    done = run_script("weight.py", *flags, "--parameters=weight,bias", "--detailed-log")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("Layer #")]
    assert [line.split(": ")[0] for line in lines] == [
        *["Layer #0"] * 2,
        *["Layer #1"] * 2,
        "Layer #2 has no weight or bias",
    ]
    assert [line.rpartition(", ")[2] for line in lines[:4]] == [
        *("Conv2d", "Conv2d bias", "BatchNorm2d", "BatchNorm2d bias"),
    ]
    weights = run_script("weight.py", *flags)
    assert set(weights.out.splitlines()) >= {lines[0], lines[2]}, "a further parameter changes no fault"


def test_an_unknown_parameter(run_script: RunScript, tmp_path: object) -> None:
    done = run_script("weight.py", "--dataset=digits", "--parameters=wieght", f"--output-path={tmp_path}")
    assert done.code == 2
    assert done.errors == [
        "parameters (--parameters): the model has no parameter tensor wieght; valid: all, bias, weight"
    ]
