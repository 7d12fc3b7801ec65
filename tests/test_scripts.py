"""The entry scripts on the digits: their files, and that the same seed gives the same results in every way to ask."""

from __future__ import annotations

import csv
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitstring
import parsers
import pytest
from conftest import FewDigits, Finished, RunScript
from torch import nn
from torch.utils.data import TensorDataset

from bitflip.campaign.executor import Here
from bitflip.data import datasets, digits
from bitflip.errors import BadInput
from bitflip.faults.tasks import Task
from bitflip.network import bits
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.report import reading, words

PREFIX = {"main.py": "", "neuron.py": "neuron_", "weight.py": "weight_"}
SCRIPTS = pytest.mark.parametrize("script", PREFIX)
SUFFIXES = (".csv", ".json", ".txt", "_bits.csv")
RESULT_LINE = r"Layer #(\d+): (\d+) / (\d+) = (\d+\.\d{4})%, (\w+)"
LAYERS = 24  # of the shipped network, with the Identity in front


@dataclass(frozen=True)
class Result:
    """What a run wrote."""

    done: Finished
    folder: Path
    stem: str

    def text(self, suffix: str) -> str:
        return (self.folder / f"{self.stem}{suffix}").read_text(encoding="utf-8")

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of the ``.csv``."""
        return list(csv.DictReader(self.text(".csv").splitlines()))

    @property
    def run(self) -> dict[str, Any]:
        """The ``.json``."""
        run: dict[str, Any] = json.loads(self.text(".json"))
        return run

    @property
    def counts(self) -> dict[str, tuple[str, str]]:
        """Misclassified and correct images by module path."""
        return {row["path"]: (row["misclassified"], row["correct"]) for row in self.rows}


class RunDigits:
    """Runs an entry script on the digits."""

    def __init__(self, run_script: RunScript, folder: Path) -> None:
        self.run_script = run_script
        self.folder = folder
        self.runs = 0

    def __call__(self, script: str, *arguments: object, seed: int = 5, **environ: str) -> Result:
        self.runs += 1
        folder = self.folder / f"out{self.runs}"
        common = ("--dataset", "digits", "--output-path", folder, "--seed", seed)
        done = self.run_script(script, *common, *arguments, **environ)
        return Result(done, folder, f"{PREFIX[script]}digits_vgg_digits_{seed}")


@pytest.fixture
def run_digits(run_script: RunScript, tmp_path: Path) -> RunDigits:
    """Return a function that runs an entry script on the digits, each time into an output folder of its own."""
    return RunDigits(run_script, tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the files ---


@SCRIPTS
def test_files_and_their_names(script: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(40)
    plain = run_digits(script, "--layer-num", "1")
    assert (plain.done.code, plain.done.err) == (0, "")
    assert names(plain.folder) == [f"{plain.stem}{suffix}" for suffix in SUFFIXES]
    detailed = run_digits(script, "--layer-num", "1", "--detailed-log")
    assert names(detailed.folder) == sorted(f"{plain.stem}{suffix}" for suffix in (*SUFFIXES, "_detailed.txt"))
    tabled = run_digits(script, "--layer-num", "1", "--fault-table")
    assert names(tabled.folder) == sorted(f"{plain.stem}{suffix}" for suffix in (*SUFFIXES, "_faults.parquet"))
    for name in names(detailed.folder):
        assert f"  {detailed.folder / name}" in detailed.done.out.splitlines()
    (detailed.folder / "ordinary").touch()
    assert len({path.stat().st_mode for path in detailed.folder.iterdir()}) == 1


@SCRIPTS
def test_a_run_ends_with_plots(script: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(40)
    result = run_digits(script, "--layer-num", "1,4", "--plots")
    drawn = {f"{result.stem}_{name}.{kind}" for name in ("layers", "bits", "heatmap") for kind in ("png", "svg")}
    drawn.add(f"{result.stem}.html")
    assert set(names(result.folder)) == drawn | {f"{result.stem}{suffix}" for suffix in SUFFIXES}
    assert all(f"  {result.folder / name}" in result.done.out.splitlines() for name in drawn)
    assert re.search("most fragile layers|without a misclassification", result.done.out, flags=re.I)


@SCRIPTS
def test_a_seed_from_the_clock_is_printed_and_written_everywhere(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(8)
    done = run_script(script, "--dataset", "digits", "--output-path", tmp_path, "--layer-num", "1")
    (table,) = (path for path in tmp_path.glob("*.csv") if not path.stem.endswith("_bits"))
    seed = re.fullmatch(rf"{PREFIX[script]}digits_vgg_digits_(\d+)", table.stem)
    assert seed is not None
    assert f"seed {seed[1]}" in done.out
    assert table.read_text().startswith(f"index,name,seed_{seed[1]},")
    assert f"\nSeed: {seed[1]}\n" in table.with_suffix(".txt").read_text()
    assert json.loads(table.with_suffix(".json").read_text())["settings"]["seed"] == int(seed[1])


def test_summary(run_digits: RunDigits, few_digits: FewDigits) -> None:
    """PyTorchFI's layer summary, a few facts, then the result."""
    few_digits(100)
    result = run_digits("neuron.py", "--bit-flip-pos", "1")
    heading, _, body = result.text(".txt").partition("\n===== Result =====\n")
    assert "PYTORCHFI INIT SUMMARY" in heading
    listed = re.findall(r"^ +(\d+) +(\w+) +\d+ +(\[.*\]) +(\[.*\])$", heading, flags=re.M)
    assert [(int(number), kind) for number, kind, *_ in listed] == [(int(r["layer"]), r["name"]) for r in result.rows]
    assert len(listed) == LAYERS
    seed, position, *lines = body.splitlines()
    assert (seed, position) == ("Seed: 5", "Specific bit flip position: 1")
    assert len(lines) == LAYERS
    for line, row in zip(lines, result.rows, strict=True):
        match = re.fullmatch(RESULT_LINE, line)
        assert match is not None, line
        number, misclassified, correct, rate, kind = match.groups()
        assert (number, misclassified, correct, kind) == (
            row["layer"], row["misclassified"], row["correct"], row["name"]
        )  # fmt: skip
        assert float(rate) == pytest.approx(100 * int(misclassified) / int(correct), abs=1e-4)
        assert float(row["seed_5"]) == pytest.approx(float(rate), abs=1e-4)
        assert line in result.done.out.splitlines()
    assert sum(int(row["misclassified"]) for row in result.rows) > 0


