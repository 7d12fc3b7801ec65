"""What the documentation shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

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
