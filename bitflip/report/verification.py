"""A published campaign against the same faults run here: is the difference more than the choice of images explains?

Both sides have the same faults, so nothing is owed to how those were drawn: the comparison is paired, fault by fault.
What differs is the images: ours, n, are taken for a random sample without replacement of the N published ones. All
faults see the same n images, and an image near a decision boundary falls under many faults at once. So the unit is the
image, not the inference: with c_i the share of a group's faults that are critical for image i, the group's share is
the mean of c_i, and its standard error is

    sqrt((1 - n / N) * var(c_i) / n)

(one-stage cluster sampling with the finite-population correction, Cochran 1977, "Sampling Techniques", chapters 2 and
9). Where next to nothing is critical, var(c_i) is 0 or a matter of luck. There the error that the published shares p_f
lead to expect, sqrt((1 - n / N) * D * sum(p_f (1 - p_f)) / (F^2 n)), is used if it is larger; D, the design effect, is
the ratio of the two variances over all groups in which less than 1 % is critical.

A group agrees if the difference is within ``tolerance``, which is for other arithmetic (TF32, another order of sums)
that tips images near a boundary, plus z standard errors. z is such that, were all normal, all groups together agreed in
99 of 100 repetitions (Bonferroni). Single faults agree if the mean squared difference is at most 10.8 times what is
expected of the sampling: the 99.9 % quantile of chi-square with one degree of freedom, as if all faults were one.

Whether logits are masked, identical to the bit, depends on the arithmetic, also that of the layers behind the flip. A
TF32 convolution rounds a weight to the nearest number with 10 mantissa bits: of the 13 bits behind them, the first
decides how it rounds, and a flip of one of the other 12 is gone. So a layer looks as if it ran in TF32 when all flips
there are masked for every image, while most of those in the mantissa bits before them are not. (A pruned layer masks
all alike.) That is a sign, no proof: masked shares are part of the verdict only where the user asks for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bitflip.faults.faultlist import Key

ERROR_RATE = 0.01  # of a verdict on a campaign that does agree
RARE = 0.01
MASKED_TOLERANCE = 0.02  # share of masked inferences of a bit that another order of sums may make
SEEN, ROUNDED_OFF = range(9, 20), range(20, 32)  # mantissa bits of a weight that a TF32 convolution sees, and does not
ENOUGH = 8  # flips of either, to say something of a layer
MOST_SPREAD = 10.83

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sides:
    """The same F faults, there and here.

    Attributes:
        keys: target, path, call and bit of each.
        published_images: N of each, (F,).
        published: critical inferences of each, (F,).
        images: n of each, (F,).
        critical: critical inferences of each, (F,).
        published_masked: masked inferences of each, of N, (F,).
        masked: masked inferences of each, of n, (F,); None where that is not known.
        by_image: critical inferences of each of our n images, (n,), by key; what is not there is 0.
    """

    keys: Sequence[Key]
    published_images: Floats
    published: Floats
    images: Floats
    critical: Floats
    published_masked: Floats
    masked: Floats | None
    by_image: Mapping[Key, Floats]

    @property
    def theirs(self) -> Floats:
        """The published critical share of each fault, (F,)."""
        return self.published / self.published_images

    @property
    def ours(self) -> Floats:
        """Our critical share of each fault, (F,)."""
        return self.critical / self.images

    @property
    def left(self) -> Floats:
        """The finite-population correction of each fault, 1 - n / N, (F,)."""
        return np.clip(1 - self.images / self.published_images, 0, 1)

    @property
    def expected(self) -> Floats:
        """The variance of each fault's share that the published one leads to expect, (F,)."""
        result: Floats = self.left * self.theirs * (1 - self.theirs) / self.images
        return result


@dataclass(frozen=True)
class Masked:
    """Inferences whose logits are those of the clean model, to the bit.

    Attributes:
        bits: share of the faults of each bit, published and ours, 0 to 1.
        rounded_off: of each layer, the same of its faults in :data:`ROUNDED_OFF`; left out where there are none.
        tf32: layers that look as if they ran in TF32, published and ours, as far as there are enough faults to tell.
        off: bits whose shares differ by more than another order of sums and the choice of images explain.
    """

    bits: dict[int, tuple[float, float]]
    rounded_off: dict[Hashable, tuple[float, float]]
    tf32: tuple[list[Hashable], list[Hashable]]
    off: list[int]


@dataclass(frozen=True)
class Group:
    """Faults of one bit, of one layer, or all.

    Attributes:
        name: what they have in common.
        faults: how many.
        theirs, ours: critical shares, 0 to 1.
        error: standard error of the difference.
    """

    name: Hashable
    faults: int
    theirs: float
    ours: float
    error: float

    @property
    def difference(self) -> float:
        """Ours less theirs."""
        return self.ours - self.theirs

    @property
    def z(self) -> float:
        """The difference in standard errors; 0 if there is none."""
        if self.difference == 0:
            return 0.0
        return self.difference / self.error if self.error else float("inf") * np.sign(self.difference)

    def agrees(self, tolerance: float, z: float) -> bool:
        """Whether the difference is within sampling error."""
        return abs(self.difference) <= tolerance + z * self.error


