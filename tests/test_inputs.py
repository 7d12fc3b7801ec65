"""Inputs of any shape, and several of them: both engines do what an obvious loop over single inputs does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from conftest import DEVICE, scatter
from torch import Tensor, nn

from bitflip import engines
from bitflip.campaign.executor import portions
from bitflip.data import images as data_images
from bitflip.data import inputs
from bitflip.data.images import Images
from bitflip.data.inputs import Inputs
from bitflip.engines.agreement import differing, record
from bitflip.engines.capture import Untraceable
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.invariance import Invariant
from bitflip.engines.pool import Budget
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput
from bitflip.faults.flips import Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.network.devices import Placement
from bitflip.network.layers import Target, targets
from bitflip.outcomes.batch import BatchOutcomes

PLACEMENT = Placement(DEVICE, torch.float32)
COUNT = 5
WORDS = 11


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int) -> Tensor:
    return torch.randint(WORDS, (COUNT, *shape), generator=torch.Generator().manual_seed(2))


class Pooled(nn.Module):
    """The mean of embedded tokens, (B, L) of int64 -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6, padding_idx=0)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(x).mean(1))
        return logits


class Attends(Pooled):
    """Attention that leaves token 0 out."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x)
        y, _ = self.attention(y, y, y, key_padding_mask=x == 0, need_weights=False)
        logits: Tensor = self.head(self.norm(y).mean(1))
        return logits


class Remembers(Pooled):
    """A recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.embedding(x))
        logits: Tensor = self.head(y[:, -1])
        return logits


class Palette(nn.Module):
    """Images of colour numbers, (B, 2, 4, 4) of int64 -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(x).mean((2, 3)).flatten(1))
        return logits


class Both(nn.Module):
    """An image and a table, (B, 3, 8, 8) and (B, 7) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.table = nn.Linear(7, 4)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        seen = self.pool(torch.relu(self.conv(image))).mean((2, 3))
        logits: Tensor = self.head(torch.cat([seen, torch.relu(self.table(table))], 1))
        return logits


