"""The command line beats the environment, which beats the defaults; ``--help`` says so, at once."""

from __future__ import annotations

import difflib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RunScript

from bitflip.errors import BadInput
from bitflip.settings import hyperparameters, reading
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.settings.roles import Role

GOLDEN_HELP = Path(__file__).with_name("golden") / "help.txt"

RERUN = str(Path(__file__).parents[1] / "sample-output" / "digits_vgg_digits_1234.json")

# name, default, text and value from the environment, text and value from the command line
FIELDS: list[tuple[str, Any, str, Any, str, Any]] = [
    ("dataset", "cifar10", "cifar100", "cifar100", "imagenet", "imagenet"),
    ("class_order", "text", "numeric", "numeric", "text", "text"),
    ("model_name", "vgg19_bn", "resnet20", "resnet20", "resnet32", "resnet32"),
    ("weights", None, "a.pt", Path("a.pt"), "b/c.pt", Path("b/c.pt")),
    ("hub_path", None, "hub", Path("hub"), "/hub", Path("/hub")),
    ("seed", None, "3", 3, "0", 0),
    ("seeds", None, "1-30", "1-30", "1, 5,9-12", "1,5,9-12"),
    ("batch_size", 256, "64", 64, "1", 1),
    ("img_size", 32, "33", 33, "47", 47),
    ("channels", 3, "1", 1, "3", 3),
    ("mean", None, "0.5", "0.5", "0.1, 0.2,0.3", "0.1,0.2,0.3"),
    ("std", None, "0.5", "0.5", "0.1, 0.2,0.3", "0.1,0.2,0.3"),
    ("bit_flip_pos", -1, "0", 0, "31", 31),
    ("number_format", None, "int8", "int8", "bfloat16", "bfloat16"),
    ("fault", "flip", "stuck1", "stuck1", "burst:3", "burst:3"),
    ("bit_error_rate", None, "1e-6", "1e-06", "1e-7,0.001", "1e-07,0.001"),
    ("by_layer", False, "true", True, "false", False),
    ("layer_type", "all", "Conv2d", "Conv2d", "Linear, Identity", "Linear,Identity"),
    ("layer_num", "all", "3", "3", "2,1", "1,2"),
    ("bit_sampling", "uniform", "importance", "importance", "uniform", "uniform"),
    ("margin", None, "0.5", 0.5, "1", 1.0),
    ("confidence", 0.95, "0.99", 0.99, "0.9", 0.9),
    ("input_path", Path("/input"), "in", Path("in"), "in2", Path("in2")),
    ("output_path", Path("/output"), "out", Path("out"), "out2", Path("out2")),
    ("detailed_log", False, "true", True, "false", False),
    ("fault_table", False, "true", True, "false", False),
    ("plots", True, "false", False, "true", True),
    ("fresh", False, "1", True, "0", False),
    ("rerun", None, RERUN, Path(RERUN), RERUN, Path(RERUN)),
    ("device", "auto", "cpu", "cpu", "cuda:1", "cuda:1"),
    ("ray", None, "auto", "auto", "head:6379", "head:6379"),
    ("precision", "ieee", "tf32", "tf32", "ieee", "ieee"),
    ("max_images", None, "100", 100, "1", 1),
    ("drop_last", False, "1", True, "0", False),
    ("repeats", 1, "2", 2, "3", 3),
    ("engine", "wave", "reference", "reference", "wave", "wave"),
    ("parameters", "weight", "bias", "bias", "bias, weight,bias", "bias,weight"),
    ("pool_mib", None, "100", 100, "200", 200),
    ("prove", False, "true", True, "false", False),
    ("audit", 0.0, "0.1", 0.1, "1", 1.0),
    ("protect", None, "ranger", "ranger", "clip + nan", "nan+ranger+clip"),
    ("protect_layers", "default", "ReLU", "ReLU", "ReLU, Conv2d", "ReLU,Conv2d"),
    ("bounds", None, "a.json", Path("a.json"), "b.json", Path("b.json")),
    ("calibration_images", None, "a", Path("a"), "b/c", Path("b/c")),
    ("percentile", 100.0, "99.9", 99.9, "90", 90.0),
    ("faults", None, "a.csv", Path("a.csv"), "b.csv", Path("b.csv")),
    ("limit", None, "100", 100, "200", 200),
    ("save_faults", None, "a.csv", Path("a.csv"), "b.csv", Path("b.csv")),
]
each_field = pytest.mark.parametrize("field", FIELDS, ids=[field[0] for field in FIELDS])


