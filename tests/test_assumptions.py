"""What the method assumes of a model: refused by name where it does not hold, right where it can be made to hold."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import DEVICE, FewDigits, Finished, RunScript, random_images
from torch import Tensor, nn
from torch.nn import functional as F

from bitflip import engines
from bitflip.campaign.executor import portions
from bitflip.engines.agreement import differing, record
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.invariance import Invariant
from bitflip.engines.pool import Budget
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput
from bitflip.faults.flips import Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.network.devices import Placement
from bitflip.network.layers import Target, targets
from bitflip.network.state import State
from bitflip.outcomes.batch import BatchOutcomes, Effect

PLACEMENT = Placement(DEVICE, torch.float32)
COUNT = 5
ENGINES = pytest.mark.parametrize("engine", ["wave", "reference"])
TARGETS = pytest.mark.parametrize("target", ["neuron", "weight"])


class Net(nn.Module):
    """Two convolutions and a head, (B, 3, 8, 8) -> (B, 5); others do something awkward between them."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 6, 3, padding=1)
        self.between = between or nn.Identity()
        self.c2 = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.between(self.c1(x)))

    def end(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.c2(x)).mean((2, 3)))
        return logits


class Drops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.dropout(self.c1(x)))


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(x := self.c1(x) + 0.1 * torch.randn_like(self.c1(x)))


