"""The images, or other inputs, of a run: decoded once if they fit the memory, in batches, with a digest."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bitflip.data import inputs
from bitflip.data.datasets import TestSet
from bitflip.data.inputs import Inputs
from bitflip.errors import BadInput

KEPT_BYTES = 1 << 30  # test sets up to this size are decoded once, and so much of a larger one in several rounds
MANY_IMAGES = 5000  # from here on, decoding image files in worker processes pays
AT_ONCE = 256  # images that are decoded together

Batch = tuple[Inputs, Tensor]  # images (B, C, H, W), or other inputs, and labels (B,)


class Images:
    """Images, or other inputs, with their labels, in a fixed order.

    Args:
        test_set: the images.
        count: how many of them are run, from the first one on.
        collate: makes a batch of some of them; None for PyTorch's way.
        workers: processes that decode them; None for as many as pay.

    Raises:
        BadInput: if they are decoded at once and one can't be read.
    """

    def __init__(
        self,
        test_set: TestSet,
        count: int,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int | None = None,
    ) -> None:
        self.test_set = test_set
        self.count = count
        files = _are_files(test_set) and count >= MANY_IMAGES
        self._collate = collate
        self._workers = (min(8, os.cpu_count() or 1) if files else 0) if workers is None else workers
        self._kept: Batch | None = None
        self._asked_for: dict[range, Batch | None] = {}  # of a larger test set, with those batches that are kept
        self._room = KEPT_BYTES
        if count == 0:
            return
        (example, _), *_ = self._load([range(1)])
        if _bytes(example) * count <= KEPT_BYTES:
            batches = list(self._load(self.spans(AT_ONCE)))
            self._kept = inputs.join([images for images, _ in batches]), torch.cat([labels for _, labels in batches])

    def spans(self, size: int) -> list[range]:
        """All images in batches of a size, of which the last may be smaller."""
        return [range(first, min(first + size, self.count)) for first in range(0, self.count, size)]

    def batches(self, spans: Iterable[range]) -> Iterator[Batch]:
        """The images and labels of ranges of the test set, one after the other.

        Of a test set that is not decoded at once, a range that is asked for again, as in the rounds of a margin, is
        kept if there is room: what is run once takes no memory.

        Raises:
            BadInput: if an image can't be read.
        """
        if self._kept is not None:
            images, labels = self._kept
            for span in spans:
                part = slice(span.start, span.stop)
                yield inputs.rows(images, part), labels[part]
            return
        known = [(span, self._asked_for.get(span)) for span in spans]
        loaded = self._load([span for span, batch in known if batch is None])
        for span, batch in known:
            yield self._noted(span, next(loaded)) if batch is None else batch

    def _noted(self, span: range, batch: Batch) -> Batch:
        """The same batch, which is kept from the second time on if there is room."""
        size = _bytes(batch[0])
        if span not in self._asked_for:
            self._asked_for[span] = None
        elif self._asked_for[span] is None and size <= self._room:
            self._asked_for[span], self._room = batch, self._room - size
        return batch

    @property
    def labels(self) -> Tensor | None:
        """All labels, (N,), if they are known without reading anything."""
        return None if self._kept is None else self._kept[1]

    def first(self, count: int) -> Inputs:
        """The first few images."""
        ((images, _),) = self.batches([range(min(count, self.count))])
        return images

    @cached_property
    def sha256(self) -> str:
        """Of all pixels and labels; of image files that are not decoded at once, of the files and labels."""
        sha = hashlib.sha256()
        if self._kept is None and _are_files(self.test_set):
            for path, label in cast(Any, self.test_set).samples[: self.count]:
                sha.update(Path(path).read_bytes() + str(label).encode())
            return sha.hexdigest()
        spans = self.spans(AT_ONCE)
        for images, labels in self._load(spans) if self._kept is None else self.batches(spans):
            for part in (*inputs.parts(images), labels):
                sha.update(str(part.dtype).encode())
                sha.update(part.contiguous().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def _load(self, spans: Iterable[range]) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", self.test_set),
            batch_sampler=cast("Any", spans),
            num_workers=self._workers,
            collate_fn=self._collate,
            generator=torch.Generator(),  # else it draws from the one that everybody shares
        )
        try:
            for batch in loader:
                images, labels = _pair(batch)
                yield inputs.on_host(inputs.of(images)), labels.cpu()
        except BadInput as error:  # a worker process puts its whole traceback before the sentence
            raise BadInput(str(error).strip().rpartition(f"{BadInput.__name__}: ")[2]) from None


def _bytes(images: Inputs) -> int:
    return sum(part.numel() * part.element_size() for part in inputs.parts(images))


def _pair(batch: object) -> tuple[Any, Tensor]:
    """The inputs and labels of a batch as a data set gives it.

    Raises:
        BadInput: if it does not.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise BadInput("test_set: expected items of two parts, an input and its label")
    images, labels = batch
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise BadInput(f"test_set: expected a whole number as the label of each input, got a batch of {kind}")
    return images, labels


def _are_files(test_set: TestSet) -> bool:
    """Whether it is torchvision's ``ImageFolder``, which nothing is before torchvision was imported, in a second."""
    torchvision_s = sys.modules.get("torchvision.datasets")
    return torchvision_s is not None and isinstance(test_set, torchvision_s.ImageFolder)
