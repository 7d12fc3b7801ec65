"""An image file -> its pixels, or one sentence on why they can't be had.

Most become 8-bit RGB as torchvision's ``pil_loader`` makes it: alpha and transparent colours are dropped, CMYK is
converted without its profile, the EXIF orientation is left alone, of several frames the first is taken, of 16-bit
colours the upper 8 bits. Grey images of 9 to 16 bits, which ``pil_loader`` would clip to white, are scaled to 0 ... 1
instead, without rounding to 8 bits: 65535, or the maximum that the file names, is 1. What has no scale (floating-point,
signed and 32-bit values), and colours that Pillow can't convert, are refused.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

from bitflip.errors import BadInput, first_line

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")  # that Pillow makes RGB of
WORDS = {"F": "floating-point values", "I": "32-bit or signed whole numbers", "LAB": "Lab colours"}

# What may be worth a word: a part of a sentence about so many images.
TURNED = "have an EXIF orientation, which is ignored, as torchvision does: they are run as they are stored"
TRANSPARENT = "have transparency, which is dropped, as torchvision does: they are run with the colours beneath it"
FRAMES = "have several frames or pages, of which the first is run"
DEEP = "are grey of more than 8 bits, and scaled from black to white, in a 16-bit file from 0 to 65535"

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_BLACK_IS_ZERO, _UNSIGNED = 1, {1, 4}  # the latter: unsigned, and "undefined", which is what 8-bit images may say


def read(path: str) -> Image.Image:
    """The image: RGB of 8 bits; of a grey one of more bits, mode F, from 0 (black) to 1 (white).

    Raises:
        BadInput: naming the file, if it is damaged, too large, or has no such form.
    """
    with opened(path) as image:
        white = _white(image)
        if white is None:
            return image.convert("RGB")
        return Image.fromarray(np.asarray(image).astype(np.float32) / np.float32(white))


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An image of which only the header was read.

    Raises:
        BadInput: as :func:`read`, also for what decoding the pixels meanwhile raises.
    """
    try:
        with warnings.catch_warnings():  # of what is meant: a large image, a palette whose transparency is dropped
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            with Image.open(path) as image:
                if what := _unfit(image):
                    raise BadInput(
                        f"input_path (--input-path): {path} holds {what} (a {image.format} of mode {image.mode}), "
                        "which have no one right conversion; convert it to grey or RGB of 8 bits per channel"
                    )
                yield image
    except BadInput:
        raise
    except Exception as error:  # decoders raise whatever they meet in a damaged file
        raise BadInput(f"input_path (--input-path): {path} is no readable image ({first_line(error)})") from error


def notes(image: Image.Image) -> list[str]:
    """What may be worth a word about an image that was opened: of ``TURNED``, ``TRANSPARENT``, ``FRAMES``, ``DEEP``."""
    # The method of PNG files would decode the whole image, to find what may come after it. Pillow itself turns a TIFF.
    exif = Image.Image.getexif(image)
    turned = image.format != "TIFF" and exif.get(ExifTags.Base.Orientation, 1) in range(2, 9)
    transparent = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
    frames = getattr(image, "is_animated", False) and image.format != "MPO"  # a camera's, with its preview
    found = {TURNED: turned, TRANSPARENT: transparent, FRAMES: frames, DEEP: _white(image) is not None}
    return [note for note, true in found.items() if true]


def _unfit(image: Image.Image) -> str | None:
    """What the image holds, if there is no one right way to show it."""
    samples = {*getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ())}
    if image.mode in EIGHT_BITS:
        return None if samples <= _UNSIGNED else "signed whole numbers"
    return None if _white(image) is not None else WORDS.get(image.mode, "values of which nothing says which is white")


def _white(image: Image.Image) -> int | None:
    """The value of white in a grey image of more than 8 bits; None for any other, and where the file doesn't say."""
    if image.format == "PPM" and image.mode == "I":
        return 65535  # Pillow has scaled it, by the maximum that the file names
    if not image.mode.startswith("I;16"):
        return None
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined] # only a TIFF has it
        if tags.get(_PHOTOMETRIC) != _BLACK_IS_ZERO:
            return None  # Pillow would not invert it
        return int((1 << tags[_BITS_PER_SAMPLE][0]) - 1)
    return 65535 if image.format == "PNG" else None
