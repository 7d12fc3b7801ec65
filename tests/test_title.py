"""The first line of a run says what is no default, and where that comes from; what is nearly a setting is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from conftest import FewDigits, RunScript
from test_hyperparameters import FIELDS

from bitflip.settings import reading, words
from bitflip.settings.hyperparameters import DatasetName, Hyperparameters

BASE = "wave engine"


def test_nothing_is_said_of_defaults() -> None:
    for dataset in get_args(DatasetName):
        assert words.chosen(Hyperparameters(dataset=dataset).resolved(), "neuron") == []


@pytest.mark.parametrize(("name", "value"), [(row[0], row[3]) for row in FIELDS if row[0] not in words.SAID])
def test_every_setting_is_said(name: str, value: Any) -> None:
    """Alone, and with its value unless that is a switch."""
    (text,) = words.chosen(Hyperparameters(**{name: value}).resolved(), "neuron")
    assert name in text if isinstance(value, bool) else str(value) in text


@pytest.mark.parametrize(
    ("settings", "target", "expected"),
    [
        (
            {"bit_flip_pos": 1, "layer_type": "Conv2d", "repeats": 6},
            "neuron",
            ["bit 1", "Conv2d only", "6 flips per image"],
        ),
        ({"repeats": 2, "parameters": "all"}, "weight", ["all parameters", "2 flips per batch"]),
        ({"layer_num": "0-5,7,9-10"}, "neuron", ["layers 0-5,7,9-10 only"]),
        ({"layer_num": "7"}, "neuron", ["layer 7 only"]),
        ({"bit_flip_pos": -3, "plots": False}, "neuron", ["no plots"]),
    ],
)
def test_in_words(settings: dict[str, Any], target: Literal["neuron", "weight"], expected: list[str]) -> None:
    found = words.chosen(Hyperparameters(**settings).resolved(), target)
    assert sorted(found) == sorted(expected)


def test_the_first_line_of_a_run(run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> None:
    few_digits(10)
    common = ("--dataset=digits", "--seed=4", "--output-path", tmp_path)
    plain = run_script("main.py", *common, "--layer-num=1", "--plots").out.splitlines()[0]
    title = plain.partition("; ")[0]
    assert title.endswith(BASE)
    assert plain == f"{title}; layer 1 only"


@pytest.mark.parametrize(
    ("environ", "argv", "expected"),
    [
        ({}, (), []),
        ({"seed": "3", "layer_nums": "2", "batch_size": ""}, (), ["seed", "layer_num"]),
        ({"seed": "3", "layer_nums": "2"}, ("--layer-num=1",), ["seed"]),
        ({"plots": "false"}, ("--plots",), []),
        ({"repeats": "3", "output_path": "out"}, ("--rerun", "RERUN"), ["output_path"]),
        ({"rerun": "RERUN", "bit_flip_pos": "3"}, (), ["rerun"]),
        ({"SEED": "3"}, (), []),
    ],
    ids=["none", "names", "beaten", "beaten switch", "rerun", "rerun from there", "another"],
)
def test_what_comes_from_the_environment(
    environ: dict[str, str], argv: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the values say that are read."""
    file = str(Path(__file__).parents[1] / "sample-output" / "digits_vgg_digits_1234.json")
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace("RERUN", file))
    given = [text.replace("RERUN", file) for text in argv]
    assert reading.from_environment(given) == expected
    settings, _ = reading.read(given)
    for name in environ:
        if name in expected and name != "rerun":
            assert str(getattr(settings, name)) == environ[name]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        *(
            ("bitflippos", "bit_flip_pos"),
            ("Dataset", "dataset"),
            ("layernum", "layer_num"),
            ("layerNums", "layer_nums"),
        ),
        *(("SEED", "seed"), ("batch-size", "batch_size"), ("bach_size", "batch_size"), ("layer_types", "layer_type")),
        ("layerNums", "layer_nums"),
    ],
)
def test_a_variable_that_is_nearly_a_setting(variable: str, meant: str, run_script: RunScript, tmp_path: Path) -> None:
    """It is named, whether or not the run goes well, and not read."""
    done = run_script("main.py", "--dataset=mnist", "--output-path", tmp_path, **{variable: "1"})
    assert done.err.splitlines()[:1] == [
        f"environment variable {variable}: it is no setting, and is not read; did you mean {meant}?"
    ]
    assert done.code == 2


@pytest.mark.parametrize(
    "variable",
    [
        *("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "GITHUB_PATH", "INFOPATH", "XDG_DATA_DIRS", "TERM"),
        *(
            "VESSL_EXPERIMENT_ID",
            "CUDA_VISIBLE_DEVICES",
            "OMP_NUM_THREADS",
            "OUTPUT",
            "MODEL",
            "BATCH",
            "PYTHONHASHSEED",
        ),
        *("PYTHONHASHSEED", "seed", "layer_nums", "max_images"),
    ],
)
def test_other_variables_are_not_warned_of(variable: str) -> None:
    assert reading.nearly_settings({variable: "1"}) == []


def test_an_empty_variable_is_unset() -> None:
    assert reading.nearly_settings({"bitflippos": ""}) == []


def test_what_the_title_says_is_not_said_again() -> None:
    settings = Hyperparameters(dataset="digits", protect="ranger", prove=True, seed=3).resolved()
    assert words.chosen(settings, "neuron") == []
    assert words.chosen(settings.model_copy(update={"percentile": 99.0}), "neuron") == ["percentile 99.0"]
