"""``python -m bitflip plan``: the populations, the sample sizes, the rounds, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from conftest import FewDigits

from bitflip import csvs
from bitflip.__main__ import main
from bitflip.commands import shared
from bitflip.commands.plan import Need, Trial, plan
from bitflip.statistics.sampling import sample_size
from bitflip.terminal import duration


def row(population: int, per_bit: int, bits: int = 32) -> Need:
    return Need(0, "Conv2d", "conv", 0, "", population // bits, bits, population, population, per_bit)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_plan_counts_all_faults_that_there_are(
    target: str, few_digits: FewDigits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few_digits(50)
    table = tmp_path / "plan.csv"
    arguments = ["--dataset", "digits", "--layer-num", "1,2,23", "--margin", "2", "--target", target]
    if target == "weight":
        arguments[3] = "0"
    assert main(["plan", *arguments, "--csv", str(table)]) == 0
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    elements = [16384, 16384, 10] if target == "neuron" else [16 * 3 * 3 * 3]
    images = 50 if target == "neuron" else 1
    assert [int(one["elements"]) for one in rows] == elements
    assert [int(one["population"]) for one in rows] == [count * 32 * images for count in elements]
    assert [int(one["faults"]) for one in rows] == [sample_size(count * 32 * images, 0.02) for count in elements]
    assert [int(one["faults_per_bit"]) for one in rows] == [sample_size(count * images, 0.02) for count in elements]
    printed = capsys.readouterr().out
    assert "margin of 2 percentage points" in printed
    assert f"{int(rows[0]['population']):,}" in printed
    assert "estimates, from one batch of 50 images" in printed


def test_a_single_bit_is_a_smaller_population(
    few_digits: FewDigits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few_digits(20)
    table = tmp_path / "plan.csv"
    arguments = ["--dataset", "digits", "--layer-num", "1", "--bit-flip-pos", "1", "--csv", str(table)]
    assert main(["plan", *arguments]) == 0
    with table.open(encoding="utf-8") as file:
        [only] = csv.DictReader(file)
    assert (only["bits"], only["population"]) == ("1", str(16384 * 20))
    assert only["faults"] == only["faults_per_bit"]


def test_rounds_give_every_layer_enough_faults() -> None:
    goals = plan([row(10**6, 900), row(10_000, 800)], "neuron", 1000, 250, Trial(250, 200, 2.0), 0.01, 0.95)
    network, layer, bit = goals
    assert layer.rounds * 800 >= 10**6 > (layer.rounds - 1) * 800  # 800 of 1,000 images can be misclassified
    assert network.rounds * 800 * 2 >= network.faults
    assert bit.rounds * 800 >= 32 * 900
    assert layer.seconds == pytest.approx(layer.rounds * 8.0)  # four batches of 2 s


def test_a_weight_flip_hits_a_batch() -> None:
    goals = plan([row(10_000, 300)], "weight", 1000, 300, Trial(300, 0, 1.0), 0.01, 0.95)
    assert goals[1].rounds == 2500  # four batches, so four flips, a round


def test_a_model_that_is_never_right_still_gets_a_plan() -> None:
    assert plan([row(100, 3)], "neuron", 10, 10, Trial(10, 0, 1.0), 0.01, 0.95)[1].rounds == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--margin", "0"], "margin (--margin): expected"),
        (["--margin", "lots"], "margin (--margin): expected"),
        (["--confidence", "95"], "confidence (--confidence): expected"),
        (["--dataset", "digit"], "dataset (--dataset): expected"),
        (["--csv", "no/such/folder/plan.csv"], "plan.csv (there is no folder no/such/folder)"),
        (["--target", "weight", "--layer-num", "2", "--layer-type", "ReLU"], "expected"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_a_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = [] if "--dataset" in arguments else ["--dataset", "digits"]
    assert main(["plan", *data, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_name_is_no_formula_and_is_read_back(tmp_path: Path) -> None:
    path, hostile = tmp_path / "plan.csv", ("=1+1", "a\rb\n,c", "@d\r")
    shared.write(path, Need, [Need(0, hostile[0], hostile[1], 0, hostile[2], 1, 32, 32, 32, 1)])
    with path.open(encoding="utf-8", newline="") as file:
        (cells,) = csv.DictReader(file)
    assert [cells[name] for name in ("type", "path", "parameter")] == ["'=1+1", "a\rb\n,c", "'@d\r"]
    found = csvs.Table(path, ended=True).values(lambda row: (row["type"], row["path"], row["parameter"]))
    assert [names for _, names in found] == [hostile]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.04, "40 ms"),
        (0.1, "0.1 s"),
        (9.94, "9.9 s"),
        (119, "119 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (10**6, "12 days"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
