"""Clean passes that rounds through the test set share: the same outcomes, one pass for each batch, bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import random_images
from torch import Tensor, nn

from bitflip import engines
from bitflip.engines import coverage
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.wave import Wave
from bitflip.faults.flips import Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.network.layers import Target, targets
from bitflip.outcomes.batch import BatchOutcomes

IMAGES, ROUNDS = 4, 3
SHAPE = (3, 6, 6)


class Changing(nn.Module):
    """(B, 3, 6, 6) -> (B, 4), with steps that change in place what was read before, or what they read a view of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.flat, self.last = nn.Flatten(), nn.Linear(4 * 36, 4)

    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = self.relu(self.norm(self.first(images)))
        branch = self.second(values)
        branch += values
        logits: Tensor = self.last(self.relu(self.flat(branch)))
        return logits


def network(target: TargetKind) -> Injector:
    torch.manual_seed(5)
    model = coverage.enlivened(Changing()).eval().requires_grad_(False)
    return Injector(WithInput(model) if target == "neuron" else model, IMAGES, random_images(IMAGES, *SHAPE))


def rounds(injector: Injector, target: TargetKind) -> list[list[Flips]]:
    items = targets([Target(i, layer) for i, layer in enumerate(injector.everything)], target, None)
    return [
        [
            neuron_flips(1, item.layer, 0, IMAGES, repeat=turn)
            if target == "neuron"
            else parameter_flip(1, item.layer, 0, repeat=turn, parameter=item.parameter)
            for item in items
        ]
        for turn in range(ROUNDS)
    ]


def run(engine: engines.Engine, images: Tensor, flips: list[Flips], first: int = 0) -> dict[str, Any]:
    found = BatchOutcomes(torch.zeros(len(images), dtype=torch.int64), flips, first, lambda count: None)
    with torch.no_grad():
        engine.run(images, found.flips, found)
    found.to_host()
    values = [value for pair in zip(found.original, found.error, strict=True) for value in pair]
    return {
        "clean": found.clean_top1,
        "top1": found.top1,
        "effects": found.effects,
        "values": torch.cat([torch.empty(0), *values]),
    }


def build(injector: Injector, audit: float | None, pool_bytes: int | None = None, *, again: bool = True) -> Wave:
    engine, note = engines.build("wave", injector, random_images(IMAGES, *SHAPE), pool_bytes, audit, again=again)
    assert note is None
    assert isinstance(engine, Wave)
    return engine


def passes_of(engine: Wave, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each result that the last layer makes from now on."""
    seen: list[int] = []
    carry_out = engine.program.run

    def noted(node: Any, load: Any) -> Any:
        if node is engine.program.logits:
            seen.append(len(load(node.args[0])))
        return carry_out(node, load)

    monkeypatch.setattr(engine.program, "run", noted)
    return seen


@pytest.mark.parametrize("audit", [None, 0.0], ids=["run", "prove"])
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_rounds_that_share_a_clean_pass_find_the_same(target: TargetKind, audit: float | None) -> None:
    injector, images = network(target), random_images(IMAGES, *SHAPE)
    once, again = build(injector, audit, again=False), build(injector, audit)
    for flips in [*rounds(injector, target), *rounds(injector, target)]:
        expected, got = run(once, images, flips), run(again, images, flips)
        for name, value in expected.items():
            assert torch.equal(value.nan_to_num(7.0), got[name].nan_to_num(7.0)), name


@pytest.mark.parametrize("audit", [None, 0.0], ids=["run", "prove"])
def test_a_batch_has_one_clean_pass_for_all_rounds(audit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images = build(network("neuron"), audit), random_images(IMAGES, *SHAPE)
    seen = passes_of(engine, monkeypatch)
    for turn in range(ROUNDS):
        run(engine, images, [])
        assert seen == [IMAGES], f"round {turn}"


def test_other_images_at_the_same_place_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images = build(network("neuron"), None), random_images(IMAGES, *SHAPE)
    other = images.clone()
    other[-1, 0, 0, 0] = -other[-1, 0, 0, 0]
    run(engine, images, [])
    seen = passes_of(engine, monkeypatch)
    run(engine, other, [])
    run(engine, images[:2], [])
    run(engine, images, [], first=IMAGES)
    assert seen == [IMAGES, 2, IMAGES]


def test_no_more_is_kept_than_fits_and_nothing_once_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    injector, images = network("neuron"), random_images(IMAGES, *SHAPE)
    each = sum(step.bytes for step in build(injector, None).program.steps) * IMAGES
    engine = build(injector, None, pool_bytes=2 * each)
    seen = passes_of(engine, monkeypatch)
    for _ in range(2):
        for batch in range(3):
            run(engine, images, [], first=batch * IMAGES)
    assert seen == [IMAGES] * 4, "two batches fit, of which one pass each is made; the third is run each time"
    monkeypatch.setattr(engine, "_sweep", lambda *given: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        run(engine, images, [])
    monkeypatch.undo()
    seen = passes_of(engine, monkeypatch)
    run(engine, images, [])
    run(engine, images, [])
    assert seen == [IMAGES] * 2
