"""A user's mistake is a sentence and exit code 2, before anything slow; never a traceback."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from conftest import Finished, RunScript
from torch import nn

from bitflip.campaign.executor import Here
from bitflip.data import datasets, digits
from bitflip.network import devices, models

MODULE = """
from torch import nn

class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))

class Map(Small):
    def forward(self, x):
        return super().forward(x)[:, :, None, None]

class Pair(Small):
    def forward(self, x):
        return super().forward(x), x

small = lambda: Small(10)
few = lambda: Small(9)
map = lambda: Map(10)
pair = lambda: Pair(10)
double = lambda: Small(10).double()
broken = lambda: 1 / 0
number = lambda: 3
needs = lambda size: Small(10)
"""


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this must not be started for bad input")


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if images or a model are asked for."""
    monkeypatch.setattr(datasets, "load", refuse)
    monkeypatch.setattr(models, "load", refuse)


@pytest.fixture
def nothing_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a campaign is begun."""
    monkeypatch.setattr(Here, "run", refuse)


def assert_mistakes(done: Finished, *patterns: str) -> None:
    """Check the exit code, and that stderr is one line per pattern, in any order, and matches it as a whole."""
    assert (done.code, done.out) == (2, ""), done
    lines = done.err.splitlines()
    assert all(line.startswith("error: ") for line in lines), done.err
    for pattern in patterns:
        assert any(re.fullmatch(f"error: {pattern}", line) for line in lines), f"no {pattern!r} in\n{done.err}"
    assert len(lines) == len(patterns), done.err


# id, arguments, environment, sentence
EARLY: list[tuple[str, list[str], dict[str, str], str]] = [
    (
        "unknown data set",
        ["--dataset", "mnist"],
        {},
        r"dataset \(--dataset\): expected one of cifar10, cifar100, imagenet, digits, folder, got 'mnist'",
    ),
    (
        "unknown data set in the environment",
        [],
        {"dataset": "CIFAR10"},
        r"dataset \(--dataset\): expected one of cifar10, cifar100, imagenet, digits, folder, got 'CIFAR10'",
    ),
    (
        "unknown CIFAR model",
        ["--dataset", "cifar100", "--model-name", "resnet21"],
        {},
        r"model_name \(--model-name\): cifar100 has no model 'resnet21'; did you mean .*'resnet20'.*\? "
        r"valid: mobilenetv2_x0_5, .*, vgg19_bn \(or your own as FILE.py:factory\)",
    ),
    (
        "unknown ImageNet model",
        ["--dataset", "imagenet", "--model-name", "resnet51"],
        {},
        r"model_name \(--model-name\): imagenet has no model 'resnet51'; did you mean .*'resnet50'.*\? "
        r"\(or your own as FILE.py:factory\)",
    ),
    (
        "unknown digits model",
        ["--dataset", "digits", "--model-name", "vgg19_bn"],
        {},
        r"model_name \(--model-name\): digits has no model 'vgg19_bn'; valid: digits_vgg "
        r"\(or your own as FILE.py:factory\)",
    ),
    (
        "no file of the own model",
        ["--dataset", "digits", "--model-name", "missing.py:build"],
        {},
        r"model_name \(--model-name\): expected FILE.py:factory, but there is no file missing.py",
    ),
    *(
        (
            f"own model without a factory: {name}",
            ["--dataset", "digits", "--model-name", name],
            {},
            r"model_name \(--model-name\): expected FILE.py:factory, where factory is what makes the model in "
            rf"FILE.py, got '{name}' without a factory",
        )
        for name in ("net.py", "net.py:")
    ),
    *(
        (
            f"layer numbers {text}",
            ["--dataset", "digits", "--layer-num", text],
            {},
            rf"layer_num \(--layer-num\): expected 'all' or .*, got '{text}'",
        )
        for text in ("5-3", "1-", "-3", "0-2-4", "0-100000", "1,,2")
    ),
    (
        "no image",
        ["--dataset", "digits", "--max-images", "0"],
        {},
        r"max_images \(--max-images\): expected a whole number of at least 1, got '0'",
    ),
    (
        "no weights file",
        ["--dataset", "digits", "--weights", "missing.pt"],
        {},
        r"weights \(--weights\): expected the path of a state dict, but there is no file missing.pt",
    ),
    (
        "no hub checkout",
        ["--dataset", "cifar10", "--hub-path", "missing"],
        {},
        r"hub_path \(--hub-path\): expected a checkout of chenyaofo/pytorch-cifar-models, "
        r"but missing has no hubconf.py",
    ),
    (
        "layer type that torch.nn has not",
        ["--dataset", "digits", "--layer-type", "Conv2d,relu"],
        {},
        r"layer_type \(--layer-type\): expected 'all' or torch.nn class names, got 'relu'; did you mean 'ReLU'.*\?",
    ),
    (
        "layer type that resembles nothing",
        ["--dataset", "digits", "--layer-type", "xyzzy"],
        {},
        r"layer_type \(--layer-type\): expected 'all' or torch.nn class names, got 'xyzzy'; such as Conv2d, .*",
    ),
    (
        "layer type that is a function",
        ["--dataset", "digits", "--layer-type", "functional"],
        {},
        r"layer_type \(--layer-type\): expected 'all' or torch.nn class names, got 'functional'; .*",
    ),
    (
        "empty layer type",
        ["--dataset", "digits", "--layer-type", "Conv2d,,ReLU"],
        {},
        r"layer_type \(--layer-type\): expected 'all' or names, got 'Conv2d,,ReLU'",
    ),
    (
        "layer number that is none",
        ["--dataset", "digits", "--layer-num", "1,two"],
        {},
        r"layer_num \(--layer-num\): expected 'all' or whole numbers from 0, and ranges of them such as 0-5, "
        r"comma-separated, got '1,two'",
    ),
    (
        "negative layer number",
        ["--dataset", "digits", "--layer-num=-1"],
        {},
        r"layer_num \(--layer-num\): expected 'all' or whole numbers from 0, and ranges of them such as 0-5, "
        r"comma-separated, got '-1'",
    ),
    (
        "layer_nums in the environment",
        ["--dataset", "digits"],
        {"layer_nums": "1;2"},
        r"layer_num \(--layer-num\): expected 'all' or whole numbers from 0, and ranges of them such as 0-5, "
        r"comma-separated, got '1;2'",
    ),
    (
        "bit 32",
        ["--dataset", "digits", "--bit-flip-pos", "32"],
        {},
        r"bit_flip_pos \(--bit-flip-pos\): expected a bit from 0 to 31 of a value of 32 bits, or a negative number for "
        r"random bits, got 32",
    ),
    (
        "bit 64",
        ["--dataset", "digits", "--bit-flip-pos", "64"],
        {},
        r"bit_flip_pos \(--bit-flip-pos\): expected a bit from 0 to 31 \(0 = sign, .*\), or a negative number for "
        r"random bits, got '64'",
    ),
    (
        "bit that is no number",
        ["--dataset", "digits", "--bit-flip-pos", "sign"],
        {},
        r"bit_flip_pos \(--bit-flip-pos\): expected a bit from 0 to 31 .*, got 'sign'",
    ),
    *(
        (
            f"batch size {size}",
            ["--dataset", "digits", f"--batch-size={size}"],
            {},
            rf"batch_size \(--batch-size\): expected a whole number of at least 1, got '{size}'",
        )
        for size in ("0", "-1", "1.5", "many")
    ),
    (
        "batch size 0 in the environment",
        ["--dataset", "digits"],
        {"batch_size": "0"},
        r"batch_size \(--batch-size\): expected a whole number of at least 1, got '0'",
    ),
    (
        "image size 0",
        ["--dataset", "digits", "--img-size", "0"],
        {},
        r"img_size \(--img-size\): expected a whole number of at least 1, got '0'",
    ),
    *(
        (
            f"image size {size} for the shipped model",
            ["--dataset", "digits", "--img-size", f"{size}"],
            {},
            r"img_size, channels \(--img-size, --channels\): digits_vgg takes 3 channels of 32 to 47 pixels a side, "
            rf"got 3 of {size}",
        )
        for size in (1, 31, 48, 100_000)
    ),
    (
        "one channel for the shipped model",
        ["--dataset", "digits", "--channels", "1"],
        {},
        r"img_size, channels \(--img-size, --channels\): digits_vgg takes 3 channels of 32 to 47 pixels a side, "
        r"got 1 of 32",
    ),
    *(
        (
            f"{channels} channels",
            ["--dataset", "digits", "--channels", channels],
            {},
            rf"channels \(--channels\): expected 1 or 3, got '{channels}'",
        )
        for channels in ("0", "2", "4")
    ),
    (
        "seed that is no number",
        ["--dataset", "digits", "--seed", "lucky"],
        {},
        r"seed \(--seed\): expected a whole number up to 9223372036854775807, got 'lucky'",
    ),
    (
        "seed that is too large",
        ["--dataset", "digits", "--seed", "9223372036854775808"],
        {},
        r"seed \(--seed\): expected a whole number up to 9223372036854775807, got '9223372036854775808'",
    ),
    (
        "switch that is neither true nor false",
        ["--dataset", "digits"],
        {"detailed_log": "maybe"},
        r"detailed_log \(--detailed-log\): expected true or false, got 'maybe'",
    ),
    (
        "unknown device",
        ["--dataset", "digits", "--device", "gpu"],
        {},
        r"device \(--device\): expected auto, cpu, cuda or cuda:N, got 'gpu'",
    ),
    (
        "unknown precision",
        ["--dataset", "digits", "--precision", "fp16"],
        {},
        r"precision \(--precision\): expected ieee or tf32, got 'fp16'",
    ),
    (
        "tf32 on the CPU",
        ["--dataset", "digits", "--precision", "tf32", "--device", "cpu"],
        {},
        r"precision \(--precision\): expected ieee on the CPU, got 'tf32', which takes an NVIDIA GPU of compute "
        r"capability 8.0 \(Ampere\) or later",
    ),
    (
        "unknown engine",
        ["--dataset", "digits", "--engine", "warp"],
        {},
        r"engine \(--engine\): expected .*reference.*, got 'warp'",
    ),
    *(
        (
            f"seeds {seeds}",
            ["--dataset", "digits", f"--seeds={seeds}"],
            {},
            r"seeds \(--seeds\): expected different whole numbers from 0, and ranges of them, comma-separated, "
            rf"got '{re.escape(seeds)}'",
        )
        for seeds in ("one", "3-1", "1,1", "1-5,4", "-1", "1,,2", "0-10000", "9223372036854775808", "1;2")
    ),
    *(
        (
            f"margin {margin}",
            ["--dataset", "digits", f"--margin={margin}"],
            {},
            rf"margin \(--margin\): expected a number above 0 and below 50, got '{margin}'",
        )
        for margin in ("0", "-1", "50", "nan", "inf", "wide")
    ),
    *(
        (
            f"confidence {confidence}",
            ["--dataset", "digits", f"--confidence={confidence}"],
            {},
            r"confidence \(--confidence\): expected a number above 0.5 and below 1, such as 0.95, "
            rf"got '{confidence}'",
        )
        for confidence in ("0.5", "1", "95", "nan", "high")
    ),
    (
        "unknown order of classes",
        ["--dataset", "digits", "--class-order", "natural"],
        {},
        r"class_order \(--class-order\): expected text or numeric, got 'natural'",
    ),
    (
        "unknown bit sampling",
        ["--dataset", "digits", "--bit-sampling", "random"],
        {},
        r"bit_sampling \(--bit-sampling\): expected uniform or importance, got 'random'",
    ),
    *(
        (
            f"{name} that is neither true nor false",
            ["--dataset", "digits"],
            {name: "2"},
            rf"{name} \(--{name.replace('_', '-')}\): expected true or false, got '2'",
        )
        for name in ("fault_table", "fresh", "plots")
    ),
    (
        "no file to rerun",
        ["--dataset", "digits", "--rerun", "missing.json"],
        {},
        r"rerun \(--rerun\): expected the .json of an earlier run, got missing.json \(No such file or directory\)",
    ),
    (
        "a folder to rerun",
        ["--dataset", "digits"],
        {"rerun": "."},
        r"rerun \(--rerun\): expected the .json of an earlier run, got . \(Is a directory\)",
    ),
    (
        "a file to rerun that is none",
        ["--dataset", "digits", "--rerun", __file__],
        {},
        r"rerun \(--rerun\): expected the .json of an earlier run, got .*test_bad_input.py "
        r"\(it is no such file, or damaged\)",
    ),
    (
        "unknown flag",
        ["--dataset", "digits", "--batchsize", "4"],
        {},
        r"--batchsize: unknown flag; did you mean '--batch-size'.*",
    ),
    (
        "shortened flag",
        ["--dataset", "digits", "--batch=4"],
        {},
        r"--batch: unknown flag; did you mean .*'--batch-size'.*",
    ),
    (
        "stray word",
        ["digits"],
        {},
        r"'digits': expected flags and their values only; --help lists all flags",
    ),
    (
        "flag without a value",
        ["--dataset", "digits", "--batch-size"],
        {},
        r"argument --batch-size: expected one argument; --help lists all flags",
    ),
]


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(("arguments", "environ", "sentence"), [pytest.param(*row[1:], id=row[0]) for row in EARLY])
def test_found_before_anything_is_loaded(
    arguments: list[str], environ: dict[str, str], sentence: str, run_script: RunScript, tmp_path: Path
) -> None:
    done = run_script("main.py", "--output-path", tmp_path / "out", *arguments, **environ)
    assert_mistakes(done, sentence)


@pytest.mark.usefixtures("nothing_loaded")
def test_a_run_of_the_other_target_to_rerun(run_script: RunScript, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"target": "weight", "settings": {"dataset": "digits"}}')
    done = run_script("main.py", "--rerun", tmp_path / "run.json", "--output-path", tmp_path / "out")
    assert_mistakes(
        done, rf"rerun \(--rerun\): {tmp_path}/run.json is of a run with weight faults; give it to weight.py"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_that_is_absent(device: str, run_script: RunScript, tmp_path: Path) -> None:
    done = run_script("main.py", "--dataset", "digits", "--output-path", tmp_path, "--device", device)
    assert_mistakes(
        done,
        r"device \(--device\): expected auto, cpu or a CUDA device that is there \(no CUDA device\), "
        rf"got '{device}'",
    )


@pytest.mark.usefixtures("nothing_loaded")
def test_a_cuda_device_too_many(run_script: RunScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    done = run_script("main.py", "--dataset", "digits", "--output-path", tmp_path, "--device", "cuda:2")
    assert_mistakes(done, r"device .*that is there \(cuda:0 to cuda:1\), got 'cuda:2'")


@pytest.mark.parametrize(("capability", "lacks"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_tf32_on_a_gpu(capability: tuple[int, int], lacks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Tesla {number}")
    found = devices.check_precision("tf32", "cuda:1")
    assert bool(found) == lacks
    assert not devices.check_precision("tf32", "cuda:2"), "which is not there, as another sentence says"
    assert all(sentence.startswith("precision (--precision): expected ieee on Tesla 1, got") for sentence in found)


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_output_path_with_a_file_in_the_way(where: str, run_script: RunScript, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run_script("main.py", "--dataset", "digits", "--output-path", tmp_path / where)
    assert_mistakes(
        done,
        r"output_path \(--output-path\): expected a folder that can be written to, "
        rf"got {tmp_path / where} \((File exists|Not a directory)\)",
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("nothing_loaded")
def test_an_output_path_without_permission(
    run_script: RunScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission bits do not stop a root user, so the refusal is made here."""

    def denied(**_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    done = run_script("main.py", "--dataset", "digits", "--output-path", tmp_path)
    assert_mistakes(done, rf"output_path .*, got {tmp_path} \(Permission denied\)")


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("script", ["main.py", "neuron.py", "weight.py"])
def test_all_mistakes_are_reported_together(script: str, run_script: RunScript, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = [
        "--dataset=digits",
        "--model-name=vgg",
        "--img-size=0",
        "--channels=2",
        "--layer-type=Conv",
        "--colour=red",
    ]
    environ = {"batch_size": "0", "layer_num": "x", "bit_flip_pos": "32", "seed": "x", "weights": "none.pt"}
    done = run_script(script, *arguments, "--device", "tpu", "--output-path", tmp_path / "file", **environ)
    names = ["model_name", "img_size", "channels", "layer_type", "--colour", "batch_size", "layer_num", "bit_flip_pos"]
    assert_mistakes(done, *(f"{name}.*" for name in [*names, "seed", "weights", "device", "output_path"]))


def test_a_mistake_is_no_traceback_in_a_process_either(run_process: RunScript, tmp_path: Path) -> None:
    done = run_process("main.py", "--dataset", "digits", "--batch-size", "0", "--output-path", tmp_path)
    assert_mistakes(done, r"batch_size \(--batch-size\): expected a whole number of at least 1, got '0'")


# --- what shows only when model and images are there ---

LATE: list[tuple[str, list[str], str]] = [
    (
        "layer type that the model has not",
        ["--layer-type", "Conv2d,Conv3d,GELU"],
        r"layer_type \(--layer-type\): the model has no Conv3d, GELU layer; "
        r"valid: BatchNorm2d, Conv2d, Dropout, Identity, Linear, MaxPool2d, ReLU",
    ),
    (
        "layer number out of range",
        ["--layer-num", "3,24,99"],
        r"layer_num \(--layer-num\): expected numbers from 0 to 23 \(layer_type leaves 24 layers\), got 24, 99",
    ),
    (
        "many layer numbers out of range",
        ["--layer-num", "24-300"],
        r"layer_num \(--layer-num\): expected numbers from 0 to 23 \(.*\), got 24, 25, 26, 27, \.\.\., 300",
    ),
    (
        "layer number out of the range that layer_type leaves",
        ["--layer-type", "Linear", "--layer-num", "2"],
        r"layer_num \(--layer-num\): expected numbers from 0 to 1 \(layer_type leaves 2 layers\), got 2",
    ),
    (
        "no full batch",
        ["--drop-last", "--batch-size", "601"],
        r"batch_size \(--batch-size\): expected at most 600 with drop_last, the number of images",
    ),
    (
        "no full batch of fewer images",
        ["--drop-last", "--batch-size", "65", "--max-images=64"],
        r"batch_size \(--batch-size\): expected at most 64 with drop_last, the number of images",
    ),
    (
        "own model for another image size",
        ["--model-name", "MODULE:small", "--img-size", "33"],
        r"img_size, channels \(--img-size, --channels\): the model can't take 3 channels of 33 x 33 pixels: .*shapes.*",
    ),
    (
        "own model for another number of channels",
        ["--model-name", "MODULE:small", "--channels", "1"],
        r"img_size, channels \(--img-size, --channels\): the model can't take 1 channels of 32 x 32 pixels: .*shapes.*",
    ),
    (
        "own model with too few classes",
        ["--model-name", "MODULE:few"],
        r"model_name \(--model-name\): expected a classifier of 10 classes, whose output for one image has the shape "
        r"\(1, 10\), got \(1, 9\)",
    ),
    (
        "own model that is no classifier",
        ["--model-name", "MODULE:map"],
        r"model_name \(--model-name\): expected a classifier of 10 classes, .*, got \(1, 10, 1, 1\)",
    ),
    (
        "own model that returns a tuple",
        ["--model-name", "MODULE:pair"],
        r"model_name \(--model-name\): expected a classifier of 10 classes, .*, got tuple",
    ),
    (
        "own model without such a factory",
        ["--model-name", "MODULE:missing"],
        r"model_name \(--model-name\): MODULE:missing can't be built: AttributeError: .*",
    ),
    (
        "own model that fails",
        ["--model-name", "MODULE:broken"],
        r"model_name \(--model-name\): MODULE:broken can't be built: ZeroDivisionError: division by zero",
    ),
    (
        "own model that is a number",
        ["--model-name", "MODULE:number"],
        r"model_name \(--model-name\): expected MODULE:number to return an nn.Module, got int",
    ),
    (
        "own model that needs arguments",
        ["--model-name", "MODULE:needs"],
        r"model_name \(--model-name\): MODULE:needs can't be built: TypeError: .*missing.*'size'",
    ),
    (
        "no such package",
        ["--model-name", "no.such.package:build"],
        r"model_name \(--model-name\): no.such.package:build can't be built: ModuleNotFoundError: .*",
    ),
    (
        "bit 40 of a float32 model of one's own",
        ["--model-name", "MODULE:small", "--bit-flip-pos", "40"],
        r"bit_flip_pos \(--bit-flip-pos\): expected a bit from 0 to 31 of a value of 32 bits, .*, got 40",
    ),
    (
        "weights that are no state dict",
        ["--weights", "MODULE"],
        r"weights \(--weights\): MODULE is no state dict that can be loaded safely: .*",
    ),
]


@pytest.mark.usefixtures("nothing_run")
@pytest.mark.parametrize("script", ["main.py", "weight.py"])
@pytest.mark.parametrize(("arguments", "sentence"), [pytest.param(*row[1:], id=row[0]) for row in LATE])
def test_found_before_the_campaign(
    script: str, arguments: list[str], sentence: str, run_script: RunScript, tmp_path: Path
) -> None:
    module = tmp_path / "own.py"
    module.write_text(MODULE)
    given = [argument.replace("MODULE", str(module)) for argument in arguments]
    if script == "weight.py":  # no layer for the input image, and so one less
        sentence = sentence.replace("Identity, ", "").replace("to 23", "to 22").replace("leaves 24", "leaves 23")
    done = run_script(script, "--dataset", "digits", "--output-path", tmp_path / "out", *given)
    assert_mistakes(done, sentence.replace("MODULE", re.escape(str(module))))
    assert [*(tmp_path / "out").iterdir()] == []


def test_bit_40_of_a_float64_model_is_no_mistake(run_script: RunScript, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE)
    model = f"{tmp_path / 'own.py'}:double"
    done = run_script(
        "main.py", "--dataset=digits", "--output-path", tmp_path, f"--model-name={model}", "--bit-flip-pos=40"
    )
    assert (done.code, done.err) == (0, "")


@pytest.mark.usefixtures("nothing_run")
def test_weights_that_do_not_fit(run_script: RunScript, tmp_path: Path) -> None:
    """The sentence is short even when nothing fits."""
    weights = tmp_path / "other.pt"
    torch.save(nn.Linear(3, 4).state_dict(), weights)
    done = run_script("main.py", "--dataset", "digits", "--weights", weights, "--output-path", tmp_path / "out")
    assert_mistakes(done, rf"weights \(--weights\): {weights} does not fit the model: Missing key.*features.0.weight.*")
    assert len(done.err) < 700
    state = digits.build(7).state_dict()
    torch.save(state, weights)
    done = run_script("main.py", "--dataset", "digits", "--weights", weights, "--output-path", tmp_path / "out")
    assert_mistakes(done, rf"weights \(--weights\): {weights} does not fit the model: size mismatch for classifier.3.*")


@pytest.mark.usefixtures("nothing_run")
@pytest.mark.parametrize(
    ("dataset", "files"),
    [
        ("cifar10", r"cifar-10-python.tar.gz or the extracted cifar-10-batches-py there, or a folder per class"),
        ("cifar100", r"cifar-100-python.tar.gz or the extracted cifar-100-python there, or a folder per class"),
        ("imagenet", r"ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz there, or a folder per class .*"),
    ],
)
@pytest.mark.parametrize("there", ["empty", "absent", "other files"])
def test_missing_input_without_a_network(
    there: str, dataset: str, files: str, run_script: RunScript, tmp_path: Path, no_network: list[object]
) -> None:
    folder = tmp_path / "in"
    if there != "absent":
        folder.mkdir()
    if there == "other files":
        (folder / "notes").mkdir()
        (folder / "notes" / "read.me").touch()
        (folder / "archive.zip").touch()
    done = run_script("main.py", "--dataset", dataset, "--input-path", folder, "--output-path", tmp_path / "out")
    assert_mistakes(
        done,
        rf"input_path \(--input-path\): no (ImageNet|{dataset}) in {folder}.*; put {files}, "
        r"or try --dataset digits, which needs no data",
    )


@pytest.mark.usefixtures("nothing_run")
@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-100-python.tar.gz"])
def test_a_corrupt_archive(name: str, run_script: RunScript, tmp_path: Path, no_network: list[object]) -> None:
    (tmp_path / name).write_bytes(b"half of it")
    dataset = "cifar100" if "100" in name else "cifar10"
    done = run_script("main.py", "--dataset", dataset, "--input-path", tmp_path, "--output-path", tmp_path / "out")
    assert_mistakes(
        done,
        rf"input_path \(--input-path\): {tmp_path / name} is damaged \(md5 [0-9a-f]{{32}}, expected [0-9a-f]{{32}}\); "
        r"provide it again",
    )
    assert no_network == []


@pytest.mark.usefixtures("nothing_run")
@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_a_model_without_a_network(
    dataset: str,
    run_script: RunScript,
    tmp_path: Path,
    no_network: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(datasets, "load", lambda settings: digits.load("test", settings.img_size, 3))
    done = run_script("main.py", "--dataset", dataset, "--img-size", 32, "--output-path", tmp_path / "out")
    torchs_own_words, _, mistakes = done.err.partition("\n")
    assert torchs_own_words.startswith("Downloading: ")
    assert_mistakes(
        replace(done, err=mistakes),
        r"model_name \(--model-name\): .* can't be downloaded \(.*no network.*\); run where there is a network, or "
        r"give a local checkout with --hub-path \(CIFAR\) and a state dict with --weights, or try --dataset digits, "
        r"which needs no download",
    )
    assert no_network
