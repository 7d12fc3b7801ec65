"""Several runs in one plot and on one page."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from synthetic import Layer, fragile_exponent, layers_like, write_run

from bitflip import BadInput
from bitflip import __main__ as program
from bitflip.report import comparison, overlay, reading
from bitflip.report.overlay import Overlay

HOSTILE: list[Layer] = [("ReLU", "<script>alert(1)</script>"), *layers_like(4)]


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    """Runs with settings of their own; the last lacks two layers."""
    second = write_run(tmp_path / "b", 1, HOSTILE, lambda *at: fragile_exponent(*at) / 3, protect="relu6")
    third = write_run(tmp_path / "c", 1, HOSTILE[:3], protect="nan")
    return [write_run(tmp_path / "a", 1, HOSTILE), second, third]


def test_rates_and_differences_are_those_of_the_comparisons(tables: list[Path]) -> None:
    runs = [reading.read(table) for table in tables]
    found = Overlay.of(runs)
    assert found.labels == ["A: protect none", "B: protect relu6", "C: protect nan"]
    assert found.rates()[1] == [row.rate for row in runs[1].layers]
    assert found.rates()[2][3:] == [None, None]
    for run, differences in zip(runs[1:], found.differences(), strict=True):
        expected = comparison.compare(runs[0], run).layers
        assert [(one.value, one.low, one.high) for one in differences if one] == [
            (one.value, one.low, one.high) for _, one in expected
        ]
    titled = Overlay.of([reading.read(write_run(table.parent / "old", 2, HOSTILE)) for table in tables[:2]])
    assert titled.labels[0].startswith("A: net on digits: neuron faults")


def test_a_table_has_all_of_many_runs(tables: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.csv"
    assert program.main(["compare", *map(str, tables[:2] * 5), f"--csv={rows}"]) == 0
    assert "J - A" in capsys.readouterr().out
    with rows.open(newline="") as file:
        found = [row["run"] for row in csv.DictReader(file)]
    assert found == [name for name in "BCDEFGHIJ" for _ in HOSTILE]
    assert program.main(["compare", *map(str, tables[:1] * 27)]) == 2
    assert "expected at most 26 runs, one for each letter, got 27" in capsys.readouterr().err


def test_a_page_and_a_plot(tables: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = tmp_path / "out", tmp_path / "rows.csv"
    given = ["compare", *map(str, tables), f"--output-path={folder}", f"--csv={rows}"]
    assert program.main(given) == 0
    said = capsys.readouterr().out
    assert "B - A" in said
    assert "C - A" in said
    written = {path.suffix: path for path in folder.iterdir()}
    assert {*written} == {".html", ".png", ".svg"}
    page = written[".html"].read_text()
    assert "<script>alert(1)" not in page
    assert "C differs from A in protect (none, nan)." in page
    assert 'href="net_digits_1_compared.png"' in page
    for place in range(3):
        points = len(re.findall(rf'<g class="s{place}">', page))
        assert points == (len(HOSTILE) if place < 2 else 3) * (1 if place == 0 else 2), (
            "one for each rate and difference"
        )
    found = list(csv.DictReader(rows.read_text().splitlines()))
    assert [row["run"] for row in found] == ["B"] * len(HOSTILE) + ["C"] * 3
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert program.main(given) == 0
    assert before == {path: path.read_bytes() for path in folder.iterdir()}, "the same bytes each time"


def test_only_so_many_can_be_told_apart(tables: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected at most 8 runs, whose colours stay apart, got 9"):
        Overlay.of([reading.read(tables[0])] * 9)


def test_a_layer_in_which_nothing_differs_is_drawn(tables: list[Path]) -> None:
    run = reading.read(tables[0])
    found = Overlay.of([run, run])
    assert {one.value for one in found.differences()[0] if one} == {0.0}
    assert set(overlay.picture(found)) == {"png", "svg"}
    assert "0 of 5 layers differ for sure" in overlay.html(found)
