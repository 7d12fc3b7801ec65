"""Test images come from wherever the user has them, in a fixed order, preprocessed as usual; bad ones are refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import datasets as tv

from bitflip.data import datasets, decoding, digits, imagefiles, inputs
from bitflip.data import images as data_images
from bitflip.data.images import Images
from bitflip.errors import BadInput
from bitflip.settings import reading
from bitflip.settings.hyperparameters import Hyperparameters

KEPT = pytest.mark.parametrize("kept", [True, False], ids=["decoded once", "decoded when needed"])
MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.507, 0.4865, 0.4409), "imagenet": (0.485, 0.456, 0.406)}
STD = {"cifar10": (0.2023, 0.1994, 0.201), "cifar100": (0.2673, 0.2564, 0.2761), "imagenet": (0.229, 0.224, 0.225)}
IMAGES = 20  # in the test part of the small CIFAR


def settings_for(dataset: str, input_path: Path, *arguments: str) -> Hyperparameters:
    settings, problems = reading.read(["--dataset", dataset, "--input-path", str(input_path), *arguments])
    assert problems == {}
    return settings


def load(dataset: str, input_path: Path, *arguments: str) -> datasets.TestSet:
    return datasets.load(settings_for(dataset, input_path, *arguments))


def pixels(seed: int, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """Random pixels (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalised(image: NDArray[np.uint8], dataset: str) -> Tensor:
    """Scale to [0, 1], subtract the mean, divide by the standard deviation: (H, W, 3) -> (3, H, W)."""
    scaled = (image / 255 - np.array(MEAN[dataset])) / np.array(STD[dataset])
    return torch.from_numpy(scaled.transpose(2, 0, 1)).float()


# --- preprocessing ---


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_is_normalised_with_its_own_constants(dataset: str, tmp_path: Path) -> None:
    image = pixels(1)
    out = imagefiles.preprocessing(settings_for(dataset, tmp_path))(Image.fromarray(image))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, normalised(image, dataset), rtol=0, atol=1e-5)


def test_imagenet_is_resized_to_256_and_cropped_to_224(tmp_path: Path) -> None:
    """An image whose shorter side is 256 is only cropped, in the middle."""
    image = pixels(1, 256, 300)
    out = imagefiles.preprocessing(settings_for("imagenet", tmp_path))(Image.fromarray(image))
    torch.testing.assert_close(out, normalised(image[16:240, 38:262], "imagenet"), rtol=0, atol=1e-5)


def test_imagenet_of_another_size_is_resized_by_its_shorter_side(tmp_path: Path) -> None:
    image = np.full((512, 900, 3), 51, dtype=np.uint8)
    out = imagefiles.preprocessing(settings_for("imagenet", tmp_path, "--img-size", "112"))(Image.fromarray(image))
    torch.testing.assert_close(out, normalised(image[:112, :112], "imagenet"), rtol=0, atol=1e-5)


def test_cifar_of_another_size_is_resized(tmp_path: Path) -> None:
    image = np.full((32, 32, 3), 200, dtype=np.uint8)
    out = imagefiles.preprocessing(settings_for("cifar10", tmp_path, "--img-size", "40"))(Image.fromarray(image))
    assert out.shape == (3, 40, 40)
    torch.testing.assert_close(out[:, 7, 7], normalised(image, "cifar10")[:, 7, 7], rtol=0, atol=1e-5)


def test_one_channel_is_grey(tmp_path: Path) -> None:
    out = imagefiles.preprocessing(settings_for("cifar10", tmp_path, "--channels", "1"))(Image.fromarray(pixels(1)))
    assert out.shape == (1, 32, 32)
    grey = np.asarray(Image.fromarray(pixels(1)).convert("L"), dtype=np.float64) / 255
    mean, std = sum(MEAN["cifar10"]) / 3, sum(STD["cifar10"]) / 3
    torch.testing.assert_close(out[0], torch.from_numpy((grey - mean) / std).float(), rtol=0, atol=1e-5)


# --- CIFAR as torchvision knows it ---