class Named(nn.Module):
    """Tokens, which of them count, and numbers under a name that modules have for themselves, (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.table = nn.Linear(7, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, type: Tensor, tokens: Tensor, mask: Tensor, unused: Tensor | None = None) -> Tensor:
        if unused is not None:
            return unused
        counted = self.embedding(tokens) * mask[:, :, None]
        logits: Tensor = self.head(torch.relu(counted.mean(1) + self.table(type)))
        return logits


def signals() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 5, padding=2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 3, stride=2),
        nn.GELU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 4, 2),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def table() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


@dataclass(frozen=True)
class Case:
    """A model, a batch, and the paths of the layers that the batch itself is."""

    build: Callable[[], nn.Module]
    batch: Callable[[], Inputs]
    in_front: Sequence[str]


CASES = {
    "signals": Case(signals, lambda: normal(3, 24), ["input"]),
    "table": Case(table, lambda: normal(9), ["input"]),
    "volumes": Case(volumes, lambda: normal(2, 4, 6, 6), ["input"]),
    "tokens": Case(Pooled, lambda: tokens(7), []),
    "attention": Case(Attends, lambda: tokens(7), []),
    "gru": Case(Remembers, lambda: tokens(7), []),
    "palette": Case(Palette, lambda: tokens(2, 4, 4), []),
    "tuple": Case(Both, lambda: (normal(3, 8, 8), normal(7, seed=3)), ["input.0", "input.1"]),
    "dict": Case(
        Named, lambda: {"type": normal(7, seed=3), "tokens": tokens(6), "mask": tokens(6) > 3}, ["input.type"]
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)
TARGETS = pytest.mark.parametrize("target", ["neuron", "weight"])


def made(name: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    case = CASES[name]
    return PLACEMENT.model(scatter(case.build()).eval().requires_grad_(False)), PLACEMENT.inputs(case.batch())


def injector_of(model: nn.Module, target: TargetKind, batch: Inputs) -> Injector:
    return Injector(WithInput(model, inputs.names(batch)) if target == "neuron" else model, COUNT, batch)


def flips_of(injector: Injector, target: TargetKind, repeats: int = 3) -> list[Flips]:
    """Some in every place."""
    numbered = [Target(i, layer) for i, layer in enumerate(injector.everything)]
    places = targets(numbered, target, None)
    if target == "neuron":
        return [neuron_flips(5, item.layer, 0, COUNT, repeat=r) for item in places for r in range(repeats)]
    return [
        parameter_flip(5, item.layer, 0, repeat=r, parameter=item.parameter) for item in places for r in range(repeats)
    ]


def xor(values: Tensor, element: int, bit: int) -> None:
    """Flip a bit of a float32, in place, whatever the memory format."""
    inside = values.flatten().clone()
    inside.view(torch.int32)[element] ^= -(1 << 31) if bit == 0 else 1 << (31 - bit)
    values.copy_(inside.view(values.shape))


def one_by_one(model: nn.Module, batch: Inputs, flips: Flips) -> Tensor:
    """The logits under flips, one input at a time, as a user would write it down."""
    rows = []
    for i in range(COUNT):
        one = inputs.clone(inputs.rows(batch, slice(i, i + 1)))
        if flips.parameter:
            rows.append(with_parameter(model, one, flips))
            continue
        element, bit = int(flips.element[i]), int(flips.bit[i])
        place, _, name = flips.layer.path.partition(".")
        if place == "input":
            struck = one if isinstance(one, Tensor) else one[name] if isinstance(one, dict) else one[int(name)]
            xor(struck, element, bit)
            rows.append(run(model, one))
        else:
            rows.append(with_hook(model, one, flips.layer.path, element, bit))
    return torch.cat(rows)


def with_hook(model: nn.Module, one: Inputs, path: str, element: int, bit: int) -> Tensor:
    def strike(module: nn.Module, args: object, output: Any) -> Any:
        faulty = (output[0] if isinstance(output, tuple) else output).clone()
        xor(faulty, element, bit)
        return (faulty, *output[1:]) if isinstance(output, tuple) else faulty

    handle = model.get_submodule(path).register_forward_hook(strike)
    try:
        return run(model, one)
    finally:
        handle.remove()


def with_parameter(model: nn.Module, one: Inputs, flips: Flips) -> Tensor:
    tensor = model.get_submodule(flips.layer.path).get_parameter(flips.parameter)
    before = tensor.clone()
    xor(tensor, int(flips.element[0]), int(flips.bit[0]))
    try:
        return run(model, one)
    finally:
        tensor.copy_(before)


def run(model: nn.Module, one: Inputs) -> Tensor:
    with torch.no_grad(), Invariant():  # a matrix product of one row may round otherwise than that of many
        logits: Tensor = inputs.call(model, one)
    return logits


def same_bits(a: Tensor, b: Tensor) -> bool:
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


@TARGETS
@EVERY
def test_engines_agree_with_an_obvious_loop(name: str, target: TargetKind) -> None:
    model, batch = made(name)
    injector = injector_of(model, target, batch)
    engine, note = engines.build("wave", injector, batch)
    if name == "gru" and DEVICE.type == "cuda":
        assert note is not None
        assert "gru rounds an image otherwise" in note, "by cuDNN's kernels"
        assert engine.most == 1
        return
    flips = flips_of(injector, target)
    expected, _ = record(Reference(injector), batch, flips)
    for slot, one in enumerate(flips):
        assert same_bits(expected.logits()[slot], one_by_one(model, batch, one)), one.where
    changed = (expected.logits() != expected.clean_logits).any(dim=2)
    assert changed.any(dim=1).float().mean() > 0.3, "next to nothing changes: no fault is told from none"
    assert (engine.name, note) == ("wave", None)
    assert isinstance(engine, Wave)
    for budget in (engine.budget, Budget(3, 1 << 12), Budget(1, 1)):
        engine.budget = budget
        got, done = record(engine, batch, flips)
        assert done == len(flips) * COUNT
        assert not differing(expected, got).any()


@EVERY
def test_floating_point_inputs_are_the_first_layers(name: str) -> None:
    model, batch = made(name)
    layers = injector_of(model, "neuron", batch).layers
    paths = [layer.path for layer in layers]
    assert [path for path in paths if path.startswith("input")] == paths[: len(CASES[name].in_front)]
    assert paths[: len(CASES[name].in_front)] == CASES[name].in_front
    behind = injector_of(model, "weight", batch).layers
    assert paths[len(CASES[name].in_front) :] == [layer.path for layer in behind]
    assert all(layer.per_image for layer in layers)


@EVERY
def test_a_single_input_is_enough_of_an_example(name: str) -> None:
    model, batch = made(name)
    assert (
        injector_of(model, "neuron", inputs.rows(batch, slice(1))).layers == injector_of(model, "neuron", batch).layers
    )


@TARGETS
@pytest.mark.parametrize("engine", ["wave", "reference"])
@EVERY
def test_portions_change_nothing(
    name: str, engine: Literal["wave", "reference"], target: TargetKind, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = made(name)
    injector = injector_of(model, target, batch)
    flips, labels = flips_of(injector, target, 1), torch.zeros(COUNT, dtype=torch.int64)
    chosen, _ = engines.build(engine, injector, batch)
    whole = portions(chosen, PLACEMENT).run(batch, labels, flips, 0, lambda count: None)
    sizes: list[int] = []

    class Narrow:
        name = "narrow"
        most: int | None = None
        best: int | None = None

        def run(self, images: Inputs, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
            sizes.append(inputs.count(images))
            if sizes[-1] > 2:
                raise MemoryError
            chosen.run(images, flips, outcomes)

    counted: list[int] = []
    small = portions(Narrow(), PLACEMENT).run(batch, labels, flips, 0, counted.append)
    assert sizes == [5, 3, 2, 2, 1]
    assert caplog.text.count("not enough memory") == 2
    assert sum(counted) == len(flips) * COUNT
    assert torch.equal(small.clean_top1, whole.clean_top1)
    assert torch.equal(small.top1, whole.top1)
    assert torch.equal(small.effects, whole.effects)
    assert all(map(same_bits, small.error, whole.error))


@EVERY
@pytest.mark.parametrize("kept", [True, False], ids=["decoded once", "decoded when needed"])
def test_a_data_set_may_yield_any_inputs(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number of images is not their number of inputs."""
    monkeypatch.setattr(data_images, "KEPT_BYTES", 10**6 if kept else 0)
    batch = CASES[name].batch()
    rows = [inputs.rows(batch, slice(i, i + 1)) for i in range(COUNT)]
    one = [unbatched(row) for row in rows]
    images = Images([(row, i) for i, row in enumerate(one)], COUNT)
    found = list(images.batches([range(2), range(1, 5)]))
    assert [labels.tolist() for _, labels in found] == [[0, 1], [1, 2, 3, 4]]
    for (got, _), part in zip(found, (slice(2), slice(1, 5)), strict=True):
        expected = inputs.parts(inputs.rows(batch, part))
        assert all(torch.equal(a, b) for a, b in zip(inputs.parts(got), expected, strict=True))


