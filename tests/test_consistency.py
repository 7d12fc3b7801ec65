"""Files of one run that do not agree are refused: whichever number was changed, in whichever file."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import FewDigits, few_digits_with
from torch import nn

import bitflip
from bitflip.commands import run as command
from bitflip.data import digits
from bitflip.errors import BadInput
from bitflip.faults import faultlist
from bitflip.faults.faultlist import Fault
from bitflip.faults.flips import TargetKind
from bitflip.report import reading
from bitflip.results import columns

RUNS: dict[str, tuple[TargetKind, str]] = {
    "neurons": ("neuron", "--bit-flip-pos=-1"),
    "weights": ("weight", "--repeats=2 --parameters=weight,bias"),
    "importance": ("neuron", "--bit-sampling=importance"),
    "margin": ("neuron", "--margin=12"),
    "list": ("weight", "--faults={list}"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, each in a folder of its own: its ``.csv``."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        few_digits_with(patch)(64)
        faults = tmp_path_factory.mktemp("list") / "faults.csv"
        for name, (target, more) in RUNS.items():
            folder = tmp_path_factory.mktemp(name)
            common = ["--dataset=digits", "--fault-table", f"--output-path={folder}", "--batch-size=8"]
            common += [] if name == "list" else ["--seed=5", "--layer-num=1,4,8"]
            common += [f"--save-faults={faults}"] if name == "weights" else []
            flags = [flag.format(list=faults) for flag in more.split()]
            assert command.main(target, "", [*common, "--no-plots", *flags]) == 0
            (facts,) = folder.glob("*.json")
            found[name] = facts.with_suffix(".csv")
    return found


@pytest.fixture(params=RUNS)
def table(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Path:
    """The ``.csv`` of a run, whose files may be changed."""
    first = made[request.param]
    shutil.copytree(first.parent, tmp_path / "run")
    return tmp_path / "run" / first.name


def beside(table: Path, end: str) -> Path:
    return table.with_name(f"{table.stem}{end}")


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_lists_of_faults_of_one_image_and_of_many_are_read(
    target: str, few_digits: FewDigits, tmp_path: Path, digits_model: nn.Module
) -> None:
    few_digits(24)
    index = (0, 0, 0) if target == "neuron" else (0, 0, 0, 0)
    images = [None, range(5), range(3, 9), range(7, 8)]
    places = [("features.0", 1), ("features.4", 1), ("features.4", 9)]
    faults = [Fault(target, path, 0, index, bit, hit) for path, bit in places for hit in images]
    with (tmp_path / "list.csv").open("w") as file:
        faultlist.write(file, faults)
    campaign = bitflip.Campaign(digits_model, digits.load("test"), batch_size=8)
    result = campaign.run(bitflip.read_faults(tmp_path / "list.csv"), fault_table=True)
    assert sum(row.flips for row in result.layers) == len(faults)


def test_what_a_run_wrote_is_read(table: Path) -> None:
    assert beside(table, "_faults.parquet").exists()
    assert reading.read(table).layers


def refused(table: Path, what: object) -> str:
    with pytest.raises(BadInput) as caught:
        reading.read(table)
    (sentence,) = caught.value.problems
    assert str(table.parent) in sentence, what
    assert "expected" in sentence, what
    assert "got" in sentence or "missing" in sentence or "none" in sentence, what
    return sentence


@pytest.mark.parametrize("end", [".csv", "_bits.csv"])
def test_no_count_of_a_table_can_be_another(table: Path, end: str) -> None:
    path = beside(table, end)
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    for column, name in enumerate(header):
        if name not in (*columns.HITS, *columns.COUNTS, *columns.SUMS, *columns.INTERVAL, columns.CHANGE, "seed_5"):
            continue
        changed = [list(row) for row in rows]
        row = next((row for row in changed if row[column] not in ("", "0", "0.000000")), changed[0])
        if not row[column]:
            continue
        row[column] = f"{float(row[column]) / 2 + 0.1:.6f}" if "." in row[column] else str(int(row[column]) + 1)
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *changed])
        refused(table, name)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    assert reading.read(table)


def test_a_wider_interval_that_holds_the_rate_is_refused(table: Path) -> None:
    with table.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    rows[0][header.index("high")] = f"{float(rows[0][header.index('high')]) + 0.5:.6f}"
    with table.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    found = refused(table, "high")
    assert re.match(
        rf"{re.escape(str(table))}: #\d+ \w+ \(path \S+\): expected the interval [\d.]+ to [\d.]+, got [\d.]+ to", found
    )


def test_no_number_of_the_json_can_be_another(table: Path) -> None:
    path = table.with_suffix(".json")
    facts = json.loads(path.read_text())
    sampled = not facts["settings"]["faults"]

    def change(edit: Callable[[dict[str, Any]], object], words: str) -> None:
        other = json.loads(json.dumps(facts))
        edit(other)
        path.write_text(json.dumps(other))
        assert words in refused(table, words)

    def mean(place: int, name: str, value: float) -> Callable[[dict[str, Any]], object]:
        return lambda f: f["means"][place].update({name: value})

    for place, known in enumerate(facts["means"]):
        for name, more in {"rate": -0.01, "low": -0.01, "high": 0.01}.items():
            if 0 <= known[name] + more <= 100:
                change(mean(place, name, known[name] + more), "means: expected")
    change(lambda f: f["means"].pop(0), "got none")
    change(lambda f: f["means"].append({**f["means"][-1], "name": "Other"}), "got Other")
    change(lambda f: f.update(clean_correct=f["images"] + 1), "expected clean_correct <= images")
    change(lambda f: f["layers"][0].update(path="elsewhere"), "expected the path of")
    target = {"neuron": "weight", "weight": "neuron"}[facts["target"]]
    change(lambda f: f.update(target=target), f"expected {target} faults as in {path.name}")
    if sampled and facts["settings"]["margin"] is None:
        change(lambda f: f.update(images=f["images"] + 1), "expected injections of")
        change(lambda f: f.update(clean_correct=f["clean_correct"] - 1), "expected correct of")
    if not sampled:
        change(lambda f: f.update(faults=f["faults"] + 1), "expected the flips of the")


def test_no_injection_of_the_record_can_be_another(table: Path) -> None:
    path = beside(table, "_faults.parquet")
    whole = pq.read_table(path)

    def change(name: str, value: object, where: int) -> None:
        values = whole.column(name).combine_chunks().to_pylist()
        values[where] = value
        place = whole.schema.get_field_index(name)
        column = pa.array(values).cast(whole.schema.field(name).type)
        pq.write_table(whole.set_column(place, whole.schema.field(name), column), path)
        assert refused(table, name).startswith(f"{path}: expected the faults of {table.stem}")

    label, clean, top1 = (whole.column(name).to_numpy() for name in ("label", "clean_top1", "top1"))
    wrong = int(np.flatnonzero((label == clean) & (top1 != clean))[0])
    right = int(np.flatnonzero((label == clean) & (top1 == clean))[0])
    change("top1", int(clean[wrong]), wrong)
    change("top1", -1, wrong)
    change("top1", int(clean[right]) + 1, right)
    change("label", int(label[right]) + 1, right)
    change("layer", 77, right)
    change("bit", (whole.column("bit")[right].as_py() + 1) % 32, right)
    for name in (name for name in columns.EFFECTS if name != "benign"):
        change(name, not whole.column(name)[right].as_py(), right)
    change("change", 1.0, int(np.flatnonzero(~top1_breaks(whole, right))[0]))
    pq.write_table(whole.slice(1), path)
    assert "injections of" in refused(table, "a row less")
    assert pc.sum(whole.column("sdc1")).as_py() > 0


def test_no_fault_of_a_list_can_be_another(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["list"].parent, tmp_path / "run")
    table = tmp_path / "run" / made["list"].name
    path = beside(table, "_faults.csv")
    whole = path.read_text()
    header, *rows = csv.reader(whole.splitlines())
    assert {"images", "correct", "misclassified", "critical", *columns.EFFECTS} - {"sdc1"} <= {*header}

    def refuse(changed: list[list[str]], what: object) -> str:
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *changed])
        sentence = refused(table, what)
        assert sentence.startswith(f"{path}: expected the faults of {table.stem}"), sentence
        return sentence

    def other(column: str, value: object) -> list[list[str]]:
        place = header.index(column)
        return [[*rows[0][:place], str(value), *rows[0][place + 1 :]], *rows[1:]]

    for name in (name for name in header[header.index("images") :] if name != columns.CHANGE):
        value = int(rows[0][header.index(name)]) + 1
        called = {"images": "injections", "critical": "sdc1"}.get(name, name)
        assert f"whose {called} of " in refuse(other(name, value), name)
    assert f"whose {columns.CHANGE} of " in refuse([[*row[:-1], "0.5"] for row in rows], columns.CHANGE)
    assert "whose flips of " in refuse(rows[1:], "a row less")
    assert "whose flips of " in refuse([rows[0], *rows], "a row twice")
    assert "which has none of elsewhere, 0, weight" in refuse([*rows, *other("layer", "elsewhere")[:1]], "a layer")
    refuse(other("bit", (int(rows[0][header.index("bit")]) + 1) % 32), "another bit")
    refuse(other("target", "bias" if rows[0][0] == "weight" else "weight"), "another parameter")
    m, n = (header.index(name) for name in columns.HITS)
    at = [header.index(name) for name in ("target", "layer", "call")]
    spread = [list(row) for row in rows]
    first, second = next(
        (a, b)
        for a in spread
        for b in spread
        if a is not b
        and [a[i] for i in at] == [b[i] for i in at]
        and int(a[m]) > 0
        and int(b[m]) < int(b[n])
        and int(a[m]) != int(b[m]) + 1
    )
    first[m], second[m] = str(int(first[m]) - 1), str(int(second[m]) + 1)  # the sums stay, but not those of squares
    assert "whose mm of " in refuse(spread, "spread over faults otherwise")
    path.write_text(whole)
    assert reading.read(table).layers


def top1_breaks(whole: pa.Table, index: int) -> Any:
    """Injections of a layer and bit in which the change is already 1, so that another one does not show."""
    layer, bit, change = (whole.column(name).to_numpy() for name in ("layer", "bit", "change"))
    full = {(at, b) for at, b, c in zip(layer, bit, change, strict=True) if c > 0.99}
    assert len(full) < len(set(zip(layer.tolist(), bit.tolist(), strict=True)))
    return np.array([(at, b) in full for at, b in zip(layer, bit, strict=True)])


def test_the_sentence_names_both_files(made: dict[str, Path], tmp_path: Path) -> None:
    first = made["neurons"]
    shutil.copytree(first.parent, tmp_path / "run")
    table = tmp_path / "run" / first.name
    path = beside(table, "_faults.parquet")
    whole = pq.read_table(path)
    clean, place = whole.column("clean_top1"), whole.schema.get_field_index("top1")
    pq.write_table(whole.set_column(place, whole.schema.field("top1"), clean), path)
    row = next(row for row in reading.read(first).layers if row.misclassified)
    words = f"whose misclassified of {row.place.named} is {row.misclassified}, got 0"
    assert refused(table, "top1") == f"{path}: expected the faults of {table.name}, {words}"


def test_the_record_of_a_list_of_other_kinds_of_faults_is_held_against_its_tables(
    few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(24)
    faults = tmp_path / "list.csv"
    at = "neuron,features.0,0,0;0;0"
    faults.write_text(
        f"target,layer,call,index,bit,image,fault\n{at},1;7,all,flip\n{at},,all,zero\n{at},9,all,stuck1\n"
    )
    flags = ["--dataset=digits", f"--faults={faults}", f"--output-path={tmp_path / 'run'}", "--no-plots"]
    assert command.main("neuron", "", flags) == 0
    (facts,) = (tmp_path / "run").glob("*.json")
    table = facts.with_suffix(".csv")
    (row,) = reading.read(table).layers
    assert row.outcomes is not None
    assert row.outcomes.flips == 3
    path = beside(table, "_faults.csv")
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-1]))
    assert refused(table, "a row less").endswith("whose flips of #1 Conv2d (path features.0) is 3, got 2")
