"""Every kind of image that Pillow reads becomes the pixels that it shows, or is refused by name."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torchvision.datasets.folder import pil_loader

from bitflip.data import decoding, imagefiles
from bitflip.errors import BadInput
from bitflip.settings import reading

GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
DEEP: NDArray[np.uint16] = GREY.astype(np.uint16) * 257  # the same shades: 255 * 257 = 65535
RGB = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
DIFFERENT = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040  # values that 8 bits can't tell apart


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pictures(pixels: NDArray[Any], form: str, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    return encoded(image if mode is None else image.convert(mode), form, **options)


def frames(form: str, **options: Any) -> bytes:
    return pictures(RGB, form, save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())], **options)


def tiff(values: NDArray[Any], bits: int, *, black: int = 1, sample_format: int = 1, order: str = "<") -> bytes:
    """A grey TIFF (8, 8) of one strip; ``black``: 1 if 0 is black, 0 if it is white."""
    data = values.tobytes()
    shorts = {256: 8, 257: 8, 258: bits, 259: 1, 262: black, 273: 0, 277: 1, 278: 8, 279: len(data)}
    shorts |= {273: 8 + 2 + 12 * 10 + 4, 339: sample_format}
    entries = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(shorts.items())]
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return start + b"".join(entries) + bytes(4) + data


def packed(values: NDArray[Any]) -> NDArray[np.uint8]:
    """12-bit values (8, 8), two in three bytes."""
    bits = (values[..., None] >> np.arange(11, -1, -1)) & 1
    return np.packbits(bits.reshape(8, -1), axis=1)


def turned(form: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    return pictures(RGB, form, exif=exif, **options)


def lab() -> bytes:
    to = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(RGB), ImageCms.createProfile("sRGB"), to, outputMode="LAB")
    assert image is not None
    return encoded(image, "TIFF")


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], str]:
    def write(content: bytes) -> str:
        path = tmp_path / "image"
        path.write_bytes(content)
        return str(path)

    return write


AS_TORCHVISION = {
    "RGB": pictures(RGB, "PNG"),
    "grey": pictures(GREY, "PNG"),
    "a JPEG": pictures(RGB, "JPEG"),
    "black and white": pictures(GREY, "PNG", "1"),
    "CMYK": pictures(RGB, "JPEG", "CMYK"),
    "palette": encoded(Image.fromarray(RGB).quantize(16), "PNG"),
    "palette, a colour transparent": encoded(Image.fromarray(RGB).quantize(16), "PNG", transparency=3),
    "palette, all colours a little": encoded(Image.fromarray(RGB).quantize(16), "PNG", transparency=bytes(range(16))),
    "grey and alpha": pictures(GREY, "PNG", "LA"),
    "RGB and alpha": pictures(np.dstack([RGB, GREY]), "PNG"),
    "several frames": frames("PNG"),
    "several pages": frames("TIFF"),
    "several frames in a WebP": frames("WEBP", lossless=True),
    "a camera's, with a preview": frames("MPO"),
    "turned": turned("JPEG"),
    "turned PNG": turned("PNG"),
    "turned TIFF": turned("TIFF"),
    "8-bit TIFF": tiff(GREY, 8),
}


@pytest.mark.parametrize("kind", AS_TORCHVISION)
def test_as_torchvision_reads_it(kind: str, put: Callable[[bytes], str]) -> None:
    path = put(AS_TORCHVISION[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decoding.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pil_loader(path)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("RGB", RGB),
        ("grey", np.dstack([GREY] * 3)),
        ("RGB and alpha", RGB),
        ("several frames", RGB),
        ("several pages", RGB),
        ("several frames in a WebP", RGB),
        ("turned PNG", RGB),
        ("8-bit TIFF", np.dstack([GREY] * 3)),
    ],
)
def test_the_pixels_are_those_that_were_written(
    kind: str, expected: NDArray[np.uint8], put: Callable[[bytes], str]
) -> None:
    assert np.array_equal(np.asarray(decoding.read(put(AS_TORCHVISION[kind]))), expected)


SIXTEEN: dict[str, Callable[[NDArray[Any]], bytes]] = {
    "PNG": lambda values: pictures(values, "PNG"),
    "TIFF": lambda values: pictures(values, "TIFF"),
    "compressed TIFF": lambda values: pictures(values, "TIFF", compression="tiff_lzw"),
    "big-endian TIFF": lambda values: tiff(values.astype(">u2"), 16, order=">"),
    "PGM": lambda values: b"P5 8 8 65535\n" + values.astype(">u2").tobytes(),
}
sixteen = pytest.mark.parametrize("encode", SIXTEEN.values(), ids=SIXTEEN.keys())


@sixteen
def test_16_bits_are_scaled_and_not_rounded(
    encode: Callable[[NDArray[Any]], bytes], put: Callable[[bytes], str]
) -> None:
    for values in (DEEP, DIFFERENT):
        found = decoding.read(put(encode(values)))
        assert found.mode == "F"
        np.testing.assert_allclose(np.asarray(found), values / 65535, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "white"),
    [(tiff(packed(DEEP >> 4), 12), 4095), (b"P5 8 8 1023\n" + (DEEP >> 6).astype(">u2").tobytes(), 1023)],
    ids=["12-bit TIFF", "10-bit PGM"],
)
def test_white_is_what_the_file_says(content: bytes, white: int, put: Callable[[bytes], str]) -> None:
    expected = (DEEP >> (16 - white.bit_length())) / white
    np.testing.assert_allclose(np.asarray(decoding.read(put(content))), expected, atol=1 / 65535)


@sixteen
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_shades_in_8_and_16_bits_are_the_same_input(
    channels: int, encode: Callable[[NDArray[Any]], bytes], put: Callable[[bytes], str]
) -> None:
    settings, problems = reading.read(["--dataset=folder", "--img-size=8", f"--channels={channels}"])
    assert problems == {}
    transform = imagefiles.preprocessing(settings)
    eight = transform(decoding.read(put(pictures(GREY, "PNG"))))
    deep = transform(decoding.read(put(encode(DEEP))))
    assert deep.shape == (channels, 8, 8)
    assert deep.equal(eight)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_resized_like_8_but_for_rounding(channels: int, put: Callable[[bytes], str]) -> None:
    plain = (f"--mean={','.join('0' * channels)}", f"--std={','.join('1' * channels)}")
    settings, problems = reading.read(["--dataset=folder", "--img-size=5", f"--channels={channels}", *plain])
    assert problems == {}
    transform = imagefiles.preprocessing(settings)
    difference = transform(decoding.read(put(pictures(DEEP, "PNG")))) - transform(Image.fromarray(GREY).convert("RGB"))
    assert difference.abs().max() <= 1.01 / 255  # the other one is rounded after each direction


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("floating-point values (a TIFF of mode F)", pictures(GREY.astype(np.float32) / 255, "TIFF")),
        ("32-bit or signed whole numbers (a TIFF of mode I)", tiff(GREY.astype("<u4"), 32)),
        ("32-bit or signed whole numbers (a TIFF of mode I)", tiff(GREY.astype("<i2"), 16, sample_format=2)),
        ("signed whole numbers (a TIFF of mode L)", tiff(GREY, 8, sample_format=2)),
        ("values of which nothing says which is white (a TIFF of mode I;16)", tiff(DEEP.astype("<u2"), 16, black=0)),
        ("values of which nothing says which is white (a JPEG2000 of mode I;16)", pictures(DEEP, "JPEG2000")),
        ("Lab colours (a TIFF of mode LAB)", lab()),
    ],
    ids=["float", "32 bits", "signed 16 bits", "signed 8 bits", "0 is white", "JPEG 2000", "Lab"],
)
def test_what_has_no_one_right_form_is_refused(what: str, content: bytes, put: Callable[[bytes], str]) -> None:
    path = put(content)
    with pytest.raises(BadInput) as error:
        decoding.read(path)
    (sentence,) = error.value.problems
    assert sentence.startswith(f"input_path (--input-path): {path} holds {what}")
    assert sentence.endswith("convert it to grey or RGB of 8 bits per channel")


def test_a_large_image_is_read_and_a_huge_one_refused(
    put: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(AS_TORCHVISION["RGB"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # warns above, refuses above twice as many; there are 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoding.read(path).size == (8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(BadInput, match=rf"^input_path \(--input-path\): {path} is no readable image \(Image size"):
        decoding.read(path)


@pytest.mark.parametrize("kind", [ValueError, SyntaxError, IndexError, MemoryError, struct.error])
def test_whatever_a_decoder_raises_names_the_file(
    kind: type[Exception], put: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(AS_TORCHVISION["RGB"])

    def raises(self: Image.Image, mode: str) -> None:
        raise kind("one line\nand another")

    monkeypatch.setattr(Image.Image, "convert", raises)
    with pytest.raises(BadInput) as error:
        decoding.read(path)
    assert error.value.problems == (f"input_path (--input-path): {path} is no readable image (one line)",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((AS_TORCHVISION[kind], set()) for kind in ("RGB", "grey", "CMYK", "palette", "a camera's, with a preview")),
        *((AS_TORCHVISION[kind], {decoding.TURNED}) for kind in ("turned", "turned PNG")),
        (AS_TORCHVISION["turned TIFF"], set()),  # Pillow itself turns it, for torchvision too
        *((AS_TORCHVISION[kind], {decoding.TRANSPARENT}) for kind in AS_TORCHVISION if "alpha" in kind),
        *((AS_TORCHVISION[kind], {decoding.TRANSPARENT}) for kind in AS_TORCHVISION if "palette, " in kind),
        *((AS_TORCHVISION[kind], {decoding.FRAMES}) for kind in AS_TORCHVISION if "several" in kind),
        *((encode(DEEP), {decoding.DEEP}) for encode in SIXTEEN.values()),
        (turned("WEBP"), {decoding.TURNED}),
    ],
)
def test_what_is_worth_a_word(content: bytes, expected: set[str], put: Callable[[bytes], str]) -> None:
    with decoding.opened(put(content)) as image:
        assert set(decoding.notes(image)) == expected
