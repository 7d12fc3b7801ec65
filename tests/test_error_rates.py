"""Bit error rates: how patterns are drawn, what they do, and that a run with them is as safe as any other."""

from __future__ import annotations

import copy
import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FewDigits, Refused, RunScript
from fuzz import struck
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bitflip
from bitflip.campaign.patterned import Advance, Part, Patterned
from bitflip.errors import BadInput
from bitflip.faults import patterns
from bitflip.faults.patterns import Hits
from bitflip.network.layers import Layer, Parameter, Target
from bitflip.report import reading
from bitflip.statistics.falls import falls

LAYER = Layer(3, "a", 0, "Linear", (40,), True, 32, (Parameter("weight", (25, 4), 32),))
OUTPUT, WEIGHT = Target(0, LAYER), Target(0, LAYER, "weight")
BITS = 25 * 4 * 32


def placed(hits: Hits) -> list[tuple[int, int, int]]:
    return sorted(zip(hits.image.tolist(), hits.element.tolist(), hits.bit.tolist(), strict=True))


@pytest.mark.parametrize("highest", [1e-3, 0.02, 0.4])
def test_patterns_are_nested_whatever_the_highest_rate(highest: float) -> None:
    drawn, far = patterns.of_parameter(5, WEIGHT, 2, highest), patterns.of_parameter(5, WEIGHT, 2, 0.5)
    before: set[tuple[int, int, int]] = set()
    for rate in (highest / 100, highest / 10, highest / 2, highest):
        now = placed(drawn.at(rate))
        assert now == placed(far.at(rate))
        assert len(now) == len(set(now))
        assert before <= set(now)
        before = set(now)
    assert before


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3, 0.5])
def test_so_many_bits_flip_as_independent_ones_would(rate: float) -> None:
    counts = [len(patterns.of_parameter(seed, WEIGHT, 0, rate).at(rate)) for seed in range(400)]
    assert stats.binomtest(sum(counts), 400 * BITS, rate).pvalue > 1e-6
    spread = np.var(counts, ddof=1) * 399 / (BITS * rate * (1 - rate))
    assert 1e-6 < stats.chi2.cdf(spread, 399) < 1 - 1e-6


def test_all_bits_are_equally_likely() -> None:
    hits = [patterns.of_parameter(seed, WEIGHT, 0, 0.05).at(0.05) for seed in range(200)]
    for values, number in (([one.bit for one in hits], 32), ([one.element for one in hits], 100)):
        assert stats.chisquare(np.bincount(np.concatenate(values), minlength=number)).pvalue > 1e-6


def test_a_pattern_depends_on_its_own_place_alone() -> None:
    whole = placed(patterns.of_outputs(5, OUTPUT, 10, 12, 1, 0.01))
    parts = [(first, patterns.of_outputs(5, OUTPUT, 10 + first, 4, 1, 0.01)) for first in (0, 4, 8)]
    assert whole == [(first + i, element, bit) for first, part in parts for i, element, bit in placed(part)]
    others = [
        patterns.of_parameter(6, WEIGHT, 1, 0.01),
        patterns.of_parameter(5, WEIGHT, 2, 0.01),
        patterns.of_parameter(
            5, Target(0, Layer(4, "b", 0, "Linear", (40,), True, 32, LAYER.parameters), "weight"), 1, 0.01
        ),
        patterns.of_outputs(5, OUTPUT, 0, 1, 1, 0.01),
    ]
    here = set(placed(patterns.of_parameter(5, WEIGHT, 1, 0.01)))
    assert all(len(here & set(placed(other))) < len(here) / 4 for other in others)


def test_all_bits_of_a_value_are_one_fault() -> None:
    image, element, bit = np.array([[0, 0, 0], [7, 7, 3], [0, 31, 5]])
    hits = Hits(WEIGHT, 1, image, element, bit, np.zeros(3))
    flips = hits.flips()
    assert flips.element.tolist() == [3, 7]
    assert [flips.written(i) for i in range(2)] == [("flip", (5,)), ("flip", (0, 31))]


# --- against a plain loop ---


class LooksUp(nn.Module):
    """Uses a value as an index, which faults put out of range."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(8.0)[x[:, :1].abs().long()]


class Divides(nn.Module):
    """Makes infinite logits of some images."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x[:, :1] > 0)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    parts = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5)]
    return nn.Sequential(*parts).eval().requires_grad_(False)


