"""Class folders: where they are, which label each gets, and what is odd about what is in them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision import datasets as tv

from bitflip.data import decoding
from bitflip.errors import BadInput, first_line
from bitflip.settings.hyperparameters import ClassOrder, Hyperparameters

log = logging.getLogger(__name__)

PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")  # folders of these names are no classes
SHOWN = 12  # classes that are named
LOOKED_AT = 100  # images of more than 8 bits whose values are looked at
DARK = 0.25  # of white; what is never brighter was hardly meant to fill all bits

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


class ClassFolders(tv.ImageFolder):  # type: ignore[misc] # torchvision has no types
    """torchvision's, but a hidden folder, such as a file browser leaves, is no class.

    Images come in the order of torchvision's, whatever the order of the classes, which only gives their labels.

    Args:
        folder: that holds a folder per class.
        order: of the classes.
        transform: of each image.
    """

    def __init__(self, folder: Path, order: ClassOrder, transform: Callable[[Image.Image], Tensor]) -> None:
        self._order = order
        super().__init__(str(folder), transform=transform, loader=decoding.read)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """See torchvision."""
        names = in_order(_class_names(Path(directory)), self._order)
        return names, {name: label for label, name in enumerate(names)}


def in_order(names: Iterable[str], order: ClassOrder) -> list[str]:
    """The names of classes in the order of their labels.

    In numeric order, numbers in names count by their value, and if every name is a number, its sign counts, too.

    >>> in_order(["2", "10", "1"], "text"), in_order(["2", "10", "1"], "numeric")
    (['1', '10', '2'], ['1', '2', '10'])
    >>> in_order(["c10", "c9", "b"], "numeric"), in_order(["-1", "-2", "0.5", "0.25"], "numeric")
    (['b', 'c9', 'c10'], ['-2', '-1', '0.25', '0.5'])
    """
    found = sorted(names)
    if order == "text":
        return found
    if all(map(_NUMBER.fullmatch, found)):
        return sorted(found, key=float)
    return sorted(found, key=lambda name: [int(p) if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", name))])


def load(
    settings: Hyperparameters, expected: int | None, transform: Callable[[Image.Image], Tensor]
) -> ClassFolders | None:
    """The folder of class folders, itself or under val/ or test/; None if there is none.

    What is odd about it is logged, a line each.

    Args:
        settings: where to look, and the order of the classes.
        expected: number of classes; None for any number of at least two.
        transform: of each image.

    Raises:
        BadInput: if there are other classes than expected, folders that are none, or images that can't be read.
    """
    order = settings.class_order
    folder = _found(settings.input_path)
    if folder is None:
        return None
    names = in_order(_class_names(folder), order)
    _refuse_strangers(folder, names)
    if len(names) < 2:
        raise BadInput(f"input_path (--input-path): expected at least 2 class folders in {folder}, got 1")
    if len(names) != (expected or len(names)):
        raise BadInput(
            f"input_path (--input-path): expected {expected} class folders of {settings.dataset} in {folder}, "
            f"got {len(names)}"
        )
    try:
        images = ClassFolders(folder, order, transform)
    except FileNotFoundError as error:  # a class without images
        raise BadInput(f"input_path (--input-path): {first_line(error)}") from error
    log.info(f"{len(names)} classes in {folder}, in {order} order: {_listing(names)}")
    _warn_of_order(names, order)
    _warn_of_folders(folder, images)
    _warn_of_skipped(folder, names)
    _survey([path for path, _ in images.samples])
    return images


def _found(root: Path) -> Path | None:
    """The folder whose sub-folders hold images; first those that hold them directly, as in val/cat/1.png.

    Only then deeper ones, as in cat/images/1.png: else the folder of val/cat/1.png would have a class called val.
    """
    parts = (root / "val", root / "test")
    for deep, folders in ((False, (root, *parts)), (True, (*parts, root))):
        for folder in filter(Path.is_dir, folders):
            if any(has_image(folder / name, deep=deep) for name in _class_names(folder)):
                return folder
    return None


def _class_names(folder: Path) -> list[str]:
    return [name for name in _folders(folder) if not name.startswith(".")]


def _folders(folder: Path) -> list[str]:
    return next(_walk(folder), ("", [], []))[1]


def has_image(folder: Path, *, deep: bool) -> bool:
    """Whether there is an image in a folder, or, if deep, in one below it."""
    for _, below, files in _walk(folder):
        if any(map(_is_image, files)):
            return True
        if not deep:
            below.clear()
    return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(tv.folder.IMG_EXTENSIONS)


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As torchvision walks, but what can't be read is refused, not skipped."""
    return os.walk(folder, onerror=_unreadable, followlinks=True)