def unbatched(row: Inputs) -> Any:
    """A row without its batch dimension, as a data set yields it."""
    if isinstance(row, Tensor):
        return row[0]
    return {k: v[0] for k, v in row.items()} if isinstance(row, dict) else tuple(v[0] for v in row)


# --- what is done with a batch ---


def test_the_order_of_a_dict_makes_no_difference() -> None:
    model, batch = made("dict")
    assert isinstance(batch, dict)
    turned = dict(reversed(batch.items()))
    injector = injector_of(model, "neuron", batch)
    flips = flips_of(injector, "neuron")
    engine, _ = engines.build("wave", injector, batch)
    assert not differing(record(engine, batch, flips)[0], record(engine, turned, flips)[0]).any()
    reference = Reference(injector)
    assert not differing(record(engine, batch, flips)[0], record(reference, turned, flips)[0]).any()


def test_what_loaders_yield() -> None:
    a, b = normal(3), tokens(4)
    pair = inputs.of([a, b])
    assert isinstance(pair, tuple)
    assert pair[0] is a
    assert pair[1] is b
    assert inputs.of(a) is a
    assert inputs.of({"a": a}) == {"a": a}
    assert [inputs.names(batch) for batch in (a, pair, {"x": a, "y": b})] == [(), ("0", "1"), ("x", "y")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("text", "expected a tensor, or a tuple or dict of tensors, for a batch, got str"),
        ([], "expected a tensor, or a tuple or dict of tensors, for a batch, got nothing"),
        ([torch.zeros(2), [torch.zeros(2)]], "for a batch, got Tensor, list"),
        ({0: torch.zeros(2)}, r"expected a dict by names of what the model takes, got \[0\]"),
        ((torch.zeros(2, 3), torch.zeros(3, 2)), r"in the first dimension .* got shapes \(2, 3\) and \(3, 2\)"),
        (torch.tensor(1.0), r"in the first dimension of every tensor, got shapes \(\)"),
    ],
    ids=["text", "nothing", "nested", "numbers", "rows differ", "no rows"],
)
def test_what_is_no_batch(value: object, reason: str) -> None:
    with pytest.raises(BadInput, match=f"^inputs: .*{reason}$") as caught:
        inputs.of(value)
    assert len(caught.value.problems) == 1


