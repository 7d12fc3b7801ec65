"""Kinds of fault: what they do to stored bits, how they are drawn, and that they can be listed and run again."""

from __future__ import annotations

import csv
import itertools
import math
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import bitstring
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FewDigits, Refused, RunScript
from scipy import stats
from test_bits import DTYPES, oracle, samples
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bitflip
from bitflip.errors import BadInput
from bitflip.faults import kinds
from bitflip.faults.flips import Flips, neuron_flips, parameter_flip
from bitflip.network import bits
from bitflip.network.layers import Layer, Parameter

WIDTH = 32
LAYER = Layer(3, "a", 0, "Linear", (40,), True, WIDTH, (Parameter("weight", (7, 4), WIDTH),))
KINDS = ["stuck0", "stuck1", "flips:2", "burst:4", "random", "zero", "value:-2.5"]


def layer_of(dtype: torch.dtype) -> Layer:
    return Layer(3, "a", 0, "Linear", (40,), True, bits.width(dtype), format=bits.name(dtype))


def after(values: Tensor, flips: Flips) -> list[str]:
    """The bits of values, one for each flip, with the faults in them."""
    changes = flips.changes
    return [oracle(value) for value in changes(values, torch.from_numpy(changes.arrays))]


def drawn(kind: str, count: int, dtype: torch.dtype = torch.float32, bit: int | None = None) -> Flips:
    return neuron_flips(5, layer_of(dtype), 0, count, bit, kind=kinds.of(kind))


@DTYPES
def test_one_bit_is_stuck_and_no_other_changes(dtype: torch.dtype) -> None:
    values = samples(dtype)
    for kind, stuck in (("stuck0", False), ("stuck1", True)):
        for bit in range(bits.width(dtype)):
            for before, found in zip(values, after(values, drawn(kind, len(values), dtype, bit)), strict=True):
                expected = bitstring.BitArray(bin=oracle(before))
                expected.set(stuck, bit)
                assert found == expected.bin


@DTYPES
@pytest.mark.parametrize("kind", ["flips:2", "flips:7", "burst:2", "burst:5"])
def test_so_many_bits_flip_as_the_kind_says(kind: str, dtype: torch.dtype) -> None:
    values = samples(dtype).repeat(20)
    flips = drawn(kind, len(values), dtype)
    count = int(kind.partition(":")[2])
    for place, (before, found) in enumerate(zip(map(oracle, values), after(values, flips), strict=True)):
        differ = [bit for bit, (a, b) in enumerate(zip(before, found, strict=True)) if a != b]
        assert len(differ) == count
        assert differ[0] == flips.bit[place]
        assert flips.written(place) == ("flip", tuple(differ))
        assert flips.kind_and_bits(place) == ("flip", ";".join(map(str, differ)))
        if kind.startswith("burst"):
            assert differ[-1] - differ[0] == count - 1


@DTYPES
def test_a_value_replaces_what_was_there(dtype: torch.dtype) -> None:
    values = samples(dtype)
    for kind, expected in (("zero", 0.0), ("value:-2.5", -2.5), ("value:inf", math.inf), ("value:1e300", 1e300)):
        assert set(after(values, drawn(kind, len(values), dtype))) == {
            oracle(torch.tensor(expected, dtype=torch.float64).to(dtype))
        }
    assert set(after(values, drawn("value:0x7ff1", len(values), dtype))) == {f"{0x7FF1:0{bits.width(dtype)}b}"}


@DTYPES
def test_random_bits_are_each_as_often_set_as_not(dtype: torch.dtype) -> None:
    found = after(torch.ones(4000, dtype=dtype), drawn("random", 4000, dtype))
    assert len(set(found)) > 3500
    for bit in range(bits.width(dtype)):
        assert stats.binomtest(sum(text[bit] == "1" for text in found), 4000).pvalue > 1e-6


def test_any_different_bits_are_equally_likely() -> None:
    layer = Layer(0, "a", 0, "Linear", (4,), True, 8)  # 28 pairs
    words = np.random.Philox(3).random_raw(4 * 28_000).reshape(-1, 4)
    bit, change = kinds.of("flips:2").draw(lambda words, number: np.zeros(0, np.int64), words, layer.bits, "float16")
    assert change is not None
    pairs = Counter(int(mask) & 255 for mask in change.arrays[1])
    assert set(pairs) == {(1 << a) | (1 << b) for a, b in itertools.combinations(range(8), 2)}
    assert stats.chisquare([*pairs.values()]).pvalue > 1e-6
    assert [7 - (int(mask) & 255).bit_length() + 1 for mask in change.arrays[1]] == bit.tolist()


