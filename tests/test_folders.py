"""Class folders: found as torchvision finds them, labelled in the order that was asked for; what is odd is said."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunScript
from PIL import Image
from torchvision import datasets as tv

from bitflip.data import datasets, decoding, folders
from bitflip.data.folders import ClassFolders
from bitflip.errors import BadInput
from bitflip.settings import reading
from bitflip.settings.hyperparameters import ClassOrder


def load(root: Path, *arguments: str) -> ClassFolders:
    settings, problems = reading.read(["--dataset=folder", f"--input-path={root}", "--img-size=8", *arguments])
    assert problems == {}
    found = datasets.load(settings)
    assert isinstance(found, ClassFolders)
    return found


def put(path: Path, shade: int = 0, **options: Any) -> Path:
    """A grey image of one shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path, **options)
    return path


def put_classes(root: Path, names: list[str], images: int = 1) -> None:
    for name in names:
        for i in range(images):
            put(root / name / f"{i}.png")


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# --- the order of classes ---

NUMBERED = [str(number) for number in range(12)]


@pytest.mark.parametrize("names", [NUMBERED, ["-3", "-20", "7"], ["0.5", "0.25", "1", "10"], ["007", "7", "08"]])
def test_numeric_order_is_that_of_the_numbers(names: list[str]) -> None:
    expected = sorted(sorted(names), key=float)
    assert folders.in_order(random.Random(1).sample(names, len(names)), "numeric") == expected


def test_numbers_in_names_count_by_their_value() -> None:
    expected = [f"class {number}{rest}" for number in (*range(25), 100) for rest in ("", "a", "b")]
    shuffled = random.Random(1).sample(expected, len(expected))
    assert folders.in_order(shuffled, "numeric") == expected
    assert folders.in_order(shuffled, "text") == sorted(expected)


@pytest.mark.parametrize("order", ["text", "numeric"])
def test_labels_are_places_in_the_order(order: ClassOrder, tmp_path: Path) -> None:
    put_classes(tmp_path, NUMBERED, images=2)
    found = load(tmp_path, f"--class-order={order}")
    places = NUMBERED if order == "numeric" else sorted(NUMBERED)
    assert found.classes == places
    assert [label for _, label in found.samples] == [places.index(Path(path).parts[-2]) for path, _ in found.samples]
    assert [path for path, _ in found.samples] == [path for path, _ in tv.ImageFolder(str(tmp_path)).samples]


def test_text_order_is_torchvisions(tmp_path: Path) -> None:
    put_classes(tmp_path, [*NUMBERED, "b", "B", "a10", "a9", "ä"], images=2)
    theirs = tv.ImageFolder(str(tmp_path))
    assert (load(tmp_path).classes, load(tmp_path).samples) == (theirs.classes, theirs.samples)


@pytest.mark.parametrize(
    ("names", "order", "warned"),
    [
        (NUMBERED, "text", True),
        (NUMBERED, "numeric", False),
        (NUMBERED[:10], "text", False),
        ([f"{i:02}" for i in range(12)], "text", False),
        (["class9", "class10"], "text", True),
        (["cat", "dog"], "text", False),
    ],
)
def test_a_warning_where_the_orders_differ(
    names: list[str], order: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_classes(tmp_path, names)
    with caplog.at_level(logging.INFO, "bitflip"):
        load(tmp_path, f"--class-order={order}")
    assert [line for line in said(caplog) if line.startswith("class_order (--class-order): labels")] == said(caplog)
    assert len(said(caplog)) == warned
    (listing,) = said(caplog, logging.INFO)
    listed = names if order == "numeric" else sorted(names)
    assert listing == f"{len(names)} classes in {tmp_path}, in {order} order: {', '.join(listed)}"


def test_of_many_classes_the_first_and_the_last_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"n{i:03}" for i in range(100)]
    put_classes(tmp_path, names)
    with caplog.at_level(logging.INFO, "bitflip"):
        load(tmp_path)
    (listing,) = said(caplog, logging.INFO)
    assert listing.endswith(f": {', '.join(names[: folders.SHOWN - 1])}, ..., n099")


SHADES = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 12)  # class k is nearest to the shade 20 k of 255
        shades = torch.arange(12) * 20 / 255
        self.linear.weight.data = 2 * shades[:, None]
        self.linear.bias.data = -(shades**2)

    def forward(self, x):
        return self.linear(x.mean((1, 2, 3))[:, None])