def plainly(model: nn.Module, image: Tensor, hits: dict[Target, Hits], number: int) -> Tensor:
    """The logits of one image with all hits in it: its own XOR, one bit after the other."""
    model = copy.deepcopy(model)
    image = image.clone()
    for target, one in hits.items():
        mine = [(e, b) for i, e, b in placed(one) if target.parameter or i == number]

        def strike(values: Tensor, mine: list[tuple[int, int]] = mine) -> Tensor:
            for element, bit in mine:
                values = struck(values, element, "flip", [bit])
            return values

        if target.parameter:
            tensor = model.get_submodule(target.layer.path).get_parameter(target.parameter)
            tensor.data = strike(tensor.data)
        elif target.layer.path == "input":
            image = strike(image)
        else:
            model.get_submodule(target.layer.path).register_forward_hook(
                lambda m, a, output, strike=strike: strike(output)
            )
    found: Tensor = model(image)
    return found


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("batch_size", [4, 30])
def test_the_counts_are_those_of_a_plain_loop(target: Any, batch_size: int) -> None:
    model, images = network(), torch.randn(30, 1, 4, 4)
    clean = model(images).argmax(1)
    labels = torch.where(torch.arange(30) % 5 == 0, (clean + 1) % 5, clean)  # some are wrong
    campaign = bitflip.Campaign(model, TensorDataset(images, labels), batch_size=batch_size, device="cpu")
    rates = [2e-4, 2e-3, 0.02]
    points = campaign.error_rates(target, rates, patterns=3, seed=9, by_layer=True)
    layers = layers_of(campaign, target)
    assert len(points) == 3 * (1 + len(layers))
    for point in points:
        targets = [Target(0, layer, "weight" if target == "weight" else "") for layer in layers]
        if point.scope is not None:
            targets = [one for one in targets if one.layer == point.scope.layer]
        counted: Counter[str] = Counter()
        for repeat in range(3):
            hits = {
                one: patterns.of_parameter(9, one, repeat, point.rate).at(point.rate)
                if target == "weight"
                else patterns.of_outputs(9, one, 0, 30, repeat, point.rate).at(point.rate)
                for one in targets
            }
            counted["flips"] += sum(map(len, hits.values()))
            for number in range(30):
                logits = plainly(model, images[number : number + 1], hits, number)
                top1 = int(logits.argmax(1))
                counted["right"] += top1 == labels[number]
                counted["wrong"] += bool(top1 != clean[number] == labels[number])
                counted["other"] += top1 != int(clean[number])
                counted["nonfinite"] += not bool(logits.isfinite().all())
        assert (point.images, point.patterns, point.clean_correct) == (90, 3, 72)
        assert (point.misclassified, point.sdc1) == (counted["wrong"], counted["other"])
        assert (point.nonfinite, point.due) == (counted["nonfinite"], 0)
        assert point.accuracy.value == pytest.approx(100 * counted["right"] / 90)
        assert point.flips == pytest.approx(counted["flips"] / (3 if target == "weight" else 90))
    assert points[2].misclassified > 0


