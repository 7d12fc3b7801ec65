"""A flip changes exactly one bit, the right one, of a value of any type, wherever the value lies in memory."""

from __future__ import annotations

import bitstring
import pytest
import torch
from torch import Tensor

from bitflip.network import bits

INTEGER = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
DTYPES = pytest.mark.parametrize("dtype", INTEGER, ids=lambda dtype: str(dtype).removeprefix("torch."))


def oracle(value: Tensor) -> str:
    """The bits of one value as bitstring gets them from its bytes, which are little-endian."""
    raw = bytes(reversed(value.reshape(1).view(torch.uint8).tolist()))
    return str(bitstring.Bits(f"0x{raw.hex()}").bin)


def samples(dtype: torch.dtype) -> Tensor:
    """Ordinary values, both zeros and infinities, a NaN, the smallest subnormal, the largest and smallest normal."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, 1.0, -1.0, 0.1, float("inf"), -float("inf"), float("nan"), info.max, info.tiny]
    values = torch.tensor(special, dtype=dtype)
    subnormal = torch.tensor([1], dtype=INTEGER[dtype]).view(dtype)
    return torch.cat([values, subnormal, torch.linspace(-3, 3, 21).to(dtype)])


@DTYPES
def test_exactly_the_chosen_bit_differs(dtype: torch.dtype) -> None:
    values = samples(dtype)
    for bit in range(bits.width(dtype)):
        for before, after in zip(values, bits.flip(values, torch.tensor(bit)), strict=True):
            expected = bitstring.BitArray(bin=oracle(before))
            expected.invert(bit)
            assert oracle(after) == expected.bin


@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
def test_known_flips_of_one(name: str) -> None:
    """Of 1.0, bit 0 is the sign, bit 1 makes it infinite, the last one adds an epsilon."""
    dtype = getattr(torch, name)
    one, last = torch.ones(3, dtype=dtype), bits.width(dtype) - 1
    flipped = bits.flip(one, torch.tensor([0, 1, last]))
    assert flipped.tolist() == [-1.0, float("inf"), 1.0 + torch.finfo(dtype).eps]


@DTYPES
def test_flip_twice_is_identity(dtype: torch.dtype) -> None:
    values = samples(dtype)
    for bit in torch.arange(bits.width(dtype)):
        again = bits.flip(bits.flip(values, bit), bit)
        assert torch.equal(again.view(INTEGER[dtype]), values.view(INTEGER[dtype]))  # as bits: NaN is not equal to NaN


@DTYPES
def test_each_value_gets_its_own_bit(dtype: torch.dtype) -> None:
    chosen = torch.arange(bits.width(dtype))
    flipped = bits.flip(torch.ones(len(chosen), dtype=dtype), chosen)
    assert flipped.tolist() == [bits.flip(torch.tensor(1.0, dtype=dtype), bit).item() for bit in chosen]


@DTYPES
def test_shape_type_and_input_are_kept(dtype: torch.dtype) -> None:
    values = samples(dtype)[:30].reshape(2, 3, 5)
    before = values.clone()
    flipped = bits.flip(values, torch.tensor(3))
    assert (flipped.shape, flipped.dtype, flipped.device) == (values.shape, dtype, values.device)
    assert torch.equal(values.view(INTEGER[dtype]), before.view(INTEGER[dtype]))


@pytest.mark.parametrize(
    "strided",
    [
        pytest.param(torch.arange(24.0).reshape(4, 6).t(), id="transposed"),
        pytest.param(torch.arange(24.0)[::3], id="every third"),
        pytest.param(torch.arange(48.0).reshape(2, 3, 4, 2).to(memory_format=torch.channels_last), id="channels last"),
        pytest.param(torch.tensor(2.5).expand(2, 3), id="expanded"),
        pytest.param(torch.tensor(2.5), id="no dimensions"),
        pytest.param(torch.empty(0), id="empty"),
    ],
)
def test_memory_layout_does_not_matter(strided: Tensor) -> None:
    plain, before = strided.clone(memory_format=torch.contiguous_format), strided.clone()
    assert torch.equal(bits.flip(strided, torch.tensor(9)), bits.flip(plain, torch.tensor(9)))
    assert torch.equal(strided, before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool], ids=str)
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    assert not bits.is_flippable(dtype)
    with pytest.raises(TypeError, match="expected float64, float32, float16 or bfloat16, got"):
        bits.flip(torch.ones(1).to(dtype), torch.tensor(0))


@DTYPES
def test_text_is_what_bitstring_says(dtype: torch.dtype) -> None:
    assert [bits.text(value) for value in samples(dtype)] == [oracle(value) for value in samples(dtype)]


@DTYPES
@pytest.mark.parametrize("sign", [0, 1], ids=["positive", "negative"])
def test_text_keeps_the_payload_of_a_nan(dtype: torch.dtype, sign: int) -> None:
    """A signalling NaN would become a quiet one on its way through a Python float."""
    width = bits.width(dtype)
    exponent = {torch.float64: 11, torch.float32: 8, torch.float16: 5, torch.bfloat16: 8}[dtype]
    pattern = f"{sign}{'1' * exponent}0{'01' * width}"[:width]
    value = torch.tensor(bitstring.Bits(bin=pattern).int, dtype=INTEGER[dtype]).view(dtype)
    assert value.isnan()
    assert bits.text(value) == pattern
