"""Two runs against each other: the same faults are compared one by one, others as two independent rates."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FewDigits, RunScript
from synthetic import write_run

from bitflip import __main__ as program
from bitflip.commands import compare as command
from bitflip.faults import faultlist
from bitflip.faults.faultlist import Fault
from bitflip.report import comparison, damage, reading, summary
from bitflip.report.comparison import Comparison
from bitflip.report.runs import Outcomes, Place, Row, Run
from bitflip.results.paths import Paths
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.statistics import intervals, rates
from bitflip.statistics.intervals import Estimate, Sums
from bitflip.statistics.rates import Rate

SCRIPTS = pytest.mark.parametrize("script", ["main.py", "weight.py"])


class Make:
    """Makes runs on a few digits, each in a folder of its own."""

    def __init__(self, run_script: RunScript, folder: Path) -> None:
        self._run_script, self._folder = run_script, folder
        self._count = 0

    def __call__(self, script: str, *arguments: str) -> Path:
        """Run a script; the ``.csv`` of the run."""
        self._count += 1
        folder = self._folder / f"run{self._count}"
        common = ("--dataset=digits", "--seed=5", "--no-plots", "--fault-table", f"--output-path={folder}")
        done = self._run_script(script, *common, "--layer-num=1,4,8", "--batch-size=8", *arguments)
        assert done.code == 0, done.err
        (facts,) = folder.glob("*.json")
        return facts.with_suffix(".csv")


@pytest.fixture
def make(run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> Make:
    """Return a function that makes runs."""
    few_digits(64)
    return Make(run_script, tmp_path)


def compared(first: Path, second: Path) -> Comparison:
    return comparison.compare(reading.read(first), reading.read(second))


@SCRIPTS
def test_a_run_against_itself(script: str, make: Make) -> None:
    table = make(script, "--bit-flip-pos=1")
    found = compared(table, table)
    assert found.paired
    assert len(found.layers) == 3
    assert found.network is not None
    for difference in (*(difference for _, difference in found.layers), found.network):
        assert difference.value == pytest.approx(0)
        assert difference.first == difference.second
        assert difference.low is not None
        assert difference.low <= 0 <= (difference.high or 0)
        assert not difference.sure


@SCRIPTS
def test_the_same_faults_of_another_model(script: str, make: Make) -> None:
    """Counted again from the fault tables, over the images that both models classify correctly."""
    first = make(script, "--bit-flip-pos=1")
    second = first.parent.parent / "other" / first.name
    shutil.copytree(first.parent, second.parent)
    other = reading.read(second)  # before its record is no longer that of its tables
    faults = second.with_name(f"{second.stem}_faults.parquet")
    table = pq.read_table(faults)
    top1, clean = table.column("top1").to_numpy().copy(), table.column("clean_top1").to_numpy().copy()
    random = np.random.default_rng(0)
    mended = random.random(len(top1)) < 0.5
    top1[mended] = clean[mended]
    wrong = table.column("image").to_numpy() == 3  # which the other model gets wrong
    clean[wrong] += 1
    for name, values in (("top1", top1), ("clean_top1", clean)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), [values.astype(np.int32)])
    pq.write_table(table, faults)
    found = comparison.compare(reading.read(first), other)
    assert found.paired
    before = pq.read_table(first.with_name(f"{first.stem}_faults.parquet"))
    for place, difference in found.layers:
        own = (before.column("layer").to_numpy() == place.layer) & ~wrong
        own &= before.column("label").to_numpy() == before.column("clean_top1").to_numpy()
        a = (before.column("top1").to_numpy() != before.column("clean_top1").to_numpy())[own]
        b = (top1 != clean)[own]
        assert difference.compared == len(a)
        assert difference.first == pytest.approx(100 * a.mean())
        assert difference.second == pytest.approx(100 * b.mean())
        assert difference.value == pytest.approx(100 * (b.mean() - a.mean()))
        assert difference.low is not None
        assert difference.high is not None
        assert difference.low <= (difference.value or 0) <= difference.high
        if script == "main.py":
            expected = intervals.paired(float((b & ~a).sum()), float((a & ~b).sum()), float(len(a)))
            assert (difference.low, difference.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert any(difference.value for _, difference in found.layers)


@SCRIPTS
def test_other_engines_and_batches_make_the_same_neuron_faults(script: str, make: Make) -> None:
    first, second = make(script), make(script, "--engine=reference", "--batch-size=16")
    found = compared(first, second)
    assert found.paired == (script == "main.py")
    if not found.paired:
        assert found.why == "the batches that a weight flip hits differ in size"


@SCRIPTS
def test_other_faults(script: str, make: Make) -> None:
    first, second = make(script, "--bit-flip-pos=1"), make(script, "--bit-flip-pos=1", "--seed=6")
    found = compared(first, second)
    assert not found.paired
    assert (
        found.why == "the runs made other faults, or on other images (such as in the layer #1 Conv2d (path features.0))"
        or (script == "weight.py")
    )
    rows, others = (list(csv.DictReader(table.read_text().splitlines())) for table in (first, second))
    for (place, difference), a, b in zip(found.layers, rows, others, strict=True):
        assert place.path == a["path"] == b["path"]
        assert difference.first == pytest.approx(float(a["seed_5"]), abs=1e-4)
        assert difference.second == pytest.approx(float(b["seed_6"]), abs=1e-4)
        assert difference.compared is None
        assert difference.low is not None
        assert difference.high is not None
        assert difference.low < (difference.value or 0) < difference.high
        if script == "main.py":
            counts = (float(row[name]) for row in (b, a) for name in ("misclassified", "correct"))
            expected = intervals.unpaired(*counts)
            assert (difference.low, difference.high) == pytest.approx((100 * expected.low, 100 * expected.high))


@SCRIPTS
def test_importance_sampling_weighs_the_bits(script: str, make: Make) -> None:
    first, second = make(script, "--bit-sampling=importance"), make(script, "--bit-sampling=importance")
    found = compared(first, second)
    assert found.paired
    rows = list(csv.DictReader(first.read_text().splitlines()))
    for (_, difference), row in zip(found.layers, rows, strict=True):
        assert difference.value == pytest.approx(0)
        assert difference.first == pytest.approx(difference.second)
        if row["seed_5"]:
            assert difference.first == pytest.approx(float(row["seed_5"]), abs=1e-4)


def test_in_what_runs_differ_comes_first(make: Make) -> None:
    first, second = make("main.py"), make("main.py", "--engine=reference", "--repeats=2")
    found = compared(first, second)
    assert found.differing == ("repeats (1, 2)", "engine (wave, reference)")
    line = command.text(found).splitlines()[0]
    assert line == "The runs differ in repeats (1, 2); engine (wave, reference)."
    facts = json.loads(second.with_suffix(".json").read_text())
    facts["model"]["sha256"], facts["data"]["sha256"] = "0" * 64, "1" * 64
    second.with_suffix(".json").write_text(json.dumps(facts))
    assert compared(first, second).differing[:2] == ("weights", "images or labels")


@SCRIPTS
def test_float32_is_no_other_format_than_that_of_a_model_in_float32(script: str, make: Make) -> None:
    unset, same, half = make(script), make(script, "--number-format=float32"), make(script, "--number-format=bfloat16")
    found = compared(unset, same)
    assert found.differing == ()
    assert compared(unset, half).differing == ("number_format (none, bfloat16)",)
    assert all(difference.value == 0 for _, difference in found.layers)
    facts = json.loads(unset.with_suffix(".json").read_text())
    for mixed in (facts["layers"][0], facts["layers"][0]["parameters"][0]):
        mixed["format"] = "bfloat16"
        unset.with_suffix(".json").write_text(json.dumps(facts))
        assert compared(unset, same).differing == ("number_format (none, float32)",)
        mixed["format"] = "float32"


OTHER: dict[str, object] = {
    **{"dataset": "digits", "class_order": "numeric", "model_name": "other", "img_size": 33, "channels": 1},
    **{
        "mean": "0.5",
        "std": "0.25",
        "bit_flip_pos": 3,
        "fault": "zero",
        "layer_type": "Linear",
        "layer_num": "1,2",
        "repeats": 2,
    },
    **{"bit_sampling": "importance", "margin": 0.5, "parameters": "bias", "precision": "tf32", "drop_last": True},
    **{"bit_error_rate": "1e-6", "by_layer": True, "number_format": "int8"},
    **{"faults": "lists/mine.csv", "limit": 10, "batch_size": 16, "prove": True, "max_images": 7, "not_made_yet": 1},
    **{"protect": "ranger", "protect_layers": "ReLU", "percentile": 99.0},
}


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("name", [*Hyperparameters.model_fields, "not_made_yet"])
def test_each_setting_that_results_depend_on_is_named(name: str, target: str, tmp_path: Path) -> None:
    usual = {known: field.default for known, field in Hyperparameters.model_fields.items()}
    first = reading.read(write_run(tmp_path, target=target))
    runs = [
        dataclasses.replace(first, facts={**first.facts, "settings": {**usual, "not_made_yet": 0, name: value}})
        for value in (usual.get(name, 0), OTHER.get(name, "other"))
    ]
    named = name in OTHER and (target == "weight" or name != "batch_size")
    before = "none" if (default := usual.get(name, 0)) is None else default
    words = (f"{name} ({before}, {str(OTHER.get(name)).removeprefix('lists/')})",) if named else ()
    if name != "confidence":  # of which a comparison has only one
        assert comparison.compare(*runs).differing == words
    older = [dataclasses.replace(run, facts={**run.facts, "settings": dict(run.settings)}) for run in runs]
    del older[0].facts["settings"][name]
    if name not in ("confidence", "not_made_yet"):
        assert comparison.compare(*older).differing == words, "an earlier version did as the default says"


def test_how_faults_are_sampled_means_nothing_to_a_list(tmp_path: Path) -> None:
    first = reading.read(write_run(tmp_path))
    settings = [{"faults": f"{folder}/mine.csv", "repeats": repeats} for folder, repeats in (("a", 1), ("b", 2))]
    runs = [dataclasses.replace(first, facts={**first.facts, "settings": chosen}) for chosen in settings]
    assert comparison.compare(*runs).differing == ()


RAISING = """
import torch
from torch import nn

