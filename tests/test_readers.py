"""Files that a run reads, damaged in ways that nobody thought of: each is read, or refused with its name."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyNet, scatter
from damage import Damage, bounded, damages
from hypothesis import given
from PIL import Image

from bitflip import csvs
from bitflip.data import decoding
from bitflip.errors import BadInput
from bitflip.network import weightfile


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A state dict that fits :class:`TinyNet`."""
    file = io.BytesIO()
    torch.save(scatter(TinyNet()).state_dict(), file)
    return file.getvalue()


@bounded
@given(damage=damages)
def test_damaged_weights(damage: Damage, weights: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    content = damage.of(weights)
    path.write_bytes(content)
    model = TinyNet()
    try:
        weightfile.load(model, path)
    except BadInput as error:
        (sentence,) = error.problems
        assert sentence.startswith("weights (--weights): ")
        assert str(path) in sentence
        assert "\n" not in sentence
    else:
        assert model.state_dict().keys() == TinyNet().state_dict().keys()
    assert path.read_bytes() == content


@pytest.fixture(scope="module", params=["PNG", "JPEG"])
def image(request: pytest.FixtureRequest) -> bytes:
    """A picture of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format=request.param)
    return file.getvalue()


@bounded
@given(damage=damages)
def test_a_damaged_image(damage: Damage, image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    content = damage.of(image)
    path.write_bytes(content)
    try:
        found = decoding.read(str(path))
    except BadInput as error:
        (sentence,) = error.problems
        assert sentence.startswith(f"input_path (--input-path): {path} is no readable image")
        assert "\n" not in sentence
    else:
        assert found.mode == "RGB"
    assert path.read_bytes() == content


# --- cells that a spreadsheet would run ---


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("\tx", "'\tx"),
        ("'=x", "''=x"),
        ("-1.5", "-1.5"),
        ("features.0", "features.0"),
        ("'quoted'", "'quoted'"),
        ("", ""),
        ("a\rb", "a\rb"),
        ("a\r\nb\n", "a\r\nb\n"),
        ("\rb", "'\rb"),
        ('a,"b"', 'a,"b"'),
    ],
)
def test_no_cell_is_a_formula_and_each_is_read_back(text: str, written: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csvs.Writer(file)
        writer.writerow(["name", "number"])
        writer.writerow([text, 7])
    with path.open(newline="") as file:
        assert list(csv.reader(file))[1] == [written, "7"]
    table = csvs.Table(path)
    assert [row for _, row in table.values(lambda row: (row["name"], row.count("number")))] == [(text, 7)]