def layers_of(campaign: bitflip.Campaign, target: Any) -> list[Layer]:
    """The layers as the engines know them."""
    from bitflip.campaign.api import _settings

    with campaign._prepared(_settings({**campaign._settings, "output_path": "."}), target, None) as prepared:
        return [item.layer for item in prepared.targets]


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_an_exception_of_the_model_is_counted_as_due(target: Any) -> None:
    """By both engines; and logits that are not finite without a fault are so with faults that change nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), LooksUp(), nn.Linear(6, 5), Divides()).eval()
    images = torch.randn(12, 1, 4, 4)
    data = TensorDataset(images, model(images).argmax(1))
    assert 0 < int((~model(images).isfinite().all(1)).sum()) < 12
    found = []
    for engine in ("wave", "reference"):
        campaign = bitflip.Campaign(model, data, batch_size=6, device="cpu", engine=engine)
        found.append(campaign.error_rates(target, [1e-4, 0.02], patterns=4, layer_type=["Linear"], by_layer=True))
    assert found[0] == found[1]
    assert len(found[0]) == 2 * 3
    for point in found[0]:
        assert point.images == 48
        assert point.accuracy.value is not None
        assert point.accuracy.value <= 100 * (48 - point.due) / 48
    assert found[0][2].nonfinite > 0  # of one layer, at a rate at which most faults are masked
    assert 0 < found[0][3].due < 48


def test_what_comes_before_the_struck_layer_is_run_once() -> None:
    model, images = network(), torch.randn(30, 1, 4, 4)
    data, calls = TensorDataset(images, torch.zeros(30, dtype=torch.int64)), Counter[str]()
    for path in ("0", "5"):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.update([path]))
    campaign = bitflip.Campaign(model, data, batch_size=30, device="cpu")
    seen = []
    for count in (2, 22):
        calls.clear()
        campaign.error_rates("weight", [0.01], patterns=count, by_layer=True, layer_type=["Linear"])
        seen.append(dict(calls))
    more = {path: seen[1][path] - seen[0][path] for path in calls}
    assert more["0"] == 2 * 20  # with all layers struck, and for each pattern one clean pass that its layers share
    assert more["5"] > 3 * 20


def test_images_that_must_be_run_alone_are() -> None:
    """Where Python chooses a way by the values of a batch, each image has its own."""

    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -x if bool((x.abs() > 100).any()) else x

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), Chooses(), nn.Linear(6, 5)).eval()
    images = torch.randn(12, 1, 4, 4)
    data = TensorDataset(images, model(images).argmax(1))
    found = [
        bitflip.Campaign(model, data, batch_size=size, device="cpu").error_rates("neuron", [0.01], patterns=6)
        for size in (1, 12)
    ]
    assert found[0] == found[1]
    assert found[0][0].misclassified > 0


def raising() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), LooksUp(), nn.Linear(8, 10))


def test_exceptions_are_in_the_printed_table(tmp_path: Path, few_digits: FewDigits, run_script: RunScript) -> None:
    few_digits(12)
    given = ["--dataset=digits", "--seed=3", "--bit-error-rate=1e-9,1e-3", "--layer-num=1", "--repeats=3"]
    done = run_script("weight.py", *given, f"--model-name={__file__}:raising", f"--output-path={tmp_path}")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(read(tmp_path).splitlines()))
    lines = done.out.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.endswith("exceptions (DUE)"))
    assert [line.split()[-2] for line in lines[start + 1 : start + 3]] == [
        f"{100 * int(row['due']) / int(row['images']):.2f}" for row in rows
    ]
    assert int(rows[0]["due"]) == 0 < int(rows[1]["due"])


# --- the run ---


def read(folder: Path) -> str:
    return next(folder.glob("*_ber.csv")).read_text()


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    target: str, tmp_path: Path, few_digits: FewDigits, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(50)
    given = ["--dataset", "digits", "--seeds", "3,8", "--bit-error-rate", "1e-4,1e-6", "--repeats", "2"]
    given += ["--layer-type", "Linear", "--by-layer", "--batch-size", "20"]
    assert run_script(f"{target}.py", *given, "--output-path", tmp_path / "a").code == 0
    assert {path.name.partition("_ber")[2] for path in (tmp_path / "a").iterdir()} == {*(".csv", ".json", ".txt")}
    usual, batches, seen = Patterned.counted, [], Counter[int]()

    def stopping(self: Patterned, part: Part, batch: Any, advance: Advance) -> Any:
        batches.append(part)

        def advancing(count: int) -> None:
            advance(count)
            seen[len(batches)] += 1
            if seen[2] == 5:
                raise KeyboardInterrupt

        return usual(self, part, batch, advancing)

    monkeypatch.setattr(Patterned, "counted", stopping)
    done = run_script(f"{target}.py", *given, "--output-path", tmp_path / "b")
    assert done.code == 130
    assert "goes on from the last finished batch" in "\n".join(done.errors)
    monkeypatch.undo()
    few_digits(50)
    refused = run_script(f"{target}.py", *given, "--confidence", "0.9", "--output-path", tmp_path / "b")
    assert refused.code == 2

    def counting(self: Patterned, part: Part, *args: Any) -> Any:
        batches.append(part)
        return usual(self, part, *args)

    monkeypatch.setattr(Patterned, "counted", counting)
    assert run_script(f"{target}.py", *given, "--output-path", tmp_path / "b").code == 0
    assert len(batches) == 2 + 2  # of three batches, the second was begun again
    assert read(tmp_path / "b") == read(tmp_path / "a")
    assert not list((tmp_path / "b").glob("*.unfinished"))


def test_rates_fall_and_the_batch_size_changes_nothing(
    tmp_path: Path, few_digits: FewDigits, run_script: RunScript
) -> None:
    few_digits(60)
    for target in ("neuron", "weight"):
        given = ["--dataset", "digits", "--seed", "3", "--bit-error-rate", "1e-3,1e-8"]
        for size in (7, 60):
            done = run_script(
                f"{target}.py", *given, "--batch-size", size, "--output-path", tmp_path / f"{target}{size}"
            )
            assert done.code == 0
        assert read(tmp_path / f"{target}7") == read(tmp_path / f"{target}60")
        low, high = csv.DictReader(read(tmp_path / f"{target}7").splitlines())
        assert (low["bit_error_rate"], high["bit_error_rate"]) == ("1e-08", "0.001")
        assert float(low["accuracy"]) > 80 > 30 > float(high["accuracy"])


@pytest.mark.parametrize(
    ("accuracy", "points", "expected"),
    [
        ([99, 95, 80], 1, 1e-6),
        ([100, 98, 80], 1, 10**-5.5),
        ([100, 98, 80], 11, 10**-4.5),
        ([100, 99.5, 99.2], 1, None),
    ],
)
def test_where_accuracy_has_fallen(accuracy: list[float], points: float, expected: float | None) -> None:
    found = falls([1e-6, 1e-5, 1e-4], accuracy, 100.0, points)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-5))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["--bit-error-rate", "2"],
            r"bit_error_rate \(--bit-error-rate\): expected numbers above 0 and at most 0.5, .*'2'",
        ),
        (["--bit-error-rate", "1e-6,,"], r"bit_error_rate .* expected numbers above 0 .* got '1e-6,,'"),
        (["--bit-error-rate", "0"], r"bit_error_rate .* expected numbers above 0"),
        (["--by-layer"], r"by_layer \(--by-layer\): expected bit_error_rate \(--bit-error-rate\) with it"),
        (["--bit-error-rate", "1e-6", "--bit-flip-pos", "1"], r"bit_flip_pos .*: expected no bit with bit_error_rate"),
        (["--bit-error-rate", "1e-6", "--fault", "zero"], r"fault \(--fault\): expected flip with bit_error_rate"),
        (["--bit-error-rate", "1e-6", "--margin", "1"], r"margin .*: expected none with bit_error_rate"),
        (["--bit-error-rate", "1e-6", "--prove"], r"prove .*: expected none with bit_error_rate"),
        (["--bit-error-rate", "1e-6", "--detailed-log"], r"detailed_log .*: expected none with bit_error_rate"),
        (["--bit-error-rate", "1e-6", "--faults", __file__], r"bit_error_rate .*: expected no value with --faults"),
        (
            ["--bit-error-rate", "1e-6", "--bit-sampling", "importance"],
            r"bit_sampling .*: expected uniform with bit_err",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given: list[str], sentence: str, refused: Refused) -> None:
    refused(given, sentence)


def test_a_model_without_such_layers_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    data = TensorDataset(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(BadInput, match=r"layer_type"):
        bitflip.Campaign(model, data, device="cpu").error_rates("weight", [1e-3], layer_type=["ReLU"])


def test_the_plot_shows_the_network_and_the_layers(
    tmp_path: Path, few_digits: FewDigits, run_script: RunScript
) -> None:
    few_digits(20)
    given = ["--dataset", "digits", "--seed", "3", "--bit-error-rate", "1e-3,1e-8", "--by-layer", "--plots"]
    assert run_script("weight.py", *given, "--layer-type", "Linear", "--output-path", tmp_path).code == 0
    (drawn,) = tmp_path.glob("*_ber.svg")
    assert drawn.read_text().count("<!-- ") > 0
    for words in ("all layers", "#0 Linear (path classifier.0) alone", "bit error rate", "accuracy, %", "no fault"):
        assert f"<!-- {words}" in drawn.read_text(), words
    (picture,) = tmp_path.glob("*_ber.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    for place in (tmp_path, next(tmp_path.glob("*_ber.json"))):
        with pytest.raises(BadInput, match="expected a run of single faults, got bit error rates"):
            reading.find(place) if place.is_dir() else reading.read(reading.table_of(place))


def test_the_time_of_a_rate() -> None:
    assert patterns.until(0.5) == pytest.approx(math.log(2))
