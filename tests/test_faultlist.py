"""Fault lists: written and read back, refused with a sentence, and run to the same outcomes."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import parsers
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, FewDigits, RunScript, random_images
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bitflip import report
from bitflip.campaign import loop, publishing
from bitflip.campaign.executor import Here
from bitflip.engines import Engine
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.pool import Budget
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput
from bitflip.faults import faultlist
from bitflip.faults.faultlist import Fault, FaultList
from bitflip.faults.listed import Listed
from bitflip.faults.tasks import Cut, Task
from bitflip.network.devices import Placement
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.outcomes.per_fault import PerFault
from bitflip.results import faultresults, tracking
from bitflip.results import tables as results

HEADER = "target,layer,call,index,bit,image"
PUBLISHED = "Injection,Layer,TensorIndex,Bit,n_injections,masked,non_critical,critical"
CPU = Placement(torch.device("cpu"), torch.float32)

# --- files ---

names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=20)
spans = st.tuples(st.integers(0, 10**6), st.integers(1, 10**4)).map(lambda pair: range(pair[0], sum(pair)))
any_fault = st.builds(
    Fault,
    target=st.one_of(st.just("neuron"), names),
    path=names,
    call=st.integers(0, 9),
    index=st.lists(st.integers(0, 10**6), max_size=5).map(tuple),
    bit=st.integers(0, 63),
    images=st.one_of(st.none(), spans),
    repeat=st.integers(0, 3),
)


def written(faults: list[Fault]) -> str:
    text = io.StringIO()
    faultlist.write(text, faults)
    return text.getvalue()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_fault, min_size=1, max_size=20, unique=True))
def test_round_trip(tmp_path: Path, faults: list[Fault]) -> None:
    path = tmp_path / "faults.csv"
    path.write_text(written(faults), encoding="utf-8", newline="")
    read = faultlist.read(path)
    assert read.faults == tuple(faults)
    assert read.problems == ()
    assert written(list(read.faults)).encode() == path.read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda header, body: (header + "\n" + body).encode(),
            st.sampled_from([HEADER, HEADER + ",repeat", PUBLISHED]),
            st.text(st.sampled_from('0123456789,;()"\n\r -alwn"\0é'), max_size=200),
        ),
    )
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "faults.csv"
    path.write_bytes(data)
    with pytest.raises(BadInput) as refused:  # if only because a model without layers has no fault
        faultlist.read(path).check([], 10, neurons=False)
    assert 0 < len(refused.value.problems) <= faultlist.SHOWN + 1
    assert all(problem.startswith("faults (--faults): ") for problem in refused.value.problems)


def test_the_same_complaint_about_many_lines_is_one_sentence(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(5)
    faults = [Fault("weight", "features.0", 0, (i, 0, 0, 0), 1) for i in range(16)]
    faults[3:3] = [Fault("weight", "features.0", 0, (99, 0, 0, 0), 1)]
    (tmp_path / "list.csv").write_text(written(faults))
    common = ("--dataset=digits", f"--faults={tmp_path / 'list.csv'}", f"--output-path={tmp_path / 'out'}")
    done = run_script("main.py", *common)
    (sentence,) = done.errors
    assert sentence.startswith(
        f"faults (--faults): {tmp_path / 'list.csv'}, line 2 and 16 more: target: expected neuron"
    )
    (sentence,) = run_script("weight.py", *common).errors
    assert sentence.startswith(f"faults (--faults): {tmp_path / 'list.csv'}, line 5: index: expected an element")


def test_published_bits_count_from_the_other_end(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    rows = ['7,conv1,"(3, 0, 2, 1)",30,100,1,2,97', '9,linear,"(2, 5)",0,100,100,0,0', '11,bn,"(4,)",31,100,0,99,1']
    path.write_text("\n".join([PUBLISHED, *rows]))
    listed = faultlist.read(path)
    assert [(fault.index, fault.bit) for fault in listed.faults] == [((3, 0, 2, 1), 1), ((2, 5), 31), ((4,), 0)]
    assert all(fault.target == "weight" and fault.images is None for fault in listed.faults)
    assert listed.published is not None
    assert [(p.injection, p.images, p.masked, p.non_critical, p.critical) for p in listed.published] == [
        (7, 100, 1, 2, 97),
        (9, 100, 100, 0, 0),
        (11, 100, 0, 99, 1),
    ]


BAD_ROWS = {
    "layer": ("weight,layr1,0,0;0,1,all", "layer: the model has no 'layr1'; did you mean 'layer1'?"),
    "call": ("weight,layer1,3,0;0,1,all", "call: expected 0 to 0 of layer1, got 3"),
    "parameter": ("weight,relu,0,0,1,all", "target: relu has no parameter 'weight'"),
    "no parameter": ("wait,layer1,0,0;0,1,all", "target: layer1 has no parameter 'wait'"),
    "neuron": ("neuron,layer1,0,0,1,3", "neuron.py runs faults of neurons"),
    "dimensions": ("weight,layer1,0,0;0;0,1,all", "index: expected 2 coordinates in layer1, whose shape is (3, 5)"),
    "index": ("weight,layer1,0,3;0,1,all", "index: expected an element of layer1, whose shape is (3, 5), got (3, 0)"),
    "not an index": ("weight,layer1,0,(3 0),1,all", "index: expected coordinates such as 3;0;2;1, got '(3 0)'"),
    "bit": ("weight,layer1,0,0;0,32,all", "bit: expected 0 to 31 of a value of 32 bits, got 32"),
    "huge": (f"weight,layer1,0,0;0,{'9' * 5000},all", "bit: expected a whole number from 0 to 63, got '9999"),
    "negative": ("weight,layer1,0,0;0,-1,all", "bit: expected a whole number from 0 to 63, got '-1'"),
    "no number": ("weight,layer1,0,0;0,one,all", "bit: expected a whole number from 0 to 63, got 'one'"),
    "image": ("weight,layer1,0,0;0,1,7", "image: expected 0 to 6, or all, got 7"),
    "range": ("weight,layer1,0,0;0,1,5-2", "image: expected an index, a range such as 0-255, or all, got '5-2'"),
    "columns": ("weight,layer1,0", "expected 6 columns, got 3"),
    "duplicate": ("weight,layer1,0,0;0,1,all", "the same fault as in line 2"),
}


class TwoLayers(nn.Sequential):
    """(B, 1, 1, 5) -> (B, 3), with a layer that has no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.layer1 = nn.Linear(5, 3)
        self.relu = nn.ReLU()