def _unreadable(error: OSError) -> NoReturn:
    raise BadInput(f"input_path (--input-path): {error.filename} can't be read ({error.strerror})") from error


def _refuse_strangers(folder: Path, names: Sequence[str]) -> None:
    """Refuse folders that are there when a parent folder was given, or results were written among the classes."""
    parts = [name for name in names if name.lower() in PARTS]
    if len(parts) > 1:
        raise BadInput(
            f"input_path (--input-path): expected class folders in {folder}, got {' and '.join(parts)}, which are "
            f"parts of a data set; give the one to be run, such as {folder / parts[-1]}"
        )
    for name in names:
        _, _, files = next(_walk(folder / name), ("", [], []))
        results = [file for file in files if file.endswith(".json") and f"{file.removesuffix('.json')}.csv" in files]
        if results:
            raise BadInput(
                f"input_path (--input-path): expected class folders in {folder}, but {folder / name} holds results of "
                f"runs, such as {min(results)}; move it elsewhere, or give the folder that holds class folders alone"
            )


def _listing(names: Sequence[str]) -> str:
    if len(names) > SHOWN:
        names = [*names[: SHOWN - 1], "...", names[-1]]
    return ", ".join(names)


def _warn_of_order(names: Sequence[str], order: ClassOrder) -> None:
    other = in_order(names, "numeric")
    if order == "text" and other != list(names):
        log.warning(
            "class_order (--class-order): labels are in text order, as in torchvision, which is not the order of the "
            f"numbers in the names; a model that was trained in the order {_listing(other)} needs numeric"
        )


def _warn_of_folders(folder: Path, images: ClassFolders) -> None:
    """A line if classes look like data sets of their own, and one if there are folders that torchvision would take."""
    below: dict[int, set[str]] = {}
    for path, label in images.samples:
        below.setdefault(label, set()).add(os.path.dirname(path))
    several = {label: min(places) for label, places in below.items() if len(places) > 1}
    if several:
        label, place = next(iter(several.items()))
        log.warning(
            f"{len(several)} of {len(below)} class folders have images in several folders, such as {place}: all of "
            f"them are of class {images.classes[label]}; if these are the classes, {folder} is a level too high"
        )
    hidden = [name for name in _folders(folder) if name.startswith(".") and has_image(folder / name, deep=True)]
    if hidden:
        log.warning(
            f"hidden folders are no classes: {', '.join(sorted(hidden))} in {folder} (torchvision would take them as "
            "classes, and so shift the labels of a model that was trained with it)"
        )


def _warn_of_skipped(folder: Path, names: Sequence[str]) -> None:
    """One line that counts the files that are not run: of other names than images have, or beside the class folders."""
    skipped: Counter[str] = Counter()
    _, _, beside = next(_walk(folder))
    for file in beside:
        skipped[f"{_kind(file)} beside the class folders"] += not file.startswith(".")
    for name in names:
        for _, _, files in _walk(folder / name):
            skipped.update(_kind(file) for file in files if not (_is_image(file) or file.startswith(".")))
    counts = [f"{count} {kind}" for kind, count in skipped.most_common() if count]
    if counts:
        known = ", ".join(tv.folder.IMG_EXTENSIONS)
        log.warning(f"skipped {skipped.total()} files in {folder}: {', '.join(counts)} (read are {known})")


def _kind(file: str) -> str:
    return os.path.splitext(file)[1].lower() or "without an extension"


def _survey(paths: Sequence[str]) -> None:
    """Read the headers of all images: one line for each kind of image that a user may see otherwise than it is run.

    Raises:
        BadInput: naming the first image that can't be run, and counting the others.
    """
    found: dict[str, list[str]] = {}
    refused: list[BadInput] = []
    for path in paths:
        try:
            with decoding.opened(path) as image:
                for note in decoding.notes(image):
                    found.setdefault(note, []).append(path)
        except BadInput as error:
            refused.append(error)
    if refused:
        more = f" (and {len(refused) - 1} more images that can't be run)" if len(refused) > 1 else ""
        raise BadInput(f"{refused[0]}{more}")
    for note, files in found.items():
        log.warning(f"{len(files)} of {len(paths)} images {note}; the first is {files[0]}")
    looked_at = found.get(decoding.DEEP, [])[:LOOKED_AT]
    brightest = max((float(np.asarray(decoding.read(path)).max()) for path in looked_at), default=1.0)
    if brightest <= DARK:
        log.warning(
            f"the brightest pixel of {len(looked_at)} such images is {100 * brightest:.3g} % of white: if the model "
            "was trained on another scale, convert them to it"
        )