def test_bursts_begin_anywhere_they_fit() -> None:
    starts = np.bincount(neuron_flips(5, LAYER, 0, 29_000, kind=kinds.of("burst:4")).bit, minlength=WIDTH)
    assert (starts[29:] == 0).all()
    assert stats.chisquare(starts[:29]).pvalue > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_neither_what_is_struck_nor_the_order_of_images(kind: str) -> None:
    plain, flips = neuron_flips(5, LAYER, 0, 64), neuron_flips(5, LAYER, 0, 64, kind=kinds.of(kind))
    assert flips.element.tolist() == plain.element.tolist()
    part = neuron_flips(5, LAYER, 48, 16, kind=kinds.of(kind))
    assert part.changes.arrays.tolist() == flips.of(slice(48, 64)).changes.arrays.tolist()
    again = pickle.loads(pickle.dumps(flips))
    assert again.changes.arrays.tolist() == flips.changes.arrays.tolist()
    if kind.startswith("stuck"):
        assert flips.bit.tolist() == plain.bit.tolist()
    of_batch = parameter_flip(5, LAYER, 3, kind=kinds.of(kind), parameter="weight")
    assert of_batch.element.tolist() == parameter_flip(5, LAYER, 3, parameter="weight").element.tolist()


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_can_be_run_again(
    kind: str, target: str, tmp_path: Path, few_digits: FewDigits, run_script: RunScript
) -> None:
    """And the reference engine says the same; also fault by fault."""
    few_digits(60)
    given = ["--dataset", "digits", "--output-path"]
    first = [*given, tmp_path / "a", "--seed", "1", "--fault", kind, "--batch-size", "10", "--no-plots"]
    first += ["--fault-table", "--save-faults", tmp_path / "list.csv", "--layer-num", "0,1,5"]
    assert run_script(f"{target}.py", *first).code == 0
    again = [*given, tmp_path / "b", "--batch-size", "10", "--faults", tmp_path / "list.csv", "--no-plots"]
    assert run_script(f"{target}.py", *again, "--engine", "reference", "--fault-table").code == 0
    (left, right) = (next((tmp_path / name).glob("*.parquet")) for name in "ab")
    columns = ["layer", "image", "element", "original", "error", "top1", "masked", "nonfinite"]
    tables = [pq.read_table(path, columns=columns).to_pylist() for path in (left, right)]
    # a number is equal to itself, also if it is none
    rows = [sorted(str({**row, "layer": 0}) for row in table) for table in tables]
    assert rows[0] == rows[1]
    table = next(path for path in (tmp_path / "a").glob("*.csv") if not path.name.endswith(("_bits.csv", "list.csv")))
    assert table.with_name(f"{table.stem}_bits.csv").exists() == (
        kind.partition(":")[0] not in ("random", "zero", "value")
    )


def test_a_bit_that_is_stuck_where_it_is_is_masked(
    tmp_path: Path, few_digits: FewDigits, run_script: RunScript
) -> None:
    few_digits(60)
    given = ["--dataset", "digits", "--seed", "1", "--fault", "stuck1", "--bit-flip-pos", "0", "--no-plots"]
    assert run_script("neuron.py", *given, "--fault-table", "--output-path", tmp_path).code == 0
    rows = pq.read_table(next(tmp_path.glob("*.parquet"))).to_pylist()
    had_it = [row for row in rows if math.copysign(1, row["original"]) < 0]
    assert len(had_it) > 100
    assert all(row["masked"] and str(row["error"]) == str(row["original"]) for row in had_it)
    assert all(math.copysign(1, row["error"]) < 0 for row in rows)
    with next(path for path in tmp_path.glob("*_1.csv")).open() as file:
        assert sum(int(row["injections"]) for row in csv.DictReader(file)) == len(rows)