def read(*argv: str) -> Hyperparameters:
    settings, problems = reading.read(argv)
    assert problems == {}
    return settings


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def test_every_setting_is_in_the_table() -> None:
    assert {field[0] for field in FIELDS} == Hyperparameters.model_fields.keys()


@each_field
def test_default(field: tuple[Any, ...]) -> None:
    name, default, *_ = field
    if name != "seed":
        assert getattr(read(), name) == default


@each_field
def test_environment_beats_default(field: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, text, value, *_ = field
    monkeypatch.setenv(name, text)
    assert getattr(read(), name) == value


@each_field
@pytest.mark.parametrize("form", ["--a-b=c", "--a-b c", "--a_b=c", "--a_b c"])
def test_command_line_beats_environment(form: str, field: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, environment_text, _, text, value = field
    monkeypatch.setenv(name, environment_text)
    written = flag(name) if "-b" in form else f"--{name}"
    if value is False:  # a switch, which takes no value
        argv = [written.replace("--", "--no_" if "_b" in form else "--no-")]
    elif value is True:
        argv = [written]
    else:
        argv = [f"{written}={text}"] if "=" in form else [written, text]
    assert getattr(read(*argv), name) == value


@each_field
def test_empty_environment_variable_counts_as_unset(field: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    name, default, *_ = field
    monkeypatch.setenv(name, "")
    value = getattr(read(), name)
    assert value == default if name != "seed" else value >= 0


@pytest.mark.parametrize("name", ["SEED", "Seed", "batch-size", "BITFLIP_SEED"])
def test_other_variables_are_not_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "nonsense")
    assert read().batch_size == 256


@pytest.mark.parametrize(
    ("environ", "argv", "expected"),
    [
        ({"layer_nums": "4"}, (), (4,)),
        ({}, ("--layer-nums", "5"), (5,)),
        ({}, ("--layer_nums=5",), (5,)),
        ({"layer_nums": "4"}, ("--layer-num", "5"), (5,)),
        ({"layer_num": "4"}, ("--layer-nums", "5"), (5,)),
        ({"layer_nums": "4"}, ("--layer-nums", "all"), None),
        ({"layer_nums": "4", "layer_num": ""}, (), (4,)),
    ],
    ids=["variable", "flag", "underscore", "over variable", "as flag over variable", "all", "other empty"],
)
def test_layer_nums_is_layer_num(
    environ: dict[str, str], argv: tuple[str, ...], expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert read(*argv).layer_numbers == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", None),
        ("7", (7,)),
        ("3,1,3", (1, 3)),
        (" 0 , 10,2", (0, 2, 10)),
        ("007", (7,)),
        ("0-5", (0, 1, 2, 3, 4, 5)),
        ("9, 3 - 5,4", (3, 4, 5, 9)),
    ],
)
def test_layer_numbers(text: str, expected: object) -> None:
    assert read("--layer-num", text).layer_numbers == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", None), ("Conv2d", ("Conv2d",)), ("ReLU, Conv2d,ReLU", ("ReLU", "Conv2d"))],
)
def test_layer_types(text: str, expected: object) -> None:
    assert read("--layer-type", text).layer_types == expected


@pytest.mark.parametrize(("text", "bit"), [("-1", None), ("-7", None), ("0", 0), ("31", 31)])
def test_a_negative_bit_is_a_random_one(text: str, bit: int | None) -> None:
    assert read("--bit-flip-pos", text).bit == bit


@pytest.mark.parametrize("argv", [(), ("--seed", "-1"), ("--seed=-5",)], ids=["unset", "-1", "-5"])
def test_a_negative_seed_is_from_the_clock(argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {read(*argv).seed}
    monkeypatch.setattr(time, "time_ns", lambda: 1_234_567_000)
    seeds.add(read(*argv).seed)
    assert len(seeds) == 2
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("dataset", "model_name", "img_size"),
    [
        ("cifar10", "vgg19_bn", 32),
        ("cifar100", "vgg19_bn", 32),
        ("imagenet", "vgg19_bn", 224),
        ("digits", "digits_vgg", 32),
    ],
)
def test_model_and_size_go_with_the_data_set(dataset: str, model_name: str, img_size: int) -> None:
    settings = read("--dataset", dataset)
    assert (settings.model_name, settings.img_size) == (model_name, img_size)
    given = read("--dataset", dataset, "--model-name", "other", "--img-size", "40")
    assert (given.model_name, given.img_size) == ("other", 40)


@pytest.mark.parametrize("name", ["detailed_log", "drop_last"])
def test_switches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(read(flag(name)), name) is True
    monkeypatch.setenv(name, "true")
    assert getattr(read(flag(name).replace("--", "--no-")), name) is False
    with pytest.raises(BadInput, match=f"argument {flag(name)}.*'maybe'"):
        read(f"{flag(name)}=maybe")


