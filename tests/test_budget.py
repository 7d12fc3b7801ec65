"""Which bits must be protected: what is left is counted again from the faults, and no choice flatters its estimate."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import FewDigits, RunScript
from matplotlib.figure import Figure
from synthetic import layers_like, write_run

from bitflip import BadInput
from bitflip import __main__ as program
from bitflip.faults.allocation import by_effect
from bitflip.network.fields import REGIONS, regions
from bitflip.report import budget as reported
from bitflip.report import budget_plot, drawing, reading, words
from bitflip.report.runs import Run
from bitflip.report.summary import by_bit
from bitflip.statistics import budget
from bitflip.statistics.budget import Floats
from bitflip.statistics.intervals import Sums

LAYERS, BITS = 12, 32
LAYER, BIT = np.repeat(np.arange(LAYERS), BITS), np.tile(np.arange(BITS), LAYERS)
RANK = np.array([by_effect(32).index(bit) for bit in BIT])


# --- the choice, and what is left ---


def alike(random: np.random.Generator) -> Floats:
    """Whatever looks worst was hit by chance."""
    return np.full(LAYERS * BITS, 0.01)


def of_exponents(random: np.random.Generator) -> Floats:
    found = np.zeros(LAYERS * BITS)
    found[BIT == 1] = random.uniform(0.05, 0.9, LAYERS)
    found[(BIT > 1) & (BIT < 7)] = random.uniform(0, 0.02, 5 * LAYERS)
    return found


@pytest.mark.parametrize("kind", [alike, of_exponents])
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_intervals_hold_and_no_budget_is_too_small(kind: type, target: str) -> None:
    """Unlike those of the faults that chose the bits: these look safe because they were chosen for it."""
    random = np.random.default_rng(7)
    campaigns, faults, places = 100, 600, (0, 12, 40, 100)
    held, flattered = np.zeros(len(places)), np.zeros(len(places))
    too_few = 0
    for _ in range(campaigns):
        rate, size = kind(random), random.integers(50, 5000, LAYERS).astype(float)[LAYER]
        n = np.concatenate([random.multinomial(faults, [1 / BITS] * BITS) for _ in range(LAYERS)])
        if target == "neuron":
            m = random.binomial(n, rate)
            whole, halves = Sums.single(m.astype(float), n.astype(float)), budget.thinned(m, n, random)
        else:  # each breaks half of its images, or none
            cell = np.repeat(np.arange(len(n)), n)
            images = np.full(len(cell), 30)
            m = 15 * random.binomial(1, np.minimum(2 * rate[cell], 1))
            rate = np.minimum(rate, 0.5)
            whole, halves = budget.summed(cell, m, images, len(n)), budget.dealt(cell, m, images, len(n), random)
        for (ranking, rest), count in ((halves, held), ((whole, whole), flattered)):
            order = budget.worst_first(ranking, LAYER, BIT, RANK)
            curve = budget.curve(rest, LAYER, size, order, 0.95)
            left = ((rate * size).sum() - np.append(0, (rate * size)[order].cumsum())) / size.sum()
            count += (curve.low <= left + 1e-12)[list(places)] & (left <= curve.high + 1e-12)[list(places)]
            if count is held:
                too_few += left[curve.enough(0.4 * left[0])] > 0.4 * left[0] + 1e-12
    assert held.min() >= 0.9 * campaigns
    assert too_few <= 0.06 * campaigns  # 2.5 % at most, and chance
    if kind is alike:
        assert flattered[1:].max() < 0.8 * campaigns


def test_halves_are_of_a_size_and_make_up_the_whole() -> None:
    random = np.random.default_rng(1)
    n = random.integers(0, 9, 200)
    m = random.binomial(n, 0.3)
    first, second = budget.thinned(m, n, random)
    assert (first.m + second.m).tolist() == m.tolist()
    assert (first.n + second.n).tolist() == n.tolist()
    assert np.abs(first.n - second.n).max() == 1
    assert first.n[n == 1].sum() not in (0, (n == 1).sum()), "whether it is the first or the second is chance"
    cell = random.integers(0, 50, 400)
    images, broken = random.integers(0, 30, 400), random.integers(0, 5, 400)
    whole, (one, other) = budget.summed(cell, broken, images, 60), budget.dealt(cell, broken, images, 60, random)
    for name in ("m", "n", "mm", "mn", "nn"):
        assert (getattr(one, name) + getattr(other, name)).tolist() == getattr(whole, name).tolist()
    assert (
        np.abs(np.bincount(cell, minlength=60) - 2 * budget.summed(cell, broken, images * 0 + 1, 60).n / 2).max() == 0
    )


def test_enough_is_looked_for_from_the_end() -> None:
    """A limit that is low by chance among ones that are not does not count."""
    share = np.linspace(0, 1, 6)
    curve = budget.Curve(share, share, share, np.array([0.5, 0.1, 0.3, 0.2, 0.1, 0.0]))
    assert [curve.enough(target) for target in (0.05, 0.1, 0.25, 0.3, 0.6)] == [5, 4, 3, 1, 0]


def test_a_bit_that_few_faults_hit_is_taken_for_what_it_is_elsewhere() -> None:
    layer, bit = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    m = np.array([0, 9, 0, 0, 9, 0, 0, 0, 0], dtype=np.float64)
    n = np.array([9, 9, 9, 9, 9, 9, 9, 0, 9], dtype=np.float64)
    order = budget.worst_first(Sums.single(m, n), layer, bit, np.array([1, 2, 0])[bit])
    assert [(int(layer[i]), int(bit[i])) for i in order[:2]] == [(0, 1), (1, 1)]
    m[8] = 1  # so that the last layer is not known to be harmless
    order = budget.worst_first(Sums.single(m, n), layer, bit, np.array([1, 2, 0])[bit])
    assert (layer[order[2]], bit[order[2]]) == (2, 1)
    rest = [int(bit[i]) for i in budget.worst_first(Sums.single(m * 0, n), layer, bit, np.array([1, 2, 0])[bit])]
    assert rest == [2, 2, 2, 0, 0, 0, 1, 1, 1], "nothing is known: the usual order"


@pytest.mark.parametrize("form", REGIONS)
def test_the_usual_order(form: str) -> None:
    width, parts = sum(REGIONS[form]), regions(sum(REGIONS[form]), form)
    part = {bit: name for name, first, last in parts for bit in range(first, last + 1)}
    names = ["sign", "magnitude"] if form in ("int8", "uint8") else ["exponent", "sign", "mantissa"]
    order = by_effect(width, form)
    assert order == sorted(range(width), key=lambda bit: (names.index(part[bit]), bit))


# --- a run ---


def made(run_script: RunScript, folder: Path, script: str, *more: str) -> Path:
    common = ("--dataset=digits", "--seed=5", "--no-plots", f"--output-path={folder}", "--batch-size=8")
    done = run_script(script, *common, "--layer-num=1,4,8", *more)
    assert done.code == 0, done.err
    return next(folder.glob("*.json")).with_suffix(".csv")


@pytest.mark.parametrize(
    ("script", "more"),
    [("main.py", ()), ("weight.py", ()), ("main.py", ("--bit-flip-pos=1",)), ("weight.py", ("--number-format=int8",))],
)
def test_what_is_left_is_counted_again_from_the_faults(
    script: str, more: tuple[str, ...], run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(64)
    run = reading.read(made(run_script, tmp_path, script, "--fault-table", "--repeats=6", *more))
    found = reported.of(run, "position")
    facts = json.loads(run.files.run.read_text())
    faults = pq.read_table(run.files.faults).to_pylist()
    for count in {0, 1, len(found.cells) // 3, len(found.cells) - 2}:
        chosen = {(cell.place.layer, cell.bit) for cell in found.cells[:count]}
        left = known = free_bits = whole = 0.0
        for layer in facts["layers"]:
            weight = next((one for one in layer["parameters"] if one["name"] == "weight"), None)
            shape = layer["shape"] if script == "main.py" else (weight or {}).get("shape")
            if shape is None:
                continue
            bits = range(layer["bits"] if script == "main.py" else (weight or {})["bits"])
            bits = range(1, 2) if "--bit-flip-pos=1" in more else bits
            free = [bit for bit in bits if (layer["number"], bit) not in chosen]
            own = [row for row in faults if row["layer"] == layer["number"] and row["bit"] in free]
            own = [row for row in own if row["label"] == row["clean_top1"]]
            hits = sum(row["top1"] != row["label"] for row in own)
            whole += np.prod(shape) * len(bits)
            free_bits += np.prod(shape) * len(free)
            if own:  # where no fault is, the rate is taken to be that of the others
                left += np.prod(shape) * len(free) * hits / len(own)
                known += np.prod(shape) * len(free)
        assert found.rate(count).value == pytest.approx(100 * left / known * free_bits / whole)
    assert found.share(len(found.cells)) == pytest.approx(100)
    halves = reported.of(run)
    assert halves.flips < found.flips
    assert abs(halves.flips - found.flips / 2) <= len(found.cells)
    assert [*reported.of(run).rows()] == [*halves.rows()], "the same halves each time"


def test_another_run_ranks(run_script: RunScript, tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / str(seed), seed) for seed in (1, 2))
    for table in (first, second):
        facts = json.loads(table.with_suffix(".json").read_text())
        for layer in facts["layers"]:
            layer["shape"] = [100]
        table.with_suffix(".json").write_text(json.dumps(facts))
    one, other = reading.read(first), reading.read(second)
    found = reported.of(one, other)
    assert found.flips == 7 * 600  # all of them, those that the clean model is right about
    assert {cell.bit for cell in found.cells[:5]} == {1}
    assert found.share(5) == pytest.approx(100 * 5 / (7 * 32))
    with pytest.raises(BadInput, match="expected a run with other faults"):
        reported.of(one, one)
    folder = tmp_path / "both"
    folder.mkdir()
    assert program.main(["budget", str(first), str(second), f"--output-path={folder}", "--target-rate=1"]) == 0
    (table,) = folder.glob("*_budget.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [int(row["rank"]) for row in rows] == list(range(7 * 32 + 1))
    shares = [float(row["protected"]) for row in rows]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1], float(rows[-1]["high"])) == (0.0, 100.0, 0.0)
    assert len({(row["path"], row["bit"]) for row in rows[1:]}) == 7 * 32
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".png", ".svg"}


@pytest.mark.parametrize("smallest", [1, 1e3, 1e5, 1e7])
def test_no_words_of_the_plot_overlap(smallest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many decades the shares of the bits take, and wherever the target is reached."""
    table = write_run(tmp_path, images=6400, correct=6000)
    facts = json.loads(table.with_suffix(".json").read_text())
    for layer, size in zip(facts["layers"], np.geomspace(smallest, 1e8, len(facts["layers"])), strict=True):
        layer["shape"] = [round(size)]
    table.with_suffix(".json").write_text(json.dumps(facts))
    found = reported.of(reading.read(table))
    drawn: list[Figure] = []

    def keep(figure: Figure) -> dict[str, bytes]:
        drawn.append(figure)
        return {}

    monkeypatch.setattr(budget_plot, "saved", keep)
    for target in (1e-6, 0.5, 99.0):
        budget_plot.picture(found, target)
    for figure in drawn:
        figure.draw_without_rendering()
        (said,) = figure.axes[0].texts
        ends, inside = said.get_window_extent(), figure.axes[0].get_window_extent()
        assert inside.x0 <= ends.x0 < ends.x1 <= inside.x1
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            labels = [word for word in axis.get_ticklabels() if word.get_text()]
            boxes = [word.get_window_extent().padded(3) for word in labels]
            assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target-rate=a lot"], "target_rate (--target-rate): expected a rate in percent, such as 0.1%, got 'a lot'"),
        (["--target-rate=100%"], "target_rate (--target-rate): expected a rate in percent, such as 0.1%, got '100%'"),
        ([], "expected the shape of features.0, to know how many bits it has"),
        (["--ranked-by=weight"], "ranked_by (--ranked-by): expected a run with neuron faults, got weight faults"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_run(tmp_path)
    if arguments == ["--ranked-by=weight"]:
        other = write_run(tmp_path / "other", 2, target="weight", prefix="weight_")
        arguments = [f"--ranked-by={other}"]
        facts = json.loads(table.with_suffix(".json").read_text())
        for layer in facts["layers"]:
            layer["shape"] = [4]
        table.with_suffix(".json").write_text(json.dumps(facts))
    assert program.main(["budget", str(table), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_each_layer_has_the_order_of_its_own_values(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    """In a network of int8, the scales of batch normalisation are of 32 bits."""
    few_digits(20)
    done = run_script("weight.py", "--dataset=digits", "--seed=4", "--number-format=int8", f"--output-path={tmp_path}")
    assert done.code == 0, done.err
    (table,) = tmp_path.glob("*_4.csv")
    cells = reported.of(reading.read(table), "position").cells
    first = {cell.place.type: cell.bit for cell in reversed(cells)}
    assert first == {"Conv2d": 0, "BatchNorm2d": 1, "Linear": 0}


def test_faults_of_batches_are_needed_one_by_one(tmp_path: Path) -> None:
    run = reading.read(write_run(tmp_path, target="weight", prefix="weight_"))
    with pytest.raises(BadInput, match=r"expected a run with fault_table \(--fault-table\)"):
        reported.of(run)
    assert reported.of(run, "position").cells[0].bit == 1
    several = reading.read(write_run(tmp_path / "several", fault="burst:3"))
    with pytest.raises(BadInput, match="expected a run whose faults change one bit each"):
        reported.of(several)


def test_a_list_of_several_bits_of_a_value_says_nothing_of_one(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(20)
    listed = tmp_path / "list.csv"
    rows = [f"neuron,features.0,0,{i};2;1,{bit},{i}" for i, bit in enumerate(("1", "3", "1;9"))]
    listed.write_text("\n".join(["target,layer,call,index,bit,image", *rows, ""]))
    done = run_script("neuron.py", "--dataset=digits", f"--faults={listed}", f"--output-path={tmp_path}")
    assert done.code == 0, done.err
    run = reading.read(next(tmp_path.glob("*_list-list.csv")))
    with pytest.raises(BadInput, match=r"whose faults change one bit each .* got a fault of bits 1;9"):
        reported.of(run)
    with pytest.raises(BadInput, match="got a fault of bits 1;9"):
        reported.of(of_formats(tmp_path / "other", 1, ("float32", "float32")), run)


def of_formats(folder: Path, seed: int, forms: tuple[str, str]) -> Run:
    """A run of neurons of two formats; in the first layer bit 5 is fragile, in the second bit 0."""
    table = write_run(
        folder, seed, layers_like(2), lambda layer, bit: (bit == (5, 0)[layer]) * (0.9, 0.3)[layer], bits=range(8)
    )
    facts = json.loads(table.with_suffix(".json").read_text())
    for layer, form in zip(facts["layers"], forms, strict=True):
        layer.update(shape=[100], format=form, bits=sum(REGIONS[form]))
    table.with_suffix(".json").write_text(json.dumps(facts))
    return reading.read(table)


def test_a_bit_is_another_one_in_another_format(tmp_path: Path) -> None:
    mixed = of_formats(tmp_path / "mixed", 1, ("float32", "int8"))
    cells = reported.of(mixed).cells
    assert [cell.bit for cell in cells if cell.place.layer == 1] == [*range(8)]
    assert (cells[0].place.layer, cells[0].bit) == (0, 5)
    plain = of_formats(tmp_path / "plain", 2, ("float32", "float32"))
    with pytest.raises(BadInput, match=r"the same number format, .* got float32 for features.1 in .* int8 in"):
        reported.of(mixed, plain)
    assert reported.of(plain, of_formats(tmp_path / "again", 3, ("float32", "float32"))).cells
    said = words.findings(mixed)
    (fragile,) = (row for row in mixed.bits if (row.place.layer, row.bit) == (0, 5))
    assert any(
        f"bit 5 (exponent) of float32 values: {words.with_interval(fragile.rate)} of its" in text for text in said
    )
    assert any(text.endswith("though values differ (float32, int8).") for text in said)
    assert "exponent" not in drawing.bits(mixed, by_bit(mixed)).replace('class="bar exponent"', "")
