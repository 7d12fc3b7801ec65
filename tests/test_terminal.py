"""The short table at the end of a run."""

from __future__ import annotations

import io
import re

import pytest

from bitflip.terminal import MOST, Line, is_pretty, most_fragile

LINES = [Line(i, f"features.{i}", "Conv2d", float(i % 7), i % 7 / 2, i % 7 * 1.5) for i in range(20)]


@pytest.mark.parametrize("pretty", [False, True], ids=["plain", "pretty"])
def test_the_most_fragile_come_first_in_the_order_of_the_network(pretty: bool) -> None:
    text = most_fragile(LINES, pretty=pretty, width=80)
    shown = [int(number) for number in re.findall(r"#(\d+)", text)]
    assert shown == sorted(range(20), key=lambda i: (-(i % 7), i))[:MOST]


def test_plain_lines_hold_nothing_but_ascii() -> None:
    text = most_fragile([*LINES, Line(20, "a.very.long.path." * 20, "ReLU", 50.0)])
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert "a.very.long.path." * 20 in text


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_pretty_lines_fit_the_terminal(width: int) -> None:
    lines = [*LINES, Line(20, "a.very.long.path." * 20, "BatchNorm2d", 50.0, 40.0, 60.0)]
    shown = re.sub(r"\x1b\[\d+m", "", most_fragile(lines, pretty=True, width=width))
    longest = max(map(len, shown.splitlines()))
    assert longest <= max(width, 80)  # numbers are never cut


def test_a_name_can_not_command_the_terminal() -> None:
    assert "\x1b" not in most_fragile([Line(0, "\x1b[2J", "\x1b]0;x\x07", 1.0)])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        ([Line(0, "a", "ReLU", None)], ""),
        ([Line(0, "a", "ReLU", 0.0)], "  1 of 1 layers without a misclassification"),
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
