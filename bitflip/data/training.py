"""Images that are not the test images, to calibrate on: the training part of a data set, or a folder of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Subset

from bitflip.data import digits
from bitflip.data.datasets import TestSet
from bitflip.data.images import Images
from bitflip.errors import BadInput
from bitflip.settings.hyperparameters import Hyperparameters

SETTING = "calibration_images (--calibration-images)"
COUNT = 1000  # images, evenly spread over what there is
PARTS = ("train", "training")  # folders of the training part


class ImageFiles:
    """All images in a folder and the folders below it, by name; their labels, which nobody needs, are 0.

    Args:
        folder: that they are in.
        settings: of the run, for the preprocessing.
    """

    def __init__(self, folder: Path, settings: Hyperparameters) -> None:
        from torchvision import datasets as tv  # takes a second, which the digits do without

        from bitflip.data import imagefiles

        found = os.walk(folder, followlinks=True)
        self._paths = sorted(
            os.path.join(where, name)
            for where, _, names in found
            for name in names
            if name.lower().endswith(tv.folder.IMG_EXTENSIONS)
        )
        self._transform = imagefiles.preprocessing(settings)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from bitflip.data import decoding

        return self._transform(decoding.read(self._paths[index])), 0


def check(settings: Hyperparameters) -> list[str]:
    """One sentence if the folder to calibrate on is none."""
    folder = settings.calibration_images
    if folder is None:
        return []
    if settings.dataset == "digits":
        return [f"{SETTING}: expected none, since the digits have a training part, got {folder}"]
    return [] if folder.is_dir() else [f"{SETTING}: expected a folder of images, got {folder}"]


def load(settings: Hyperparameters) -> Images:
    """Images to calibrate on, preprocessed as the test images are: at most :data:`COUNT`.

    Raises:
        BadInput: if there are none.
    """
    return spread(_found(settings))


def spread(images: TestSet, collate: Any = None) -> Images:
    """Some of the images, evenly spread."""
    count = min(COUNT, len(images))
    places = [i * len(images) // count for i in range(count)]
    return Images(cast(TestSet, Subset(cast(Any, images), places)), count, collate, 0)


def _found(settings: Hyperparameters) -> TestSet:
    assert settings.img_size is not None
    if settings.dataset == "digits":
        return cast(TestSet, digits.load("train", settings.img_size, settings.channels))
    from bitflip.data import imagefiles  # brings torchvision

    folders = [settings.calibration_images]
    if settings.calibration_images is None:
        if settings.dataset in imagefiles.CIFAR and (root := imagefiles.cifar_root(settings)) is not None:
            cifar = imagefiles.CIFAR[settings.dataset]
            return cast(TestSet, cifar(str(root), train=True, transform=imagefiles.preprocessing(settings)))
        folders = [settings.input_path / part for part in PARTS]
    for folder in folders:
        assert folder is not None
        if len(images := ImageFiles(folder, settings)):
            return images
    where = settings.calibration_images or f"{settings.input_path}, nor a folder {' or '.join(PARTS)} there"
    raise BadInput(
        f"{SETTING}: expected images that are not the test images, to measure on them what layers put out without a "
        f"fault, but there are none in {where}; name a folder of such images, or give the bounds that another run "
        "wrote: --bounds FILE"
    )
