"""A data set's name -> its test images, preprocessed, in a fixed order."""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol, cast

from torch import Tensor

from bitflip.data import digits
from bitflip.errors import BadInput
from bitflip.settings.hyperparameters import Hyperparameters

NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits": 10}


class TestSet(Protocol):
    """Images (C, H, W) with their labels, in a fixed order."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


def check(settings: Hyperparameters) -> list[str]:
    """One sentence for each of mean, std and class_order that does not fit the other settings."""
    problems = _no_folders(settings) if settings.dataset == "digits" else []
    for name, values in (("mean", settings.means), ("std", settings.stds)):
        if values is not None and settings.dataset == "digits":
            problems.append(f"{name} (--{name}): expected nothing, since the digits come normalised, got {values}")
        elif values is not None and len(values) != settings.channels:
            problems.append(
                f"{name} (--{name}): expected {settings.channels} numbers, one for each channel, comma-separated, "
                f"got {len(values)}"
            )
    return problems


def _no_folders(settings: Hyperparameters) -> list[str]:
    """One sentence if an order of class folders was asked for where there are none."""
    if settings.class_order == "text":
        return []
    return [
        f"class_order (--class-order): expected text, since {settings.dataset} comes without class folders, "
        f"got {settings.class_order}"
    ]


def classes_of(settings: Hyperparameters, test_set: TestSet) -> int:
    """The number of classes of a test set that was loaded: of class folders of your own, their number."""
    if settings.dataset != "folder":
        return NUM_CLASSES[settings.dataset]
    from bitflip.data.folders import ClassFolders

    assert isinstance(test_set, ClassFolders)
    return len(test_set.classes)


def load(settings: Hyperparameters) -> TestSet:
    """The test images of the data set.

    Raises:
        BadInput: if they are not there and can't be downloaded, are damaged, or don't fit the settings.
    """
    assert settings.img_size is not None
    if settings.dataset == "digits":
        return cast(TestSet, digits.load("test", settings.img_size, settings.channels))
    from bitflip.data import imagefiles  # brings torchvision, which takes a second that the digits do without
    from bitflip.data.folders import ClassFolders

    found = imagefiles.load(settings)
    if not isinstance(found, ClassFolders) and (problems := _no_folders(settings)):
        raise BadInput(*problems)
    return found


def size_of(test_set: Sized, settings: Hyperparameters) -> int:
    """Number of images that a run uses."""
    count = min(len(test_set), settings.max_images or len(test_set))
    return count // settings.batch_size * settings.batch_size if settings.drop_last else count