def build():
    return Net()
"""


def shades(root: Path, count: int) -> list[str]:
    """The flags of a run on class folders 0, 1, ... of three images each, with a network that knows 12 of them."""
    (root / "net.py").write_text(SHADES)
    for number in range(count):
        for i in range(3):
            put(root / "images" / str(number) / f"{i}.png", 20 * number)
    return [
        *("--dataset=folder", f"--input-path={root / 'images'}", f"--output-path={root / 'out'}", "--img-size=8"),
        *(f"--model-name={root / 'net.py'}:build", "--mean=0,0,0", "--std=1,1,1", "--seed=1", "--bit-flip-pos=31"),
    ]


@pytest.mark.parametrize("order", ["text", "numeric"])
def test_a_model_that_was_trained_on_numeric_order(order: str, tmp_path: Path, run_script: RunScript) -> None:
    places = NUMBERED if order == "numeric" else sorted(NUMBERED)
    right = 3 * sum(place == int(name) for place, name in enumerate(places))
    done = run_script("main.py", *shades(tmp_path, 12), f"--class-order={order}")
    assert done.code == 0
    assert f"Clean accuracy: {right} / 36 = " in done.out
    assert ("class_order (--class-order): labels are in text order" in done.err) == (order == "text")


def test_an_order_means_nothing_to_digits(run_script: RunScript, tmp_path: Path) -> None:
    done = run_script("main.py", "--dataset=digits", "--class-order=numeric", f"--output-path={tmp_path}")
    sentence = "class_order (--class-order): expected text, since digits comes without class folders, got numeric"
    assert (done.code, done.errors) == (2, [sentence])


# --- where class folders are ---


@pytest.mark.parametrize("below", ["", "val", "test"])
def test_images_in_folders_of_a_class(below: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        for i in range(3):
            put(tmp_path / below / name / "images" / f"{i}.png")
            put(tmp_path / "train" / name / "images" / f"{i}.png")
    if not below:
        for name in ("cat", "dog"):
            (tmp_path / "train" / name).rename(tmp_path / name / "more")
        (tmp_path / "train").rmdir()
    theirs = tv.ImageFolder(str(tmp_path / below))
    assert (load(tmp_path).classes, load(tmp_path).samples) == (theirs.classes, theirs.samples)
    assert theirs.classes == ["cat", "dog"]
    several = [line for line in said(caplog) if "2 of 2 class folders have images in several folders" in line]
    assert bool(several) == (not below)


@pytest.mark.parametrize("deep", ["", "images"], ids=["flat", "deep"])
def test_val_is_taken_before_a_folder_of_parts(deep: str, tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            put(tmp_path / part / name / deep / "0.png")
    assert {Path(path).relative_to(tmp_path).parts[0] for path, _ in load(tmp_path).samples} == {"val"}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["train/cat/0.png", "Valid/dog/0.png"], "expected class folders in {}, got Valid and train, which are parts"),
        (["train/0.png", "test/0.png"], "expected class folders in {}, got test and train, which are parts of a data"),
        (["cat/0.png", "out/a.json", "out/a.csv", "out/a_layers.png"], "but {}/out holds results of runs, such as a.j"),
        (["cat/0.png", "dog/notes.txt"], "Found no valid file for the classes dog"),
        (["val/images/0.png"], "expected at least 2 class folders in {}/val, got 1"),
    ],
)
def test_folders_that_are_no_classes(files: list[str], sentence: str, tmp_path: Path) -> None:
    for file in files:
        if file.endswith(".png"):
            put(tmp_path / file)
        else:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
    with pytest.raises(BadInput) as error:
        load(tmp_path)
    (found,) = error.value.problems
    assert found.startswith("input_path (--input-path): ")
    assert sentence.format(tmp_path) in found


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put_classes(tmp_path, ["car", "train"])
    assert load(tmp_path).classes == ["car", "train"]


def test_more_classes_than_the_model_has_outputs(tmp_path: Path, run_script: RunScript) -> None:
    done = run_script("main.py", *shades(tmp_path, 13))
    assert done.code == 2
    (sentence,) = [line for line in done.errors if line.startswith("model_name (--model-name): ")]
    assert "expected a classifier of 13 classes" in sentence
    assert sentence.endswith(f"there are 13 class folders in {tmp_path / 'images'}: is it the parent of the right one?")


@pytest.mark.parametrize("count", [11, 12])
def test_fewer_classes_than_the_model_has_outputs(count: int, tmp_path: Path, run_script: RunScript) -> None:
    done = run_script("main.py", *shades(tmp_path, count), "--class-order=numeric")
    assert done.code == 0
    sentence = f"the model has 12 outputs, {tmp_path / 'images'} 11 class folders: they have labels 0 to 10"
    assert (sentence in done.err) == (count == 11)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_classes(tmp_path, ["cat", "dog"])
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path) == str(tmp_path / "dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadInput, match=rf"^input_path \(--input-path\): {tmp_path}/dog can't be read \(Permission den"):
        load(tmp_path)


# --- what is in them ---


def test_files_that_are_skipped_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_classes(tmp_path, ["cat", "dog"], images=2)
    for name in ("cat/a.gif", "dog/deeper/b.GIF", "dog/c.npy", "dog/LICENSE", "labels.csv", "cat/.DS_Store", ".x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    put(tmp_path / "beside.png")
    assert len(load(tmp_path)) == 4
    (line,) = said(caplog)
    assert line.startswith(f"skipped 6 files in {tmp_path}: 2 .gif, ")
    kinds = {"2 .gif", "1 .npy", "1 without an extension", "1 .csv beside the class folders"}
    assert set(line.split(": ")[1].split(" (")[0].split(", ")) == {*kinds, "1 .png beside the class folders"}


def test_hidden_folders_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_classes(tmp_path, ["cat", "dog", ".trash"])
    (tmp_path / ".cache").mkdir()
    assert load(tmp_path).classes == ["cat", "dog"]
    (line,) = said(caplog)
    assert line.startswith(f"hidden folders are no classes: .trash in {tmp_path} ")


def test_images_that_may_look_otherwise_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_classes(tmp_path, ["cat", "dog"], images=3)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = [put(tmp_path / "dog" / f"turned{i}.jpg", exif=exif) for i in range(2)]
    alpha = tmp_path / "cat" / "alpha.png"
    Image.new("RGBA", (8, 8)).save(alpha)
    frames = put(tmp_path / "dog" / "x.webp", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    load(tmp_path)
    assert sorted(said(caplog)) == sorted(
        [
            f"2 of 10 images {decoding.TURNED}; the first is {turned[0]}",
            f"1 of 10 images {decoding.TRANSPARENT}; the first is {alpha}",
            f"1 of 10 images {decoding.FRAMES}; the first is {frames}",
        ]
    )


@pytest.mark.parametrize(("brightest", "dark"), [(4095, True), (40000, False)])
def test_deep_images_that_are_all_dark(
    brightest: int, dark: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), brightest, dtype=np.uint16)).save(tmp_path / name / "0.png")
    image, _ = load(tmp_path, "--mean=0,0,0", "--std=1,1,1")[1]
    torch.testing.assert_close(image, torch.full((3, 8, 8), brightest / 65535))
    assert said(caplog)[0].startswith("2 of 2 images are grey of more than 8 bits")
    share = f"the brightest pixel of 2 such images is {100 * brightest / 65535:.3g} % of white"
    assert [line for line in said(caplog) if line.startswith(share)] == (said(caplog)[1:] if dark else [])
    assert len(said(caplog)) == 1 + dark


def test_all_images_are_looked_at_before_anything_runs(tmp_path: Path) -> None:
    """Also those of a test set that does not fit the memory: the file is named, the others are counted."""
    put_classes(tmp_path, ["cat", "dog"], images=2)
    for i in range(3):
        Image.new("F", (8, 8)).save(tmp_path / "dog" / f"float{i}.tif")
    (tmp_path / "cat" / "none.png").write_text("no image")
    with pytest.raises(BadInput) as error:
        load(tmp_path)
    (sentence,) = error.value.problems
    assert sentence.startswith(f"input_path (--input-path): {tmp_path / 'cat' / 'none.png'} is no readable image (")
    assert sentence.endswith(" (and 3 more images that can't be run)")
    (tmp_path / "cat" / "none.png").unlink()
    with pytest.raises(BadInput, match=rf"{tmp_path}/dog/float0.tif holds floating-point .* \(and 2 more images"):
        load(tmp_path)
