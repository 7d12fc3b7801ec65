"""The images of a run: decoded once if they fit the memory, in batches, with a digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets as tv

from bitflip.data.datasets import TestSet
from bitflip.errors import BadInput

KEPT_BYTES = 1 << 31  # test sets up to this size are decoded once
MANY_IMAGES = 5000  # from here on, decoding image files in worker processes pays
AT_ONCE = 256  # images that are decoded together

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) and labels (B,)


class Images:
    """Images with their labels, in a fixed order.

    Args:
        test_set: the images.
        count: how many of them are run, from the first one on.

    Raises:
        BadInput: if they are decoded at once and one can't be read.
    """

    def __init__(self, test_set: TestSet, count: int) -> None:
        self.test_set = test_set
        self.count = count
        self._kept: Batch | None = None
        if count == 0:
            return
        image = test_set[0][0]
        if image.numel() * image.element_size() * count <= KEPT_BYTES:
            spans = [range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]
            parts = list(self._load(spans))
            self._kept = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

    def batches(self, spans: Iterable[range]) -> Iterator[Batch]:
        """The images and labels of ranges of the test set, one after the other.

        Raises:
            BadInput: if an image can't be read.
        """
        if self._kept is None:
            yield from self._load(spans)
            return
        images, labels = self._kept
        for span in spans:
            yield images[span.start : span.stop], labels[span.start : span.stop]

    def first(self, count: int) -> Tensor:
        """The first few images."""
        ((images, _),) = self.batches([range(min(count, self.count))])
        return images

    @cached_property
    def sha256(self) -> str:
        """Of all pixels and labels; of image files that are not decoded at once, of the files and labels."""
        sha = hashlib.sha256()
        if self._kept is None and isinstance(self.test_set, tv.ImageFolder):
            for path, label in self.test_set.samples[: self.count]:
                sha.update(Path(path).read_bytes() + str(label).encode())
            return sha.hexdigest()
        spans = [range(first, min(first + AT_ONCE, self.count)) for first in range(0, self.count, AT_ONCE)]
        for images, labels in self.batches(spans):
            sha.update(images.contiguous().numpy().tobytes())
            sha.update(labels.numpy().tobytes())
        return sha.hexdigest()

    def _load(self, spans: Iterable[range]) -> Iterator[Batch]:
        files = isinstance(self.test_set, tv.ImageFolder) and self.count >= MANY_IMAGES
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", self.test_set),
            batch_sampler=cast("Any", spans),
            num_workers=min(8, os.cpu_count() or 1) if files else 0,
            pin_memory=torch.cuda.is_available(),
        )
        try:
            yield from loader
        except BadInput as error:  # a worker process puts its whole traceback before the sentence
            raise BadInput(str(error).strip().rpartition(f"{BadInput.__name__}: ")[2]) from None