def test_a_list_can_mix_kinds(tmp_path: Path) -> None:
    """Each against a plain loop; columns in the files of the results among them."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    images = torch.randn(3, 1, 2, 2)
    data = TensorDataset(images, model(images).argmax(1))
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.detach()
    rows = [
        *("weight,1,0,0;1,1,all,flip", "weight,1,0,0;1,0;9,all,flip", "weight,1,0,2;3,,all,zero"),
        *("weight,1,0,2;3,,all,value:7.25", "weight,1,0,1;1,0,all,stuck1"),
    ]
    listed = tmp_path / "list.csv"
    listed.write_text("target,layer,call,index,bit,image,fault\n" + "\n".join(rows) + "\n")
    result = bitflip.Campaign(model, data, device="cpu").run(bitflip.read_faults(listed))
    with next(path for path in result.files.all if path.name.endswith("_faults.csv")).open() as file:
        found = list(csv.DictReader(file))
    assert [(row["bit"], row["fault"]) for row in found] == [
        *(("1", "flip"), ("0;9", "flip"), ("", "zero"), ("", "value:7.25"), ("0", "stuck1"))
    ]
    changed = [
        *((0, 1, float(flipped(weight[0, 1], 1))), (0, 1, float(flipped(weight[0, 1], 0, 9)))),
        *((2, 3, 0.0), (2, 3, 7.25), (1, 1, -abs(float(weight[1, 1])))),
    ]
    clean: Tensor = model(images)
    for row, (*place, value) in zip(found, changed, strict=True):
        before = weight[tuple(place)].clone()
        weight[tuple(place)] = value
        logits = model(images)
        weight[tuple(place)] = before
        assert int(row["critical"]) == int((logits.argmax(1) != clean.argmax(1)).sum())
        assert int(row["masked"]) == int((logits == clean).all(1).sum())


def flipped(value: Tensor, *chosen: int) -> Tensor:
    found = bitstring.BitArray(bin=oracle(value))
    found.invert(chosen)
    return torch.tensor(found.float)


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("engine", ["wave", "reference"])
def test_a_kind_of_ones_own(target: Any, engine: Any) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    images = torch.randn(40, 1, 2, 2)
    data = TensorDataset(images, model(images).argmax(1))
    seen: list[int] = []

    def noise(values: Tensor, words: Tensor) -> Tensor:
        seen.extend(words.tolist())
        return values + 8 * (words >> 11).to(values.dtype) / 2**52

    campaign = bitflip.Campaign(model, data, batch_size=4, engine=engine, device="cpu")
    own, none = (campaign.run(bitflip.Sampled(target, seed=3, fault=f)) for f in (noise, lambda values, words: values))
    assert len(set(seen)) > 10
    assert max(row.misclassified or 0 for row in own.layers) > 0
    assert [row.masked for row in none.layers] == [row.injections for row in none.layers]
    assert not own.bits
    with pytest.raises(
        BadInput, match=r"expected a function that returns torch.float32 of shape \(5,\) for such values, got"
    ):
        campaign.run(bitflip.Sampled(target, seed=3, fault=lambda values, words: values[:0]))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--fault", "stuck2"], r"fault \(--fault\): expected one of flip, stuck0, .* got 'stuck2'"),
        (["--fault", "flips"], r"fault \(--fault\): expected .* got 'flips'"),
        (["--fault", "flips:1"], r"fault \(--fault\): expected .* got 'flips:1'"),
        (["--fault", "burst:65"], r"fault \(--fault\): expected .* got 'burst:65'"),
        (["--fault", "value:big"], r"fault \(--fault\): expected .* got 'value:big'"),
        (["--fault", "flips:33"], r"fault \(--fault\): expected a kind that fits 32 bits, got flips:33"),
        (["--fault", "burst:4", "--bit-flip-pos", "29"], r"fault .* fits 32 bits, got burst:4 from bit 29 on"),
        (
            ["--fault", "value:0x100000000"],
            r"fault \(--fault\): expected at most 8 hexadecimal digits of a value of 32 bits",
        ),
        (
            ["--fault", "flips:2", "--bit-flip-pos", "1"],
            r"bit_flip_pos .* no bit with fault flips:2, whose bits are drawn",
        ),
        (
            ["--fault", "zero", "--bit-flip-pos", "1"],
            r"bit_flip_pos .* no bit with fault zero, which replaces the whole",
        ),
        (["--fault", "zero", "--bit-sampling", "importance"], r"bit_sampling .* expected uniform with fault zero"),
    ],
)
def test_what_does_not_fit_is_refused(given: list[str], sentence: str, refused: Refused) -> None:
    refused(given, sentence)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("weight,1,0,0;1,1,all,stuck", "fault: expected flip, stuck0, stuck1, zero or value:X, got 'stuck'"),
        ("weight,1,0,0;1,1,all,flips:2", "fault: expected flip, stuck0, stuck1, zero or value:X, got 'flips:2'"),
        ("weight,1,0,0;1,1,all,zero", "bit: expected nothing, as zero replaces the value, got '1'"),
        ("weight,1,0,0;1,1;1,all,flip", "bit: expected different bits from 0 to 63, such as 1;7, got '1;1'"),
        ("weight,1,0,0;1,1;32,all,flip", "bit: expected 0 to 31 of a value of 32 bits, got 32"),
        ("weight,1,0,0;1,,all,value:0x123456789", "fault: expected bits of a value of 32 bits, got value:0x123456789"),
        ("weight,1,0,0;1,,all,flip", "bit: expected a whole number from 0 to 63, got ''"),
    ],
)
def test_a_row_that_is_no_fault_is_named(row: str, sentence: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text(f"target,layer,call,index,bit,image,fault\n{row}\n")
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    data = TensorDataset(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(BadInput, match=re.escape(f"line 2: {sentence}")):
        bitflip.Campaign(model, data, device="cpu").run(bitflip.read_faults(listed))
