"""What the documentation shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, RunScript

from bitflip import __main__ as program

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)


def test_the_page_about_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update_golden: bool) -> None:
    """Block after block, each printing what the block behind it says."""
    page = ROOT / "docs" / "library.md"
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "a notebook"}
    blocks = list(BLOCK.finditer(text))
    shown = []
    for block, behind in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block[2], page.name, "exec"), names)
        said = behind if behind is not None and behind[1] == "" else None
        assert said or not printed.getvalue()
        shown.append((said, printed.getvalue()))
    assert len(shown) == 11
    assert (tmp_path / "heatmap.png").stat().st_size > 0
    if update_golden:
        for said, now in reversed(shown):
            if said is not None:
                text = text[: said.start(2)] + now + text[said.end(2) :]
        page.write_text(text)
        return
    assert [said[2] for said, _ in shown if said is not None] == [now for said, now in shown if said is not None]


_TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
TUTORIAL = re.findall(r"```sh\npython ([^\n]+)\n```\n\n```\n(.*?)```", _TUTORIAL, re.S)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
POINTS = 0.7  # that rates and their intervals may differ where other kernels tip images that are nearly tied
MACHINES = re.compile(r"digits_vgg on digits: |.* (s|min)$")  # what lines begin or end with that tell of time and place


@pytest.mark.parametrize(("command", "shown"), TUTORIAL, ids=[command for command, _ in TUTORIAL])
def test_the_tutorial_prints_what_it_shows(
    command: str,
    shown: str,
    tmp_path: Path,
    run_script: RunScript,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Line by line, in the same order, but for what other kernels may do to the numbers."""
    monkeypatch.chdir(tmp_path)
    script, *flags = command.replace("-m bitflip ", "").split()
    if script.endswith(".py"):
        done = run_script(script, *flags)
        assert done.code == 0
        printed = done.out
    else:
        assert program.main([script, *flags]) == 0
        printed = capsys.readouterr().out
    expected = [line for line in shown.splitlines() if line != "..." and not MACHINES.match(line)]
    assert expected
    left = iter(printed.splitlines())
    for line in expected:
        assert any(is_like(line, other) for other in left), line


def is_like(line: str, other: str) -> bool:
    """Whether two lines have the same words, however they are aligned, and nearly the same numbers."""
    words = [" ".join(NUMBER.sub("0", one).split()) for one in (line, other)]
    numbers = [[float(found.replace(",", "")) for found in NUMBER.findall(one)] for one in (line, other)]
    return words[0] == words[1] and np.allclose(numbers[0], numbers[1], rtol=0.02, atol=POINTS)


def test_the_tutorial_has_steps() -> None:
    assert len(TUTORIAL) == 6
