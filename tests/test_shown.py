"""What a reader is shown of a network: what layers are called, how types are marked, and what of very many is drawn."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import layers_like, write_run

from bitflip import report
from bitflip.commands import formats as command
from bitflip.report import formats, page, plots, protections, shown, words
from bitflip.report.runs import Run

DEEP = [("Identity", "input"), ("Conv2d", "features.conv0"), ("BatchNorm2d", "features.norm0")]
DEEP += [
    (kind, f"features.block{block}.layer{layer}.{name}")
    for block, count in enumerate((12, 16, 12), start=1)
    for layer in range(count)
    for kind, name in (("BatchNorm2d", "norm"), ("ReLU", "relu"), ("Conv2d", "conv"), ("Dropout", "drop"))
]
DEEP = [*DEEP[:162], ("Linear", "classifier")]  # 163 layers


def fragile_in_the_middle(layer: int, bit: int) -> float:
    return (0.9 if layer == 80 else 0.3 * (layer % 7) / 7) if bit == 1 else 0.0


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return report.read(write_run(tmp_path_factory.mktemp("deep"), layers=DEEP, shares=fragile_in_the_middle))


def test_a_layer_has_one_name_in_all_that_people_read(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, shares=lambda layer, bit: 0.9 if (layer, bit) == (4, 1) else 0.0))
    name = "#4 Linear (path features.4)"
    assert words.findings(run)[0].startswith(f"The most fragile layer is {name}: ")
    html = page.html(run)
    plain, data = html.split('<script type="application/json"')
    assert f"at {name}; the table below" in plain  # of the plot by layer, for those who can't see it
    assert f'class="tick y name" x="-8" y="76.5">{name}</text>' in plain  # of the heat map
    assert f'"{name}"' in data  # of the tooltips
    for figure in (plots.layers(run), plots.heatmap(run)):
        assert figure is not None
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()][4] == name


@pytest.mark.parametrize("count", [7, 24, 60, 163])
def test_a_type_has_the_same_marker_in_pictures_and_on_the_page(count: int, tmp_path: Path) -> None:
    types = [f"Type{i}" for i in range(12)]
    run = report.read(write_run(tmp_path, layers=layers_like(count, types)))
    handles: list[Any] = plots.layers(run).legends[0].legend_handles
    drawn = {handle.get_label(): handle.get_marker() for handle in handles}
    html = page.html(run)
    icons = re.findall(r'<use href="#(m\d)"[^>]*/></svg>(Type\d+) ', html)
    assert {kind for _, kind in icons} == set(drawn) == set(types[:count])
    for icon, kind in icons:
        (symbol,) = re.findall(rf'<g id="{icon}">(.*?)</g>', html)
        if drawn[kind] == "o":
            assert symbol.startswith("<circle")
            continue
        numbers = [float(text) for text in re.findall(r"-?[\d.]+", symbol)]
        corners = np.array(numbers).reshape(-1, 2) * [1, -1] / 5  # a page counts downwards
        assert corners == pytest.approx(np.array(drawn[kind]))


@pytest.mark.parametrize("count", [7, 24, shown.CROWDED])
def test_each_of_a_few_layers_is_drawn(count: int, tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, layers=layers_like(count)))
    assert [line.row for line in shown.lines(run)] == list(run.layers)


def test_of_many_layers_the_most_fragile_are_drawn_and_all_of_them_by_block(deep: Run) -> None:
    assert len(deep.layers) == 163
    lines = shown.lines(deep)
    worst, blocks = lines[: shown.border(lines)], lines[shown.border(lines) :]
    rates = sorted((row.rate.value or 0 for row in deep.layers), reverse=True)
    assert [line.rate.value for line in worst] == rates[: len(worst)]
    assert worst[0].name == "#80 ReLU (path features.block2.layer7.relu)"
    names = ["#0 to 2 input to norm0", "features.block1", "features.block2", "features.block3", "#162 classifier"]
    for line, name in zip(blocks, names, strict=True):
        assert line.brief(60).endswith(name)
    assert [row for line in blocks for row in line.rows] == list(deep.layers)
    for line in blocks:
        values = [row.rate.value or 0 for row in line.rows]
        assert line.rate.value == pytest.approx(statistics.fmean(values))
        assert line.range == (min(values), max(values))


def test_a_cell_of_a_block_is_the_rate_of_all_its_flips(deep: Run) -> None:
    lines = shown.lines(deep)
    for line, cells in zip(lines, shown.cells(deep, lines), strict=True):
        places = {row.place for row in line.rows}
        rows = [row for row in deep.bits if row.place in places and row.bit == 1]
        wrong, correct = sum(row.misclassified for row in rows), sum(row.correct for row in rows)
        assert (cells[1].misclassified, cells[1].correct) == (wrong, correct)
        assert cells[1].rate.value == pytest.approx(100 * wrong / correct, abs=1e-5)


def test_no_line_is_a_hairline_and_every_layer_is_in_the_table(deep: Run) -> None:
    count = len(shown.lines(deep))
    assert 72 * plots.layers(deep).get_figheight() / count > 8  # points: a line of text
    html = page.html(deep)
    assert html.count("<tr data-i=") == 163
    lines = html.split('id="by-layer"')[1].split("</svg></div>")[0]
    assert lines.count('class="tick y name"') == count


@pytest.mark.parametrize("path", ["features.{}", "layer{}", "features.{}.conv"])
def test_layers_whose_paths_tell_no_blocks_are_cut_into_equal_ones(path: str, tmp_path: Path) -> None:
    layers = [("ReLU", path.format(i)) for i in range(163)]
    blocks = shown.blocks(report.read(write_run(tmp_path, layers=layers)).layers)
    sizes = [len(line.rows) for line in blocks]
    assert sum(sizes) == 163
    assert len(blocks) in shown.BLOCKS
    assert len(set(sizes[:-1])) == 1


@pytest.mark.parametrize("layers", [shown.CROWDED, 200])
def test_protections_are_drawn_where_the_network_is_most_fragile(layers: int, tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, layers=layers_like(layers), shares=lambda layer, bit: layer % 7 / 20))
    drawn = protections._drawn(run)
    rates = {row.place: row.rate.value or 0.0 for row in run.layers}
    assert len(drawn) == (layers if layers <= shown.CROWDED else 2 * shown.WORST)
    assert min(rates[place] for place in drawn) >= max((rates[at] for at in rates if at not in drawn), default=0.0)


def test_a_long_title_loses_no_word() -> None:
    title = (
        "net on digits: bit error rates in the neurons of 24 layers, 30 patterns for each image, 600 images, seed 12"
    )
    lines = plots.wrapped(title, 3.5).split("\n")
    assert " ".join(lines) == title
    assert max(map(len, lines)) <= 80


def test_formats_are_of_a_model_in_a_file(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, model="own.py:build"))
    head, *_ = command.lines([formats.Measured("float32", run)])
    assert head == "own.py:build on digits, the same network in each number format"
    drawn = formats.picture([formats.Measured("float32", run)])["svg"].decode()
    assert "<!-- own.py:build on digits in 1 number formats -->" in drawn


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "One bit of one weight flipped at a time"),
        ({"number_format": "float32"}, "One bit of one weight (float32) flipped at a time"),
        ({"number_format": "int8"}, "One bit of one weight in a network of int8 flipped at a time"),
        ({"protect": "ecc:0.1"}, "One bit of one weight flipped at a time, protected by ecc:0.1"),
        (
            {"fault": "burst:3", "parameters": "weight,bias"},
            "3 neighbouring bits of one value of weight, bias flipped at a time",
        ),
        ({"fault": "zero", "parameters": "all"}, "One value of all parameters at a time replaced by 0"),
        ({"faults": "list.csv"}, "One weight at a time struck as a list says"),
    ],
)
def test_what_happened_in_words(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    """What was struck are values of float32, whatever the network is stored in."""
    table = write_run(tmp_path, layers=layers_like(2), target="weight", prefix="weight_", **settings)
    facts = json.loads(table.with_suffix(".json").read_text())
    for layer in facts["layers"]:
        layer["parameters"][0]["format"] = "float32"
    table.with_suffix(".json").write_text(json.dumps(facts))
    assert words.happening(report.read(table)) == said
