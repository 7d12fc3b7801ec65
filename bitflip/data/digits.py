"""The data set and the network that come with the package, so that a first run downloads nothing.

The images are scikit-learn's handwritten digits: 1797 real 8x8 scans, the test part of E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998. The network is a small VGG with
batch normalisation; ``train_digits.py`` is the script that made its weights.
"""

import importlib.util
from pathlib import Path
from typing import Final, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

Part: TypeAlias = Literal["train", "test"]

NAME: Final = "digits_vgg"
WEIGHTS: Final = Path(__file__).with_name("digits_vgg.pt")
CLASSES: Final = 10
SIDES: Final = range(32, 48)  # pixels that the network takes
TEST_PER_CLASS: Final = 60  # 600 test images; the other 1197 are for training

# Over the 8x8 scans of the train part, in [0, 1]. The weights were trained with these and are wrong with others.
MEAN: Final = 0.3047
STD: Final = 0.3756

_SPLIT_SEED: Final = 2024
_SCANS: Final = Path("data", "digits.csv.gz")  # of sklearn.datasets
_FULL_SCALE: Final = 16.0  # a pixel counts the dark dots of a 4x4 block


def load(part: Part, img_size: int = 32, channels: int = 3) -> TensorDataset:
    """Return the images and labels of one part, always in the same order.

    The tensors are images of shape ``(N, channels, img_size, img_size)``, float32, normalised with ``MEAN`` and
    ``STD``, every channel the same plane, and labels of shape ``(N,)``, int64, in 0..9. N is 1197 for ``"train"``
    and 600 for ``"test"``. Writers are not kept apart: both parts hold digits of the same hands.

    Raises:
        ValueError: an unknown part, or a size or channel count below 1.
    """
    if part not in get_args(Part):
        raise ValueError(f"part: expected one of {', '.join(get_args(Part))}, got {part!r}")
    if img_size < 1 or channels < 1:
        raise ValueError(f"expected img_size and channels of at least 1, got img_size={img_size}, channels={channels}")
    raw, digits = _scans()
    chosen = split(digits)[part]
    planes = torch.from_numpy(raw[chosen]).float().div(_FULL_SCALE).view(-1, 1, 8, 8)
    planes = nn.functional.interpolate(planes, size=(img_size, img_size), mode="bilinear", align_corners=False)
    images = planes.sub(MEAN).div(STD).repeat(1, channels, 1, 1)  # (N, C, H, W)
    return TensorDataset(images, torch.from_numpy(digits[chosen]).long())


def _scans() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """All scans (1797, 64) in 0..16, and their labels (1797,), as ``sklearn.datasets.load_digits`` returns them.

    They are one file of that package, which takes a second to import: it is only asked if the file is not there.
    """
    spec = importlib.util.find_spec("sklearn")
    file = None if spec is None or spec.origin is None else Path(spec.origin).with_name("datasets") / _SCANS
    if file is None or not file.is_file():
        from sklearn.datasets import load_digits

        return cast("tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]", load_digits(return_X_y=True))
    table = np.loadtxt(file, delimiter=",")  # a row for each scan: its pixels, then its label
    return table[:, :-1], table[:, -1].astype(np.int64)


def split(labels: npt.NDArray[np.int64]) -> dict[Part, npt.NDArray[np.int64]]:
    """Divide ``labels`` of shape ``(N,)`` into two disjoint arrays of indices that cover 0..N-1.

    The test part gets ``TEST_PER_CLASS`` images of each class. Both parts are shuffled, so that the first few images
    of a part are a fair sample of it.
    """
    # RandomState, because its stream is frozen for good; a Generator's may change with a numpy release, and an image
    # that the weights were trained on would then turn up in the test part.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels)).astype(np.int64)
    held_out = np.zeros(len(order), dtype=np.bool_)
    for digit in range(CLASSES):
        held_out[np.flatnonzero(labels[order] == digit)[:TEST_PER_CLASS]] = True
    return {"train": order[~held_out], "test": order[held_out]}


class DigitsVGG(nn.Module):
    """A VGG with batch normalisation, laid out like torchvision's: ``features``, then ``classifier``.

    Takes images of shape ``(B, 3, 32, 32)`` and returns logits of shape ``(B, num_classes)``. The first linear layer
    expects 2x2 pixels after four halvings that round down, so sides under 32 or over 47 end in a RuntimeError.
    """

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 16),
            nn.MaxPool2d(2),  # (B, 16, 16, 16)
            *_convolution(16, 32),
            nn.MaxPool2d(2),  # (B, 32, 8, 8)
            *_convolution(32, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(2),  # (B, 64, 4, 4)
            *_convolution(64, 128),
            nn.MaxPool2d(2),  # (B, 128, 2, 2)
        )
        self.classifier = nn.Sequential(
            nn.Linear(128 * 2 * 2, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape ``(B, num_classes)``, of images of shape ``(B, 3, 32, 32)``."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def build(num_classes: int = CLASSES) -> nn.Module:
    """Return an untrained :class:`DigitsVGG`; the file at ``WEIGHTS`` fits it when ``num_classes`` is 10."""
    return DigitsVGG(num_classes)


def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