class AlwaysTraining(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Centred(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        return self.end(x - x.mean(0, keepdim=True))


class Shares(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x) / len(x)
        return self.end(x)


class Spreads(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        return self.end(x + 1e-30 * x.sum(0))


class Counts(Net):
    """Keeps a number where nobody can put it back."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        Counts.passes += 1
        x = self.c1(x) * Counts.passes
        return self.end(x)


class ExitsEarly(Net):
    def forward(self, x: Tensor) -> Tensor:
        early: Tensor = self.c1(x).mean((2, 3))[:, :5]
        if len(x) == 1 and early[0, 0] > early[0, 1]:
            return early
        return self.end(self.c1(x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm without statistics": (
        lambda: Net(nn.BatchNorm2d(6, track_running_stats=False)),
        "as the output of between shows, the images of a batch are mixed",
    ),
    "a mean over the batch": (Centred, "as the output of c2 shows, the images of a batch are mixed"),
    "a number of images": (Shares, "it changes with the number of images in the batch"),
    "what only large values show": (Spreads, "NaN or large values of one image reach another one"),
    "functional dropout": (Drops, r"the model draws random numbers \((bernoulli_|native_dropout)\)"),
    "dropout in training mode": (lambda: Net(AlwaysTraining()), "between draws random numbers"),
    "noise": (Noisy, r"the model draws random numbers \(randn_like\)"),
    "a global counter": (Counts, "c2 gives another output for the same images in another pass"),
}


def images() -> Tensor:
    return PLACEMENT.inputs(random_images(COUNT, 3, 8, 8))


def built(model: nn.Module, target: TargetKind, engine: Any = "wave") -> tuple[Injector, engines.Engine, str | None]:
    injector = Injector(WithInput(model) if target == "neuron" else model, COUNT, images())
    return injector, *engines.build(engine, injector, images())


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return PLACEMENT.model(build().eval().requires_grad_(False))


@ENGINES
@TARGETS
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, target: TargetKind, engine: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(BadInput, match=reason) as caught:
        built(made(build), target, engine)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("model_name (--model-name): expected a model whose output for an image ")


def test_images_that_take_different_ways_are_refused() -> None:
    model = made(ExitsEarly)
    with torch.no_grad():
        early = [int(model.get_submodule("c1")(image[None]).mean((2, 3))[0, :2].argmax()) for image in images()]
    assert len(set(early[:2])) == 2, "the test's own images take both"
    with pytest.raises(BadInput, match="expected a model that calls the same layers for all images, not "):
        built(model, "neuron")


def test_a_network_that_gives_no_numbers_is_refused() -> None:
    """Its class is always the first one, which no fault changes: a perfect table."""
    model = made(Net)
    model.get_parameter("c1.weight")[0, 0, 0, 0] = math.inf
    with pytest.raises(BadInput, match="expected a model whose output is numbers, got NaN for the first images"):
        built(model, "weight")


# --- what can be run, is run right ---


class Spikes(Net):
    """Its neurons keep their potential, over the passes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.potential: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        self.potential = x if self.potential is None else 0.9 * self.potential + x
        fired = (self.potential > 0.1).float()
        self.potential = self.potential - fired
        return self.end(fired)


class Neuron(nn.Module):
    """The same as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.potential: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.9 * self.potential + x
        fired: Tensor = (self.potential > 0.1).float()
        self.potential = self.potential - fired
        return fired


class SpikesOften(Net):
    def __init__(self) -> None:
        super().__init__(Neuron())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x)


class CountsInABuffer(Net):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x) * self.count


class KeepsBiases(Net):
    """Keeps what its first pass made of a parameter, as attention in several models of timm does."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(9))
        self.register_buffer("index", torch.arange(6))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> KeepsBiases:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.kept:
            self.kept[key] = self.biases[self.index].view(1, 6, 1, 1)
        return self.end(self.c1(x) + self.kept[key])


class KeepsItsWeight(nn.Conv2d):
    """A layer that keeps what its first pass made of its own weight."""

    scaled: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scaled is None:
            self.scaled = self.weight * 0.5
        return F.conv2d(x, self.scaled, self.bias, padding=1)


class Guards(Net):
    """Gives up on a whole batch with a NaN in it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        return x.new_zeros(len(x), 5) if x.isnan().any() else self.end(x)


class Binary(nn.Conv2d):
    """Assigns the signs of its weight and of its input to them, in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            x.data = x.data.sign()
        if not hasattr(self, "full"):
            self.full = self.weight.data.clone()
        self.weight.data = self.full.sign()
        return F.conv2d(x, self.weight, self.bias, padding=1)


class Binarised(Net):
    def __init__(self) -> None:
        super().__init__(nn.Hardtanh())
        self.c1, self.c2 = Binary(3, 6, 3), Binary(6, 6, 3)


class Indexes(Net):
    """Looks a row up by a value; an index out of range, or a NaN, raises."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        row = self.rows((x.mean((1, 2, 3)).abs() * 3).long())
        return self.end(x + row[:, :, None, None])


ALONE = "lets Python choose a way by the values of images: images are run one at a time, by the reference engine"
KEEPS = "keeps something from one pass to the next; using the reference engine"
RUN: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "potentials": (Spikes, None),
    "potentials in a layer": (SpikesOften, f"the wave engine can't run this model: between {KEEPS}"),
    "a count in a buffer": (CountsInABuffer, "using the reference engine"),
    "biases that are kept": (KeepsBiases, None),
    "a weight that is kept": (lambda: Net(KeepsItsWeight(6, 6, 3)), f"between {KEEPS}"),
    "a guard": (Guards, f"the model {ALONE}"),
    "an index": (Indexes, None),
}


def one_by_one(build: Callable[[], nn.Module], flips: Flips) -> list[Tensor | None]:
    """The logits of each image under its flip, from a fresh model each; None where it raises an exception."""
    found: list[Tensor | None] = []
    for i, image in enumerate(images()):
        model, one = made(build), image[None].clone()
        element, bit = (int(flips.element[i]), int(flips.bit[i])) if not flips.parameter else (0, 0)
        calls = 0

        def strike(module: nn.Module, args: object, output: Tensor, element: int = element, bit: int = bit) -> Any:
            nonlocal calls
            calls += 1
            return xored(output, element, bit) if calls - 1 == flips.layer.call else None

        if flips.parameter:
            tensor = model.get_submodule(flips.layer.path).get_parameter(flips.parameter)
            tensor.copy_(xored(tensor, int(flips.element[0]), int(flips.bit[0])))
        elif flips.layer.path == "input":
            one = xored(one, element, bit)
        else:
            model.get_submodule(flips.layer.path).register_forward_hook(strike)
        try:
            with torch.no_grad(), Invariant():  # a matrix product of one row may round otherwise than that of many
                found.append(model(one))
        except IndexError:
            found.append(None)
    return found


def xored(values: Tensor, element: int, bit: int) -> Tensor:
    inside = values.flatten().clone()
    inside.view(torch.int32)[element] ^= -(1 << 31) if bit == 0 else 1 << (31 - bit)
    return values.clone().copy_(inside.view(values.shape))  # in its memory format


def flips_of(injector: Injector, target: TargetKind, repeats: int, bit: int | None = None) -> list[Flips]:
    items = targets([Target(i, layer) for i, layer in enumerate(injector.everything)], target, None)
    if target == "neuron":
        return [neuron_flips(5, item.layer, 0, COUNT, bit, repeat=r) for item in items for r in range(repeats)]
    return [
        parameter_flip(5, it.layer, 0, bit, repeat=r, parameter=it.parameter) for it in items for r in range(repeats)
    ]


def assert_as_one_by_one(build: Callable[[], nn.Module], flips: list[Flips], found: BatchOutcomes) -> None:
    with torch.no_grad(), Invariant():
        clean = torch.cat([made(build)(image[None]) for image in images()])
    assert torch.equal(found.clean_top1, clean.argmax(1).cpu())
    for slot, one in enumerate(flips):
        for i, logits in enumerate(one_by_one(build, one)):
            effect = int(found.effects[slot, i])
            if logits is None:
                assert effect == Effect.DUE, one
                continue
            same = torch.equal(logits.view(torch.int32), clean[i : i + 1].view(torch.int32))
            assert bool(effect & Effect.CHANGED) != same, (one, i)
            assert int(found.top1[slot, i]) == int(logits.argmax(1)), (one, i)


@ENGINES
@TARGETS
@pytest.mark.parametrize("name", RUN)
def test_run_as_one_by_one(name: str, target: TargetKind, engine: str) -> None:
    build, reason = RUN[name]
    injector, chosen, note = built(made(build), target, engine)
    if engine == "wave" or reason is None or ALONE in reason:
        assert (note is None) == (reason is None)
        assert reason is None or reason in str(note)
    flips = flips_of(injector, target, 4)
    labels = torch.zeros(COUNT, dtype=torch.int64, device=DEVICE)
    found = portions(chosen, PLACEMENT).run(images(), labels, flips, 0, lambda count: None)
    assert_as_one_by_one(build, flips, found)
    assert (found.effects != 0).any(), "a fault shows"


@ENGINES
def test_what_a_pass_assigns_is_no_fault_of_neurons(engine: str) -> None:
    """Also where a layer gives its input, another layer's output, new values."""
    injector, chosen, _ = built(made(Binarised), "neuron", engine)
    flips = flips_of(injector, "neuron", 8)
    labels = torch.zeros(COUNT, dtype=torch.int64, device=DEVICE)
    found = portions(chosen, PLACEMENT).run(images(), labels, flips, 0, lambda count: None)
    assert_as_one_by_one(Binarised, flips, found)


def test_a_parameter_that_each_pass_assigns_is_known() -> None:
    injector, _, _ = built(made(Binarised), "weight")
    items = targets([Target(i, layer) for i, layer in enumerate(injector.everything)], "weight", None)
    names = [(item.layer.path, item.parameter) for item in items]
    assert len(set(names)) == len(names) == 6, "each is listed once"
    undone = [name for name, item in zip(names, items, strict=True) if injector.overwrites(item.layer, item.parameter)]
    assert undone == [("c1", "weight"), ("c2", "weight")]


def test_biases_kept_before_the_model_was_given_are_forgotten() -> None:
    model = made(KeepsBiases)
    with torch.no_grad():
        model(images())
    injector, chosen, _ = built(model, "weight")
    (item,) = (it for it in injector.everything if any(p.name == "biases" for p in it.parameters))
    flips = [parameter_flip(5, item, 0, repeat=r, parameter="biases") for r in range(16)]
    labels = torch.zeros(COUNT, dtype=torch.int64, device=DEVICE)
    found = portions(chosen, PLACEMENT).run(images(), labels, flips, 0, lambda count: None)
    assert_as_one_by_one(KeepsBiases, flips, found)
    assert (found.effects != 0).any()


@pytest.mark.parametrize("build", [Spikes, SpikesOften, CountsInABuffer, KeepsBiases, Guards], ids=lambda c: c.__name__)
def test_nothing_stays_in_the_model(build: Callable[[], nn.Module]) -> None:
    """Neither what a pass keeps, nor what tracing, which may fail, leaves in its place."""
    model = made(build)
    state = State.of(model)
    injector, chosen, _ = built(model, "neuron")
    record(chosen, images(), flips_of(injector, "neuron", 1))
    injector.kept.restore()
    assert not state.changed().names


# --- a fault that makes the model raise ---


@TARGETS
@pytest.mark.parametrize("budget", [Budget(16, 1 << 28), Budget(3, 1 << 14), Budget(1, 1)], ids=str)
def test_engines_agree_on_what_is_due(budget: Budget, target: TargetKind) -> None:
    injector, wave, _ = built(made(Indexes), target)
    assert isinstance(wave, Wave)
    wave.budget = budget
    flips = [*flips_of(injector, target, 6), *flips_of(injector, target, 6, bit=1)]
    expected, _ = record(Reference(injector), images(), flips)
    got, done = record(wave, images(), flips)
    assert done == len(flips) * COUNT
    assert not differing(expected, got).any()
    due = expected.having(Effect.DUE)
    assert 0 < int(due.sum()) < due.numel() // 2
    assert (expected.effects[due] == int(Effect.DUE)).all(), "and nothing else"


def test_due_is_neither_masked_nor_misclassified() -> None:
    injector, chosen, _ = built(made(Indexes), "neuron")
    flips = flips_of(injector, "neuron", 12)
    labels = torch.zeros(COUNT, dtype=torch.int64, device=DEVICE)
    found = portions(chosen, PLACEMENT).run(images(), labels, flips, 0, lambda count: None)
    columns = found.columns()
    exclusive = np.stack([columns[name] for name in ("masked", "benign", "sdc1", "due")])
    assert (exclusive.sum(axis=0) == 1).all()
    assert columns["due"].any()
    assert not (columns["due"] & columns["misclassified"]).any()
    assert (found.top1.numpy()[columns["due"]] == -1).all()
    assert (found.top1.numpy()[~columns["due"]] >= 0).all()


# --- whole runs ---

MODULE = """
import torch
from torch import nn

class Indexes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.rows = nn.Embedding(40, 6)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.conv(x)
        row = self.rows((x.mean((1, 2, 3)).abs() * 3).long())
        return self.head(x.mean((2, 3)) + row)

class Binary(nn.Conv2d):
    def forward(self, x):
        if not hasattr(self, "full"):
            self.full = self.weight.data.clone()
        self.weight.data = self.full.sign()
        return super().forward(x)

def indexes():
    return Indexes()

def binarised():
    return nn.Sequential(
        Binary(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)
    )
"""


@pytest.fixture
def run_own(run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> Callable[..., Finished]:
    few_digits(24)
    torch.manual_seed(0)
    (tmp_path / "own.py").write_text(MODULE)
    space: dict[str, Any] = {}
    exec(MODULE, space)
    for name in ("indexes", "binarised"):
        torch.save(space[name]().state_dict(), tmp_path / f"{name}.pt")

    def run(script: str, name: str, *flags: str) -> Finished:
        own = ("--model-name", f"{tmp_path / 'own.py'}:{name}", "--weights", tmp_path / f"{name}.pt")
        return run_script(script, "--dataset=digits", *own, "--seed=1", f"--output-path={tmp_path / 'out'}", *flags)

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
def test_due_is_counted_in_every_file(script: str, run_own: Callable[..., Finished], tmp_path: Path) -> None:
    flags = ("--repeats=40", "--batch-size=4", "--fault-table", "--plots")
    done = run_own(script, "indexes", *flags)
    assert done.code == 0, done.err
    stem = next((tmp_path / "out").glob("*.json")).with_suffix("")
    table, of_bits = (rows_of(stem.with_name(f"{stem.name}{end}.csv")) for end in ("", "_bits"))
    due = sum(int(row["due"]) for row in table)
    assert due > 0
    assert due == sum(int(row["due"]) for row in of_bits)
    single = pq.read_table(stem.with_name(f"{stem.name}_faults.parquet")).to_pydict()
    assert due == sum(single["due"])
    assert {top1 for top1, is_due in zip(single["top1"], single["due"], strict=True) if is_due} == {-1}
    for row in table:
        assert int(row["injections"]) == sum(int(row[name]) for name in ("masked", "benign", "sdc1", "due"))
    for row in (*table, *of_bits):  # the interval is that of a random fault
        low, high = float(row["due_low"]), float(row["due_high"])
        assert low <= 100 * int(row["due"]) / int(row["injections"]) <= high
        assert (low > 0) == (int(row["due"]) > 0)
        assert 0 < high <= 100
    means = json.loads(stem.with_suffix(".json").read_text())["means"]
    shares = [100 * int(row["due"]) / int(row["injections"]) for row in table]
    assert means[0]["due"] == pytest.approx(sum(shares) / len(shares))
    assert means[0]["due_low"] < means[0]["due"] < means[0]["due_high"]
    total = sum(int(row["injections"]) for row in table)
    line = f"Due: the model raised an exception in {due} of {total} faulty inferences"
    assert line in stem.with_name(f"{stem.name}.txt").read_text().splitlines()
    most = max(table, key=lambda row: int(row["due"]))
    assert f"; DUE {most['due']} / {most['injections']} = " in stem.with_name(f"{stem.name}.txt").read_text()
    for plot in ("layers", "bits"):
        assert "DUE, the model raised an exception" in stem.with_name(f"{stem.name}_{plot}.svg").read_text()
    page = stem.with_name(f"{stem.name}.html").read_text()
    raising = {row["bit"] for row in of_bits if int(row["due"])}
    assert page.count('<path class="due"') == len(table) + len(raising)  # a cross for each in the plots
    assert "DUE: the model raised an exception" in page
    assert "made the model raise an exception (DUE)" in page


def test_weights_that_each_pass_assigns_are_refused_by_name(run_own: Callable[..., Finished]) -> None:
    done = run_own("weight.py", "binarised")
    assert done.code == 2
    assert done.errors[-1] == (
        "model_name (--model-name): expected a model that leaves the parameters that are struck as they are; each "
        "forward pass gives new values to #0 Binary (path 0)"
    )
    assert run_own("weight.py", "binarised", "--layer-num=2").code == 0
