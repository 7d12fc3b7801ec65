"""The command that holds protections against the unprotected network, under the same faults."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import FewDigits

from bitflip import __main__ as program
from bitflip.report import comparison, protections, reading
from bitflip.results import tracking
from bitflip.results.tracking import Tracker

HARSH = "clamp:0.0:0.4"  # breaks images


def rows_of(folder: Path) -> list[dict[str, str]]:
    (table,) = folder.glob("*_protections.csv")
    return list(csv.DictReader(table.read_text().splitlines()))


def clean(folder: Path) -> dict[int, bool]:
    """Whether each image is right without a fault."""
    (path,) = folder.glob("*_faults.parquet")
    return {row["image"]: row["label"] == row["clean_top1"] for row in pq.read_table(path).to_pylist()}


class Sent(Tracker):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.found: list[tuple[int, dict[str, float]]] = []

    def log(self, payload: Mapping[str, float], step: int) -> None:
        """See :class:`bitflip.results.tracking.Tracker`."""
        self.found.append((step, dict(payload)))


def test_vessl_gets_both_rates_and_their_difference(
    few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(40)
    sent = Sent()
    monkeypatch.setattr(tracking, "connect", lambda: sent)
    common = ["--dataset=digits", "--seed=4", "--bit-flip-pos=1", f"--output-path={tmp_path}", "--layer-type=Conv2d"]
    assert program.main(["protect", f"--with=relu6,{HARSH}", *common]) == 0
    rates = {(row["protection"], row["layer"]): float(row["rate"]) for row in rows_of(tmp_path) if row["layer"]}
    assert [step for step, _ in sent.found] == [int(layer) for name, layer in rates if name == "relu6"]
    for step, payload in sent.found:
        bare, first, second = (rates[name, str(step)] for name in ("unprotected", "relu6", HARSH))
        expected = {"": first, "/unprotected": bare, "/difference": first - bare, "/relu6": first}
        expected |= {"/relu6/difference": first - bare, f"/{HARSH}": second, f"/{HARSH}/difference": second - bare}
        assert payload == pytest.approx(
            {f"Misclassification_rate{end}": rate for end, rate in expected.items()}, abs=1e-5
        )


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_each_protection_under_the_same_faults(
    target: str, few_digits: FewDigits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few_digits(80)
    common = ["--dataset=digits", "--seed=4", "--bit-flip-pos=1", f"--output-path={tmp_path}", "--batch-size=16"]
    common += ["--percentile=99.9", "--layer-type=Conv2d", f"--target={target}"]
    assert program.main(["protect", "digits_vgg", f"--with={HARSH},clip", *common]) == 0
    said = capsys.readouterr()
    names = ["unprotected", HARSH, "ranger+clip"]
    found = rows_of(tmp_path)
    assert list(dict.fromkeys(row["protection"] for row in found)) == names
    folders = [tmp_path / name.replace(":", "_") for name in names]
    before = clean(folders[0])
    bare = reading.read(next(table for table in folders[0].glob("*.csv") if not table.stem.endswith("_bits")))
    for name, folder in zip(names, folders, strict=True):
        table = next(table for table in folder.glob("*.csv") if not table.stem.endswith("_bits"))
        run, after = reading.read(table), clean(folder)
        own = [row for row in found if row["protection"] == name]
        assert len(own) == len(run.layers) + 1
        for row in own:
            assert int(row["clean_correct"]) == sum(after.values())
            assert int(row["broken"]) == sum(before[image] and not after[image] for image in before)
            assert int(row["mended"]) == sum(after[image] and not before[image] for image in before)
        for row, layer in zip(own, run.layers, strict=False):
            assert int(row["misclassified"]) == layer.misclassified
            assert layer.outcomes is not None
            assert all(int(row[kind]) == layer.outcomes[kind] for kind in protections.CLASSES)
        if name == names[0]:
            assert {row["difference"] for row in own} == {""}
            continue
        against = comparison.compare(bare, run)
        assert against.paired
        for row, (_, difference) in zip(own, against.layers, strict=False):
            assert difference.value is not None
            assert float(row["difference"]) == pytest.approx(difference.value, abs=1e-5)
        assert against.network is not None
        assert own[-1]["name"] == "network"
        assert float(own[-1]["difference"]) == pytest.approx(against.network.value, abs=1e-5)
        assert name in said.out
    assert int(next(row["broken"] for row in found if row["protection"] == HARSH)) > 0
    assert float(found[-1]["difference"]) < 0, "it helps"
    assert {path.suffix for path in tmp_path.glob("*_protections.*")} == {".csv", ".png", ".svg"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--with=relu6,steel"], "error: with (--with): expected protections, comma-separated, each relu6"),
        (["--with=ranger", "--percentile=10"], "error: percentile (--percentile): expected a number above 50"),
        (["vgg12"], "error: model_name (--model-name): digits has no model 'vgg12'"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code: Any = program.main(["protect", "--dataset=digits", f"--output-path={tmp_path}", *arguments])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith(sentence)
    assert not list(tmp_path.iterdir())
