"""Reports: reading result files back, joining seeds, plots, and what the page says."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic import fragile_exponent, layers_like, write_run

from bitflip import report
from bitflip.__main__ import main
from bitflip.errors import BadInput
from bitflip.report import damage, drawing, joined, page, plots, reading, scale, shown, summary, words
from bitflip.report.runs import Run
from bitflip.statistics.rates import Rate

HOSTILE = "\"><script>alert(1)</script>&'$x$\x1b[31m\u202e"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_of_text(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def edited(path: Path, edit: Callable[[str], str]) -> Path:
    path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


@pytest.fixture
def quick_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots that take no time, for tests of everything around them."""
    content = {kind: kind.encode() for kind in plots.KINDS}
    monkeypatch.setattr(plots, "pictures", lambda *_: dict.fromkeys(plots.NAMES, content))


# --- reading ---


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_what_is_read_is_what_was_written(tmp_path: Path, target: str) -> None:
    table = write_run(tmp_path, 3, target=target)
    run = report.read(table)
    assert run.seeds == (3,)
    assert run.target == target
    for row, cells in zip(run.layers, rows_of(table), strict=True):
        assert row.rate.value == pytest.approx(float(cells["seed_3"]))
        assert (row.place.path, row.place.type, row.misclassified) == (
            cells["path"],
            cells["name"],
            int(cells["misclassified"]),
        )
        assert sum(of.misclassified for of in run.bits if of.place == row.place) == row.misclassified


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, old=True))
    assert not run.has_intervals
    assert run.bits == ()
    assert run.layers[0].outcomes is None


def without(column: str) -> Callable[[str], str]:
    """Cut a column out of a table."""

    def cut(text: str) -> str:
        rows = list(csv.reader(text.splitlines()))
        at = rows[0].index(column)
        return "".join(f"{','.join(row[:at] + row[at + 1 :])}\n" for row in rows)

    return cut


TABLES = ("net_digits_1.csv", "net_digits_1_bits.csv")
WORDS = ["Masked, %", "were masked", "masked, bit for bit", "SDC-5", "NaN or", "Largest change"]


def test_a_column_of_a_later_version_is_ignored(tmp_path: Path) -> None:
    known = report.read(write_run(tmp_path))
    for name in TABLES:
        edited(tmp_path / name, lambda text: re.sub(r"(?m)$(?=\n)", ",?", text).replace(",?", ",new", 1))
    assert rows_of(tmp_path / TABLES[0])[0]["new"] == "?"
    assert report.read(tmp_path / TABLES[0]) == known


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("masked", ["Masked, %", "were masked", "masked, bit for bit"]),
        ("sdc5", ["SDC-5"]),
        ("nonfinite", ["NaN or"]),
        ("largest_change", ["Largest change"]),
        ("flips", WORDS),
    ],
)
def test_a_column_that_an_earlier_version_lacked_is_left_out(tmp_path: Path, column: str, words: list[str]) -> None:
    table = write_run(tmp_path)
    whole = page.html(report.read(table))
    for name in TABLES:
        edited(tmp_path / name, without(column))
    run = report.read(table)
    html = page.html(run)
    for word in WORDS:
        assert word in whole
        assert (word in html) == (word not in words)
    assert html.count("<th ") == html.count("</th>")
    cells = re.findall(r"<tr data-i.*?</tr>", html)
    assert {row.count("<td") for row in cells} == {html.split('<table id="layers"')[1].split("</tr>")[0].count("<th ")}
    again = report.join([run, report.read(write_run(tmp_path / "other", 2))], tmp_path)
    assert {row.outcomes is None or row.outcomes[column] is None for row in again.layers} == {True}
    assert rows_of_text(joined.tables(again)[again.files.table])[0][column] == ""


