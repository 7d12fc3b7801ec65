"""How far a run is: on a terminal, on a pipe, and while a sweep is under way."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from bitflip.campaign import meter
from bitflip.campaign.meter import Meter

# As a script does, but with lines at once instead of after ten seconds.
START = """
import sys
from bitflip.campaign import meter
from bitflip.commands.run import main
meter.SOON = meter.REDRAWN = 0.0
sys.exit(main("neuron", "", sys.argv[1:]))
"""
ARGUMENTS = ["--dataset=digits", "--batch-size=100"]
ERROR_RATES = [*ARGUMENTS, "--bit-error-rate=1e-6,1e-4", "--repeats=1"]


def command(folder: Path, arguments: list[str]) -> list[str]:
    return [sys.executable, "-c", START, *arguments, f"--output-path={folder}"]


def on_terminal(arguments: list[str]) -> str:
    """What a process writes on a terminal as its stderr."""
    fcntl, termios = (pytest.importorskip(name) for name in ("fcntl", "termios"))
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a new one has no columns
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        said = bytearray()
        try:
            while some := os.read(ours, 1 << 16):
                said += some
        except OSError:  # Linux says EIO when nobody writes any more
            pass
        os.close(ours)
        assert process.wait(timeout=60) == 0, said.decode()
    return said.decode()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
@pytest.mark.parametrize("arguments", [ARGUMENTS, ERROR_RATES], ids=["flips", "error rates"])
def test_a_terminal_shows_a_bar_that_moves(arguments: list[str], tmp_path: Path) -> None:
    said = on_terminal(command(tmp_path, arguments))
    shares = [int(share) for share in re.findall(r"\r *(\d+)%\|", said)]
    assert shares == sorted(shares)
    assert len(set(shares)) > 5
    assert shares[-1] == 100
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", said), "time that is left"
    assert re.search(r"misclassified \d+\.\d{3} %", said), "the running rate"


@pytest.mark.parametrize("arguments", [ARGUMENTS, ERROR_RATES], ids=["flips", "error rates"])
def test_a_pipe_gets_plain_lines(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if " faulty images, " in line]
    shares = [float(line.split(" %")[0]) for line in lines]
    assert shares == sorted(shares)
    assert len(set(shares)) > 5
    assert shares[-1] == 100
    assert re.search(r"\d\d:\d\d gone, about \d\d:\d\d left, misclassified \d+\.\d{3} %", lines[-1])


def test_lines_come_every_ten_seconds_at_first_and_later_every_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level("INFO", logger=meter.__name__)
    came = []
    with Meter(1000) as shown:
        for second in range(300):
            now = float(second)
            before = len(caplog.records)
            shown.advance(1)
            if len(caplog.records) > before:
                came.append(second)
    assert came == [10, 20, 30, 40, 50, 60, 120, 180, 240]
    # 241 of 1000 in 240 s leave 759, which take 755 s.
    assert caplog.messages[-1] == "24.1 % of 1,000 faulty images, 04:00 gone, about 12:35 left"


def test_what_an_earlier_start_has_run_does_not_shorten_the_time_that_is_left() -> None:
    with Meter(1000, 500, bar=False) as shown:
        shown.advance(100)
        assert shown.line(60.0) == "60.0 % of 1,000 faulty images, 01:00 gone, about 04:00 left"
