"""A run that is killed, interrupted or refused is gone on with, and ends in the same bytes."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from killing import Run

from bitflip.faults import Target

TARGETS = pytest.mark.parametrize("target", ["neuron", "weight"])
KILLED = -9
LOGS = ("--detailed-log", "--fault-table", "--no-plots")
FEW_LAYERS = ("--engine=reference", "--layer-num=0,8,19", "--bit-flip-pos=1")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that runs are forked from find the tests' modules and the package."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run_in(folder: Path, target: Target, *arguments: str, images: int = 60) -> Run:
    """A run whose results go to a folder that is not there yet."""
    return Run(target, folder, (*FEW_LAYERS, *LOGS, *arguments), images)


# --- killed ---


@TARGETS
def test_killed_at_random_moments(target: Target, tmp_path: Path) -> None:
    """26 times: at any time, or just before it opens, renames, removes or cuts a file."""
    whole, killed = (run_in(tmp_path / name, target, "--batch-size=2") for name in ("whole", "killed"))
    whole.finish()
    moments = random.Random(target)
    for _ in range(13):
        killed.ended(killed.start(die_before=moments.randint(1, 24)))
        killed.killed_after(moments.uniform(0.0, 0.3))
    assert killed.codes == [KILLED] * 26, killed.said
    killed.finish()
    assert "going on after" in killed.said
    assert killed.files() == whole.files()


@TARGETS
def test_killed_before_each_file_operation(target: Target, tmp_path: Path) -> None:
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
    arguments = ("--layer-num=8,19", "--bit-flip-pos=1", "--batch-size=2", "--pool-mib=1", *LOGS)
    whole, killed = (
        Run("neuron", tmp_path / name, arguments, images=600, save_every=0.5) for name in ("whole", "some")
    )
    whole.finish()
    command = [sys.executable, str(ROOT / "main.py"), "--dataset=digits", "--seed=5", f"--output-path={killed.folder}"]
    unfinished = killed.folder / f"{killed.stem}.unfinished"
    for until in (killed.folder, unfinished / "counts.npz"):
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not until.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        _, said = process.communicate()
        assert process.returncode == KILLED, said
    killed.finish()
    assert re.search(r"^going on after [1-9]\d* of 600 images$", killed.said, flags=re.M)
    assert killed.files() == whole.files()