class Raising(nn.Module):
    def __init__(self, most):
        super().__init__()
        self.conv, self.head, self.most = nn.Conv2d(3, 10, 3), nn.Linear(10, 10), most

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        if bool((x.abs() > self.most).any()):
            raise IndexError("out of range")
        return self.head(x)

def strict():
    return Raising(100.0)

def patient():
    return Raising(float("inf"))
"""


@pytest.fixture
def run_raising(make: Make, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that runs ``strict``, which raises under many faults, or ``patient``, which never does."""
    (tmp_path / "own.py").write_text(RAISING)
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(RAISING, space)
    torch.save(space["strict"]().state_dict(), tmp_path / "own.pt")

    def run(script: str, name: str, *more: str) -> Path:
        own = ("--model-name", f"{tmp_path / 'own.py'}:{name}", "--weights", str(tmp_path / "own.pt"))
        return make(script, *own, "--layer-num=all", "--bit-flip-pos=1", "--repeats=4", *more)

    return run


@SCRIPTS
def test_an_exception_is_no_misclassification(
    script: str, run_raising: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The rates are those of each run's own table, though many faults end without a class in one of them."""
    first, second = run_raising(script, "strict"), run_raising(script, "patient")
    found = compared(first, second)
    assert found.paired
    tables = [list(csv.DictReader(table.read_text().splitlines())) for table in (first, second)]
    assert sum(int(row["due"]) for row in tables[0]) > 20
    for (_, difference), *rows in zip(found.layers, *tables, strict=True):
        assert difference.compared == int(rows[0]["correct"]) == int(rows[1]["correct"])
        assert difference.first == pytest.approx(float(rows[0]["seed_5"]), abs=1e-5)
        assert difference.second == pytest.approx(float(rows[1]["seed_5"]), abs=1e-5)
    due, whole = ([sum(int(row[name]) for row in rows) for rows in tables] for name in ("due", "injections"))
    for given, said in (
        (["compare", str(first), str(second)], f"A {due[0]:,} of {whole[0]:,}, B {due[1]:,} of {whole[1]:,}."),
        (["budget", str(first), "--ranked-by=position"], f"{due[0]:,} of {whole[0]:,}."),
    ):
        assert program.main(given) == 0
        line = f"Not counted: faulty inferences in which the model raised an exception (DUE), {said}\n"
        assert line in capsys.readouterr().out


@SCRIPTS
def test_the_most_damaging_faults_misclassify(script: str, run_raising: Callable[..., Path]) -> None:
    run = reading.read(run_raising(script, "strict", "--layer-type=Conv2d", "--repeats=4"))
    worst = damage.worst(run)
    broken = sum(row.misclassified for row in run.layers)
    assert broken < damage.COUNT, "or not all of them are shown"
    assert sum(fault.broken for fault in worst.faults) == broken
    assert not [fault.effect for fault in worst.faults if "-1" in fault.effect]


def test_without_a_fault_table(make: Make) -> None:
    first, second = make("main.py"), make("main.py")
    gone = second.with_name(f"{second.stem}_faults.parquet")
    gone.unlink()
    found = compared(first, second)
    assert (found.paired, found.why) == (False, f"faults can't be paired without {gone.name} (--fault-table)")


def test_layers_that_only_one_run_has_are_named(make: Make) -> None:
    found = compared(make("main.py", "--layer-num=1,4"), make("main.py", "--layer-num=4,8"))
    assert [place.path for place, _ in found.layers] == ["features.3"]
    first, second = "#1 Conv2d (path features.0)", "#8 MaxPool2d (path features.7)"
    assert found.unmatched == (f"{first} is only in the first run", f"{second} is only in the second run")
    assert found.network is None


def test_the_layer_numbers_may_differ(make: Make) -> None:
    """With another layer_type, a layer has another number; its path tells."""
    found = compared(make("main.py", "--layer-type=Conv2d", "--layer-num=1"), make("main.py", "--layer-num=5"))
    assert found.paired
    assert [(place.path, difference.value) for place, difference in found.layers] == [("features.4", 0.0)]


# --- the command ---


def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make("main.py", "--bit-flip-pos=1"), make("main.py", "--bit-flip-pos=1", "--seed=6")
    capsys.readouterr()
    stem = first.with_name(first.stem)
    table = tmp_path / "difference.csv"
    assert program.main(["compare", str(stem), str(second.with_suffix(".json")), "--csv", str(table)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"A: {stem}"
    assert printed[2].startswith("Not paired: the runs made other faults")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["path"] for row in rows] == ["features.0", "features.4", "features.7"] or len(rows) == 3
    for row in rows:
        name = f"#{row['layer']} {row['name']} (path {row['path']})"
        (line,) = (line for line in printed if line.endswith(f"  {name}"))
        assert float(line.split()[2]) == pytest.approx(float(row["difference"]), abs=1e-4)


def test_a_name_forges_no_line(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    table = make("main.py", "--layer-num=1")
    for path in table.parent.iterdir():
        if path.suffix in (".csv", ".json"):
            quoted = '"features.0\n#7  99.9"' if path.suffix == ".csv" else "features.0\\n#7  99.9"
            path.write_text(path.read_text().replace("features.0", quoted))
    capsys.readouterr()
    assert program.main(["compare", str(table), str(table)]) == 0
    printed = capsys.readouterr().out
    assert "features.0\\n#7  99.9" in printed
    assert not any(line.startswith("#7") for line in printed.splitlines())


@pytest.mark.parametrize("problem", ["target", "confidence", "no layer", "damaged", "missing", "csv"])
def test_bad_input(problem: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make("main.py", "--layer-num=1")
    second, arguments = first, []
    if problem == "target":
        second = make("weight.py", "--layer-num=1")
        sentence = (
            f"expected two runs of one target, got neuron faults in {first.name} and weight faults in {second.name}"
        )
    elif problem == "confidence":
        second = make("main.py", "--layer-num=1", "--confidence=0.9")
        sentence = f"expected two runs with the same confidence, got 0.95 in {first.name} and 0.9 in {second.name}"
    elif problem == "no layer":
        second = make("main.py", "--layer-num=4")
        sentence = f"{first.name} and {second.name} have no layer in common (module path, call and parameter)"
    elif problem == "damaged":
        faults = first.with_name(f"{first.stem}_faults.parquet")
        faults.write_bytes(faults.read_bytes()[:-100])
        sentence = f"{faults}: expected a table of faults, and it is damaged ("
    elif problem == "missing":
        second = tmp_path / "nothing"
        sentence = f"{second}: expected a folder, or the .csv or .json of a run"
    else:
        arguments = ["--csv", str(tmp_path / "nowhere" / "x.csv")]
        reason = f"there is no folder {tmp_path / 'nowhere'}"
        sentence = f"csv (--csv): expected a file that can be written, got {arguments[1]} ({reason})"
    capsys.readouterr()
    assert program.main(["compare", str(first), str(second), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sentence}")


def test_the_interval_of_paired_weight_flips_holds() -> None:
    """As often as it says or more, whether a flip breaks a few images, most, or none; simulated."""
    random = np.random.default_rng(11)
    held = total = 0
    for _ in range(600):
        flips, images = int(random.choice([5, 20, 80])), 16
        size = np.full(flips, images)
        bad = random.random(flips) < 0.15  # flips that break 60 % of the images in one run, 30 % in the other
        first, second = (random.binomial(images, np.where(bad, share, 0.01)) for share in (0.6, 0.3))
        nothing = np.zeros(flips, dtype=np.int64)
        pairs = comparison._Pairs(size, first, second, nothing, nothing, nothing)
        found = comparison._paired(pairs, None, 0.95)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 100 * 0.15 * (0.3 - 0.6) <= found.high
        total += 1
    assert held / total >= 0.93


# --- lists of faults that hit several images each ---


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_a_fault_of_a_list_counts_once_however_many_images_it_hits(
    target: str, few_digits: FewDigits, tmp_path: Path, run_script: RunScript
) -> None:
    few_digits(24)
    tables = []
    for name, seed in (("a", 1), ("b", 2)):
        random = np.random.default_rng(seed)
        index = [(int(i), 0, 0, 0)[: 3 if target == "neuron" else 4] for i in random.permutation(16)[:9]]
        hit = [None, range(5), range(7, 20)]
        with (tmp_path / f"{name}.csv").open("w") as file:
            faultlist.write(file, [Fault(target, "features.0", 0, at, i % 4, hit[i % 3]) for i, at in enumerate(index)])
        script = "main.py" if target == "neuron" else "weight.py"
        flags = ("--dataset=digits", "--fault-table", f"--output-path={tmp_path / name}", "--batch-size=8")
        done = run_script(script, *flags, f"--faults={tmp_path / name}.csv")
        assert done.code == 0, done.err
        tables += [path for path in (tmp_path / name).glob("*.csv") if path.with_suffix(".json").exists()]
    ((_, itself),) = compared(tables[0], tables[0]).layers
    per_fault = tables[0].with_name(f"{tables[0].stem}_faults.csv")
    sizes = np.array([float(row["correct"]) for row in csv.DictReader(per_fault.read_text().splitlines())])
    halves = (sizes.sum() / 2, sizes.sum(), (sizes**2).sum() / 4, (sizes**2).sum() / 2, (sizes**2).sum())
    expected = intervals.mean([Sums(float(len(sizes)), *halves)])
    assert len(sizes) == 9
    assert itself.compared == sizes.sum()
    assert (itself.low, itself.high) == pytest.approx((200 * expected.low - 100, 200 * expected.high - 100))
    ((_, other),) = compared(*tables).layers
    rows = [next(csv.DictReader(table.read_text().splitlines())) for table in tables]
    a, b = (
        Estimate(int(row["misclassified"]) / int(row["correct"]), float(row["low"]) / 100, float(row["high"]) / 100)
        for row in rows
    )
    moved = intervals.difference(b, a)
    assert other.compared is None
    assert (other.low, other.high) == pytest.approx((100 * moved.low, 100 * moved.high), abs=1e-3)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_faults_of_a_list_that_change_one_bit_in_other_ways_are_told_apart(
    target: str, few_digits: FewDigits, tmp_path: Path, run_script: RunScript
) -> None:
    """Counted again from the row that each fault has."""
    few_digits(24)
    script = "main.py" if target == "neuron" else "weight.py"
    kinds, places = ("stuck1", "flip", "stuck0"), range(3)
    faults = [
        Fault(target, "features.0", 0, (place, place, 0, 0)[: 3 if target == "neuron" else 4], 1, kind=kind)
        for kind in kinds
        for place in places
    ]
    with (tmp_path / "list.csv").open("w") as file:
        faultlist.write(file, faults)
    tables, hits = [], []
    for name, more in (("a", ()), ("b", ("--protect=relu6",))):
        flags = (
            "--dataset=digits",
            "--fault-table",
            f"--output-path={tmp_path / name}",
            "--batch-size=8",
            "--no-plots",
        )
        done = run_script(script, *flags, f"--faults={tmp_path / 'list.csv'}", *more)
        assert done.code == 0, done.err
        (facts,) = (tmp_path / name).glob("*.json")
        tables.append(facts.with_suffix(".csv"))
        rows = list(csv.DictReader(facts.with_name(f"{facts.stem}_faults.csv").read_text().splitlines()))
        assert len({row["correct"] for row in rows}) == 1
        hits.append(np.array([float(row["misclassified"]) for row in rows]))
        size = float(rows[0]["correct"])
    assert len({*hits[0]}) > 1, "what they do differs"
    m = (size + hits[1] - hits[0]) / 2
    sums = (m.sum(), size * len(m), (m * m).sum(), size * m.sum(), size * size * len(m))
    expected = intervals.mean([Sums(float(len(m)), *map(float, sums))])
    ((_, found),) = compared(*tables).layers
    assert found.compared == size * len(faults)
    assert (found.low, found.high) == pytest.approx((200 * expected.low - 100, 200 * expected.high - 100))


class Simulated:
    """Runs of lists whose faults break none, or many, of the images that all of them hit."""

    IMAGES, BAD = 16, 0.15

    def __init__(self, folder: Path, target: str) -> None:
        self.folder, self.target = folder, target
        self.random = np.random.default_rng(11)

    def faults(self, count: int) -> Any:
        """Which of so many faults are bad ones."""
        return self.random.random(count) < self.BAD

    def run(self, name: str, bad: Any, share: float, first: int) -> Run:
        """A run whose bad faults break that share of the images; ``first`` is the element of the first fault."""
        broken = self.random.random((len(bad), self.IMAGES)) < np.where(bad, share, 0.01)[:, None]
        element, image = (grid.ravel() for grid in np.indices(broken.shape))
        zeros = np.zeros(broken.size, dtype=np.int64)
        parameter = "" if self.target == "neuron" else "weight"
        columns = {"layer": zeros, "image": image, "label": zeros, "element": element + first, "bit": zeros}
        columns |= {"clean_top1": zeros, "top1": broken.ravel().astype(np.int64)}
        files = Paths(self.folder, name)
        pq.write_table(pa.table({**columns, "parameter": [parameter] * broken.size}), files.faults)
        m, n = broken.sum(1), np.full(len(bad), self.IMAGES)
        counts = {"flips": len(bad), "injections": broken.size}
        outcomes = Outcomes(counts, None, (int((m * m).sum()), int((m * n).sum()), int((n * n).sum())))
        row = Row(Place(0, "Conv2d", "conv", 0, parameter), int(m.sum()), broken.size, Rate(), outcomes)
        rate = rates.of(summary.sums([row], self.target), self.target, 0.95)
        facts = {"target": self.target, "settings": {"faults": "list.csv", "batch_size": 4}}
        return Run(files, (0,), (dataclasses.replace(row, rate=rate),), (), (), facts)


@pytest.mark.parametrize("paired", [True, False], ids=["same faults", "other faults"])
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_the_interval_of_lists_holds(target: str, paired: bool, tmp_path: Path) -> None:
    """As often as it says or more; the images of a fault are not independent."""
    simulated, held, total = Simulated(tmp_path, target), 0, 200
    for _ in range(total):
        count = int(simulated.random.choice([5, 20, 40]))
        bad = simulated.faults(count)
        first = simulated.run("a", bad, 0.6, 0)
        second = simulated.run("b", bad if paired else simulated.faults(count), 0.3, 0 if paired else count)
        found = comparison.compare(first, second)
        assert found.paired == paired
        ((_, difference),) = found.layers
        assert difference.low is not None
        assert difference.high is not None
        held += difference.low <= 100 * simulated.BAD * (0.3 - 0.6) <= difference.high
    assert held / total >= 0.93
