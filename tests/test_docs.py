"""What the documentation shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

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
    assert len(shown) == 9
    assert (tmp_path / "heatmap.png").stat().st_size > 0
    if update_golden:
        for said, now in reversed(shown):
            if said is not None:
                text = text[: said.start(2)] + now + text[said.end(2) :]
        page.write_text(text)
        return
    assert [said[2] for said, _ in shown if said is not None] == [now for said, now in shown if said is not None]


TUTORIAL = re.findall(
    r"```sh\npython ([^\n]+)\n```\n\n```\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.S
)
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
    """Line by line; and each run has the faults that it has there, with or without bounds."""
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
    assert [line for line in printed.splitlines() if line in expected] == expected


def test_the_tutorial_has_steps() -> None:
    assert len(TUTORIAL) == 6
