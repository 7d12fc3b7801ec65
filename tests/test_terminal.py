"""What a run says: the short table at its end, and to readers that do not stay."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from bitflip.terminal import MOST, Line, is_pretty, most_fragile

LINES = [Line(f"#{i} Conv2d (path features.{i})", float(i % 7), i % 7 / 2, i % 7 * 1.5) for i in range(20)]


@pytest.mark.parametrize("pretty", [False, True], ids=["plain", "pretty"])
def test_the_most_fragile_come_first_in_the_order_of_the_network(pretty: bool) -> None:
    text = most_fragile(LINES, pretty=pretty, width=80)
    shown = [int(number) for number in re.findall(r"#(\d+)", text)]
    assert shown == sorted(range(20), key=lambda i: (-(i % 7), i))[:MOST]


def test_plain_lines_hold_nothing_but_ascii() -> None:
    text = most_fragile([*LINES, Line("#20 ReLU (path " + "a.very.long.path." * 20 + ")", 50.0)])
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert "a.very.long.path." * 20 in text


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_pretty_lines_fit_the_terminal(width: int) -> None:
    lines = [*LINES, Line("#20 BatchNorm2d (path " + "a.very.long.path." * 20 + ")", 50.0, 40.0, 60.0)]
    shown = re.sub(r"\x1b\[\d+m", "", most_fragile(lines, pretty=True, width=width))
    longest = max(map(len, shown.splitlines()))
    assert longest <= max(width, 80)  # numbers are never cut


def test_a_name_can_not_command_the_terminal() -> None:
    assert "\x1b" not in most_fragile([Line("#0 \x1b[2J (path \x1b]0;x\x07)", 1.0)])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        ([Line("#0 ReLU (path a)", None)], "  1 of 1 layers with 0 / 0, nothing to divide by"),
        ([Line("#0 ReLU (path a)", 0.0)], "  1 of 1 layers without a misclassification"),
    ],
    ids=["no layer", "no rate", "no misclassification"],
)
def test_nothing_to_show(lines: list[Line], expected: str) -> None:
    assert most_fragile(lines) == expected


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("encoding", "environ", "expected"),
    [
        ("utf-8", {}, True),
        ("utf-8", {"NO_COLOR": "1"}, False),
        ("utf-8", {"TERM": "dumb"}, False),
        ("ascii", {}, False),
    ],
    ids=["terminal", "NO_COLOR", "dumb", "ascii"],
)
def test_colours_are_for_terminals_that_want_them(encoding: str, environ: dict[str, str], expected: bool) -> None:
    assert is_pretty(Screen(io.BytesIO(), encoding=encoding), environ) == expected
    assert not is_pretty(io.TextIOWrapper(io.BytesIO(), encoding=encoding), environ)


@pytest.mark.parametrize("lines", [0, 1], ids="after line {}".format)
def test_a_reader_that_leaves_early_ends_no_run(lines: int, tmp_path: Path) -> None:
    """As in ``main.py | head -1``, and in ``2>&1 | head -1``."""
    command = [sys.executable, "main.py", "--dataset=digits", "--layer-num=1", "--seed=1", f"--output-path={tmp_path}"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.stdout is not None
    for _ in range(lines):
        run.stdout.readline()
    run.stdout.close()
    assert run.wait(timeout=120) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"digits_vgg_digits_1.csv", "digits_vgg_digits_1.json", "digits_vgg_digits_1.html"} <= names
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell and pseudo-terminals")
def test_a_run_without_readers(tmp_path: Path) -> None:
    """With its output closed, and in a terminal that is closed meanwhile."""
    command = f"{sys.executable} main.py --dataset=digits --layer-num=1 --seed=1 --no-plots --output-path="
    assert subprocess.run(f"{command}{tmp_path / 'closed'} >&- 2>&-", shell=True, cwd=ROOT, timeout=120).returncode == 0
    ours, theirs = os.openpty()
    run = subprocess.Popen([*f"{command}{tmp_path / 'terminal'}".split()], cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    assert run.wait(timeout=120) == 0
    for name in ("closed", "terminal"):
        assert (tmp_path / name / "digits_vgg_digits_1.json").is_file()


def test_a_reader_that_leaves_early_changes_no_exit_code() -> None:
    for command, code in (("main.py --seed=x", 2), ("-m bitflip verify", 2), ("main.py --help", 0)):
        run = subprocess.Popen(
            [sys.executable, *command.split()], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert run.stdout is not None
        run.stdout.close()
        assert run.wait(timeout=120) == code, command
