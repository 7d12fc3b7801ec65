"""Test sets of image files, as torchvision reads them: CIFAR, ImageNet, and class folders of your own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from PIL import Image
from torch import Tensor
from torchvision import datasets as tv
from torchvision import transforms

from bitflip.data import decoding, folders
from bitflip.data.datasets import NUM_CLASSES, TestSet
from bitflip.data.folders import ClassFolders
from bitflip.errors import BadInput, first_line
from bitflip.settings.hyperparameters import Hyperparameters

MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.507, 0.4865, 0.4409), "imagenet": (0.485, 0.456, 0.406)}
STD = {"cifar10": (0.2023, 0.1994, 0.201), "cifar100": (0.2673, 0.2564, 0.2761), "imagenet": (0.229, 0.224, 0.225)}
CIFAR = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}


def load(settings: Hyperparameters) -> TestSet:
    """The test images of a data set that is read from files; see :func:`bitflip.data.datasets.load`.

    Raises:
        BadInput: if they are not there and can't be downloaded, are damaged, or don't fit the settings.
    """
    if settings.dataset == "imagenet":
        return _imagenet(settings)
    if settings.dataset == "folder":
        return _folder(settings)
    return _cifar(settings)


def preprocessing(settings: Hyperparameters) -> Callable[[Image.Image], Tensor]:
    """The usual preprocessing of the data set's test images: image -> normalised (C, H, W) float32.

    An image is RGB, or of one channel from 0 to 1 (mode F), see :func:`bitflip.data.decoding.read`.
    """
    size, dataset = settings.img_size, settings.dataset
    assert size is not None
    known = dataset if dataset in MEAN else "imagenet"
    mean, std = list(MEAN[known]), list(STD[known])
    steps: list[Callable[[Any], Any]] = []
    if dataset == "imagenet":
        steps += [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    elif dataset == "folder" or size != 32:
        steps += [transforms.Resize((size, size))]
    if settings.channels == 1:
        steps += [_grey]
        mean, std = [sum(mean) / 3], [sum(std) / 3]
    mean, std = list(settings.means or mean), list(settings.stds or std)
    steps += [transforms.ToTensor(), *([_in_each_channel] if settings.channels == 3 else [])]
    steps += [transforms.Normalize(mean, std)]
    return cast("Callable[[Image.Image], Tensor]", transforms.Compose(steps))


def _grey(image: Image.Image) -> Image.Image:
    """One channel; what has one, from 0 to 1, is left alone: of mode L it would be black and white."""
    return image if image.mode == "F" else cast(Image.Image, transforms.functional.to_grayscale(image))


def _in_each_channel(image: Tensor) -> Tensor:
    """(1, H, W) or (3, H, W) -> (3, H, W)."""
    return image.expand(3, -1, -1)


def _imagenet(settings: Hyperparameters) -> TestSet:
    root, transform = settings.input_path, preprocessing(settings)
    if any(root.glob("ILSVRC2012_*.tar*")) or (root / "meta.bin").is_file():
        try:
            with _safe_extraction():
                return cast(TestSet, _read_imagenet(_parsed_imagenet(root), transform))
        except Exception as error:  # torch.load raises whatever its unpickler meets in a damaged meta.bin
            raise BadInput(
                f"input_path (--input-path): {root} holds an ImageNet that can't be read: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    found = _class_folders(settings)
    if found is not None:
        return found
    raise BadInput(
        f"input_path (--input-path): no ImageNet in {root}; put ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz there, or a folder per class (val/n01440764/*.JPEG), "
        "or try --dataset digits, which needs no data"
    )


def _read_imagenet(root: Path, transform: Callable[[Image.Image], Tensor]) -> tv.ImageNet:
    return tv.ImageNet(str(root), split="val", transform=transform, loader=decoding.read)


def _parsed_imagenet(root: Path) -> Path:
    """A folder with what torchvision makes of the archives, ``meta.bin`` and ``val/``, each whole: ``root`` itself.

    Where nothing can be written to it, a temporary folder.
    """
    if (root / "val").is_dir() and folders.has_image(root / "val", deep=False):
        raise RuntimeError("val/ holds images beside its class folders, as an extraction that was cut short; delete it")
    missing = [name for name in ("meta.bin", "val") if not (root / name).exists()]
    if not missing:
        return root
    place = _writable(root)
    with tempfile.TemporaryDirectory(prefix=".bitflip-", dir=place) as beside:
        try:
            if "meta.bin" in missing:
                devkit = root / tv.imagenet.ARCHIVE_META["devkit"][0]
                tv.imagenet.parse_devkit_archive(beside, file=str(devkit.absolute()))
            if "val" in missing:
                _, wnids = tv.imagenet.load_meta_file(beside if "meta.bin" in missing else root)
                images = root / tv.imagenet.ARCHIVE_META["val"][0]
                tv.imagenet.parse_val_archive(beside, file=str(images.absolute()), wnids=wnids)
        except RuntimeError as error:  # says where to put an archive that is missing
            raise RuntimeError(str(error).replace(beside, str(root))) from error
        for name in missing:
            _put(Path(beside, name), place)
    for name in ("meta.bin", "val"):
        if not (place / name).exists():
            (place / name).symlink_to((root / name).absolute())
    return place


def _folder(settings: Hyperparameters) -> TestSet:
    found = _class_folders(settings)
    if found is None:
        raise BadInput(
            f"input_path (--input-path): no class folders in {settings.input_path}; put a folder of images per class "
            "there, or under val/ or test/, or try --dataset digits, which needs no data"
        )
    return found


def _class_folders(settings: Hyperparameters) -> ClassFolders | None:
    expected = NUM_CLASSES.get(settings.dataset)
    return folders.load(settings, expected, preprocessing(settings))


def cifar_root(settings: Hyperparameters) -> Path | None:
    """The folder that holds CIFAR as it is published, extracted; None if it is not there.

    Raises:
        BadInput: if the archive is damaged.
    """
    cifar, root = CIFAR[settings.dataset], settings.input_path
    if (root / cifar.base_folder).is_dir():
        return root
    archive = root / cifar.filename
    if not archive.is_file():
        return None
    _check_archive(archive, cifar.tgz_md5)
    return _extracted(archive, cifar.base_folder)


def _cifar(settings: Hyperparameters) -> TestSet:
    dataset, root, transform = settings.dataset, settings.input_path, preprocessing(settings)
    cifar = CIFAR[dataset]
    if (there := cifar_root(settings)) is not None:
        try:
            return cast(TestSet, cifar(str(there), train=False, transform=transform))
        except (RuntimeError, OSError, EOFError) as error:
            raise BadInput(
                f"input_path (--input-path): {root / cifar.base_folder} is damaged or incomplete "
                f"({first_line(error)}); delete it and provide {cifar.filename} again"
            ) from error
    found = _class_folders(settings)
    if found is not None:
        return found
    try:
        with _safe_extraction():
            return cast(TestSet, cifar(str(root), train=False, transform=transform, download=True))
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise BadInput(
            f"input_path (--input-path): no {dataset} in {root}, and no download ({error}); put "
            f"{cifar.filename} or the extracted {cifar.base_folder} there, or a folder per class, "
            "or try --dataset digits, which needs no data"
        ) from error


def _check_archive(archive: Path, md5: str) -> None:
    with archive.open("rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != md5:
        raise BadInput(
            f"input_path (--input-path): {archive} is damaged (md5 {digest.hexdigest()}, "
            f"expected {md5}); provide it again"
        )


_temporary: list[tempfile.TemporaryDirectory[str]] = []  # kept until the process ends, then deleted


def _extracted(archive: Path, name: str) -> Path:
    """The folder in which the folder ``name`` of an archive is, now that it is extracted: as a whole, or not at all.

    It is beside the archive, or where nothing can be written, as on a read-only mount, in a temporary folder.
    """
    root = archive.parent
    try:
        root = _writable(root)
        with tempfile.TemporaryDirectory(prefix=".bitflip-", dir=root) as beside, _safe_extraction():
            with tarfile.open(archive) as file:
                file.extractall(beside)
            _put(Path(beside, name), root)
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise BadInput(
            f"input_path (--input-path): {archive} can't be extracted ({type(error).__name__}: {first_line(error)})"
        ) from error
    return root


def _put(path: Path, folder: Path) -> None:
    """Move a file or folder into another folder, unless it is there already: another process may have been faster."""
    try:
        os.replace(path, folder / path.name)
    except OSError:
        if not (folder / path.name).exists():
            raise


def _writable(folder: Path) -> Path:
    """The folder, or where it can't be written to a temporary one, which stays until the process ends."""
    if os.access(folder, os.W_OK):
        return folder
    _temporary.append(tempfile.TemporaryDirectory(prefix="bitflip-"))
    return Path(_temporary[-1].name)


@contextlib.contextmanager
def _safe_extraction() -> Iterator[None]:
    """Let nothing that is extracted from a tar archive land, or link to, outside its folder.

    Raises:
        BadInput: if this Python is too old for that.
    """
    if not hasattr(tarfile, "data_filter"):
        raise BadInput(
            "input_path (--input-path): to extract an archive safely takes Python 3.10.12, 3.11.4 or newer; extract it"
        )
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