def test_bad_rows_are_reported_together(tmp_path: Path) -> None:
    injector = Injector(TwoLayers(), 2, torch.zeros(1, 1, 1, 5))
    path = tmp_path / "faults.csv"
    path.write_text("\n".join([HEADER, "weight,layer1,0,0;0,1,all", *(row for row, _ in BAD_ROWS.values())]))
    with pytest.raises(BadInput) as refused:
        faultlist.read(path).check(injector.layers, 7, neurons=False)
    assert len(refused.value.problems) == len(BAD_ROWS)
    for line, (problem, (_, sentence)) in enumerate(zip(refused.value.problems, BAD_ROWS.values(), strict=True), 3):
        assert problem.startswith(f"faults (--faults): {path}, line {line}: ")
        assert sentence in problem


def test_many_bad_rows_are_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "faults.csv"
    path.write_text("\n".join([HEADER, *(f"weight,features.0,0,0;0;0;0,{bit},all" for bit in range(64, 164))]))
    with pytest.raises(BadInput) as refused:
        faultlist.read(path).check([], 1, neurons=False)
    assert len(refused.value.problems) == faultlist.SHOWN + 1
    assert refused.value.problems[-1].endswith("and 80 more")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"", "got an empty file", id="empty"),
        pytest.param(HEADER.encode(), "got a header only", id="header-only"),
        pytest.param(b"a,b\n1,2\n", "got 'a,b'", id="another-header"),
        pytest.param(HEADER.encode() + b"\n\nneuron,\xff", "bytes that are not UTF-8 in line 3", id="not-utf-8"),
        pytest.param(HEADER.encode() + b"\nneuron,\0,", "a NUL byte in line 2", id="nul"),
        pytest.param(HEADER.encode() + b'\nneuron,"a', "line 2: unexpected end of data", id="open-quote"),
    ],
)
def test_no_fault_list(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.csv"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="--faults") as refused:
        faultlist.read(path)
    (problem,) = refused.value.problems
    assert sentence in problem


def test_a_spreadsheets_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "faults.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEADER.encode() + b"\r\nneuron,a,0,1;2,3,4\r\n")
    assert faultlist.read(path).faults == (Fault("neuron", "a", 0, (1, 2), 3, range(4, 5)),)


@pytest.mark.parametrize("count", [1, 40, 100, 320, 1000])
def test_stratified_sample_is_in_proportion(count: int) -> None:
    faults = [Fault("weight", f"l{i % 5 // 3}", 0, (i,), i % 32) for i in range(1000)]
    chosen = faultlist.stratified(faults, count, seed=3)
    assert len(set(chosen)) == len(chosen) == min(count, 1000)
    assert chosen == faultlist.stratified(faults, count, seed=3)
    expected, got = (Counter((f.bit, f.path) for f in some) for some in (faults, [faults[i] for i in chosen]))
    assert all(abs(got[key] - expected[key] * count / 1000) < 1 for key in expected)
    if count == 40:
        assert chosen != faultlist.stratified(faults, count, seed=4)


# --- tasks and engines ---


def some_faults(injector: Injector, images: int, neurons: bool) -> list[Fault]:
    """Sparse and dense faults: on one image each, some twice in a layer, on ranges, on all images."""
    rng = np.random.default_rng(2)
    spread: list[range | None] = [None, range(1, 4), *(range(i, i + 1) for i in (0, 0, 2, 3, images - 1))]
    faults: dict[Fault, None] = {}
    for layer in injector.layers:
        place = faultlist.place_of(layer, "neuron" if neurons else "weight")
        if place is None:
            continue
        for where in spread:
            index = tuple(int(rng.integers(n)) for n in place[0])
            faults[
                Fault("neuron" if neurons else "weight", layer.path, layer.call, index, int(rng.integers(12)), where)
            ] = None
    order = rng.permutation(len(faults))
    return [list(faults)[i] for i in order]


@pytest.mark.parametrize("engine", ["wave", "reference"])
@pytest.mark.parametrize("neurons", [True, False], ids=["neurons", "weights"])
def test_each_fault_does_what_it_does_alone(neurons: bool, engine: str, tiny: nn.Module) -> None:
    """Whatever faults and images it is run together with."""
    images = random_images(9, 3, 8, 8)
    model = CPU.model(WithInput(tiny) if neurons else tiny)
    injector = Injector(model, 4, torch.zeros(1, 3, 8, 8))
    program = Program(model, injector.modules, injector.layers, images)
    chosen: Engine = Wave(injector, program, Budget(16, 1 << 28)) if engine == "wave" else Reference(injector)
    faults = some_faults(injector, len(images), neurons)
    labels = torch.arange(9) % 3
    listed = source_of(faults, injector)
    found = PerFault(faults, len(images))
    for task in listed.tasks(listed.targets, len(images), Cut(4, 1 << 14), 0):
        span = slice(task.images.start, task.images.stop)
        outcomes = BatchOutcomes(labels[span], task.flips, span.start, lambda count: None)
        with torch.no_grad():
            chosen.run(CPU.inputs(images[span]), outcomes.flips, outcomes)
        outcomes.to_host()
        again = PerFault(faults, len(images))
        again.restore(found.state())
        again.add(task, outcomes)
        found = again
    assert found.complete.all()
    with torch.no_grad():
        clean = model(images)
        for number, fault in enumerate(faults):
            hit = range(9) if fault.images is None else fault.images
            logits = alone(injector, fault, images[list(hit)])
            changed = logits.argmax(1) != clean[list(hit)].argmax(1)
            assert found.counts["images"][number] == len(hit)
            assert found.counts["critical"][number] == int(changed.sum()), fault
            right = clean.argmax(1)[list(hit)] == labels[list(hit)]
            assert found.counts["correct"][number] == int(right.sum())
            assert found.counts["misclassified"][number] == int((changed & right).sum())
            assert found.counts["nonfinite"][number] == int((~logits.isfinite().all(1)).sum())
    total = sum(int(counted.sum()) for counted in found.by_image.values())
    assert total == found.counts["critical"].sum() > 0
    assert (found.counts["masked"] + found.counts["benign"] + found.counts["critical"] == found.counts["images"]).all()
    assert found.counts["masked"].sum() > 0


def source_of(faults: list[Fault], injector: Injector) -> Listed:
    return Listed(FaultList(tuple(faults), tuple(range(len(faults)))), injector.everything)


def alone(injector: Injector, fault: Fault, images: torch.Tensor) -> torch.Tensor:
    """The logits under one fault, in a plain pass."""
    everywhere = dataclasses.replace(fault, images=None)
    listed = source_of([everywhere], injector)
    (task,) = listed.tasks(listed.targets, len(images), Cut(len(images), 1), 0)
    (flips,) = task.flips
    with injector.injected(flips):
        logits: torch.Tensor = injector.original_model(images.clone())
    return logits


# --- runs ---


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


TOTALS = (
    "flips",
    "injections",
    *("masked", "benign", "sdc1", "sdc5", "sdc10", "sdc20", "nonfinite", "due"),
    "misclassified",
)


@pytest.mark.parametrize(
    ("script", "extra"),
    [
        pytest.param("neuron", (), id="neurons"),
        pytest.param("neuron", ("--repeats", "3"), id="neurons-repeats"),
        pytest.param("neuron", ("--seeds", "4,9"), id="neurons-seeds"),
        pytest.param("weight", (), id="weights"),
        pytest.param("weight", ("--repeats", "3"), id="weights-repeats"),
        pytest.param("weight", ("--seeds", "4,9"), id="weights-seeds"),
        pytest.param("weight", ("--parameters", "all"), id="all-parameters"),
    ],
)
def test_a_saved_list_does_the_same_again(
    script: str, extra: tuple[str, ...], run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(20)
    saved = tmp_path / "saved.csv"
    shared = ("--dataset", "digits", "--batch-size", "8", "--output-path", tmp_path, "--device", "cpu")
    seed = () if "--seeds" in extra else ("--seed", "4")
    sampled = ("--layer-type", "Conv2d,Linear", "--save-faults", saved, *seed)
    first = run_script(f"{script}.py", *shared, *sampled, *extra)
    assert (first.code, first.err) == (0, "")
    again = run_script(f"{script}.py", *shared, "--faults", saved, "--save-faults", tmp_path / "again.csv")
    assert (again.code, again.err) == (0, "")
    assert (tmp_path / "again.csv").read_bytes() == saved.read_bytes()
    stem = f"{script}_digits_vgg_digits"
    for end, key in (("", ("path", "call", "parameter")), ("_bits", ("path", "call", "parameter", "bit"))):
        counted: list[Counter[tuple[str, ...]]] = []
        for runs in (
            [f"{stem}_4{end}.csv", f"{stem}_9{end}.csv"] if not seed else [f"{stem}_4{end}.csv"],
            [f"{stem}_list-saved{end}.csv"],
        ):
            total: Counter[tuple[str, ...]] = Counter()
            for run in runs:
                for row in rows_of(tmp_path / run):
                    for name in TOTALS:
                        total[(*(row[k] for k in key), name)] += int(row[name])
            counted.append(total)
        assert counted[0] == counted[1]
    assert not list(tmp_path.glob("*.unfinished"))


def test_outcomes_of_single_faults_add_up_to_the_tables(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(10)
    faults = [Fault("weight", "features.0", 0, (0, 0, 0, 0), bit) for bit in range(32)]
    path = tmp_path / "mine.csv"
    path.write_text(written(faults))
    done = run_script("weight.py", "--dataset", "digits", "--output-path", tmp_path, "--faults", path)
    assert (done.code, done.err) == (0, "")
    rows = rows_of(tmp_path / "weight_digits_vgg_digits_list-mine_faults.csv")
    assert [int(row["bit"]) for row in rows] == list(range(32))
    (layer,) = rows_of(tmp_path / "weight_digits_vgg_digits_list-mine.csv")
    bits = rows_of(tmp_path / "weight_digits_vgg_digits_list-mine_bits.csv")
    for name, ours in (("masked", "masked"), ("sdc1", "critical"), ("benign", "benign"), ("misclassified",) * 2):
        assert [row[name] for row in bits] == [row[ours] for row in rows]
        assert int(layer[name]) == sum(int(row[ours]) for row in rows)
    images = rows_of(tmp_path / "weight_digits_vgg_digits_list-mine_images.csv")
    assert {int(row["image"]) for row in images} == set(range(10))
    assert sum(int(row["critical"]) for row in images) == sum(int(row["critical"]) for row in rows)


def test_a_list_goes_with_no_sampling(run_script: RunScript, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"{HEADER}\nweight,features.0,0,0;0;0;0,1,all\n")
    shared = ("--dataset", "digits", "--output-path", tmp_path)
    done = run_script("weight.py", *shared, "--faults", path, "--repeats", "2", "--layer-type", "Conv2d")
    assert done.code == 2
    assert [error.partition(" ")[0] for error in done.errors] == ["layer_type", "repeats"]
    assert (
        run_script("weight.py", *shared, "--limit", "5").errors[0].startswith("limit (--limit): expected a fault list")
    )
    absent = run_script("weight.py", *shared, "--faults", tmp_path / "no.csv")
    assert absent.errors == [
        f"faults (--faults): expected the path of a fault list, but there is no file {tmp_path / 'no.csv'}"
    ]
    mixed = run_script("neuron.py", *shared, "--faults", path)
    assert (mixed.code, len(mixed.errors)) == (2, 1)
    assert "line 2: target: expected neuron, got 'weight'; weight.py runs" in mixed.errors[0]


def test_a_lists_results_are_drawn_and_sent_like_those_of_any_run(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(5)
    path = tmp_path / "list.csv"
    faults = [Fault("weight", layer, 0, (0, 0, 0, 0), bit) for layer in ("features.0", "features.4") for bit in (1, 2)]
    path.write_text(written(faults))
    sent: list[tuple[dict[str, float], int]] = []

    class Recorder(tracking.Tracker):
        def log(self, payload: Mapping[str, float], step: int) -> None:
            sent.append((dict(payload), step))

    monkeypatch.setattr(tracking, "connect", Recorder)
    arguments = ("weight.py", "--dataset", "digits", "--faults", path, "--output-path", tmp_path)
    done = run_script(*arguments, "--plots")
    assert (done.code, done.err) == (0, "")
    stem = "weight_digits_vgg_digits_list-list"
    with (tmp_path / f"{stem}.csv").open() as file:
        rows = {int(row["layer"]): float(row["seed_0"]) for row in csv.DictReader(file)}
    *layers, (means, last) = sent
    assert {step: payload["Misclassification_rate"] for payload, step in layers} == pytest.approx(rows, abs=1e-3)
    assert means["mean/Conv2d"] == pytest.approx(sum(rows.values()) / 2, abs=1e-3)
    assert last == max(rows)
    page = (tmp_path / f"{stem}.html").read_text()
    assert "faults of list.csv" in page
    assert "Rates are those of the faults in the list." in page
    plots = sorted(path.name for path in tmp_path.glob("*.png"))
    assert plots == [f"{stem}_bits.png", f"{stem}_heatmap.png", f"{stem}_layers.png"]
    assert all(f"  {tmp_path / name}" in done.out.splitlines() for name in plots)
    run_script(*arguments, "--no-plots")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == plots, "of the same results"
    run_script(*arguments, "--no-plots", "--fresh", "--confidence=0.9")
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".png", ".svg", ".html")], "of other results"


def test_results_of_an_earlier_list_stay_until_all_new_ones_are_whole(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(5)
    listed, folder = tmp_path / "list.csv", tmp_path / "results"
    arguments = ("weight.py", "--dataset", "digits", "--faults", listed, "--output-path", folder)
    listed.write_text(written([Fault("weight", "features.0", 0, (0, 0, 0, 0), 1)]))
    assert run_script(*arguments).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    listed.write_text(written([Fault("weight", "features.0", 0, (1, 0, 0, 0), 2)]))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_bits", full)
        done = run_script(*arguments, "--fresh")
    assert done.code == 2
    assert "can't be written (No space left on device); what was finished before is kept" in done.err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    done = run_script(*arguments)
    assert done.code == 0
    assert "going on after" in done.err
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after if not name.endswith(".txt"))


# --- stopped and gone on with ---


@pytest.fixture
def long_list(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    faults = {
        Fault(
            "weight", "features.0", 0, (int(rng.integers(8)), 0, int(rng.integers(3)), 1), int(rng.integers(32)), where
        )
        for where in (None, *(range(i, i + 5) for i in range(0, 100, 5)))
        for _ in range(4)
    }
    path = tmp_path / "long.csv"
    path.write_text(written(sorted(faults, key=str)))
    return path


FILES = ("_faults.csv", "_images.csv", ".csv", "_bits.csv", ".txt")


def test_a_killed_run_ends_in_the_same_bytes(long_list: Path, run_script: RunScript, tmp_path: Path) -> None:
    arguments = ("--dataset", "digits", "--faults", long_list, "--batch-size", "50", "--device", "cpu")
    stem = "weight_digits_vgg_digits_list-long"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_script("weight.py", *arguments, "--output-path", whole).code == 0
    command = [sys.executable, str(ROOT / "weight.py"), *map(str, arguments), "--output-path", str(killed)]
    saved = killed / f"{stem}.unfinished" / "progress.npz"
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not saved.is_file():
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    done = run_script("weight.py", *arguments, "--output-path", killed)
    assert done.code == 0
    assert "going on after" in done.err
    for end in FILES:
        assert (killed / f"{stem}{end}").read_bytes() == (whole / f"{stem}{end}").read_bytes()
    assert not list(killed.glob("*.unfinished"))


@pytest.fixture
def stopped(
    long_list: Path, run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[object, ...]:
    """The command line of a run that Ctrl-C has stopped."""
    few_digits(100)
    arguments = ("--dataset", "digits", "--faults", long_list, "--output-path", tmp_path, "--device", "cpu")
    real, calls = PerFault.add, []

    def add(self: PerFault, task: Task, batch: BatchOutcomes) -> None:
        calls.append(task)
        if len(calls) > 3:
            raise KeyboardInterrupt
        real(self, task, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PerFault, "add", add)
        done = run_script("weight.py", *arguments)
    assert done.code == 130
    assert "the same command goes on from there" in done.err
    return arguments


def test_a_run_of_something_else_is_not_gone_on_with(
    stopped: tuple[object, ...], run_script: RunScript, tmp_path: Path
) -> None:
    other = run_script("weight.py", *stopped, "--batch-size", "9")
    assert other.code == 2
    assert "unfinished run with other settings (batch_size 256 there, 9 here); go on with those, " in other.errors[0]
    path = Path(str(stopped[3]))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    another = run_script("weight.py", *stopped)
    assert "unfinished run with other settings (other faults); go on with those" in another.errors[-1]
    fresh = run_script("weight.py", *stopped, "--fresh")
    assert (fresh.code, fresh.err) == (0, "")


def test_a_run_is_gone_on_with_in_the_tasks_that_it_began_with(
    stopped: tuple[object, ...], run_script: RunScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much memory, or another number of rows, a later start would choose."""
    monkeypatch.setattr(Here, "cut", lambda self, experiment: Cut(7, 21))
    done = run_script("weight.py", *stopped)
    assert done.code == 0
    assert "going on after" in done.err
    found = {path.name: path.read_bytes() for path in tmp_path.glob("*list-long*.csv")}
    assert len(found) == 4
    again = run_script("weight.py", *stopped, "--fresh")
    assert (again.code, again.err) == (0, "")
    assert found == {path.name: path.read_bytes() for path in tmp_path.glob("*list-long*.csv")}


def test_a_run_that_finished_nothing_refuses_nobody(
    stopped: tuple[object, ...], run_script: RunScript, tmp_path: Path
) -> None:
    (saved,) = tmp_path.glob("*.unfinished/progress.npz")
    saved.unlink()
    done = run_script("weight.py", *stopped, "--batch-size", "50")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("where", ["draw", "track"])
def test_ctrl_c_while_reporting(
    where: str, stopped: tuple[object, ...], run_script: RunScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, where, press)
        done = run_script("weight.py", *stopped, "--plots")
    assert done.code == 130
    written_already = (tmp_path / "weight_digits_vgg_digits_list-long.json").is_file()
    assert written_already == (where == "track")
    expected = "the results are written" if written_already else "the same command goes on from there"
    assert done.err.splitlines()[-1].endswith(expected)
    assert run_script("weight.py", *stopped).code == 0


def test_a_folder_of_an_earlier_form_is_refused(
    stopped: tuple[object, ...], run_script: RunScript, tmp_path: Path
) -> None:
    """One sentence, and nothing in it is touched, until --fresh says so."""
    (saved,) = tmp_path.glob("*.unfinished/progress.npz")
    saved.unlink()
    log = saved.with_name("outcomes.log")
    log.write_text("01234567 {}\n")
    done = run_script("weight.py", *stopped)
    assert done.code == 2
    (sentence,) = done.errors[-1:]
    assert f"{saved.parent} holds an unfinished run of an earlier version" in sentence
    assert "--fresh" in sentence
    assert log.read_text() == "01234567 {}\n"
    assert run_script("weight.py", *stopped, "--fresh").code == 0


def test_two_runs_do_not_share_a_folder(stopped: tuple[object, ...], run_script: RunScript, tmp_path: Path) -> None:
    (folder,) = tmp_path.glob("*.unfinished")
    with FileLock(folder / "lock"):
        done = run_script("weight.py", *stopped)
    assert done.code == 2
    assert "another process is at work on" in done.errors[0]


# --- results read back ---


def test_results_are_read_back(run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> None:
    few_digits(10)
    faults = [Fault("weight", "features.0", 0, (0, 0, 0, 0), bit) for bit in (1, 9)]
    path = tmp_path / "mine.csv"
    path.write_text(written(faults))
    assert run_script("weight.py", "--dataset", "digits", "--output-path", tmp_path, "--faults", path).code == 0
    results = tmp_path / "weight_digits_vgg_digits_list-mine_faults.csv"
    read = faultresults.read(results)
    assert read.faults == tuple(faults)
    assert read.counts["images"].tolist() == [10, 10]
    assert sum(int(v.sum()) for v in read.by_image.values()) == read.counts["critical"].sum()
    good = results.read_text()
    for bad, sentence in (
        (good.replace("features.0", "features.0,"), "columns"),
        (good.replace(",10,", ",ten,"), "expected a whole number"),
        (good.partition("\n")[2], "expected the header"),
        ("", "expected the header"),
        (good.replace(",masked", ",mask", 1), "masked is missing"),
        (good[:-3], "cut off"),
    ):
        results.write_text(bad)
        with pytest.raises(BadInput, match=sentence):
            faultresults.read(results)
    header, first, *rest = (line.split(",") for line in good.splitlines())
    for column, sentence in (
        ("critical", "expected masked \\+ benign \\+ critical \\+ due to be images, 10, got"),
        ("due", "expected masked \\+ benign"),
        ("correct", "expected correct <= images, got"),
        ("misclassified", "expected misclassified <= critical, got"),
    ):
        changed = list(first)
        changed[header.index(column)] = str(int(changed[header.index(column)]) + 10)
        results.write_text("".join(f"{','.join(cells)}\n" for cells in (header, changed, *rest)))
        with pytest.raises(BadInput, match=sentence):
            faultresults.read(results)
    results.write_text(good)
    images = results.with_name(results.name.replace("_faults", "_images"))
    seen = images.read_text()
    assert seen.count(",weight,features.0,0,1,") > 0
    images.write_text(seen.replace(",weight,features.0,0,1,", ",weight,features.0,0,9,"))
    with pytest.raises(
        BadInput, match=r"not of one run: expected \d+ critical inferences under faults of weight, feat"
    ):
        faultresults.read(results)
    images.write_text(seen)
    later = [f"{line},{'?' if i else 'new'}\n" for i, line in enumerate(good.splitlines())]
    results.write_text("".join(later))
    assert faultresults.read(results).counts["critical"].tolist() == read.counts["critical"].tolist()


# --- what was saved can be run again, whatever holds the parameters ---

AWKWARD = """
import torch
from torch import nn
from torch.nn.utils import parametrizations


class Root(nn.Module):
    '''Holds a parameter itself, whose layer has an empty path.'''

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4 * 30 * 30, 10)

    def forward(self, x):
        return self.linear(self.conv(x + self.shift).relu().flatten(1))


class Listed(nn.Module):
    '''Holds its parameters in a list, which names them 0 and 1.'''

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([torch.randn(3, 1, 1), torch.randn(10)])
        self.linear = nn.Linear(3 * 32 * 32, 10, bias=False)

    def forward(self, x):
        return self.linear((x * self.scales[0]).flatten(1)) * self.scales[1]


def root():
    torch.manual_seed(0)
    return Root()


def listed():
    torch.manual_seed(0)
    return Listed()


def normed():
    '''No tensor is called weight: that is computed from two others.'''
    torch.manual_seed(0)
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3, bias=False))
    linear = parametrizations.weight_norm(nn.Linear(4 * 30 * 30, 10, bias=False))
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)
"""


@pytest.mark.parametrize("factory", ["root", "listed", "normed"])
def test_any_saved_list_can_be_run_again(
    factory: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(12)
    (tmp_path / "awkward.py").write_text(AWKWARD)
    shared = ("--dataset", "digits", "--model-name", f"{tmp_path / 'awkward.py'}:{factory}", "--batch-size", "4")
    logs = ("--detailed-log", "--fault-table", "--output-path")
    saved, again = tmp_path / "saved.csv", tmp_path / "again.csv"
    sampled = ("--parameters", "all", "--repeats", "3", "--bit-flip-pos", "1", "--seed", "4")
    first = run_script("weight.py", *shared, *sampled, "--save-faults", saved, *logs, tmp_path / "sampled")
    assert first.code == 0, first.err
    second = run_script("weight.py", *shared, "--faults", saved, "--save-faults", again, *logs, tmp_path / "listed")
    assert second.code == 0, second.err
    assert again.read_bytes() == saved.read_bytes()
    tables = [rows_of(next(path.glob("*[0-9d].csv"))) for path in (tmp_path / "sampled", tmp_path / "listed")]
    assert [{name: row[name] for name in ("path", "call", "parameter", *TOTALS)} for row in tables[0]] == [
        {name: row[name] for name in ("path", "call", "parameter", *TOTALS)} for row in tables[1]
    ]
    assert sum(int(row["sdc1"]) for row in tables[0]) > 0
    read = faultresults.read(next((tmp_path / "listed").glob("*_faults.csv")))
    assert sum(int(counted.sum()) for counted in read.by_image.values()) == read.counts["critical"].sum()


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
def test_a_list_is_logged_like_the_run_that_saved_it(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(40)
    shared = ("--dataset", "digits", "--batch-size", "16", "--detailed-log", "--fault-table", "--output-path")
    saved, folders = tmp_path / "saved.csv", (tmp_path / "sampled", tmp_path / "listed")
    sampled = ("--seed", "4", "--bit-flip-pos", "1", "--repeats", "2", "--save-faults", saved)
    assert run_script(script, *shared, folders[0], *sampled).code == 0
    assert run_script(script, *shared, folders[1], "--faults", saved).code == 0
    read = parsers.weights if script == "weight.py" else parsers.neurons
    logs = [read(next(folder.glob("*_detailed.txt")).read_text()) for folder in folders]
    assert sorted(map(str, logs[0])) == sorted(map(str, logs[1]))
    assert "'Repeat': '1'" in str(logs[0])
    tables = [pq.read_table(next(folder.glob("*_faults.parquet"))).drop_columns(["seed"]) for folder in folders]
    assert sorted(map(str, tables[0].to_pylist())) == sorted(map(str, tables[1].to_pylist()))


def test_a_lists_running_rate_is_sent(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(20)
    sent: list[str] = []

    class Recording(tracking.Tracker):
        def log(self, payload: Mapping[str, float], step: int) -> None:
            sent.extend(payload)

    monkeypatch.setattr(loop, "RUNNING_RATE_EVERY", 0.0)
    monkeypatch.setattr(tracking, "connect", Recording)
    (tmp_path / "mine.csv").write_text(written([Fault("weight", "features.0", 0, (0, 0, 0, 0), 1)]))
    shared = ("--dataset", "digits", "--output-path", tmp_path, "--batch-size", "5", "--engine", "reference")
    assert run_script("weight.py", *shared, "--faults", tmp_path / "mine.csv").code == 0
    assert sent.count("running/Misclassification_rate") == 4
    assert sent.count("Misclassification_rate") == 1


SPREADSHEET = """
from torch import nn

def build():
    model = nn.Sequential()
    model.add_module("=1+1", nn.Conv2d(3, 4, 3))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("@head", nn.Linear(4, 10))
    return model
"""


@pytest.mark.parametrize("script", ["neuron", "weight"])
def test_names_that_are_formulas_are_shielded_in_every_file_and_run_again(
    script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(8)
    (tmp_path / "own.py").write_text(SPREADSHEET)
    space: dict[str, Any] = {}
    exec(SPREADSHEET, space)
    torch.save(space["build"]().state_dict(), tmp_path / "own.pt")
    model = ("--model-name", f"{tmp_path / 'own.py'}:build", "--weights", tmp_path / "own.pt")
    shared = ("--dataset", "digits", *model, "--batch-size", "4", "--output-path", tmp_path / "out")
    saved = tmp_path / "saved.csv"
    first = run_script(f"{script}.py", *shared, "--seed", "1", "--bit-flip-pos", "1", "--save-faults", saved)
    assert first.code == 0, first.err
    again = run_script(f"{script}.py", *shared, "--faults", saved, "--save-faults", tmp_path / "again.csv")
    assert again.code == 0, again.err
    assert (tmp_path / "again.csv").read_bytes() == saved.read_bytes()
    tables = [*(tmp_path / "out").glob("*.csv"), saved]
    assert len(tables) == 7
    seen = set()
    for path in tables:
        for row in csv.reader(path.open(newline="")):
            assert not [cell for cell in row if cell[:1] in tuple("=+-@") and cell[:1]], path
            seen |= {cell for cell in row if cell.startswith("'")}
        if path.name.endswith(("_1.csv", "_list-saved.csv")):
            assert "=1+1" in {row.place.path for row in report.read(path).layers}
    assert seen == {"'=1+1", "'@head"}
