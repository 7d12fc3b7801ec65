"""A setting that can have no effect is refused, before anything is loaded where that shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FewDigits, RunScript, random_images
from torch import nn
from torch.utils.data import TensorDataset

import bitflip
from bitflip.__main__ import main
from bitflip.data import datasets
from bitflip.errors import BadInput
from bitflip.network import models

LIST = "target,layer,call,index,bit,image\nneuron,features.0,0,0;0;0,1,0\n"

# id, script, arguments, environment, sentence
IDLE = [
    (
        "parameters of neurons",
        "main.py",
        ["--parameters=bias"],
        {},
        "parameters (--parameters): expected weight with faults of neurons, got bias",
    ),
    (
        "bits that are drawn where there is one",
        "weight.py",
        ["--bit-sampling=importance"],
        {"bit_flip_pos": "1"},
        "bit_sampling (--bit-sampling): expected uniform with one bit (bit_flip_pos), which is not drawn, got "
        "importance",
    ),
    (
        "memory of the wave for the reference engine",
        "main.py",
        ["--engine=reference", "--pool-mib=1"],
        {},
        "pool_mib (--pool-mib): expected no value with engine (--engine) reference, got 1",
    ),
    (
        "a folder for the shipped digits",
        "main.py",
        ["--input-path=mine"],
        {},
        "input_path (--input-path): expected no value with dataset (--dataset) digits, which come with the package, "
        "got mine",
    ),
    (
        "a checkout of other models",
        "main.py",
        ["--hub-path=CHECKOUT"],
        {},
        "hub_path (--hub-path): expected no value with digits_vgg on digits, which does not come from there, got "
        "CHECKOUT",
    ),
    (
        "a seed of a whole list",
        "main.py",
        ["--faults=LIST"],
        {"seed": "3"},
        "seed (--seed): expected no value with faults (--faults) without limit (--limit), got 3",
    ),
    (
        "two names of a setting on the command line",
        "main.py",
        ["--layer-num=1", "--layer_nums=1"],
        {},
        "layer_num (--layer-num): expected either layer_num or layer_nums, got both",
    ),
    (
        "two names of a setting in the environment",
        "main.py",
        [],
        {"layer_num": "1", "layer_nums": "2"},
        "layer_num (--layer-num): expected either layer_num or layer_nums, got both",
    ),
    (
        "some types among all",
        "main.py",
        ["--layer-type=all,Conv2d"],
        {},
        "layer_type (--layer-type): expected 'all' or names, got 'all,Conv2d'",
    ),
    (
        "some parameters among all",
        "weight.py",
        ["--parameters=weight,all"],
        {},
        "parameters (--parameters): expected 'all' or names of parameter tensors, comma-separated, got 'weight,all'",
    ),
]


@pytest.mark.parametrize(
    ("script", "arguments", "environ", "sentence"), [pytest.param(*row[1:], id=row[0]) for row in IDLE]
)
def test_what_has_no_effect_is_refused(
    script: str,
    arguments: list[str],
    environ: dict[str, str],
    sentence: str,
    run_script: RunScript,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (datasets, models):
        monkeypatch.setattr(module, "load", lambda *_: pytest.fail("this must not be started"))
    (tmp_path / "list.csv").write_text(LIST)
    (tmp_path / "hubconf.py").touch()
    places = {"LIST": str(tmp_path / "list.csv"), "CHECKOUT": str(tmp_path)}
    for word, place in places.items():
        arguments, sentence = [text.replace(word, place) for text in arguments], sentence.replace(word, place)
    done = run_script(script, "--dataset=digits", "--output-path", tmp_path / "out", *arguments, **environ)
    assert (done.code, done.out, done.err) == (2, "", f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--layer-type=ReLU"], "a weight, got ALL of type ReLU"),
        (["--layer-type=ReLU,MaxPool2d", "--layer-num=0,1"], "a weight, got 2 of type MaxPool2d, ReLU"),
        (["--parameters=bias,weight", "--layer-num=2"], "a bias or weight, got 1 of type ReLU"),
        (["--parameters=all", "--layer-num=2"], "a parameter, got 1 of type ReLU"),
    ],
)
@pytest.mark.parametrize("command", ["weight", "plan"])
def test_layers_without_anything_to_strike(
    command: str,
    arguments: list[str],
    sentence: str,
    few_digits: FewDigits,
    digits_model: nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few_digits(10)
    more = ["--output-path", str(tmp_path / "out")] if command == "weight" else ["--target=weight"]
    count = sum(isinstance(module, nn.ReLU) for module in digits_model.modules())
    assert main([command, "--dataset=digits", *arguments, *more]) == 2
    expected = f"at least one layer that has {sentence.replace('ALL', str(count))}"
    assert capsys.readouterr().err == (
        f"error: layer_type, layer_num (--layer-type, --layer-num): expected {expected}\n"
    )


def test_layers_that_lack_it_beside_others_say_what_they_lack(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(10)
    arguments = ("--dataset=digits", "--layer-num=1,2,3", f"--output-path={tmp_path}", "--seed=1")
    done = run_script("weight.py", *arguments, "--parameters=bias")
    lines = [line for line in done.out.splitlines() if line.startswith("Layer #")]
    assert [line.partition(":")[0] for line in lines] == ["Layer #1", "Layer #2 has no bias", "Layer #3 has no bias"]


def test_a_plan_does_not_take_what_it_would_ignore(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--dataset=digits", "--bit-sampling=importance"])
    assert end.value.code == 2
    assert "unrecognized arguments: --bit-sampling=importance" in capsys.readouterr().err


def test_in_a_program(tiny: nn.Module) -> None:
    campaign = bitflip.Campaign(tiny, TensorDataset(random_images(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)))
    with pytest.raises(BadInput, match=r"^bit_sampling \(--bit-sampling\): expected uniform with one bit"):
        campaign.run(bitflip.Sampled(bit=1, bit_sampling="importance"))