@pytest.mark.parametrize("name", ["detailed_log", "drop_last"])
@pytest.mark.parametrize(("value", "expected"), [("true", True), ("1", True), ("off", False), ("False", False)])
def test_switches_take_a_value_as_a_sweep_writes_it(name: str, value: str, expected: bool) -> None:
    settings, problems = reading.read([f"--{name.replace('_', '-')}={value}"])
    assert not problems
    assert getattr(settings, name) is expected


def test_settings_can_not_be_changed() -> None:
    settings = read()
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3


def test_settings_survive_json() -> None:
    settings = read("--dataset", "digits", "--layer-num", "1,2", "--weights", "w.pt", "--detailed-log")
    assert Hyperparameters.model_validate_json(settings.model_dump_json()) == settings


def test_bad_values_are_replaced_so_that_more_can_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("layer_nums", "x")
    settings, problems = reading.read(["--batch-size", "0", "--channels", "4", "--what", "--seed", "3"])
    assert (settings.batch_size, settings.channels, settings.layer_num, settings.seed) == (256, 3, "all", 3)
    assert problems.keys() == {"batch_size", "channels", "layer_num", "--what"}


def test_a_flag_without_its_value_is_a_mistake() -> None:
    with pytest.raises(BadInput, match=r"argument --seed: expected one argument"):
        reading.read(["--seed"])


# --- help ---


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse lays out its help differently in each release")
def test_help_is_the_golden_one(
    update_golden: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_:
        reading.read(["--help"], prog="main.py")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    if update_golden:
        GOLDEN_HELP.write_text(text, encoding="utf-8")
    golden = GOLDEN_HELP.read_text(encoding="utf-8")
    difference = "\n".join(difflib.unified_diff(golden.splitlines(), text.splitlines(), "golden", "now", lineterm=""))
    assert text == golden, f"{difference}\npytest --update-golden takes it over"


def test_help_names_flag_variable_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reading.read(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Hyperparameters.model_fields.items():
        assert f"{flag(name)}" in text
        assert f"[variable: {name}{', layer_nums' if name == 'layer_num' else ''}]" in text
        assert str(field.description) in text
        if field.default is not None:
            assert f"{field.description} (default: {field.default})" in text


@pytest.mark.parametrize("script", ["main.py", "neuron.py", "weight.py"])
def test_help_comes_before_anything_slow(script: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "except SystemExit as exit_:\n"
        "    slow = {'torch', 'torchvision', 'sklearn', 'numpy', 'PIL', 'vessl'} & sys.modules.keys()\n"
        "    sys.exit(f'imported: {slow}' if slow else exit_.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script} ")


@pytest.mark.parametrize("script", ["main.py", "neuron.py", "weight.py"])
def test_nothing_happens_when_a_script_is_imported(script: str) -> None:
    code = f"import {script.removesuffix('.py')}, sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_while_torch_is_imported_is_no_traceback(run_script: RunScript, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "read", interrupt)
    done = run_script("main.py")
    assert (done.code, done.out, done.err) == (130, "", "interrupted before anything was done\n")


# --- what depends on a setting ---


def test_each_setting_says_what_depends_on_it() -> None:
    """One declaration, from which all lists of names are made."""
    roles = {name: hyperparameters.role_of(name) for name in Hyperparameters.model_fields}
    assert all(isinstance(role, Role) for role in roles.values())
    names = hyperparameters.names
    assert names(lambda role: role.sampling) == [
        *(
            "seeds",
            "bit_flip_pos",
            "fault",
            "bit_error_rate",
            "by_layer",
            "layer_type",
            "layer_num",
            "bit_sampling",
            "margin",
            "parameters",
        ),
        "repeats",
    ]
    paths = {"input_path", "weights", "hub_path", "bounds", "calibration_images"}
    assert set(names(lambda role: role.path)) == paths
    assert set(names(lambda role: not role.rerun)) == {"output_path", "fresh", "rerun", "ray"}
    assert names(lambda role: role.joined == "weight") == ["batch_size"]
    free = {name for name, role in roles.items() if not role.unfinished}
    assert {"plots", "device", "ray", "seed", "output_path"} < free
    assert free.isdisjoint({"batch_size", "precision", "engine", "detailed_log", "fault_table", "margin", "model_name"})


def test_a_setting_of_another_version_counts_as_one_that_matters() -> None:
    assert hyperparameters.role_of("not_made_yet") == Role()