CUTS = {
    "in the middle of a line": (".csv", lambda text: text[:-5], "cut off"),
    "after a line": (".csv", lambda text: text[: text[:-1].rindex("\n") + 1], "layer 6 is missing"),
    "to nothing": (".csv", lambda text: "", "empty"),
    "bits after a layer": ("_bits.csv", lambda text: re.sub(r"(?m)^6,.*\n", "", text), "fewer"),
    "json": (".json", lambda text: text[: len(text) // 2], "JSON"),
}


@pytest.mark.parametrize(("suffix", "edit", "words"), CUTS.values(), ids=CUTS)
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, suffix: str, edit: Callable[[str], str], words: str) -> None:
    table = write_run(tmp_path)
    broken = edited(tmp_path / f"net_digits_1{suffix}", edit)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BadInput, match=words) as caught:
        report.read(table)
    assert str(broken) in str(caught.value)
    assert main(["report", str(tmp_path)]) == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


WRONG = {
    "a rate of 400 %": (".csv", lambda text: text.replace("\n0,Conv2d,", "\n0,Conv2d,400"), "seed_1"),
    "more wrong than right": (
        ".csv",
        lambda text: re.sub(r"(?m)^(0,.*,)(\d+),(600|5\d\d),", r"\g<1>9999,1,", text),
        "<=",
    ),
    "a row twice": (".csv", lambda text: text + text.splitlines()[1] + "\n", "index"),
    "a column missing": (".csv", lambda text: text.replace("misclassified", "wrong", 1), "misclassified"),
    "a name of a column": (".csv", lambda text: text.replace("nonfinite", "nonfinitf", 1), "nonfinite is missing"),
    "a column twice": (".csv", lambda text: text.replace("low", "path", 1), "different names"),
    "two seeds": (".csv", lambda text: text.replace("low", "seed_2", 1), "one seed"),
    "the seed of another run": (".json", lambda text: text.replace('"seed": 1', '"seed": 2'), "seed"),
    "a list": (".json", lambda text: "[]", "settings"),
    "settings that are no object": (".json", lambda text: '{"settings": 3}', "settings"),
    "a confidence of 95": (".json", lambda text: text.replace("0.95", "95"), "confidence"),
    "bit 70": ("_bits.csv", lambda text: re.sub(r"(?m)^0,(.*?),31,", r"0,\1,70,", text), "bit"),
    "an unknown layer": ("_bits.csv", lambda text: text.replace("features.0", "features.9"), "features.9"),
    "a rate of other counts": (
        ".csv",
        lambda text: re.sub(r"(?m)^(0,Conv2d,)([\d.]+)", lambda found: f"{found[1]}{float(found[2]) * 1.01}", text),
        r"#0 Conv2d \(path features\.0\): expected the rate of \d+ of \d+, got",
    ),
    "a bit missing": (
        "_bits.csv",
        lambda text: re.sub(r"(?m)^0,.*,1,.*\n", "", text, count=1),
        r"expected bits of #0 Conv2d \(path features\.0\) that add up to net_digits_1\.csv, whose misclassified is",
    ),
    "not UTF-8": (".csv", None, "UTF-8"),
}


