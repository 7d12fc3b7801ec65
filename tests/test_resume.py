"""A run that is killed, interrupted or refused is gone on with, and ends in the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, FewDigits, Finished, RunScript
from killing import Run
from torch.utils.data import TensorDataset

from bitflip.campaign.executor import Here
from bitflip.data import datasets, digits
from bitflip.faults.flips import TargetKind
from bitflip.faults.tasks import Task
from bitflip.network import devices, models
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.results import provenance

VERSIONS = provenance.versions()
TARGETS = pytest.mark.parametrize("target", ["neuron", "weight"])
KILLED = -9
LOGS = ("--detailed-log", "--fault-table", "--no-plots")
FEW_LAYERS = ("--engine=reference", "--layer-num=0,8,19", "--bit-flip-pos=1")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that runs are forked from find the tests' modules and the package."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run_in(folder: Path, target: TargetKind, *arguments: str, images: int = 60) -> Run:
    """A run whose results go to a folder that is not there yet."""
    return Run(target, folder, (*FEW_LAYERS, *LOGS, *arguments), images)


# --- killed ---


@TARGETS
def test_killed_at_random_moments(target: TargetKind, tmp_path: Path) -> None:
    """26 times: at any time, or just before it opens, renames, removes or cuts a file."""
    whole, killed = (run_in(tmp_path / name, target, "--batch-size=2") for name in ("whole", "killed"))
    whole.finish()
    moments = random.Random(target)
    while killed.codes.count(KILLED) < 26 and len(killed.codes) < 60:
        killed.ended(killed.start(die_before=moments.randint(1, 24)))
        killed.killed_after(moments.uniform(0.0, 0.3))  # a fast machine may have finished by then, and starts over
    assert killed.codes.count(KILLED) >= 26, killed.said
    killed.killed_late()
    killed.finish()
    assert "going on after" in killed.said
    assert killed.files() == whole.files()


@pytest.mark.parametrize("what", ["a list of neurons", "a list of weights", "with a margin"])
def test_any_kind_of_run_killed_at_random_moments(what: str, tmp_path: Path) -> None:
    """They all go down one road."""
    target: TargetKind = "weight" if "weights" in what else "neuron"
    whole, killed = (run_in(tmp_path / name, target, "--batch-size=2", images=24) for name in ("whole", "killed"))
    if "list" in what:
        saving = run_in(tmp_path / "saving", target, "--batch-size=2", f"--save-faults={tmp_path / 'saved.csv'}")
        saving.images = 24
        saving.finish()
        for run in (whole, killed):
            run.listed = "saved"
            run.arguments = ("--engine=reference", f"--faults={tmp_path / 'saved.csv'}", "--batch-size=2", *LOGS)
    else:
        for run in (whole, killed):
            run.arguments = (*run.arguments, "--margin=12")
    whole.finish()
    moments = random.Random(what)
    while killed.codes.count(KILLED) < 8 and len(killed.codes) < 20:
        killed.ended(killed.start(die_before=moments.randint(1, 24)))
        killed.killed_after(moments.uniform(0.0, 0.3))
    assert killed.codes.count(KILLED) >= 8, killed.said
    killed.killed_late()
    killed.finish()
    assert "going on after" in killed.said
    assert killed.files() == whole.files()


@TARGETS
def test_killed_before_each_file_operation(target: TargetKind, tmp_path: Path) -> None:
    """From the first one to the last, each time a little further on, until there is none left to die before."""
    whole, killed = (run_in(tmp_path / name, target, "--batch-size=20", images=40) for name in ("whole", "killed"))
    whole.finish()
    step = 3
    before = {"neuron": 1, "weight": 2}[target]
    while killed.ended(killed.start(die_before=before)) == KILLED:
        before += step
    assert killed.codes[-1] == 0, killed.said
    assert before > 40
    assert killed.files() == whole.files()


def test_killed_as_a_process_of_its_own(tmp_path: Path) -> None:
    """While it imports, and in the middle of its batches; with the wave."""
    arguments = ("--layer-num=8,19", "--bit-flip-pos=1", "--batch-size=8", "--pool-mib=1", *LOGS)
    whole, killed = (
        Run("neuron", tmp_path / name, arguments, images=600, save_every=0.5) for name in ("whole", "some")
    )
    whole.finish()
    command = [sys.executable, str(ROOT / "main.py"), "--dataset=digits", "--seed=5", f"--output-path={killed.folder}"]
    for until in (killed.folder, killed.progress):
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not until.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        _, said = process.communicate()
        assert process.returncode == KILLED, said
    killed.finish()
    assert re.search(r"^going on after [1-9]\d* of 600 images$", killed.said, flags=re.M)
    assert killed.files() == whole.files()


# --- interrupted, or refused ---


def interrupted_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come after so many batches of a campaign."""
    run = Here.run

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[tuple[Task, BatchOutcomes]]:
        yield from itertools.islice(run(*args, **kwargs), batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(Here, "run", interrupted)


def files(folder: Path) -> dict[str, bytes]:
    """The files in a folder but the ``.json``, which hold times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


@dataclass
class Interrupted:
    """A run that was interrupted after some of its batches, in ``folder``, and can be gone on with."""

    run_script: RunScript
    script: str
    folder: Path
    arguments: tuple[str, ...]

    def go_on(self, *arguments: str) -> Finished:
        """The same command again, with further arguments."""
        return self.run_script(self.script, *self.arguments, "--output-path", self.folder, *arguments)


SCRIPTS = pytest.mark.parametrize("script", ["main.py", "weight.py"])
MAIN_ONLY = pytest.mark.parametrize("script", ["main.py"])


@pytest.fixture
def interrupted(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Interrupted:
    """A run of 64 images, interrupted after two batches."""
    few_digits(64)
    arguments = (
        "--dataset=digits",
        "--seed=5",
        "--layer-num=1,8",
        "--batch-size=8",
        "--bit-flip-pos=1",
        "--pool-mib=1",
    )
    run = Interrupted(run_script, script, tmp_path / "out", (*arguments, *LOGS))
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert run.go_on().code == 130
    assert any(path.name.endswith("_partial.csv") for path in run.folder.iterdir())
    return run


@SCRIPTS
def test_ctrl_c_and_on(script: str, interrupted: Interrupted, run_script: RunScript, tmp_path: Path) -> None:
    """The partial results are gone once there are whole ones."""
    done = interrupted.go_on()
    assert done.code == 0
    assert re.search(r"^going on after \d+ of 64 images$", done.err, flags=re.M)
    run_script(script, *interrupted.arguments, "--output-path", tmp_path / "whole")
    assert files(interrupted.folder) == files(tmp_path / "whole")


@MAIN_ONLY
@pytest.mark.parametrize("argument", ["--pool-mib=200", "--plots", "--device=cpu"])
def test_what_changes_no_result_may_change(
    argument: str, interrupted: Interrupted, run_script: RunScript, tmp_path: Path
) -> None:
    """With more memory, other batches would be run together; the run goes on as it began."""
    assert interrupted.go_on(argument).code == 0
    run_script("main.py", *interrupted.arguments, "--output-path", tmp_path / "whole")
    written = files(interrupted.folder)
    assert {name: written[name] for name in files(tmp_path / "whole")} == files(tmp_path / "whole")


@MAIN_ONLY
@pytest.mark.parametrize(
    ("argument", "differs"),
    [
        ("--batch-size=4", "batch_size 8 there, 4 here"),
        ("--bit-flip-pos=2", "bit_flip_pos 1 there, 2 here"),
        ("--layer-num=1", "layer_num 1,8 there, 1 here"),
        ("--repeats=2", "repeats 1 there, 2 here"),
        ("--drop-last", "drop_last False there, True here"),
        ("--no-fault-table", "fault_table True there, False here"),
        ("--confidence=0.9", "confidence 0.95 there, 0.9 here"),
        ("--margin=5", "margin None there, 5.0 here"),
    ],
)
def test_other_settings_are_refused_before_anything_slow(
    argument: str, differs: str, interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(interrupted.folder / "digits_vgg_digits_5.unfinished")
    with monkeypatch.context() as patch:
        for module in (datasets, models):
            patch.setattr(module, "load", lambda *_: pytest.fail("this must not be started"))
        done = interrupted.go_on(argument)
    assert (done.code, done.out) == (2, "")
    unfinished = interrupted.folder / "digits_vgg_digits_5.unfinished"
    assert done.err == (
        f"error: output_path (--output-path): {unfinished} holds an unfinished run with other settings ({differs}); go "
        "on with those, give --fresh to start over, or choose another folder\n"
    )
    assert files(unfinished) == before


@MAIN_ONLY
def test_other_weights_are_refused(interrupted: Interrupted, tmp_path: Path) -> None:
    weights = digits.build().state_dict()
    torch.save(weights, tmp_path / "other.pt")
    done = interrupted.go_on(f"--weights={tmp_path / 'other.pt'}")
    assert done.code == 2
    assert "holds an unfinished run with other settings (other model sha256); go on with those" in done.err


@MAIN_ONLY
@pytest.mark.parametrize("what", ["pixels", "labels"])
def test_other_images_are_refused(what: str, interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of them as before, under the same names."""
    images, labels = digits.load("test").tensors
    pixels, names = (images * 0.99, labels) if what == "pixels" else (images, labels.roll(1))
    other = TensorDataset(pixels, names)
    monkeypatch.setattr(digits, "load", lambda *_: other)
    done = interrupted.go_on()
    assert done.code == 2
    assert "holds an unfinished run with other settings (other pixels and labels); go on with those" in done.err


@pytest.mark.parametrize("changed", ["net.py", "inner/blocks.py"])
def test_other_code_of_the_model_is_refused(
    changed: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a module beside its file, which that imports; a file that it does not import may change."""
    few_digits(40)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "__init__.py").touch()
    (tmp_path / "inner" / "blocks.py").write_text("SCALE = 1.0\n")
    (tmp_path / "other.py").write_text("SCALE = 1.0\n")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nfrom inner.blocks import SCALE\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.linear = nn.Linear(3072, 10)\n"
        "    def forward(self, x):\n        return self.linear(SCALE * x.flatten(1))\n\n"
        "def build():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    arguments = ["--dataset=digits", f"--model-name={tmp_path / 'net.py'}:build", "--seed=5", "--batch-size=8"]
    arguments += ["--engine=reference", "--output-path", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert run_script("main.py", *arguments).code == 130
    before = (tmp_path / changed).read_text()
    (tmp_path / changed).write_text(before + "# changed\n")
    done = run_script("main.py", *arguments)
    assert done.code == 2
    assert "holds an unfinished run with other settings (other code of the model); go on with those" in done.err
    (tmp_path / changed).write_text(before)
    (tmp_path / "other.py").write_text("SCALE = 2.0\n")
    assert run_script("main.py", *arguments).code == 0


@MAIN_ONLY
def test_another_version_is_refused(interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch may round otherwise, or sample other images."""
    monkeypatch.setattr(provenance, "versions", lambda: {**VERSIONS, "torch": "9.0"})
    done = interrupted.go_on()
    assert done.code == 2
    assert f"(torch version {VERSIONS['torch']} there, 9.0 here)" in done.err


@MAIN_ONLY
def test_other_kernels_are_refused(interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another instruction set, or number of threads, adds up in another order."""
    before = devices.kernels()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    after = devices.kernels()
    assert "ONEDNN_MAX_CPU_ISA=SSE41" in after
    done = interrupted.go_on()
    assert done.code == 2
    assert f"(device cpu ({before}) there, cpu ({after}) here)" in done.err


@MAIN_ONLY
def test_fresh_starts_over(interrupted: Interrupted, run_script: RunScript, tmp_path: Path) -> None:
    done = interrupted.go_on("--fresh", "--bit-flip-pos=2")
    assert done.code == 0
    assert "going on" not in done.err
    run_script("main.py", *interrupted.arguments, "--bit-flip-pos=2", "--output-path", tmp_path / "whole")
    assert files(interrupted.folder) == files(tmp_path / "whole")


@SCRIPTS
def test_on_with_a_margin(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in every round: which layers are still run is decided as in an uninterrupted run."""
    few_digits(24)
    arguments = ["--dataset=digits", "--seed=1", "--layer-num=1,8,20", "--batch-size=8", *LOGS]
    arguments += [f"--margin={8 if script == 'main.py' else 20}", "--engine=reference", "--bit-flip-pos=1"]
    whole = run_script(script, *arguments, "--output-path", tmp_path / "whole")
    assert whole.code == 0
    codes: list[int] = []
    while not codes or codes[-1] == 130:
        with monkeypatch.context() as patch:
            interrupted_after(2, patch)
            codes.append(run_script(script, *arguments, "--output-path", tmp_path / "out").code)
    assert codes[-1] == 0
    assert len(codes) >= 3
    assert files(tmp_path / "out") == files(tmp_path / "whole")


# --- run again ---


@SCRIPTS
@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed=5", "--bit-sampling=importance", "--repeats=2", "--layer-type=Conv2d,Linear", "--layer-num=0,5"),
        ("--seeds=3,7-8", "--confidence=0.9", "--drop-last", "--engine=reference", "--layer-num=1,8"),
    ],
    ids=["importance", "seeds"],
)
def test_rerun_gives_the_same_bytes(
    arguments: tuple[str, ...], script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    """Of several seeds, each has a ``.json`` of its own; nothing is said where nothing has changed."""
    few_digits(70)
    common = ("--dataset=digits", "--batch-size=16", *LOGS)
    first = run_script(script, *common, *arguments, "--output-path", tmp_path / "first")
    assert (first.code, first.err) == (0, "")
    facts = sorted((tmp_path / "first").glob("*.json"))
    assert len(facts) == (3 if "--seeds=3,7-8" in arguments else 1)
    for file in facts:
        done = run_script(script, "--rerun", file, "--output-path", tmp_path / "again")
        assert (done.code, done.err) == (0, "")
    assert files(tmp_path / "again") == files(tmp_path / "first")


@MAIN_ONLY
def test_a_rerun_says_what_is_not_as_it_was(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    """In one line, and the command line has the last word on the settings."""
    few_digits(10)
    run_script(script, "--dataset=digits", "--seed=5", "--layer-num=1,8", *LOGS, "--output-path", tmp_path)
    file = tmp_path / "digits_vgg_digits_5.json"
    facts = json.loads(file.read_text())
    facts["versions"]["torch"] = "1.0"
    facts["device"] = "cuda:0 (some GPU)"
    facts["model"]["sha256"] = "00ff" * 16
    file.write_text(json.dumps(facts))
    done = run_script(script, "--rerun", file, "--layer-num=8", "--output-path", tmp_path / "again")
    assert done.code == 0
    (line,) = done.err.splitlines()
    now = json.loads((tmp_path / "again" / file.name).read_text())
    assert line == (
        f"not as in {file}, so the results may differ: device cuda:0 (some GPU) then, {now['device']} now, model "
        f"sha256 00ff00ff00ff... then, {now['model']['sha256'][:12]}... now, torch 1.0 then, {VERSIONS['torch']} now"
    )
    assert now["settings"]["layer_num"] == "8"