class SmallCifar:
    """A CIFAR of a few images; torchvision's checksums are set to its own, so that they are checked as ever."""

    def __init__(self, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dataset = dataset
        self.kind: type[tv.CIFAR10] = tv.CIFAR10 if dataset == "cifar10" else tv.CIFAR100
        classes = 10 if dataset == "cifar10" else 100
        self.images = [pixels(seed) for seed in range(IMAGES)]
        self.labels = [(7 * seed) % classes for seed in range(IMAGES)]
        planes = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in self.images])
        key = "labels" if dataset == "cifar10" else "fine_labels"
        test = pickle.dumps({"data": planes, key: self.labels})
        train = pickle.dumps({"data": planes[:1], key: self.labels[:1]})
        meta = pickle.dumps({self.kind.meta["key"]: [f"class {i}" for i in range(classes)]})
        self.files = {name: train for name, _ in self.kind.train_list}
        self.files |= {name: test for name, _ in self.kind.test_list}
        self.files[self.kind.meta["filename"]] = meta
        self.archive = self._archive()
        for attribute in ("train_list", "test_list"):
            entries = getattr(self.kind, attribute)
            monkeypatch.setattr(self.kind, attribute, [[name, self._md5(self.files[name])] for name, _ in entries])
        monkeypatch.setattr(self.kind, "meta", {**self.kind.meta, "md5": self._md5(meta)})
        monkeypatch.setattr(self.kind, "tgz_md5", self._md5(self.archive))

    @staticmethod
    def _md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    def _archive(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in self.files.items():
                info = tarfile.TarInfo(f"{self.kind.base_folder}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def put_archive(self, root: Path) -> Path:
        archive = root / str(self.kind.filename)
        archive.write_bytes(self.archive)
        return archive

    def put_folder(self, root: Path) -> Path:
        folder = root / str(self.kind.base_folder)
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    def check(self, test_set: datasets.TestSet) -> None:
        """Check that a test set holds the images and labels, in order."""
        assert len(test_set) == IMAGES
        for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            out, got = test_set[i]
            assert got == label
            torch.testing.assert_close(out, normalised(image, self.dataset), rtol=0, atol=1e-5)


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    """A small CIFAR-10, then a small CIFAR-100."""
    return SmallCifar(request.param, monkeypatch)


def test_cifar_from_the_archive(cifar: SmallCifar, tmp_path: Path, no_network: list[object]) -> None:
    cifar.put_archive(tmp_path)
    cifar.check(load(cifar.dataset, tmp_path))
    cifar.check(load(cifar.dataset, tmp_path))  # now from the folder that the first extracted
    assert no_network == []


def test_cifar_from_the_extracted_folder(cifar: SmallCifar, tmp_path: Path, no_network: list[object]) -> None:
    cifar.put_folder(tmp_path)
    cifar.check(load(cifar.dataset, tmp_path))
    assert no_network == []


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that makes a folder read-only, also for a root user, whom permission bits do not stop."""

    def make(folder: Path) -> None:
        access = os.access

        def allowed(path: Any, mode: int, **options: Any) -> bool:
            return not (mode & os.W_OK and Path(path) == folder) and access(path, mode, **options)

        monkeypatch.setattr(os, "access", allowed)

    return make


def test_cifar_from_an_archive_on_a_read_only_mount(
    cifar: SmallCifar, tmp_path: Path, no_network: list[object], read_only: Callable[[Path], None]
) -> None:
    cifar.put_archive(tmp_path)
    read_only(tmp_path)
    cifar.check(load(cifar.dataset, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [cifar.kind.filename]


def test_cifar_from_a_download(
    cifar: SmallCifar, tmp_path: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for once the input folder has been found to hold nothing."""
    asked: list[str] = []

    def download(url: str, root: str, filename: str, md5: str) -> None:
        asked.append(filename)
        Path(root, filename).write_bytes(cifar.archive)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    cifar.check(load(cifar.dataset, tmp_path))
    assert asked == [cifar.kind.filename]


def cut(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path: Path) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, spoil], ids=["cut off", "one byte"])
def test_a_damaged_archive(
    damage: Callable[[Path], None], cifar: SmallCifar, tmp_path: Path, no_network: list[object]
) -> None:
    damage(cifar.put_archive(tmp_path))
    with pytest.raises(BadInput, match=rf"^input_path \(--input-path\): .*{cifar.kind.filename} is damaged \(md5 "):
        load(cifar.dataset, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [cifar.kind.filename]  # nothing half extracted
    assert no_network == []


@pytest.mark.parametrize("damage", [cut, spoil, Path.unlink], ids=["cut off", "one byte", "absent"])
@pytest.mark.parametrize("part", ["test", "meta"])
def test_a_damaged_folder(
    part: str, damage: Callable[[Path], None], cifar: SmallCifar, tmp_path: Path, no_network: list[object]
) -> None:
    name = cifar.kind.test_list[0][0] if part == "test" else cifar.kind.meta["filename"]
    damage(cifar.put_folder(tmp_path) / name)
    with pytest.raises(BadInput, match=rf"{cifar.kind.base_folder} is damaged or incomplete .*; delete it and provide"):
        load(cifar.dataset, tmp_path)
    assert no_network == []


# --- class folders ---


def put_class_folders(root: Path, names: list[str], images: int = 2) -> None:
    """Write PNG files whose pixels tell class and number."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(images):
            Image.fromarray(pixels(100 * i + j)).save(root / name / f"{j:04}.png")


TEN = [f"class{i}" for i in range(10)]


@pytest.mark.parametrize("below", ["", "test", "val"], ids=["itself", "below test", "below val"])
def test_class_folders_of_cifar(below: str, tmp_path: Path, no_network: list[object]) -> None:
    """Labels are the alphabetical order of the folders; what else lies there is left alone."""
    put_class_folders(tmp_path / below, TEN)
    (tmp_path / below / ".cache").mkdir()
    (tmp_path / below / "README.md").touch()
    test_set = load("cifar10", tmp_path)
    assert len(test_set) == 20
    for index in range(20):
        image, label = test_set[index]
        assert label == index // 2
        torch.testing.assert_close(image, normalised(pixels(100 * label + index % 2), "cifar10"), rtol=0, atol=1e-5)
    assert no_network == []


def test_class_folders_of_imagenet(tmp_path: Path) -> None:
    first = tmp_path / "val" / "n00000000" / "image.JPEG"
    put_class_folders(tmp_path / "val", ["n00000000"], images=0)
    Image.new("L", (300, 280), 99).save(first)  # grey, as some of ImageNet's are
    for i in range(1, 1000):
        folder = tmp_path / "val" / f"n{i:08}"
        folder.mkdir()
        os.link(first, folder / first.name)
    test_set = load("imagenet", tmp_path)
    assert len(test_set) == 1000
    image, label = test_set[999]
    assert (image.shape, label) == ((3, 224, 224), 999)


@pytest.mark.parametrize("count", [9, 11])
def test_another_number_of_class_folders(count: int, tmp_path: Path, no_network: list[object]) -> None:
    put_class_folders(tmp_path, [f"class{i:02}" for i in range(count)], images=1)
    with pytest.raises(BadInput, match=rf"expected 10 class folders of cifar10 in {tmp_path}, got {count}"):
        load("cifar10", tmp_path)
    with pytest.raises(BadInput, match=rf"expected 1000 class folders of imagenet in {tmp_path}, got {count}"):
        load("imagenet", tmp_path)
    assert no_network == []


def test_a_class_without_images(tmp_path: Path) -> None:
    put_class_folders(tmp_path, TEN, images=1)
    (tmp_path / "class3" / "0000.png").unlink()
    with pytest.raises(BadInput, match=r"input_path \(--input-path\): .*class3"):
        load("cifar10", tmp_path)


def cut_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        pytest.param(cut_image, False, id="cut off"),
        pytest.param(spoil, False, id="one byte"),
        pytest.param(lambda path: path.write_bytes(b""), False, id="empty"),
        pytest.param(lambda path: path.write_text("no image"), False, id="text"),
        pytest.param(cut_image, True, id="cut off, read by a worker process"),
    ],
)
@KEPT
def test_a_damaged_image(
    damage: Callable[[Path], object], workers: bool, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence that names the file, wherever it was read."""
    put_class_folders(tmp_path, TEN)
    path = tmp_path / "class8" / "0001.png"
    damage(path)
    monkeypatch.setattr(data_images, "MANY_IMAGES", 1 if workers else 10**6)
    monkeypatch.setattr(data_images, "KEPT_BYTES", 10**9 if kept else 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(BadInput) as error:
        list(Images(load("cifar10", tmp_path), 20).batches([range(first, first + 4) for first in range(0, 20, 4)]))
    (problem,) = error.value.problems
    assert problem.startswith(f"input_path (--input-path): {path} is no readable image (")
    assert "\n" not in problem


# --- ImageNet as torchvision knows it ---


@pytest.mark.parametrize("name", ["meta.bin", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
def test_a_damaged_imagenet(name: str, tmp_path: Path, no_network: list[object]) -> None:
    (tmp_path / name).write_bytes(b"half of it")
    with pytest.raises(
        BadInput, match=rf"input_path \(--input-path\): {tmp_path} holds an ImageNet that can't be read: "
    ):
        load("imagenet", tmp_path)
    assert no_network == []


@pytest.fixture
def tiny_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archives of an ImageNet of 2 classes and 4 images, in its folder."""
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "i4")]
    synsets = np.array([(1, "n02", "cat, tom", "", 0), (2, "n01", "dog", "", 0), (3, "n00", "animal", "", 2)], kinds)
    scipy.io.savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n2\n1\n")
    folder = tmp_path / "imagenet"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(data.parent, data.parent.name)
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in range(4):
            image = tmp_path / f"ILSVRC2012_val_{number}.JPEG"
            Image.new("L", (256, 256), 50 * number).save(image)
            archive.add(image, image.name)
    digests = {
        name: (path.name, hashlib.md5(path.read_bytes()).hexdigest())
        for name, path in (
            ("devkit", folder / "ILSVRC2012_devkit_t12.tar.gz"),
            ("val", folder / "ILSVRC2012_img_val.tar"),
        )
    }
    monkeypatch.setattr(tv.imagenet, "ARCHIVE_META", digests)
    return folder


def shades(test_set: datasets.TestSet) -> list[tuple[int, int]]:
    """Grey value and label of each image of the small ImageNet."""
    value = [test_set[i][0][0, 0, 0].item() * STD["imagenet"][0] + MEAN["imagenet"][0] for i in range(len(test_set))]
    return [(round(255 * shade), test_set[i][1]) for i, shade in enumerate(value)]


SHADES = [(50, 0), (100, 0), (0, 1), (150, 1)]


def test_the_archives_of_imagenet(tiny_imagenet: Path, no_network: list[object]) -> None:
    archives = {path.name for path in tiny_imagenet.iterdir()}
    assert shades(load("imagenet", tiny_imagenet)) == SHADES
    assert {path.name for path in tiny_imagenet.iterdir()} == {*archives, "meta.bin", "val"}
    for name in archives:
        (tiny_imagenet / name).unlink()
    assert shades(load("imagenet", tiny_imagenet)) == SHADES
    assert no_network == []


@pytest.mark.parametrize("moved", [0, 2])
def test_imagenet_is_extracted_whole_or_not_at_all(
    moved: int, tiny_imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed meanwhile leaves no folder that the next one takes for all images."""
    move, left = shutil.move, moved

    def dies(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return move(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", dies)
        with pytest.raises(KeyboardInterrupt):
            load("imagenet", tiny_imagenet)
    assert not (tiny_imagenet / "val").exists()
    assert shades(load("imagenet", tiny_imagenet)) == SHADES


def test_a_damaged_image_of_imagenet(tiny_imagenet: Path) -> None:
    load("imagenet", tiny_imagenet)
    (path, *_) = sorted((tiny_imagenet / "val" / "n01").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match=rf"^input_path \(--input-path\): {path} is no readable image \("):
        shades(load("imagenet", tiny_imagenet))


def test_an_archive_of_imagenet_that_is_missing(tiny_imagenet: Path) -> None:
    (tiny_imagenet / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(BadInput, match=f"ILSVRC2012_img_val.tar is not present .* place it in {tiny_imagenet}.?$"):
        load("imagenet", tiny_imagenet)


def test_imagenet_where_no_link_can_be_made(tiny_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Path, "symlink_to")
    assert shades(load("imagenet", tiny_imagenet)) == SHADES


def test_an_imagenet_that_another_program_extracted_in_part(tiny_imagenet: Path) -> None:
    load("imagenet", tiny_imagenet)
    (image, *_) = (tiny_imagenet / "val" / "n01").iterdir()
    image.rename(tiny_imagenet / "val" / image.name)
    with pytest.raises(BadInput, match="val/ holds images beside its class folders"):
        load("imagenet", tiny_imagenet)


@pytest.mark.parametrize("there", [(), ("val",), ("meta.bin",)], ids=["nothing", "val", "meta.bin"])
def test_imagenet_where_nothing_can_be_written(
    there: tuple[str, ...], tiny_imagenet: Path, read_only: Callable[[Path], None]
) -> None:
    load("imagenet", tiny_imagenet)
    for name in {"val", "meta.bin"} - set(there):
        path = tiny_imagenet / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path.name for path in tiny_imagenet.iterdir()}
    read_only(tiny_imagenet)
    assert shades(load("imagenet", tiny_imagenet)) == SHADES
    assert {path.name for path in tiny_imagenet.iterdir()} == before


# --- batches ---


@pytest.mark.parametrize("workers", [False, True], ids=["in the process", "in worker processes"])
@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 4]), (True, [8, 8])], ids=["all", "drop last"])
@KEPT
def test_batches_are_in_order(
    drop_last: bool, sizes: list[int], workers: bool, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_class_folders(tmp_path, TEN)
    monkeypatch.setattr(data_images, "MANY_IMAGES", 1 if workers else 10**6)
    monkeypatch.setattr(data_images, "KEPT_BYTES", 10**9 if kept else 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    test_set = load("cifar10", tmp_path)
    count = datasets.size_of(test_set, Hyperparameters(batch_size=8, drop_last=drop_last))
    spans = [range(first, min(first + 8, count)) for first in range(0, count, 8)]
    batches = list(Images(test_set, count).batches(spans))
    assert [len(images) for images, _ in batches] == sizes
    assert torch.cat([labels for _, labels in batches]).tolist() == [i // 2 for i in range(sum(sizes))]
    found = inputs.join([images for images, _ in batches])
    assert isinstance(found, Tensor)
    assert torch.equal(found, torch.stack([test_set[i][0] for i in range(sum(sizes))]))


@pytest.mark.parametrize("kept", [0, 1, 2, 3], ids="{} batches fit".format)
def test_rounds_decode_what_does_not_fit(kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more images than are decoded at once; what is run in one round is not kept."""
    put_class_folders(tmp_path, TEN)
    monkeypatch.setattr(data_images, "KEPT_BYTES", kept * 6 * 3 * 32 * 32 * 4 + 1)
    test_set = load("cifar10", tmp_path)
    read: list[str] = []

    def loader(path: str) -> Image.Image:
        read.append(path)
        return decoding.read(path)

    monkeypatch.setattr(test_set, "loader", loader)
    images = Images(test_set, 20)
    spans, expected = images.spans(6), torch.stack([test_set[i][0] for i in range(20)])
    for fewer in (0, 0, 6 * kept, 6 * kept):
        read.clear()
        batches = list(images.batches(spans))
        assert len(read) == 20 - fewer
        found = inputs.join([some for some, _ in batches])
        assert isinstance(found, Tensor)
        assert torch.equal(found, expected)
        assert torch.cat([labels for _, labels in batches]).tolist() == [i // 2 for i in range(20)]


def test_digits_need_no_input_path(tmp_path: Path, no_network: list[object]) -> None:
    images, labels = digits.load("test").tensors
    test_set = load("digits", tmp_path / "absent")
    assert len(test_set) == 600
    assert torch.equal(test_set[7][0], images[7])
    assert int(test_set[7][1]) == int(labels[7])
    assert not (tmp_path / "absent").exists()
    assert no_network == []


# --- class folders of one's own ---


def test_own_class_folders(tmp_path: Path, no_network: list[object]) -> None:
    """Any number of classes, any size, normalised as asked for."""
    put_class_folders(tmp_path / "val", ["b", "a", "c"])
    settings = read(
        "--dataset=folder", f"--input-path={tmp_path}", "--img-size=32", "--mean=0.5,0.25,0", "--std=1,2,0.5"
    )
    test_set = datasets.load(settings)
    assert (len(test_set), datasets.classes_of(settings, test_set)) == (6, 3)
    image, label = test_set[2]
    assert label == 1
    expected = (pixels(0) / 255 - np.array([0.5, 0.25, 0])) / np.array([1, 2, 0.5])
    torch.testing.assert_close(image, torch.from_numpy(expected).permute(2, 0, 1).float(), rtol=0, atol=1e-5)


def test_own_images_are_resized_in_both_directions(tmp_path: Path) -> None:
    put_class_folders(tmp_path, ["a", "b"])
    test_set = datasets.load(read("--dataset=folder", f"--input-path={tmp_path}", "--img-size=20"))
    assert test_set[0][0].shape == (3, 20, 20)


def test_own_images_are_normalised_like_imagenet_by_default(tmp_path: Path) -> None:
    put_class_folders(tmp_path, ["a", "b"])
    image, _ = datasets.load(read("--dataset=folder", f"--input-path={tmp_path}", "--img-size=32"))[0]
    torch.testing.assert_close(image, normalised(pixels(0), "imagenet"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "sentence"), [([], "no class folders in .*--dataset digits"), (["a"], "at least 2 class folders")]
)
def test_own_folders_without_classes(names: list[str], sentence: str, tmp_path: Path) -> None:
    put_class_folders(tmp_path, names)
    with pytest.raises(BadInput, match=rf"input_path \(--input-path\): .*{sentence}"):
        datasets.load(read("--dataset=folder", f"--input-path={tmp_path}"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mean=0.5"], "mean (--mean): expected 3 numbers, one for each channel, comma-separated, got 1"),
        (
            ["--std=1,2", "--channels=1"],
            "std (--std): expected 1 numbers, one for each channel, comma-separated, got 2",
        ),
        (["--dataset=digits", "--std=1,1,1"], "std (--std): expected nothing, since the digits come normalised, got"),
    ],
    ids=["too few", "too many", "digits"],
)
def test_mean_and_std_that_do_not_fit(arguments: list[str], sentence: str) -> None:
    (problem,) = datasets.check(read(*arguments))
    assert problem.startswith(sentence)


def read(*arguments: str) -> Hyperparameters:
    settings, problems = reading.read(arguments)
    assert problems == {}
    return settings


# --- hostile and interrupted archives ---


def hostile_archive(cifar: SmallCifar, member: tarfile.TarInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one more member at the front of the archive, and let its checksum pass."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in cifar.files.items():
            info = tarfile.TarInfo(f"{cifar.kind.base_folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    cifar.archive = buffer.getvalue()
    monkeypatch.setattr(cifar.kind, "tgz_md5", hashlib.md5(cifar.archive, usedforsecurity=False).hexdigest())


@pytest.mark.parametrize("way", ["parent", "inside out", "link", "hard link", "download"])
def test_an_archive_that_writes_elsewhere(
    way: str, cifar: SmallCifar, tmp_path: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    base = cifar.kind.base_folder
    member = tarfile.TarInfo(
        {"parent": "../evil", "download": "../evil", "inside out": f"{base}/../../evil"}.get(way, f"{base}/evil")
    )
    if "link" in way:
        member.type, member.linkname = (tarfile.LNKTYPE if way == "hard link" else tarfile.SYMTYPE), "../../../evil"
    else:
        member.size = 4
    hostile_archive(cifar, member, monkeypatch)
    if way == "download":
        monkeypatch.setattr(
            "torchvision.datasets.utils.download_url",
            lambda url, root, filename, md5: Path(root, filename).write_bytes(cifar.archive),
        )
    else:
        cifar.put_archive(root)
    with pytest.raises(BadInput, match=r"^input_path \(--input-path\): .*outside the destination"):
        load(cifar.dataset, root)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in root.iterdir()] == [cifar.kind.filename]


def test_an_extraction_that_is_cut_short_leaves_nothing(
    cifar: SmallCifar, tmp_path: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar.put_archive(tmp_path)
    extract = tarfile.TarFile.extractall

    def interrupted(self: tarfile.TarFile, path: str) -> None:
        extract(self, path, members=self.getmembers()[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(cifar.dataset, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [cifar.kind.filename]
    cifar.check(load(cifar.dataset, tmp_path))