@pytest.mark.parametrize(("suffix", "edit", "words"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_wrong_is_named(
    tmp_path: Path, suffix: str, edit: Callable[[str], str] | None, words: str
) -> None:
    table = write_run(tmp_path)
    broken = tmp_path / f"net_digits_1{suffix}"
    old = broken.read_bytes()
    if edit is None:
        broken.write_bytes(old + b"\xff\n")
    else:
        edited(broken, edit)
    assert broken.read_bytes() != old
    with pytest.raises(BadInput, match=words) as caught:
        report.read(table)
    assert str(broken) in str(caught.value)


def test_faults_of_another_target_are_named(tmp_path: Path) -> None:
    table = write_run(tmp_path, target="weight")
    edited(table.with_suffix(".json"), lambda text: text.replace('"target": "weight"', '"target": "neuron"'))
    with pytest.raises(BadInput, match=r"expected neuron faults as in net_digits_1\.json, got weight"):
        report.read(table)


def test_nothing_to_divide_by_has_one_mark(tmp_path: Path) -> None:
    """A bit that was flipped, but for no image that could be misclassified, is neither 0 % nor without a flip."""
    run = report.read(write_run(tmp_path, images=20, correct=8))
    without = [row for row in run.bits if row.correct == 0]
    assert 10 < len(without) < len(run.bits)
    assert all(row.rate.value is None for row in without)
    lines = shown.lines(run)
    page = drawing.heatmap(run, lines, shown.cells(run, lines))
    covered = sum(
        round(float(width) * run.width_of() / 100)
        for kind, width in re.findall(r'<rect class="(zero)" x="[\d.]+%" y="[\d.]+" width="([\d.]+)%"', page)
    )
    assert covered == len(run.bits) - len(without)
    assert "nothing to divide by" in page
    figure = plots.heatmap(run)
    assert figure is not None
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 1
    cells = len(np.asarray(hatched[0].get_path().vertices)) / 5
    assert cells == len(run.layers) * run.width_of() - len(run.bits) + len(without)
    assert "hatched: nothing to divide by" in figure.axes[0].get_xlabel()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    write_run(folder, layers=layers_like(3))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_in_a_file_it_is_read_or_refused(
    good: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    name = data.draw(st.sampled_from(sorted(good)))
    start = data.draw(st.integers(0, len(good[name])))
    end = data.draw(st.integers(start, min(len(good[name]), start + 40)))
    junk = data.draw(
        st.binary(max_size=12) | st.sampled_from([b",", b"\n", b'"', b"nan", b"1e999", b"-1", b"[", b"9" * 30])
    )
    for other, content in good.items():
        (folder / other).write_bytes(content)
    (folder / name).write_bytes(good[name][:start] + junk + good[name][end:])
    try:
        run = report.read(folder / "net_digits_1.csv")
    except BadInput as error:
        named = str(folder) in str(error)
    else:
        named = bool(page.html(run))
    assert named


# --- finding ---


def test_runs_are_found_in_a_folder_or_one_below(tmp_path: Path) -> None:
    tables = [write_run(tmp_path / f"seed{seed}", seed) for seed in (1, 2)]
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert reading.find(tmp_path) == tables
    assert reading.find(tmp_path / "seed1") == tables[:1]
    assert reading.table_of(tables[0].with_suffix(".json")) == tables[0]


@pytest.mark.parametrize("path", [".", "nothing", "notes.txt"], ids=["empty folder", "no file", "another file"])
def test_nothing_to_report_is_one_sentence(tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["report", str(tmp_path / path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# --- joining ---


@pytest.fixture(scope="module", params=["neuron", "weight"])
def ten(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Ten seeds in ten folders."""
    folder = tmp_path_factory.mktemp(request.param)
    return [
        report.read(write_run(folder / str(seed), seed, target=request.param, device=f"cuda:{seed}"))
        for seed in range(10)
    ]


def test_joined_rates_are_means_over_seeds(ten: list[Run], tmp_path: Path) -> None:
    together = report.join(list(reversed(ten)), tmp_path)
    assert together.seeds == tuple(range(10))
    for i, row in enumerate(together.layers):
        rates = [run.layers[i].rate.value or 0.0 for run in ten]
        assert row.rate.value == pytest.approx(np.mean(rates))
        assert summary.spread(row.seeds) == pytest.approx((np.std(rates, ddof=1), min(rates), max(rates)))
        assert row.misclassified == sum(run.layers[i].misclassified for run in ten)
        low, high = row.rate.interval or (math.nan, math.nan)
        assert low <= np.mean(rates) <= high
    assert sum(row.correct for row in together.bits) == sum(row.correct for run in ten for row in run.bits)


def test_joining_narrows_the_interval(ten: list[Run], tmp_path: Path) -> None:
    together = report.join(ten, tmp_path)
    widths = [[row.rate.interval[1] - row.rate.interval[0] for row in run.layers if row.rate.interval] for run in ten]
    joined_widths = [row.rate.interval[1] - row.rate.interval[0] for row in together.layers if row.rate.interval]
    assert sum(joined_widths) < np.mean([sum(of_run) for of_run in widths])


def test_the_order_of_the_runs_does_not_matter(ten: list[Run], tmp_path: Path) -> None:
    one, two = (joined.tables(report.join(order, tmp_path)) for order in (ten, ten[::-1]))
    assert one == two


@pytest.mark.usefixtures("quick_plots")
def test_the_joined_table_holds_every_seed(ten: list[Run], tmp_path: Path) -> None:
    together = report.join(ten, tmp_path)
    report.write(together)
    rows = rows_of(together.files.table)
    assert len(rows) == len(ten[0].layers)
    assert [f"{rows[0][f'seed_{seed}']}" for seed in range(10)] == [f"{run.layers[0].rate.value:.6f}" for run in ten]
    means = {(row["of"], row["name"]): row for row in rows_of(together.files.means)}
    of_type = [row.rate.value or 0 for row in together.layers if row.place.type == "Conv2d"]
    assert float(means["type", "Conv2d"]["rate"]) == pytest.approx(np.mean(of_type), abs=1e-6)
    assert float(means["network", "all"]["sd"]) > 0


def test_weighted_bits_are_joined_with_their_weights(tmp_path: Path) -> None:
    tables = [write_run(tmp_path, seed, images=6400, correct=6400, bit_sampling="importance") for seed in (1, 2)]
    together = report.join([report.read(table) for table in tables], tmp_path)
    for row in together.layers:
        of_bits = [of for of in together.bits if of.place == row.place]
        assert len(of_bits) == 32
        (top,), others = ([of for of in of_bits if (of.bit == 1) is chosen] for chosen in (True, False))
        rest = sum(of.misclassified for of in others) / sum(of.correct for of in others)
        assert row.rate.value == pytest.approx(100 * (top.misclassified / top.correct + 31 * rest) / 32)


OTHERS = {
    "a setting": ({"bit_flip_pos": 1}, "bit_flip_pos is 1 there and -1 in net_digits_1.csv"),
    "the target": ({"target": "weight"}, "target"),
    "the layers": ({"layers": layers_like(8)}, "layers"),
    "the images": ({"images": 320, "correct": 300}, "images is 320"),
    "intervals": ({"old": True}, "columns"),
}


@pytest.mark.parametrize(("other", "words"), OTHERS.values(), ids=OTHERS)
def test_runs_that_differ_in_more_than_the_seed_are_refused(
    tmp_path: Path, other: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good_ones = [write_run(tmp_path / "a", seed) for seed in (1, 2)]
    bad = write_run(tmp_path / "b", 3, **other)  # type: ignore[arg-type]
    assert main(["report", *map(str, good_ones), str(bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {bad}: expected runs that differ only in seed")
    assert words in error
    assert not list(tmp_path.rglob("*seeds*"))


def test_a_seed_that_comes_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [write_run(tmp_path / place, seed) for place, seed in (("a", 1), ("b", 2), ("c", 1))]
    assert main(["report", *map(str, tables)]) == 2
    assert f"{tables[2]}: expected each seed once, 1 is also in {tables[0]}" in capsys.readouterr().err


def test_batch_size_matters_to_weights_only(tmp_path: Path) -> None:
    def two(target: str) -> list[Run]:
        sizes = {1: 64, 2: 128}
        return [report.read(write_run(tmp_path / target, s, target=target, batch_size=b)) for s, b in sizes.items()]

    assert joined.check(two("neuron")) == []
    assert "batch_size is 128 there and 64" in joined.check(two("weight"))[0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("plots", (True, False)),
        ("detailed_log", (True, False)),
        ("engine", ("wave", "reference")),
        ("pool_mib", (1, 9)),
    ],
)
def test_what_changes_no_result_may_differ(name: str, values: tuple[object, object], tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{name: value} for value in values]
    runs = [report.read(write_run(tmp_path, seed, **chosen)) for seed, chosen in enumerate(settings)]
    assert joined.check(runs) == []
    assert joined.key(runs[0]) == joined.key(runs[1])


def test_other_images_are_told_by_their_hash(tmp_path: Path) -> None:
    """Where both files have one; those of an earlier version have none."""
    first, second = (report.read(write_run(tmp_path, seed)) for seed in (1, 2))
    known, other = ({**run.facts, "data": {"sha256": sha}} for run, sha in ((first, "a" * 64), (second, "b" * 64)))
    assert joined.check([first, dataclasses.replace(second, facts=other)]) == []
    (problem,) = joined.check([dataclasses.replace(first, facts=known), dataclasses.replace(second, facts=other)])
    assert "sha256 of the images is" in problem


@pytest.mark.usefixtures("quick_plots")
def test_interrupted_runs_are_marked_and_left_out_of_a_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, seed, complete=seed != 3)
    assert main(["report", str(tmp_path)]) == 0
    assert "This run was interrupted" in (tmp_path / "net_digits_3_partial.html").read_text()
    together = json.loads((tmp_path / "net_digits_seeds.json").read_text())
    assert together["seeds"] == [1, 2]
    tables = [*sorted(tmp_path.glob("net_digits_?.csv")), tmp_path / "net_digits_3_partial.csv"]
    capsys.readouterr()
    assert main(["report", *map(str, tables)]) == 0
    assert "left out: net_digits_3_partial.csv" in capsys.readouterr().err
    assert "Left out: net_digits_3_partial.csv" in (tmp_path / "net_digits_seeds.html").read_text()


# --- the command ---


@pytest.mark.usefixtures("quick_plots")
def test_a_folder_gets_a_report_of_each_run_and_of_the_seeds_together(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, seed)
    write_run(tmp_path, 1, target="weight", prefix="weight_")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["report", str(tmp_path)]) == 0
    stems = {path.stem for path in tmp_path.glob("*.html")}
    assert stems == {"net_digits_1", "net_digits_2", "net_digits_seeds", "weight_net_digits_1"}
    for stem in stems:
        for name in plots.NAMES:
            assert all((tmp_path / f"{stem}_{name}.{kind}").exists() for kind in plots.KINDS)
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.glob(".*"))


def test_a_report_of_a_report_is_the_same(tmp_path: Path) -> None:
    write_run(tmp_path, layers=layers_like(3))
    assert main(["report", str(tmp_path)]) == 0
    once = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["report", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == once


def test_plots_that_have_nothing_to_show_any_more_are_removed(tmp_path: Path) -> None:
    table = write_run(tmp_path)
    report.write(report.read(table))
    assert (tmp_path / "net_digits_1_heatmap.png").exists()
    write_run(tmp_path, bits=[1])
    report.write(report.read(table))
    assert not (tmp_path / "net_digits_1_heatmap.png").exists()


@pytest.mark.usefixtures("quick_plots")
def test_a_report_at_the_end_of_a_run_never_harms_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = write_run(tmp_path)
    assert report.draw([table]) == report.outputs(report.read(table).files)
    edited(table, lambda text: text[:-5])
    assert report.draw([table]) == []
    (message,) = caplog.messages
    assert re.match(r"no report was written: .*cut off", message)


@pytest.mark.usefixtures("quick_plots")
def test_several_seeds_of_one_run_are_reported_as_one(tmp_path: Path) -> None:
    tables = [write_run(tmp_path, seed) for seed in (1, 2)]
    stale = report.draw(tables[:1])
    written = report.draw(tables)
    assert {path.name.split(".")[0] for path in written} >= {"net_digits_seeds", "net_digits_seeds_means"}
    assert all(path.exists() for path in written)
    assert not any(path.exists() for path in stale)


# --- plots ---


EXTREMES: dict[str, dict[str, Any]] = {
    "7 layers": {},
    "24 layers": {"layers": layers_like(24)},
    "300 layers": {"layers": layers_like(300)},
    "nothing misclassified": {"shares": lambda layer, bit: 0.0},
    "one layer at 90 %": {"shares": lambda layer, bit: 0.9 if layer == 3 else 0.001},
    "no image right": {"correct": 0},
    "12 types": {"layers": layers_like(24, [f"Type{i}" for i in range(12)])},
    "one layer, one bit": {"layers": layers_like(1), "bits": [1]},
    "earlier version": {"old": True},
    "weights": {"target": "weight"},
    "hostile names": {"layers": [(HOSTILE, HOSTILE + str(i)) for i in range(3)], "model": "net"},
}


@pytest.fixture(scope="module", params=EXTREMES)
def extreme(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return report.read(write_run(tmp_path_factory.mktemp("run"), 1, **EXTREMES[request.param]))


def test_plots_are_whole_pictures(extreme: Run, tmp_path: Path) -> None:
    for name, content in plots.pictures(extreme).items():
        if content is None:
            assert name != "layers"
            continue
        (tmp_path / "plot.png").write_bytes(content["png"])
        with Image.open(tmp_path / "plot.png") as image:
            assert image.width == round(300 * plots.WIDTH)
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 5
        root = ET.fromstring(content["svg"])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not {element.tag.rpartition("}")[2] for element in root.iter()} & {"script", "foreignObject"}


def test_the_user_s_own_style_is_neither_used_nor_changed(tmp_path: Path) -> None:
    import matplotlib as mpl

    run = report.read(write_run(tmp_path, layers=layers_like(3), bits=[1]))
    plain = plots.pictures(run)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.pictures(run) == plain
        assert mpl.rcParams["font.size"] == 30


@pytest.mark.parametrize("seed", range(20))
def test_a_scale_holds_every_rate_in_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.sort(100 * random.random(30) ** random.integers(1, 12)) * (seed > 0)
    on = scale.scale_of([Rate(float(value)) for value in values])
    places = [on.place(float(value)) for value in values]
    assert places == sorted(places)
    assert 0 <= min(places) <= max(places) <= 1
    assert on.ticks[0] == 0
    assert 2 <= len(on.ticks) <= 8


def test_every_type_has_a_style_of_its_own() -> None:
    types = [*scale.KNOWN, *(f"Type{i}" for i in range(20))]
    slot = scale.slots(types)
    assert len(set(slot.values())) == len(types)
    assert scale.slots(["ReLU", "Type1"])["ReLU"] == slot["ReLU"]


@pytest.mark.parametrize(
    "path", ["encoder.layers.encoder_layer_11.self_attention.out_proj", "a" * 90, ".".join("b" * 50), ""]
)
def test_a_short_path_is_short(path: str) -> None:
    assert len(scale.short(path, 26)) <= 26


# --- words, faults, page ---


def test_the_most_fragile_come_first(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, shares=lambda layer, bit: 0.9 if (layer, bit) == (4, 1) else 0.0))
    first, *rest = words.findings(run)
    assert "#4 Linear (path features.4)" in first
    assert any("bit 1 (highest of the exponent)" in sentence and "100 %" in sentence for sentence in rest)
    assert any("In 6 of 7 layers" in sentence for sentence in rest)


def test_a_ranking_that_is_not_certain_says_so(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, shares=lambda layer, bit: 0.1))
    assert any("the order is not certain" in sentence for sentence in words.findings(run))


def test_the_command_line_repeats_the_settings(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, prefix="neuron_", model="my net", drop_last=True, weights="a b.pt"))
    line = words.command(run) or ""
    assert line.startswith("python neuron.py ")
    assert "'--model-name=my net'" in line
    assert "'--weights=a b.pt'" in line
    assert "--drop-last" in line
    assert "--seed=1" in line
    assert "detailed" not in line  # it is the default


NEURON_LOG = (
    "Layer: 0\nBatch: 0\nPosition: (7, 1, 2, None)\nOriginal value:  0.5\nOriginal binary: 0011\nFlip bit: 1\n"
    "Error value:     {}\nError binary:    0111\nLabel:        6\nModel output: 0\nLayer type: Conv2d\n\n\n"
)
WEIGHT_LOG = (
    "Layer: 2\nLayer type: ReLU\nPosition: (43, None, None, None)\nOriginal value:  0.8999999761581421\n"
    "Original binary: 0011\nFlip bit: 1\nError value:     3e+38\nError binary:    0111\n\n"
)
IMAGE_LOG = "Batch: 1\nImage: 3\nLabel: 1\nModel output: 0\n\n"


def test_the_worst_faults_of_a_log(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path))
    assert "--detailed-log" in damage.worst(run).words
    run.files.detail.write_text("".join(NEURON_LOG.format(value) for value in ("-2.0", "nan", "8e+30")))
    faults = damage.worst(run).faults
    assert [fault.error for fault in faults] == ["nan", "8e+30", "-2.0"]
    assert {(fault.where, fault.bit, fault.effect) for fault in faults} == {("batch 0, [7, 1, 2]", 1, "6 → 0")}


def test_the_worst_faults_of_a_log_of_weights(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, target="weight"))
    run.files.detail.write_text("".join(WEIGHT_LOG + images * IMAGE_LOG for images in (6, 0, 7, 1)))
    faults = damage.worst(run).faults
    assert [(fault.broken, fault.effect) for fault in faults] == [(7, "7 images"), (6, "6 images"), (1, "1 image")]
    assert {(fault.where, fault.original) for fault in faults} == {("batch 1, [43]", "0.9")}


def test_a_log_of_an_earlier_version(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path))
    run.files.detail.write_text("Layer: 0, Layer type: Conv2d, Batch: 0, Position: [1, 2, 3], Original value: 0.5\n")
    found = damage.worst(run)
    assert "earlier version" in found.words
    assert not found.faults


@pytest.mark.parametrize(("bits", "first"), [("3;7", 3), ("all", 0)])
def test_the_worst_faults_of_several_bits(bits: str, first: int, tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path))
    run.files.detail.write_text(NEURON_LOG.format("8e+30").replace("Flip bit: 1", f"Flip bit: {bits}"))
    assert [fault.bit for fault in damage.worst(run).faults] == [first]


@pytest.mark.parametrize(
    ("target", "log", "line"),
    [
        ("neuron", NEURON_LOG.format("2.0") + NEURON_LOG.partition("Label")[0], 14),
        ("neuron", NEURON_LOG.replace("Layer: 0", "Layer: none"), 1),
        ("weight", WEIGHT_LOG + IMAGE_LOG.partition("Label")[2], 10),
        ("weight", IMAGE_LOG, 1),
    ],
    ids=["cut off", "no number", "front is missing", "no flip"],
)
def test_a_damaged_log_is_named(target: str, log: str, line: int, tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, target=target))
    run.files.detail.write_text(log)
    with pytest.raises(BadInput, match=rf"_detailed\.txt, line {line}:"):
        damage.worst(run)


def record(run: Run, rows: Sequence[tuple[int, int, int, float, int]]) -> None:
    """Write a record of (layer, image, bit, change, top-1); the clean class is 1, and the label too but of image 9."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("layer", "image", "bit", "change", "top1")
    columns: dict[str, list[object]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    count = len(rows)
    columns |= {"parameter": ["weight" if run.target == "weight" else ""] * count, "clean_top1": [1] * count}
    columns |= {"element": [7] * count, "original": [0.5] * count, "error": [1e38] * count}
    columns["label"] = [3 if row[1] == 9 else 1 for row in rows]
    pq.write_table(pa.table(columns), run.files.faults)


def test_the_worst_faults_of_a_record(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path))
    record(run, [(0, 1, 1, 0.5, 2), (1, 2, 1, 0.9, 3), (2, 3, 1, 1.0, 1), (3, 9, 1, 1.0, 4)])
    faults = damage.worst(run).faults
    assert [(fault.place.layer, fault.change) for fault in faults] == [(1, 0.9), (0, 0.5)]
    assert faults[0].effect == "image 2: 1 → 3"


def test_the_worst_weight_faults_of_a_record_are_those_that_break_most_images(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, target="weight"))
    record(run, [(0, 1, 1, 1.0, 2), *((1, image, 2, 0.4, 3) for image in range(5))])
    assert [(fault.place.layer, fault.broken) for fault in damage.worst(run).faults] == [(1, 5), (0, 1)]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path))
    run.files.faults.write_bytes(b"PAR1 and no more")
    with pytest.raises(BadInput, match=r"_faults\.parquet"):
        damage.worst(run)


def test_the_page_needs_nothing_from_outside(extreme: Run) -> None:
    html = page.html(extreme)
    assert "http" not in re.sub(r'http-equiv="Content', "", html)
    assert "default-src 'none'" in html
    assert not re.search(r'\son\w+=|\sstyle="|<img|<link|@import', html)


def test_a_name_is_never_markup(tmp_path: Path) -> None:
    layers = [(HOSTILE, HOSTILE + str(i)) for i in range(3)]
    html = page.html(report.read(write_run(tmp_path, layers=layers, dataset=HOSTILE)))
    assert html.count("<script") == 2
    assert html.count("</script") == 2
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_the_page_says_every_rate(tmp_path: Path) -> None:
    run = report.read(write_run(tmp_path, shares=fragile_exponent))
    html = page.html(run)
    for row in run.layers:
        assert f'data-v="{row.rate.value:.7g}"' in html
        assert row.place.path in html


@pytest.mark.parametrize(("command", "written"), [("report", ".html"), ("compare", ".html"), ("budget", ".csv")])
def test_the_folder_for_files_is_made(
    command: str, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path, seed, layers_like(2)) for seed in (1, 2)]
    for table in runs:  # a budget counts the bits of layers
        edited(table.with_suffix(".json"), lambda text: text.replace('"per_image"', '"shape": [4], "per_image"'))
    given = [command, *map(str, runs)]
    folder = tmp_path / "not" / "yet there"
    assert main([*given, f"--output-path={folder}"]) == 0
    assert [path.suffix for path in folder.iterdir()].count(written) == 1
    capsys.readouterr()
    in_the_way = runs[0]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*given, f"--output-path={in_the_way}"]) == 2
    words = "expected a folder that can be written to, got"
    said = capsys.readouterr()
    assert said.err == f"error: output_path (--output-path): {words} {in_the_way} (File exists)\n"
    assert said.out == ""
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# --- sample-output ---

SAMPLES = ROOT / "sample-output"
MADE = (".html", ".png", ".svg")
AGAIN = "python tests/samples.py"


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of the samples, made again from what the runs wrote."""
    folder = tmp_path_factory.mktemp("samples")
    for path in SAMPLES.iterdir():
        if path.is_file() and path.suffix not in MADE:
            shutil.copy(path, folder)
    assert main(["report", str(folder)]) == 0
    return folder


def test_the_samples_have_their_reports(again: Path) -> None:
    made, samples = ({path.name for path in folder.iterdir() if path.is_file()} for folder in (again, SAMPLES))
    assert made == samples, AGAIN


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.html")))
def test_sample_pages_are_what_the_report_writes(again: Path, name: str) -> None:
    assert (again / name).read_text(encoding="utf-8") == (SAMPLES / name).read_text(encoding="utf-8"), AGAIN


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.png")))
def test_sample_plots_are_what_the_report_draws(again: Path, name: str) -> None:
    """To the eye: another release of matplotlib may place a letter elsewhere by a fraction of a pixel."""
    new, old = (np.asarray(Image.open(folder / name).convert("L"), dtype=float) for folder in (again, SAMPLES))
    assert np.abs(np.subtract(new.shape, old.shape)).max() <= 6, AGAIN
    height, width = np.minimum(new.shape, old.shape)
    difference = np.abs(new[:height, :width] - old[:height, :width])
    assert difference.mean() < 6, AGAIN


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.svg")))
def test_sample_drawings_are_those_of_the_plots(again: Path, name: str) -> None:
    """The same shapes, and, by the same release of matplotlib, in the same places."""
    new, old = ((folder / name).read_text() for folder in (again, SAMPLES))
    comments = re.compile(r"<!-- (.*?) -->")  # every text of a plot
    assert comments.findall(new) == comments.findall(old), AGAIN
    creator = re.compile(r"Matplotlib v[\d.]+")
    if creator.findall(new) == creator.findall(old):
        number = re.compile(r"-?\d+\.\d+")
        places, sample_places = ([float(text) for text in number.findall(text)] for text in (new, old))
        assert places == pytest.approx(sample_places, abs=0.05), AGAIN
