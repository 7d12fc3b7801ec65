"""The commands that a page gives for repeating a run make that run again."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from conftest import FewDigits, RunScript

from bitflip import report
from bitflip.report import page

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")

RUNS = {
    "neurons": ["neuron.py", "--repeats=2", "--layer-num=1,4", "--bit-flip-pos=1"],
    "weights": ["weight.py", "--batch-size=10", "--parameters=weight,bias", "--layer-type=Conv2d,Linear"],
    "importance": ["main.py", "--bit-sampling=importance", "--confidence=0.9", "--layer-num=0-5"],
    "margin": ["main.py", "--margin=20", "--layer-num=3"],
    "bounds": ["main.py", "--prove", "--audit=0.5", "--layer-type=Linear"],
    "another fault": [
        "main.py",
        "--fault=burst:3",
        "--layer-num=2",
        "--max-images=12",
        "--batch-size=5",
        "--drop-last",
    ],
    "protected": ["main.py", "--protect=relu6", "--layer-num=3"],
    "another format": ["weight.py", "--number-format=bfloat16", "--layer-num=1"],
}


def commands(html: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<pre><code>(.*?)</code></pre>", html)]


def parsed_by_a_shell(line: str) -> list[list[str]]:
    """The arguments of each ``python`` of a command line."""
    python = r"""python() { printf '%s\0' "$@"; printf '\n'; }"""
    done = subprocess.run(["sh", "-c", f"{python}; {line}"], check=True, capture_output=True, text=True)
    return [call.rstrip("\0").split("\0") for call in done.stdout.splitlines()]


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".csv"}


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_both_commands_of_a_page_make_the_run_again(
    arguments: list[str], tmp_path: Path, few_digits: FewDigits, run_script: RunScript
) -> None:
    few_digits(24)
    folder = tmp_path / "it's $HOME here"  # which a shell would take for something else
    script, *flags = arguments
    assert run_script(script, "--dataset=digits", "--seed=7", f"--output-path={folder}", *flags).code == 0
    before = tables(folder)
    (facts,) = folder.glob("*_7.json")
    given = commands(page.html(report.read(facts.with_suffix(".csv"))))
    assert len(given) == 2
    for line in reversed(given):
        if "--rerun" not in line:
            empty(folder)
        (arguments,) = parsed_by_a_shell(line)
        assert arguments[0] == script
        assert run_script(*arguments).code == 0
        assert tables(folder) == before


@pytest.mark.parametrize("more", [[], ["--limit=9", "--seed=3"]], ids=["all", "some"])
def test_a_list_is_run_again(more: list[str], tmp_path: Path, few_digits: FewDigits, run_script: RunScript) -> None:
    few_digits(24)
    faults, folder = tmp_path / "a list.csv", tmp_path / "out"
    saving = ("--dataset=digits", "--seed=1", "--layer-num=4", f"--save-faults={faults}", f"--output-path={tmp_path}")
    assert run_script("main.py", *saving).code == 0
    assert run_script("main.py", "--dataset=digits", f"--output-path={folder}", f"--faults={faults}", *more).code == 0
    (facts,) = folder.glob("*.json")
    before = tables(folder)
    for line in commands(page.html(report.read(facts.with_suffix(".csv")))):
        assert run_script(*parsed_by_a_shell(line)[0]).code == 0
        assert tables(folder) == before


@pytest.mark.parametrize("more", [[], ["--margin=30"]], ids=["at once", "each to its margin"])
def test_all_joined_seeds_are_made_again(
    more: list[str], tmp_path: Path, few_digits: FewDigits, run_script: RunScript
) -> None:
    few_digits(20)
    folder = tmp_path / "two words"
    shared = ("--dataset=digits", "--layer-num=2,23", f"--output-path={folder}")
    for seed in (3, 4, 7):
        assert run_script("main.py", *shared, f"--seed={seed}", *more).code == 0
    runs = [report.read(folder / f"digits_vgg_digits_{seed}.csv") for seed in (3, 4, 7)]
    (line,) = commands(page.html(report.join(runs, tmp_path)))
    before = tables(folder)
    empty(folder)
    for given in parsed_by_a_shell(line):
        assert run_script(*given).code == 0
    assert tables(folder) == before