def test_a_random_bit_is_none_in_the_summary(run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(8)
    result = run_digits("main.py", "--layer-num", "0")
    assert "\n===== Result =====\nSeed: 5\nSpecific bit flip position: None\nLayer #0: " in result.text(".txt")


def test_table(run_digits: RunDigits, few_digits: FewDigits) -> None:
    """Index, name and rate come first; what tells two layers of a type apart comes after."""
    few_digits(60)
    result = run_digits("weight.py", "--layer-type", "Conv2d,Linear,ReLU")
    assert result.text(".csv").splitlines()[0].split(",") == [
        *("index", "name", "seed_5", "layer", "path", "call", "parameter", "misclassified", "correct", "low", "high"),
        *(
            "flips",
            "injections",
            "masked",
            "benign",
            "sdc1",
            "sdc5",
            "sdc10",
            "sdc20",
            "nonfinite",
            "due",
            "due_low",
            "due_high",
            "largest_change",
        ),
        *("mm", "mn", "nn"),
    ]
    assert [row["index"] for row in result.rows] == [str(i) for i in range(len(result.rows))]
    assert [(row["layer"], row["name"], row["path"]) for row in result.rows] == [
        ("0", "Conv2d", "features.0"),
        ("2", "Conv2d", "features.4"),
        ("4", "Conv2d", "features.8"),
        ("6", "Conv2d", "features.11"),
        ("8", "Conv2d", "features.15"),
        ("10", "Linear", "classifier.0"),
        ("12", "Linear", "classifier.3"),
    ]


def test_layers_without_a_weight_say_so(run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(30)
    result = run_digits("weight.py", "--layer-num", "0,1,2,3")
    lines = result.text(".txt").splitlines()[-4:]
    assert re.fullmatch(RESULT_LINE, lines[0])
    assert re.fullmatch(RESULT_LINE, lines[1])
    assert lines[2:] == ["Layer #2 has no weight", "Layer #3 has no weight"]
    assert set(lines) <= set(result.done.out.splitlines())
    assert [row["layer"] for row in result.rows] == ["0", "1"]


def test_nothing_to_divide_by(run_digits: RunDigits, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is classified correctly: a rate is neither zero nor a division by it."""
    load = digits.load

    def wrong(part: digits.Part, img_size: int = 32, channels: int = 3) -> TensorDataset:
        images, labels = load(part, img_size, channels).tensors
        return TensorDataset(images[:2].clone(), (labels[:2] + 1) % 10)

    monkeypatch.setattr(digits, "load", wrong)
    result = run_digits("neuron.py", "--layer-num", "0,1", "--detailed-log")
    assert result.done.code == 0
    assert "Clean accuracy: 0 / 2 = 0.00%" in result.done.out
    assert result.text(".txt").splitlines()[-2:] == [
        "Layer #0: 0 / 0, nothing to divide by, Identity",
        "Layer #1: 0 / 0, nothing to divide by, Conv2d",
    ]
    assert result.done.out.splitlines()[-1] == "  2 of 2 layers with 0 / 0, nothing to divide by"
    found = words.findings(reading.read(next(result.folder.glob("*_5.csv"))))
    assert found == ["No image is classified correctly without a fault: every rate is 0 / 0, nothing to divide by."]
    assert [(row["seed_5"], row["misclassified"], row["correct"]) for row in result.rows] == [("", "0", "0")] * 2


@SCRIPTS
def test_a_run_can_be_repeated_from_its_json(
    script: str, run_digits: RunDigits, few_digits: FewDigits, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(70)
    arguments = ["--layer-type", "Conv2d,Linear", "--layer-num", "0,5", "--batch-size", "32", "--drop-last"]
    first = run_digits(script, *arguments, "--bit-flip-pos", "1", "--detailed-log")
    settings = first.run["settings"]
    assert {**settings, "output_path": ""} == {
        **settings,
        "dataset": "digits", "model_name": "digits_vgg", "weights": None, "hub_path": None, "seed": 5, "batch_size": 32,
        "img_size": 32, "channels": 3, "bit_flip_pos": 1, "layer_type": "Conv2d,Linear", "layer_num": "0,5",
        "input_path": "/input", "output_path": "", "detailed_log": True, "device": "auto", "precision": "ieee",
        "drop_last": True,
    }  # fmt: skip
    recorded = {name: value for name, value in settings.items() if value is not None and name != "output_path"}
    for name, value in recorded.items():
        monkeypatch.setenv(name, str(value))
    again = run_digits(script)
    assert {**again.run["settings"], "output_path": ""} == {**settings, "output_path": ""}
    assert_same(first, again)


def assert_same(first: Result, second: Result) -> None:
    """Check that everything but the ``.json``, which holds times, has the same bytes."""
    assert names(first.folder) == names(second.folder)
    for name in names(first.folder):
        if not name.endswith(".json"):
            assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name


def test_json(run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(40)
    result = run_digits("main.py", "--layer-num", "1,23")
    run = result.run
    assert run["complete"] is True
    assert (run["target"], run["images"], run["precision"]) == ("neuron", 40, "ieee")
    assert run["device"].startswith(("cpu", "cuda"))
    assert run["model"]["weights"] == "digits_vgg.pt"
    assert re.fullmatch(r"[0-9a-f]{64}", run["model"]["sha256"])
    assert run["versions"].keys() >= {"bitflip", "python", "torch", "torchvision", "pytorchfi", "numpy"}
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", run["git_commit"] or "0" * 40)
    assert run["started"] <= run["ended"]
    assert run["campaign_seconds"] >= 0
    assert [(layer["number"], layer["path"]) for layer in run["layers"]] == [(1, "features.0"), (23, "classifier.3")]


# --- the same seed, the same results ---


@SCRIPTS
def test_same_seed_same_bytes(script: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(64)
    arguments = ["--layer-num", "0,1,8,19", "--detailed-log", "--batch-size", "16", "--bit-flip-pos", "1"]
    first, second = run_digits(script, *arguments), run_digits(script, *arguments)
    assert_same(first, second)
    other = run_digits(script, *arguments, seed=6)
    assert first.text("_detailed.txt") != other.text("_detailed.txt")


@pytest.mark.parametrize("bit", ["-1", "1"], ids=["random bits", "bit 1"])
def test_batch_size_changes_no_neuron_count(bit: str, run_digits: RunDigits) -> None:
    """All 600 images, so that the last batch is smaller in both."""
    arguments = ["--layer-num", "0,1,3,9,21", "--bit-flip-pos", bit]
    small, large = (run_digits("main.py", *arguments, "--batch-size", size) for size in ("64", "256"))
    assert small.text(".csv") == large.text(".csv")
    assert sum(int(row["misclassified"]) for row in small.rows) > 0


@SCRIPTS
def test_choice_of_layers_changes_no_fault(script: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    """layer_type and layer_num renumber what the user sees, not what is flipped."""
    few_digits(100)
    everything = run_digits(script, "--bit-flip-pos", "1")
    for arguments in (
        ["--layer-type", "Conv2d"],
        ["--layer-type", "Linear,BatchNorm2d", "--layer-num", "1,6"],
        ["--layer-num", "4"],
    ):
        some = run_digits(script, "--bit-flip-pos", "1", *arguments)
        assert some.rows
        assert some.counts.items() <= everything.counts.items()
    assert len({row["misclassified"] for row in everything.rows}) > 3


def test_layer_numbers_count_what_layer_type_leaves(run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(10)
    some = run_digits("main.py", "--layer-type", "Linear,BatchNorm2d", "--layer-num", "1,6")
    assert [(row["layer"], row["path"]) for row in some.rows] == [("1", "features.5"), ("6", "classifier.3")]


def test_repeats_count_every_flip(run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(50)
    once, twice = (run_digits("main.py", "--bit-flip-pos=1", "--layer-num=1,9", "--repeats", n) for n in "12")
    for one, two in zip(once.rows, twice.rows, strict=True):
        assert int(two["correct"]) == 2 * int(one["correct"])
        assert int(one["misclassified"]) < int(two["misclassified"])


@SCRIPTS
def test_engines_agree(script: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    """On every count, and in the log on all but the last bits of values, which may be rounded in another order."""
    few_digits(48)
    arguments = ["--batch-size", "32", "--detailed-log", "--bit-flip-pos", "1"]
    wave, reference = (run_digits(script, *arguments, "--engine", engine) for engine in ("wave", "reference"))
    assert wave.run["engine"] == "wave"
    assert reference.run["engine"] == "reference"
    assert wave.text(".csv") == reference.text(".csv")
    logs = [re.sub(r"(value|binary): .+", "", result.text("_detailed.txt")) for result in (wave, reference)]
    assert logs[0] == logs[1]
    assert "Flip bit: " in logs[0]


@SCRIPTS
@pytest.mark.parametrize("engine", ["wave", "reference"])
def test_no_flip_no_misclassification(
    script: str,
    engine: str,
    run_script: RunScript,
    few_digits: FewDigits,
    digits_model: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also for a model that is handed over in training mode."""
    few_digits(48)
    (tmp_path / "own.py").write_text(
        "import torch\nfrom bitflip.data import digits\n\n"
        "def build():\n    model = digits.build()\n"
        "    model.load_state_dict(torch.load(digits.WEIGHTS, weights_only=True))\n    return model.train()\n"
    )
    monkeypatch.setattr(bits, "changed", lambda values, masks: values.clone())
    done = run_script(
        script, "--dataset", "digits", "--model-name", f"{tmp_path / 'own.py'}:build", "--engine", engine,
        "--batch-size", "32", "--seed", "5", "--output-path", tmp_path / "out", "--detailed-log",
    )  # fmt: skip
    result = Result(done, tmp_path / "out", f"{PREFIX[script]}own-build_digits_5")
    assert result.done.code == 0
    assert len(result.rows) == (12 if script == "weight.py" else LAYERS)
    images, labels = digits.load("test").tensors
    correct = int((digits_model(images).argmax(dim=1) == labels).sum())
    assert {(row["misclassified"], row["correct"]) for row in result.rows} == {("0", str(correct))}
    log = result.text("_detailed.txt")
    assert "Label: " not in log
    assert len(parsers.weights(log)) == (2 * 12 if script == "weight.py" else 0)


def test_drop_last_leaves_out_the_smaller_batch(run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(50)
    arguments = ["--layer-num", "1", "--batch-size", "16"]
    assert run_digits("main.py", *arguments).run["images"] == 50
    dropped = run_digits("main.py", *arguments, "--drop-last")
    assert dropped.run["images"] == 48
    few_digits(48)
    assert run_digits("main.py", *arguments).text(".csv") == dropped.text(".csv")


# --- the detailed log ---


def as_float(binary: str) -> float:
    """The float32 that 32 bits stand for."""
    (value,) = struct.unpack(">f", int(binary, 2).to_bytes(4, "big"))
    return float(value)


def check_flip(block: parsers.Block) -> None:
    """Check one flip of the log with bitstring and struct."""
    expected = bitstring.BitArray(bin=block["Original binary"])
    expected.invert(int(block["Flip bit"]))
    assert expected.bin == block["Error binary"]
    for kind in ("Original", "Error"):
        assert block[f"{kind} value"] == str(as_float(block[f"{kind} binary"]))


def coordinates(block: parsers.Block) -> list[int | None]:
    """The position of a block, which is written as a tuple."""
    found = re.fullmatch(r"\((\w+(?:, \w+)*)\)", block["Position"])
    assert found is not None
    return [None if part == "None" else int(part) for part in found[1].split(", ")]


def check_place(place: list[int | None], shape: list[int]) -> None:
    """Check that an element is one of a tensor of a shape."""
    assert [i for i in place if i is not None] == place[: len(shape)]
    assert all(0 <= i < side for i, side in zip(place, shape, strict=False) if i is not None)


@pytest.mark.parametrize("bit", ["-1", "1"], ids=["random bits", "bit 1"])
@pytest.mark.parametrize("script", ["main.py", "neuron.py"])
def test_detailed_log_of_neurons(script: str, bit: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    few_digits(96)
    result = run_digits(script, "--detailed-log", "--batch-size", "40", "--bit-flip-pos", bit)
    labels = digits.load("test").tensors[1].tolist()
    layers = {str(layer["number"]): layer for layer in result.run["layers"]}
    count: Counter[str] = Counter()
    for block in parsers.neurons(result.text("_detailed.txt")):
        check_flip(block)
        if bit == "1":
            assert block["Flip bit"] == "1"
        layer = layers[block["Layer"]]
        image, *element = coordinates(block)
        assert image is not None
        assert len(element) == 3
        check_place(element, layer["shape"])
        index = int(block["Batch"]) * 40 + image
        assert image < 40
        assert [block[name] for name in ("Layer type", "Path", "Test image")] == [
            layer["type"],
            layer["path"],
            str(index),
        ]
        assert int(block["Label"]) == labels[index]
        assert block["Model output"] != block["Label"]
        count[block["Layer"]] += 1
    assert count == {row["layer"]: int(row["misclassified"]) for row in result.rows if row["misclassified"] != "0"}
    assert count.total() > (5 if bit == "-1" else 200)


@pytest.mark.parametrize("bit", ["-1", "1"], ids=["random bits", "bit 1"])
def test_detailed_log_of_weights(bit: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    """Each flip once, then the images that it broke."""
    few_digits(96)
    result = run_digits("weight.py", "--detailed-log", "--batch-size", "8", "--bit-flip-pos", bit)
    labels = digits.load("test").tensors[1].tolist()
    shapes = {
        str(layer["number"]): parameter["shape"]
        for layer in result.run["layers"]
        for parameter in layer["parameters"]
        if parameter["name"] == "weight"
    }
    count: Counter[str] = Counter()
    flips: list[tuple[str, str]] = []
    for flip, images in parsers.weights(result.text("_detailed.txt")):
        check_flip(flip)
        place = coordinates(flip)
        assert len(place) == 4
        check_place(place, shapes[flip["Layer"]])
        first, last = map(int, flip["Test images"].split("-"))
        assert (first % 8, last) == (0, first + 7)
        flips.append((flip["Layer"], flip["Test images"]))
        for image in images:
            index = int(image["Batch"]) * 8 + int(image["Image"])
            assert image["Test image"] == str(index)
            assert first <= index <= last
            assert int(image["Label"]) == labels[index]
            assert image["Model output"] != image["Label"]
        count[flip["Layer"]] += len(images)
    assert len(flips) == len(set(flips)) == sum(int(row["flips"]) for row in result.rows)
    assert count == Counter({row["layer"]: int(row["misclassified"]) for row in result.rows})
    assert count.total() > 0


@SCRIPTS
def test_other_results_are_read_by_parsers_of_the_vessl_example(
    script: str, run_digits: RunDigits, few_digits: FewDigits
) -> None:
    few_digits(64)
    result = run_digits(
        script, "--layer-type", "Conv2d,Linear", "--layer-num", "0,5", "--batch-size", "16", "--bit-flip-pos", "1"
    )
    rows = {row["name"]: 100 * int(row["misclassified"]) / int(row["correct"]) for row in result.rows}
    assert len(rows) > 1
    assert max(rows.values()) > 0
    found = [(rate, name) for rate, name in parsers.rates(result.text(".txt")) if rate.endswith("%,")]
    assert found == [(f"{rate:.4f}%,", name) for name, rate in rows.items()]
    read = dict(parsers.table(result.text(".csv"), 5))
    assert read == pytest.approx(rows, abs=1e-6)


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
def test_the_first_images_only(script: str, run_digits: RunDigits, few_digits: FewDigits) -> None:
    """As if there were no others, also where there are fewer."""
    arguments = ("--layer-num", "0-2", "--batch-size", "8", "--detailed-log", "--bit-flip-pos=1")
    few_digits(30)
    some = run_digits(script, *arguments, "--max-images=20", "--drop-last")
    all_ = run_digits(script, *arguments, "--max-images=31")
    lines = [line.partition(":")[0] for line in some.text(".txt").splitlines()[-3:]]
    assert lines == ["Layer #0", "Layer #1", "Layer #2" if script == "main.py" else "Layer #2 has no weight"]
    for count, result in ((16, some), (30, all_)):
        few_digits(count)
        alone = run_digits(script, *arguments)
        for suffix in (".csv", "_bits.csv", "_detailed.txt"):
            assert result.text(suffix) == alone.text(suffix)


# --- Ctrl-C ---


def interrupt_after(
    batches: int, monkeypatch: pytest.MonkeyPatch, stop: BaseException | type[BaseException] = KeyboardInterrupt
) -> None:
    """Let Ctrl-C, or an error, come after so many batches of a campaign."""
    run = Here.run

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[tuple[Task, BatchOutcomes]]:
        for number, outcomes in enumerate(run(*args, **kwargs)):
            if number == batches:
                break
            yield outcomes
        raise stop

    monkeypatch.setattr(Here, "run", interrupted)


@SCRIPTS
def test_ctrl_c_leaves_what_was_finished(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a complete result of the same name, which stays as it is. The wave may run several batches together."""
    few_digits(80)
    arguments = [
        "--dataset=digits",
        "--seed=5",
        "--layer-num=1,3",
        "--batch-size=16",
        "--engine=reference",
        "--detailed-log",
        "--bit-flip-pos=1",
    ]
    stem = f"{PREFIX[script]}digits_vgg_digits_5"
    run_script(script, *arguments, "--output-path", tmp_path)
    complete = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(complete) == 5
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        done = run_script(script, *arguments, "--output-path", tmp_path)
    assert done.code == 130
    assert "interrupted after 32 of 80 images" in done.err
    for suffix in (*SUFFIXES, "_detailed.txt"):
        assert f"  {tmp_path / stem}_partial{suffix}" in done.out.splitlines()
    partial = Result(done, tmp_path, f"{stem}_partial")
    assert (partial.run["complete"], partial.run["images"]) == (False, 32)
    assert "Interrupted after 32 of 80 images" in partial.text(".txt")
    few_digits(32)
    whole = Result(run_script(script, *arguments, "--output-path", tmp_path / "few"), tmp_path / "few", stem)
    assert partial.text(".csv") == whole.text(".csv")
    assert partial.text("_detailed.txt") == whole.text("_detailed.txt")
    assert {name: (tmp_path / name).read_bytes() for name in complete} == complete
    left = [name.replace("_5", "_5_partial", 1) for name in complete]
    assert names(tmp_path) == sorted([*complete, "few", *left, f"{stem}.unfinished"])


def test_a_damaged_image_costs_no_finished_batch(
    run_digits: RunDigits, few_digits: FewDigits, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(40)
    interrupt_after(1, monkeypatch, BadInput("input_path (--input-path): 9.png is no readable image"))
    result = run_digits("main.py", "--layer-num", "1", "--batch-size=16", "--engine=reference")
    assert result.done.code == 2
    assert result.done.err.splitlines()[-1] == "error: input_path (--input-path): 9.png is no readable image"
    assert "Interrupted after 16 of 40 images" in (result.folder / f"{result.stem}_partial.txt").read_text()


def test_ctrl_c_before_the_first_batch_leaves_nothing(
    run_digits: RunDigits, few_digits: FewDigits, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(40)
    interrupt_after(0, monkeypatch)
    result = run_digits("main.py", "--detailed-log", "--layer-num", "1")
    assert result.done.code == 130
    assert result.done.err == "interrupted before the first batch was finished; nothing was written\n"
    assert names(result.folder) == []


def test_ctrl_c_while_loading(run_digits: RunDigits, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load", interrupt)
    result = run_digits("main.py")
    assert result.done.code == 130
    assert "Traceback" not in result.done.err
    assert names(result.folder) == []


def test_a_crash_leaves_earlier_results_and_no_temporary_file(
    run_digits: RunDigits, few_digits: FewDigits, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(40)

    def crash(*args: object, **kwargs: object) -> Iterator[BatchOutcomes]:
        raise RuntimeError("something broke")
        yield

    monkeypatch.setattr(Here, "run", crash)
    with pytest.raises(RuntimeError, match="something broke"):
        run_digits("main.py", "--detailed-log", "--layer-num", "1")
    assert names(run_digits.folder / "out1") == []


# --- as processes ---


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
def test_as_a_process(script: str, run_process: RunScript, tmp_path: Path) -> None:
    """From another folder, settings from the environment; quiet on stderr, which is no terminal."""
    done = run_process(script, dataset="digits", output_path="out", seed="5", layer_nums="19", batch_size="600")
    assert (done.code, done.err) == (0, "")
    stem = f"{PREFIX[script]}digits_vgg_digits_5"
    assert names(tmp_path / "out") == [f"{stem}{suffix}" for suffix in SUFFIXES]
    (line,) = (line for line in done.out.splitlines() if line.startswith("Layer #"))
    assert re.fullmatch(RESULT_LINE, line) or line == "Layer #19 has no weight"
    assert re.search(r"^Clean accuracy: 59\d / 600 = 99\.\d\d%$", done.out, flags=re.M)
