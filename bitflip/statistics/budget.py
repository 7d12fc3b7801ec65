"""What protecting some of the bits leaves: the rate of the others, and the fewest bits that are enough.

A cell is a bit position of a layer: all values' bit 1, say. Cells are protected one after the other, those first whose
flips misclassify most often, as one half of the faults tells; what is left is estimated by the other half. The faults
that chose a cell would flatter it: of many cells alike, those look worst that were hit by chance (the winner's curse).
docs/statistics.md says more.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitflip.statistics import intervals
from bitflip.statistics.intervals import Sums

Floats = NDArray[Any]
Ints = NDArray[np.int64]
Halves = tuple[Sums[Floats], Sums[Floats]]

PRIOR_FAULTS = 1.0  # that what is known of a cell's bit and layer counts for, beside the faults of the cell itself


def thinned(m: Ints, n: Ints, random: np.random.Generator) -> Halves:
    """Split the faults of each cell into two halves at random, given only how many misclassify.

    For faults that hit one image each that is all there is to know: which m of the n land in a half is hypergeometric,
    and the halves are independent.

    Args:
        m, n: misclassified and all faults of each cell, (C,).
        random: numbers that decide.
    """
    first = n // 2 + random.integers(0, 2, len(n)) * (n % 2)
    hits = random.hypergeometric(m, n - m, first)
    return _single(hits, first), _single(m - hits, n - first)


def _single(m: Ints, n: Ints) -> Sums[Floats]:
    return Sums.single(m.astype(np.float64), n.astype(np.float64))


def dealt(cell: Ints, m: Ints, n: Ints, cells: int, random: np.random.Generator) -> Halves:
    """Deal faults to two halves at random, cell by cell, so that each gets as many, or one more.

    Args:
        cell: of each fault, (F,).
        m, n: images that it breaks, and could break, (F,).
        cells: number of cells.
        random: numbers that decide.
    """
    shuffled = random.permutation(len(cell))
    shuffled = shuffled[np.argsort(cell[shuffled], kind="stable")]
    place = np.arange(len(cell)) - np.searchsorted(cell[shuffled], cell[shuffled])
    second = (place + random.integers(0, 2, cells)[cell[shuffled]]) % 2 == 1
    return summed(cell, m, n, cells, shuffled[~second]), summed(cell, m, n, cells, shuffled[second])


def summed(cell: Ints, m: Ints, n: Ints, cells: int, chosen: Ints | None = None) -> Sums[Floats]:
    """The sums of each cell, (cells,), over faults that are given by their cells, or some of them."""
    kept = np.arange(len(cell)) if chosen is None else chosen
    where, hits, size = cell[kept], m[kept].astype(np.float64), n[kept].astype(np.float64)
    each = (size > 0, hits, size, hits * hits, hits * size, size * size)
    return Sums(*(np.bincount(where, weights, cells).astype(np.float64) for weights in each))


def worst_first(ranking: Sums[Floats], layer: Ints, bit: Ints, rank: Ints) -> Ints:
    """Cells in the order in which to protect them: places, (C,).

    A cell with few faults is taken to be in part as its bit is in other layers, and its layer at other bits.

    Args:
        ranking: the faults of each cell that decide.
        layer, bit: of each cell, (C,).
        rank: of each cell among those of its layer, (C,), which decides between cells of which nothing is known.
    """
    rate = ranking.m.sum() / max(1.0, ranking.n.sum())
    of_layer, of_bit = (_pooled(ranking, group) for group in (layer, bit))
    prior = np.minimum(of_layer * of_bit / rate, 1.0) if rate else np.zeros(len(layer))
    own = np.divide(ranking.m, ranking.n, out=np.zeros(len(layer)), where=ranking.n > 0)
    known = ranking.flips
    score = (known * own + PRIOR_FAULTS * prior) / (known + PRIOR_FAULTS)
    return np.lexsort((layer, rank, -score)).astype(np.int64)


def _pooled(of: Sums[Floats], group: Ints) -> Floats:
    """The rate of all cells of a group together, for each cell, (C,)."""
    m, n = (np.bincount(group, values) for values in (of.m, of.n))
    found: Floats = np.divide(m, n, out=np.zeros(len(m)), where=n > 0)[group]
    return found


@dataclass(frozen=True)
class Curve:
    """What is left when the first k cells are protected, for k from 0 to all, (C + 1,) each; fractions.

    Attributes:
        share: of the bits that are protected.
        rate, low, high: at which a flip of any of the bits misclassifies, if it does nothing in those, with the
            confidence interval.
    """

    share: Floats
    rate: Floats
    low: Floats
    high: Floats

    def enough(self, target: float) -> int:
        """The fewest cells of which it is sure that a rate is reached, with the confidence of one end.

        From the last cell down, as long as the upper limit is at most the target. The more is protected, the lower is
        the true rate; so the first limit that is wrong on the way, if one is, is that of one budget known beforehand,
        and to look at many costs no confidence (a fixed sequence of tests: Maurer, Hothorn and Lehmacher 1995).
        """
        too_high = np.flatnonzero(self.high > target)
        return int(too_high[-1]) + 1 if len(too_high) else 0


def curve(of: Sums[Floats], part: Ints, bits: Floats, order: Ints, confidence: float) -> Curve:
    """The rate that is left, by the faults of each cell that did not choose the order.

    Args:
        of: those faults, (C,).
        part: of each cell, (C,): the faults of a part were drawn alike, all of its bits equally often.
        bits: of each cell, (C,).
        order: in which cells are protected.
        confidence: of the intervals.
    """
    parts = int(part.max()) + 1

    def left(values: Floats) -> Floats:
        """Of each part, what is not protected, (C + 1, parts)."""
        steps = np.zeros((len(order) + 1, parts))
        steps[np.arange(1, len(order) + 1), part[order]] = values[order]
        total: Floats = np.bincount(part, values, parts)
        found: Floats = total - steps.cumsum(0)
        return found

    weights = left(bits)
    counts = [left(getattr(of, field.name))[:-1] for field in fields(Sums)]
    sums = [Sums(*(count[:, i] for count in counts)) for i in range(parts)]
    found = intervals.mean(sums, [weights[:-1, i] for i in range(parts)], confidence)
    share = weights.sum(1) / bits.sum()
    rate = np.where(np.isnan(found.rate), 0.0, found.rate)  # of bits that no fault hit
    ends = [np.append(share[:-1] * end, 0.0) for end in (rate, found.low, found.high)]
    return Curve(1 - share, *ends)