@dataclass(frozen=True)
class Verdict:
    """How two campaigns compare.

    Attributes:
        total, bits, layers: groups of faults.
        masked: how the masked shares compare; None where ours are not known.
        z: the standard errors that a group may be off.
        tolerance: the share that other arithmetic may make.
        design_effect: see the module.
        correlation: over faults; None where one side does not vary.
        spread: mean squared difference of the faults' shares, as a multiple of what sampling explains.
    """

    total: Group
    bits: list[Group]
    layers: list[Group]
    masked: Masked | None
    z: float
    tolerance: float
    design_effect: float
    correlation: float | None
    spread: float

    @property
    def off(self) -> list[Group]:
        """The groups that do not agree."""
        groups = [self.total, *self.bits, *self.layers]
        return [group for group in groups if not group.agrees(self.tolerance, self.z)]

    @property
    def agrees(self) -> bool:
        """Whether all critical shares are within sampling error."""
        return not self.off and self.spread <= MOST_SPREAD


def compare(sides: Sides, tolerance: float) -> Verdict:
    """Compare two campaigns; see the module."""
    bits = sorted({key[3] for key in sides.keys})
    layers = list(dict.fromkeys(key[:3] for key in sides.keys))
    rare = [part for bit in bits if sides.theirs[part := _where(sides, bit=bit)].mean() < RARE]
    clustered = sum(_clustered(sides, part) for part in rare)
    independent = sum(_independent(sides, part) for part in rare)
    effect = max(1.0, clustered / independent) if independent else 1.0

    def group(name: Hashable, part: NDArray[np.bool_]) -> Group:
        variance = max(_clustered(sides, part), effect * _independent(sides, part))
        shares = float(sides.theirs[part].mean()), float(sides.ours[part].mean())
        return Group(name, int(part.sum()), *shares, float(np.sqrt(variance)))

    total = group("all", np.ones(len(sides.keys), dtype=bool))
    by_bit = [group(bit, _where(sides, bit=bit)) for bit in bits]
    by_layer = [group(layer, _where(sides, layer=layer)) for layer in layers]
    tests = 1 + len(by_bit) + len(by_layer)
    z = NormalDist().inv_cdf(1 - ERROR_RATE / (2 * tests))
    squared = float(((sides.ours - sides.theirs) ** 2).mean())
    expected = float(sides.expected.mean()) + tolerance**2
    spread = squared / expected if expected else float("inf") if squared else 0.0
    masked, r = compare_masked(sides, z), correlation(sides.theirs, sides.ours)
    return Verdict(total, by_bit, by_layer, masked, z, tolerance, effect, r, spread)


def compare_masked(sides: Sides, z: float) -> Masked | None:
    """Compare the masked shares, if ours are known; see the module.

    A bit may be off by :data:`MASKED_TOLERANCE` plus ``z`` standard errors, taken as if an image were masked under all
    faults of the bit or under none.
    """
    if sides.masked is None:
        return None
    theirs, ours = sides.published_masked / sides.published_images, sides.masked / sides.images
    bits, off = {}, []
    for bit in sorted({key[3] for key in sides.keys}):
        part = _where(sides, bit=bit)
        bits[bit] = a, b = float(theirs[part].mean()), float(ours[part].mean())
        error = np.sqrt(float((sides.left[part] / sides.images[part]).mean()) * a * (1 - a))
        if abs(a - b) > MASKED_TOLERANCE + z * error:
            off.append(bit)
    seen, low = (np.array([key[3] in part for key in sides.keys]) for part in (SEEN, ROUNDED_OFF))
    shares: dict[Hashable, tuple[float, float]] = {}
    tf32: tuple[list[Hashable], list[Hashable]] = [], []
    for layer in dict.fromkeys(key[:3] for key in sides.keys):
        part = _where(sides, layer=layer)
        if (part & low).any():
            shares[layer] = float(theirs[part & low].mean()), float(ours[part & low].mean())
        if min((part & low).sum(), (part & seen).sum()) >= ENOUGH:
            for found, share in zip(tf32, (theirs, ours), strict=True):
                if (share[part & low] == 1).all() and (share[part & seen] == 1).mean() < 0.5:
                    found.append(layer)
    return Masked(bits, shares, tf32, off)


def correlation(theirs: Floats, ours: Floats) -> float | None:
    """Pearson's, over faults; None where one side does not vary."""
    if len(theirs) < 2 or theirs.std() == 0 or ours.std() == 0:
        return None
    return float(np.corrcoef(theirs, ours)[0, 1])


def _where(sides: Sides, bit: int | None = None, layer: Hashable = None) -> NDArray[np.bool_]:
    return np.array([(bit is None or key[3] == bit) and (layer is None or key[:3] == layer) for key in sides.keys])


def _clustered(sides: Sides, part: NDArray[np.bool_]) -> float:
    """The variance of a group's share, from how it varies over our images."""
    keys = {key for key, inside in zip(sides.keys, part, strict=True) if inside}
    counted = [sides.by_image[key] for key in keys if key in sides.by_image]
    count = int(sides.images.max())
    if not counted or count < 2:
        return 0.0
    share = np.sum(counted, axis=0) / part.sum()
    return float(sides.left[part].mean() * share.var(ddof=1) / count)


def _independent(sides: Sides, part: NDArray[np.bool_]) -> float:
    """The variance of a group's share, were the inferences independent."""
    return float(sides.expected[part].sum() / part.sum() ** 2)