def test_random_inputs_take_whole_numbers_from_the_example() -> None:
    number, mask, x = tokens(3), tokens(3) > 4, normal(3)
    drawn = inputs.random(7, {"number": number, "mask": mask, "x": x, "y": x})
    places = torch.arange(7) % COUNT
    assert torch.equal(drawn["number"], number[places])
    assert torch.equal(drawn["mask"], mask[places])
    assert drawn["x"].shape == (7, 3)
    assert not torch.equal(drawn["x"], drawn["y"]), "what is the same in both inputs would cancel"
    assert torch.equal(drawn["x"], inputs.random(7, x)), "always the same"


def test_only_floating_point_inputs_get_the_type_and_format_of_the_model() -> None:
    placed = Placement(torch.device("cpu"), torch.float16).inputs(
        (normal(3, 4, 4), tokens(3, 4, 4), normal(2, 3, 4, 4), normal(3, 4))
    )
    assert [part.dtype for part in placed] == [torch.float16, torch.int64, torch.float16, torch.float16]
    assert placed[0].is_contiguous(memory_format=torch.channels_last)
    assert all(part.is_contiguous() for part in placed[1:])


def test_only_parameters_of_maps_are_channels_last() -> None:
    cpu = Placement(torch.device("cpu"), torch.float32)
    model = cpu.model(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.Conv1d(4, 4, 3)))
    two, three, one = (model.get_parameter(f"{i}.weight") for i in range(3))
    assert two.is_contiguous(memory_format=torch.channels_last)
    assert not two.is_contiguous()
    assert three.is_contiguous()
    assert one.is_contiguous()


# --- what does not fit is said ---


@pytest.mark.parametrize(
    ("model", "batch", "sentence"),
    [
        (signals, normal(4, 24), r"inputs: the model can't take \(4, 24\) of float32: .*channels.*"),
        (Pooled, tokens(7) + WORDS, r"inputs: the model can't take \(7,\) of int64: index out of range in self"),
        (Both, (normal(3, 8, 8),), r"inputs: the model can't take \(3, 8, 8\) of float32: .*argument: 'table'"),
        (
            Named,
            {"tokens": tokens(6), "type": normal(6)},
            r"inputs: the model can't take tokens: \(6,\) of int64, type: \(6,\) of float32: .*argument: 'mask'",
        ),
        (
            lambda: nn.Conv2d(3, 4, 3),
            normal(4, 8, 6),
            r"img_size, channels \(--img-size, --channels\): the model can't take 4 channels of 8 x 6 pixels: .*",
        ),
    ],
    ids=["signals", "tokens", "tuple", "dict", "images"],
)
def test_inputs_that_the_model_does_not_take(model: Callable[[], nn.Module], batch: Inputs, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^{sentence}$"):
        Injector(model(), COUNT, batch)


def test_a_layer_that_only_some_inputs_reach() -> None:
    class Chooses(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x) if len(x) == 1 else self.embedding(x)[:, 0]
            return logits

    with pytest.raises(BadInput, match=r"calls the same layers for all images, not head$"):
        Injector(Chooses(), COUNT, tokens(7))


def test_inputs_that_are_mixed_run_on_the_reference_engine() -> None:
    """Also whole numbers, of which no random ones can be drawn."""

    class Mixes(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            y = self.embedding(x)
            logits: Tensor = self.head((y - y.mean(0, keepdim=True)).mean(1))
            return logits

    injector = Injector(Mixes(), COUNT, tokens(7))
    with pytest.raises(Untraceable, match="mixes the images"):
        Program(injector.original_model, injector.modules, injector.layers, tokens(7))


def test_an_input_that_is_changed_in_place_stays_the_users() -> None:
    class Changes(Both):
        def forward(self, image: Tensor, table: Tensor) -> Tensor:
            return super().forward(image.relu_(), table.add_(1))

    batch = normal(3, 8, 8), normal(7)
    injector = Injector(scatter(Changes()).eval(), COUNT, batch)
    engine, note = engines.build("wave", injector, batch)
    assert engine.name == "reference"
    assert note is not None
    assert "changes inputs in place" in note
    flips = flips_of(injector, "weight")
    first, again = record(engine, batch, flips)[0], record(engine, batch, flips)[0]
    assert not differing(first, again).any()
    assert torch.equal(batch[0], normal(3, 8, 8))
    assert torch.equal(batch[1], normal(7))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("signals", "3 24 "), ("tokens", "7 "), ("tuple", "[3, 8, 8] [7] "), ("dict", "[7] [6] [6] ")],
)
def test_the_summary_names_the_shape(name: str, shape: str) -> None:
    model, batch = made(name)
    lines = injector_of(model, "neuron", batch).summary(None).splitlines()
    assert f"   - Shape of input into the model: ({shape})" in lines
    assert f"   - Batch Size: {COUNT}" in lines
