"""A run whose intervals are too wide says so, with what narrows them and how long that takes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from conftest import FewDigits, RunScript
from synthetic import write_run

from bitflip import report
from bitflip.report import page, words
from bitflip.statistics import sampling
from bitflip.statistics.intervals import Sums
from bitflip.statistics.rates import Part
from bitflip.terminal import duration

SENTENCE = re.compile(r"Intervals are too wide to say much, up to ([\d.]+) to ([\d.]+) %: ([^\n<]*)\.")


def wilson_width(rate: float, count: float) -> float:
    """Width in percentage points of Wilson's interval at 95 %, from its textbook form."""
    z = 1.959964
    return 200 * z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize(("hits", "faults"), [(4, 20), (30, 60), (90, 100), (250, 1000)])
def test_so_many_times_as_many_faults_narrow_the_interval(hits: int, faults: int, target: str) -> None:
    """Rates are far from 0 and from 1, where Wilson's is the interval that is used."""
    rate = (hits + 0.5) / (faults + 1)
    expected = next(k for k in range(1, 10**6) if wilson_width(rate, k * faults) <= 4)
    found = sampling.times([[Part(Sums.single(float(hits), float(faults)))]], target, 0.95, 2.0)
    assert found is not None
    assert found == pytest.approx(expected, abs=1 if target == "neuron" else 0.15 * expected + 1)


def test_the_widest_layer_decides() -> None:
    layers = [[Part(Sums.single(*sums))] for sums in ((0.0, 500.0), (20.0, 40.0), (3.0, 90.0))]
    each = [sampling.times([layer], "neuron", 0.95, 3.0) or 0 for layer in layers]
    assert sampling.times(layers, "neuron", 0.95, 3.0) == max(each) > min(each)


def test_nothing_is_known_of_bits_without_a_fault() -> None:
    parts = [Part(Sums.single(1.0, 9.0), 0.5), Part(Sums.single(0.0, 0.0), 0.5)]
    assert sampling.times([parts], "weight", 0.95, 5.0) is None


def test_terminal_and_page_say_the_same(tmp_path: Path, few_digits: FewDigits, run_script: RunScript) -> None:
    few_digits(60)
    given = ("--dataset=digits", "--seed=1", "--layer-num=0,1", "--batch-size=20", f"--output-path={tmp_path}")
    done = run_script("weight.py", *given, "--repeats=2")
    facts = json.loads((tmp_path / "weight_digits_vgg_digits_1.json").read_text())
    run = report.read(tmp_path / "weight_digits_vgg_digits_1.csv")
    low, high, helps = SENTENCE.findall(done.out)[0]
    assert SENTENCE.findall(page.html(run)) == [(low, high, helps)]
    widest = max(run.layers, key=lambda row: (row.rate.high or 0) - (row.rate.low or 0)).rate
    assert (float(low), float(high)) == pytest.approx((widest.low, widest.high), rel=0.01, abs=0.001)
    (repeats,) = re.findall(r"--repeats (\d+)", helps)
    assert int(repeats) > 2
    assert duration(facts["campaign_seconds"] * int(repeats) / 2) in helps
    assert "--margin 5" in helps
    few_digits(20)
    margin = run_script("weight.py", *given[:-1], f"--output-path={tmp_path / 'margin'}", "--margin=40")
    assert margin.code == 0
    assert not SENTENCE.search(margin.out)  # it was told how narrow they should be


def test_a_run_whose_intervals_are_narrow_says_nothing(tmp_path: Path) -> None:
    found = {
        images: words.findings(report.read(write_run(tmp_path, images=images, correct=images))) for images in (9, 900)
    }
    assert [any(map(SENTENCE.match, sentences)) for sentences in found.values()] == [True, False]


def test_of_several_seeds_none_runs_to_a_margin(tmp_path: Path) -> None:
    runs = [report.read(write_run(tmp_path, seed, target="weight")) for seed in (1, 2)]
    (sentence,) = filter(SENTENCE.match, words.findings(report.join(runs, tmp_path)))
    assert "--repeats" in sentence
    assert "--margin" not in sentence


@pytest.mark.parametrize("count", [7, 99, 101, 1234, 99901])
def test_a_number_of_repeats_is_rounded_up(count: int) -> None:
    found = words.rounded_up(count)
    assert count <= found <= 1.1 * count + 1
    assert not str(found)[2:].strip("0")
