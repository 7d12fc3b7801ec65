"""Imports run down the road, and never back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from bitflip.settings.hyperparameters import Hyperparameters

PACKAGE = ROOT / "bitflip"
GROUND = ("errors", "files", "csvs", "terminal")  # that all rooms stand on
ROAD = (
    *GROUND,
    *("settings", "data", "network", "faults", "outcomes", "engines", "statistics", "results", "report"),
    *("campaign", "cluster", "commands"),
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in ROAD)
LONGEST = 450  # lines


def imported(path: Path) -> Iterator[str]:
    """The rooms that a module imports from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bitflip":
            first = node.module.split(".")[1:2]
            yield from first or (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("bitflip."):
                    yield alias.name.split(".")[1]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_the_road(path: Path) -> None:
    room = ROAD.index(room_of(path))
    back = [name for name in imported(path) if name in ROAD and ROAD.index(name) > room]
    assert back == []


def test_every_room_is_on_the_road() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert rooms | set(GROUND) == set(ROAD)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_has_one_idea(path: Path) -> None:
    """Which is hard to tell; that it is short is not."""
    assert len(path.read_text().splitlines()) <= LONGEST


NAMED = re.compile(r"\b([a-z_]+(?:, [a-z_]+)*) \((--[a-z-]+(?:, --[a-z-]+)*)\)")


def test_messages_name_settings_by_the_flags_that_they_have() -> None:
    found = {match.groups() for path in PACKAGE.rglob("*.py") for match in NAMED.finditer(path.read_text())}
    assert len(found) > 20
    for names, flags in found:
        assert flags == ", ".join(f"--{name.replace('_', '-')}" for name in names.split(", "))
    known = {
        *Hyperparameters.model_fields,
        "tolerance",
        "results",
        "csv",
        "with",
        "target_rate",
        "ranked_by",
        "masked",
    }  # the last are those of commands
    assert {name for names, _ in found for name in names.split(", ")} <= known
