"""The documentation is a site that builds without a warning, and has every setting as the program has it."""

from __future__ import annotations

import html
import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT

from bitflip.settings.hyperparameters import Hyperparameters


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI builds it: a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def table(site: Path) -> dict[str, list[str]]:
    """The page of all settings: name -> default, meaning, valid values."""
    page = (site / "settings" / "index.html").read_text()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    cells = [[html.unescape(re.sub("<[^>]+>", "", cell)) for cell in row] for row in rows if row]
    return {name: rest for name, *rest in cells}


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.stem / "index.html").is_file(), page.name
    assert (site / "index.html").is_file()
    assert (site / "benchmarks" / "index.html").is_file()


def test_the_table_of_settings_is_complete(table: dict[str, list[str]]) -> None:
    assert sorted(table) == sorted(Hyperparameters.model_fields)


@pytest.mark.parametrize("name", Hyperparameters.model_fields)
def test_settings_are_those_of_the_program(table: dict[str, list[str]], name: str) -> None:
    default, meaning, valid = table[name]
    field = Hyperparameters.model_fields[name]
    if isinstance(field.default, bool):
        assert default == {True: "on", False: "off"}[field.default]
    else:
        assert default == ("" if field.default is None else str(field.default))
    assert meaning == field.description
    assert isinstance(field.json_schema_extra, dict)
    assert valid == field.json_schema_extra["valid"]


@pytest.mark.parametrize("name", ["wave", "bound", "interval"])
def test_drawings_are_what_the_script_draws(name: str) -> None:
    """Their whiskers are the intervals of the program."""
    drawn = runpy.run_path(str(ROOT / "docs" / "drawings.py"))["DRAWINGS"][name]()
    assert (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8") == drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
