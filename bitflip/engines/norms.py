"""Upper bounds of operator norms (L2), in float64: of matrices, and of convolutions at their real geometry.

A convolution with zero padding is a circular one on the padded map, of which only the outputs that do not wrap around
are kept. The discrete Fourier transform takes the circular one apart into a matrix per frequency (Sedghi, Gupta and
Long 2019, "The singular values of convolutional layers"), so the largest norm of these is a bound. A stride of s is a
stride of 1 on s x s times as many channels, one for each phase.

Power iteration converges to a norm from below, and so is no bound. The trace of a power is one, for a matrix G that is
positive semidefinite: its largest eigenvalue is at most trace(G^k)^(1/k), and at least trace(G^2k) / trace(G^k) to the
power of 1/k; each squaring doubles k, and the next trace is the squared Frobenius norm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bitflip.engines import verdicts

SQUARINGS = 5  # up to k = 64: at most m**(1 / 128) above the norm, 5 % for 512 channels
ROUNDING = 1 + 1e-9  # of float64, generously
SMALL = 16  # pixels of a map up to which the operator is written out as one matrix, which is sharper,
WHOLE = 2048  # if it has no more columns than that
BLOCK = 1 << 24  # values of the matrices that are looked at together


def of_matrices(matrices: Tensor) -> float:
    """An upper bound of the largest norm of some matrices, (N, m, n), real or complex.

    Infinity if a value of theirs is not finite.
    """
    matrices = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    if matrices.numel() == 0:
        return 0.0
    if not bool(matrices.isfinite().all()):
        return float("inf")
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mH
    least, most = 0.0, 0.0
    for part in torch.split(matrices, max(1, BLOCK // matrices[0].numel())):
        least, most = _largest(part @ part.mH, least, most)
    return math.sqrt(most) * ROUNDING


def _largest(gram: Tensor, least: float, most: float) -> tuple[float, float]:
    """Bounds of the largest eigenvalue of positive semidefinite matrices, (N, m, m), and of those seen before."""
    log = torch.zeros(len(gram), dtype=torch.float64)  # gram is G^k / exp(k * log)
    power = 1
    for step in range(SQUARINGS + 1):
        trace, of_square = _trace(gram), gram.abs().square().sum((1, 2))  # of G^k and G^2k
        low = (log + (of_square / trace).log() / power).exp().nan_to_num(0.0)
        high = (log + of_square.log() / (2 * power)).exp()
        least = max(least, float(low.max()))
        keep = high >= least * (1 - 1e-9)  # the others can't be the largest
        gram, log, high, of_square = gram[keep], log[keep], high[keep], of_square[keep]
        if step == SQUARINGS or not len(gram):
            break
        log = log + of_square.log() / (2 * power)
        power *= 2
        gram = gram @ gram / of_square[:, None, None]
    return least, max(most, float(high.max()) if len(high) else 0.0)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(-1).real


def of_convolution(
    weight: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> float:
    """An upper bound of the norm of a convolution on maps of a size.

    Args:
        weight: (O, I / groups, h, w).
        size: of the maps, (H, W).
        stride, padding, dilation: (vertical, horizontal) each.
        groups: of channels.
    """
    kernel = weight.detach().to("cpu", torch.float64).contiguous()
    geometry = f"{list(kernel.shape)} on {size}, {stride} {padding} {dilation} {groups}"
    return _known(kernel, geometry, lambda: _of_convolution(kernel, size, stride, padding, dilation, groups))


def _of_convolution(
    kernel: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> float:
    out, inside = kernel.shape[:2]
    values = inside * groups * size[0] * size[1]
    if size[0] * size[1] <= SMALL and values <= WHOLE:
        one = torch.eye(values, dtype=torch.float64).view(values, inside * groups, *size)
        return of_matrices(nn.functional.conv2d(one, kernel, None, stride, padding, dilation, groups).flatten(1)[None])
    taps, circle = _taps(kernel, size, stride, padding, dilation)
    each = torch.fft.rfft2(taps, s=circle).permute(2, 3, 0, 1).flatten(0, 1).unflatten(1, (groups, out // groups))
    return of_matrices(each.flatten(0, 1))


def _taps(
    kernel: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """A convolution as a circular one of stride 1: its kernel, (O, I / groups * phases, h, w), and its map's size."""
    out, inside = kernel.shape[:2]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation, strict=True)]
    phased = [-(-e // s) * s for e, s in zip(extent, stride, strict=True)]
    spread = kernel.new_zeros(out, inside, *phased)
    spread[:, :, : extent[0] : dilation[0], : extent[1] : dilation[1]] = kernel
    (sy, sx), (ky, kx) = stride, (phased[0] // stride[0], phased[1] // stride[1])
    taps = spread.view(out, inside, ky, sy, kx, sx).permute(0, 1, 3, 5, 2, 4).reshape(out, inside * sy * sx, ky, kx)
    padded = [-(-(n + 2 * p) // s) for n, p, s in zip(size, padding, stride, strict=True)]
    return taps, [max(n, k) for n, k in zip(padded, (ky, kx), strict=True)]


def of_columns(
    weight: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> tuple[Tensor, Tensor]:
    """Upper bounds of the norms of a convolution on what is 0 but for one channel, or one number of it, (I,) each.

    Args:
        weight, size, stride, padding, dilation, groups: see :func:`of_convolution`.
    """
    kernel = weight.detach().to("cpu", torch.float64)
    if (math.prod(kernel.shape[2:]) * math.prod(size)) ** 2 <= BLOCK and math.prod(size) <= SMALL:
        grams = _grams_on_small_maps(kernel, size, stride, padding, dilation, groups)
        squares, numbers = torch.linalg.eigvalsh(grams)[:, -1], grams.diagonal(dim1=1, dim2=2).amax(1)
    else:
        squares, numbers = _squares_of_columns(kernel, size, stride, padding, dilation, groups)
    return squares.clamp_min(0.0).sqrt() * ROUNDING, numbers.sqrt() * ROUNDING


def _grams_on_small_maps(
    kernel: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Products of what a convolution makes of each pixel of a channel with that of each other, (I, H * W, H * W)."""
    pixels, places = math.prod(size), math.prod(kernel.shape[2:])
    pixel = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *size)
    place = torch.eye(places, dtype=torch.float64).view(places, 1, *kernel.shape[2:])
    reached = nn.functional.conv2d(pixel, place, None, stride, padding, dilation).flatten(2)  # from each by each
    same = torch.einsum("ptq,ruq->tupr", reached, reached).reshape(places**2, pixels**2)
    columns = _by_input(kernel, groups)
    return ((columns.mT @ columns).flatten(1) @ same).view(-1, pixels, pixels)


def _squares_of_columns(
    kernel: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> tuple[Tensor, Tensor]:
    """The squares of the bounds, by frequency.

    A frequency's matrix has a column for each phase of a channel. Its squared size is the transform of what the kernel
    gives when it is held against itself, shifted.
    """
    taps, circle = _taps(kernel, size, stride, padding, dilation)
    columns, (height, width) = _by_input(taps, groups), taps.shape[2:]  # (I * phases, O / groups, h * w)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    lag = place[:, None] - place + torch.tensor([height - 1, width - 1])  # of each two places, from 0 on
    where = (lag[..., 0] * (2 * width - 1) + lag[..., 1]).flatten()
    products = kernel.new_zeros(len(columns), 2 * height - 1, 2 * width - 1)
    for part, found in zip(*(torch.split(t, max(1, BLOCK // len(where))) for t in (columns, products)), strict=True):
        found.flatten(1).index_add_(1, where, (part.mT @ part).flatten(1))
    circle = [max(n, k) for n, k in zip(circle, products.shape[1:], strict=True)]
    phases = math.prod(stride)
    squares = torch.fft.rfft2(products, s=circle).abs().flatten(1).view(len(products) // phases, phases, -1)
    return squares.sum(1).amax(1), products[:, height - 1, width - 1].view(-1, phases).amax(1)


def _by_input(kernel: Tensor, groups: int) -> Tensor:
    """What a kernel, (O, I / groups, h, w), multiplies each input channel with, (I, O / groups, h * w)."""
    return kernel.flatten(2).view(groups, -1, kernel.shape[1], kernel.shape[2:].numel()).transpose(1, 2).flatten(0, 1)


def of_linear(weight: Tensor) -> float:
    """An upper bound of the norm of a linear layer's weight, (O, I)."""
    matrix = weight.detach().to("cpu", torch.float64).contiguous()
    return _known(matrix, str(list(matrix.shape)), lambda: of_matrices(matrix[None]))


def _known(values: Tensor, geometry: str, how: Callable[[], float]) -> float:
    """What is known about an operator, or is found out now: it takes seconds for a large network."""
    digest = hashlib.sha256(values.numpy().tobytes() + geometry.encode()).hexdigest()
    found: float = verdicts.kept_in("norms.json").find(digest, f"bound {SQUARINGS} {SMALL} {WHOLE}", how)
    return found


def scales_of(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> Tensor | None:
    """By how much batch normalisation, in eval mode, multiplies each channel, (C,) of float64."""
    if norm.running_var is None or norm.training:
        return None
    scales = (norm.running_var.detach().double() + norm.eps).rsqrt().cpu()
    return scales if norm.weight is None else scales * norm.weight.detach().double().cpu()
