"""How often do the intervals hold, and how wide are they? The tables of docs/statistics.md.

python -m benchmarks.intervals                    # all tables, about two minutes on two CPU cores
python -m benchmarks.intervals --runs 500         # the same, rougher
python -m benchmarks.intervals --tables wilson    # one of them
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import binom

from bitflip.faults.allocation import allocation, strata
from bitflip.statistics.intervals import Estimate, Interval, Sums, clustered, mean, stratified, wilson, z_value

Array = NDArray[Any]  # of float64
Between = Interval[Any] | Estimate[Any]
Row = list[str]

IMAGES = 64  # that one weight flip hits; the intervals hardly depend on it
SLACK = 1e-12  # a limit that is the rate itself holds, however it was rounded


@dataclass(frozen=True)
class Coverage:
    """How often an interval held in a simulation, and how wide it was on average."""

    holds: float
    width: float
    runs: int

    @classmethod
    def of(cls, rate: float, interval: Between) -> Coverage:
        """Those of intervals (an array each for their ends) for a known rate."""
        held = (interval.low <= rate + SLACK) & (interval.high >= rate - SLACK)
        return cls(float(np.mean(held)), float(np.mean(interval.high - interval.low)), np.size(held))

    @property
    def error(self) -> float:
        """Standard error of ``holds`` if it is truly 95 %."""
        return float(np.sqrt(0.95 * 0.05 / self.runs))

    def __str__(self) -> str:
        return f"{100 * self.holds:.1f} ({100 * self.width:.2g})"


# --- known truths ---


def _often_nothing(rng: Generator, size: tuple[int, ...]) -> Array:
    """Shares after a flip of a bit other than the top one: nearly always nothing, sometimes a few images."""
    return np.where(rng.random(size) < 0.95, 0.0, rng.beta(0.3, 60, size))


def _top_bit(rng: Generator, size: tuple[int, ...]) -> Array:
    """Shares after a flip of the top bit of the exponent: 0.4 on average."""
    return rng.beta(4, 6, size)


SHARES: dict[str, Callable[[Generator, tuple[int, ...]], Array]] = {
    # of a batch's images that one flip breaks
    "random bits": lambda rng, size: np.where(
        rng.random(size) < 1 / 32, _top_bit(rng, size), _often_nothing(rng, size)
    ),
    "all or nothing": lambda rng, size: np.where(rng.random(size) < 0.01, 1.0, 0.0),
    "top bit only": lambda rng, size: rng.beta(0.6, 0.9, size),
    "top bit hardly matters": lambda rng, size: np.where(rng.random(size) < 0.9, 0.0, rng.beta(0.5, 500, size)),
    "nearly all broken": lambda rng, size: 1 - np.where(rng.random(size) < 0.9, 0.0, rng.beta(0.5, 5, size)),
    "always alike": lambda rng, size: np.full(size, 0.02),
}
MEAN_SHARE = {
    "random bits": (0.4 + 31 * 0.05 * 0.3 / 60.3) / 32,
    "all or nothing": 0.01,
    "top bit only": 0.4,
    "top bit hardly matters": 0.1 * 0.5 / 500.5,
    "nearly all broken": 1 - 0.1 * 0.5 / 5.5,
    "always alike": 0.02,
}


def weight_flips(rng: Generator, shares: Array, images: int = IMAGES) -> Sums[Array]:
    """The sums over flips that break these shares (..., flips) of a batch; every fifth batch is a small last one."""
    n = np.full(shares.shape, images)
    n[..., ::5] = max(1, images // 3)
    m = rng.binomial(n, shares)
    return Sums(*(np.asarray(v, dtype=np.float64).sum(-1) for v in (np.ones(n.shape), m, n, m * m, m * n, n * n)))


def of_sums(sums: Sums[Array]) -> Interval[Array]:
    """The interval of one layer's weight flips."""
    return clustered(sums.flips, sums.m, sums.n, sums.mm, sums.mn, sums.nn)


def layer_rates(name: str, layers: int) -> Array:
    """Rates of a network's layers."""
    if name == "alike and small":
        return np.full(layers, 3e-4)
    if name == "from 0.01 % to 10 %":
        return np.geomspace(1e-4, 0.1, layers)
    return np.array([0.9, *[1e-4] * (layers - 1)])


def bit_rates(name: str) -> Array:
    """Misclassification rates of the bits of a float32."""
    if name == "top bit 40 %":
        return np.array([3e-4, 0.4, *[3e-4] * 30])
    if name == "exponent":
        return np.array([0.01, 0.6, 0.1, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005, *[1e-4] * 23])
    return np.full(32, 0.01)


# --- intervals to compare with ---


def plain_wilson(m: Array, n: Array) -> Interval[Array]:
    """The score interval without the modification for a few hits."""
    z = z_value(0.95)
    p = m / n
    half = z * np.sqrt(n * p * (1 - p) + z**2 / 4)
    return Interval((m + z**2 / 2 - half) / (n + z**2), (m + z**2 / 2 + half) / (n + z**2))


def exact(m: Array, n: Array) -> Interval[Array]:
    """Clopper and Pearson's."""
    whole = mean([Sums.single(m, n)])
    return Interval(whole.low, whole.high)


def added_up(m: Array, n: Array) -> Interval[Array]:
    """The mean of layers (..., layers) from the layers' own Wilson intervals (MOVER)."""
    each = plain_wilson(m, n)
    p, layers = m / n, m.shape[-1]
    below, above = (np.sqrt(((p - end) ** 2).sum(-1)) / layers for end in (each.low, each.high))
    return Interval(p.mean(-1) - below, p.mean(-1) + above)


# --- tables ---


def exact_coverage(interval: Callable[[Array, Array], Between], n: int, rates: Sequence[float] | Array) -> Array:
    """How often the interval of a rate from n faults holds, computed, not simulated, for each of the rates."""
    hits = np.arange(n + 1.0)
    ends = interval(hits, np.full(n + 1, float(n)))
    return np.array([binom.pmf(hits, n, p)[(ends.low <= p + SLACK) & (ends.high >= p - SLACK)].sum() for p in rates])


def table_wilson(rng: Generator, runs: int) -> Iterator[Row]:
    """Coverage in percent for n faults that hit one image each (computed, not simulated)."""
    yield ["n", "rate", "plain Wilson", "`wilson`", "Clopper-Pearson"]
    methods: list[Callable[[Array, Array], Between]] = [plain_wilson, wilson, exact]
    for n in (100, 600, 10_000):
        named = {"0.01 %": 1e-4, "0.3 %": 0.003, "5 %": 0.05, "50 %": 0.5, "97 %": 0.97}
        columns = [exact_coverage(method, n, list(named.values())) for method in methods]
        for i, name in enumerate(named):
            yield [str(n), name, *(f"{100 * column[i]:.1f}" for column in columns)]
        grid = np.geomspace(0.01 / n, 0.5, 600)
        curves = [exact_coverage(method, n, grid) for method in methods]
        yield [str(n), "lowest of all", *(f"{100 * curve.min():.1f}" for curve in curves)]
        yield [str(n), "mean of all", *(f"{100 * curve.mean():.1f}" for curve in curves)]


def table_clustered(rng: Generator, runs: int) -> Iterator[Row]:
    """Weight flips: coverage in percent, and in brackets the mean width in percentage points."""
    counts = (3, 5, 10, 30, 100, 300)
    yield ["shares", "rate", "interval", *(f"{count} flips" for count in counts)]
    for name, draw in SHARES.items():
        ours, naive = [], []
        for count in counts:
            sums = weight_flips(rng, draw(rng, (runs, count)))
            ours.append(str(Coverage.of(MEAN_SHARE[name], of_sums(sums))))
            naive.append(str(Coverage.of(MEAN_SHARE[name], wilson(sums.m, sums.n))))
        yield [name, f"{100 * MEAN_SHARE[name]:.2g} %", "`clustered`", *ours]
        yield ["", "", "Wilson over images", *naive]


def table_mean(rng: Generator, runs: int) -> Iterator[Row]:
    """The mean of several layers: coverage in percent, and in brackets the mean width in percentage points."""
    yield ["layers", "faults per layer", "layers' rates", "`mean`", "Wilson intervals added up"]
    for layers in (7, 60):
        for name in ("alike and small", "from 0.01 % to 10 %", "one at 90 %"):
            rates = layer_rates(name, layers)
            for n in (100, 600, 10_000):
                m = rng.binomial(n, rates, (runs, layers)).astype(np.float64)
                size = np.full(m.shape, float(n))
                ours = stratified(list(m.T), list(size.T))
                truth = float(rates.mean())
                yield [
                    str(layers),
                    f"{n} neurons",
                    name,
                    str(Coverage.of(truth, ours)),
                    str(Coverage.of(truth, added_up(m, size))),
                ]
        for count in (3, 30):
            ease = np.geomspace(0.2, 1, layers)  # of breaking this layer
            shares = SHARES["random bits"](rng, (min(runs, 2000), layers, count)) * ease[:, None]
            sums = weight_flips(rng, shares)
            parts = [
                Sums(*(getattr(sums, f)[:, i] for f in ("flips", "m", "n", "mm", "mn", "nn"))) for i in range(layers)
            ]
            truth = MEAN_SHARE["random bits"] * float(ease.mean())
            yield [str(layers), f"{count} weights", "random bits", str(Coverage.of(truth, mean(parts))), ""]


def by_bit(rng: Generator, name: str, shares: Array, n: int, runs: int) -> Estimate[Array]:
    """The estimates of a layer's rate from n faults whose bits are drawn with these probabilities."""
    size = rng.multinomial(n, shares, runs)
    m = rng.binomial(size, bit_rates(name))
    groups, weights = zip(*strata(len(shares)), strict=True)
    hits, sizes = ([of[:, group].sum(1).astype(np.float64) for group in groups] for of in (m, size))
    return stratified(hits, sizes, weights)


def faults_for_width(rate: float, width: float) -> float:
    """How many faults of random bits the Wilson interval of a rate needs to be that narrow."""
    n = np.geomspace(10, 1e8, 4000)
    ends = wilson(n * rate, n)
    return float(np.interp(-width, -(ends.high - ends.low), n))


def table_bits(rng: Generator, runs: int) -> Iterator[Row]:
    """A layer of float32: coverage in percent, and in brackets the mean width in percentage points."""
    yield ["bits' rates", "faults", "uniform, `wilson`", "importance, `stratified`", "as many uniform faults", "factor"]
    for name in ("top bit 40 %", "exponent", "all 1 %"):
        rate = float(bit_rates(name).mean())
        for n in (600, 2000, 10_000, 50_000):
            m = rng.binomial(n, rate, runs).astype(np.float64)
            plain = Coverage.of(rate, wilson(m, np.full(runs, float(n))))
            chosen = Coverage.of(rate, by_bit(rng, name, allocation(32), n, runs))
            equal = faults_for_width(rate, chosen.width)
            yield [name, f"{n:,}", str(plain), str(chosen), f"{equal:,.0f}", f"{equal / n:.1f}"]


def stopped_neurons(rate: float, images: int, margin: float) -> tuple[float, float]:
    """How often the interval holds, and the mean number of faults, when stopping after the first pass over so many
    images that makes it narrow enough; computed, not simulated.
    """
    step = binom.pmf(np.arange(images + 1), images, rate)
    going = np.ones(1)  # the probability of still running, by the number of hits
    holds, faults, n = 0.0, 0.0, 0
    while going.sum() > 1e-9:
        n += images
        going = np.maximum(fftconvolve(going, step), 0)
        ends = wilson(np.arange(n + 1.0), np.full(n + 1, float(n)))
        stops = ends.high - ends.low <= 2 * margin
        holds += float(going[stops & (ends.low <= rate + SLACK) & (ends.high >= rate - SLACK)].sum())
        faults += n * float(going[stops].sum())
        going[stops] = 0
    return holds, faults


def stopped_weights(rng: Generator, name: str, batches: int, margin: float, runs: int) -> tuple[Interval[Array], Array]:
    """The intervals, and the numbers of flips, of runs that stop like that; one flip hits each batch of a pass."""
    low, high, faults = np.zeros(runs), np.ones(runs), np.zeros(runs)
    total, live = np.zeros((6, runs)), np.arange(runs)
    while len(live):
        sums = weight_flips(rng, SHARES[name](rng, (len(live), batches)))
        total[:, live] += np.stack([sums.flips, sums.m, sums.n, sums.mm, sums.mn, sums.nn])
        ends = of_sums(Sums(*total[:, live]))
        low[live], high[live], faults[live] = ends.low, ends.high, total[0, live]
        live = live[ends.high - ends.low > 2 * margin]
    return Interval(low, high), faults


def table_stopping(rng: Generator, runs: int) -> Iterator[Row]:
    """Runs that stop at a margin: coverage in percent, and in brackets the mean number of faults."""
    named = {"0.01 %": 1e-4, "0.3 %": 0.003, "1 %": 0.01, "5 %": 0.05, "50 %": 0.5, "97 %": 0.97}
    yield ["margin", "faults per pass", *named, "lowest of all"]
    for margin, images in ((0.05, 20), (0.02, 20), (0.02, 600), (0.01, 100), (0.005, 600), (0.005, 10_000)):
        cells = [stopped_neurons(rate, images, margin) for rate in named.values()]
        lowest = min(stopped_neurons(rate, images, margin)[0] for rate in np.geomspace(1e-5, 0.5, 100))
        yield [
            f"{100 * margin:g} points",
            f"{images:,}",
            *(f"{100 * holds:.1f} ({faults:,.0f})" for holds, faults in cells),
            f"{100 * lowest:.1f}",
        ]


def table_stopping_weights(rng: Generator, runs: int) -> Iterator[Row]:
    """Weight runs that stop at a margin: coverage in percent, and in brackets the mean number of flips."""
    yield ["margin", "flips per pass", *SHARES]
    for margin, batches in ((0.05, 3), (0.05, 40), (0.02, 3), (0.02, 40)):
        cells = []
        for name in SHARES:
            ends, flips = stopped_weights(rng, name, batches, margin, min(runs, 2000))
            cells.append(f"{100 * Coverage.of(MEAN_SHARE[name], ends).holds:.1f} ({flips.mean():,.0f})")
        yield [f"{100 * margin:g} points", str(batches), *cells]


TABLES = {
    "wilson": table_wilson,
    "clustered": table_clustered,
    "mean": table_mean,
    "bits": table_bits,
    "stopping": table_stopping,
    "stopping-weights": table_stopping_weights,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables that are asked for, as Markdown."""
    parser = argparse.ArgumentParser(description="How often the confidence intervals hold, by simulation.")
    parser.add_argument("--runs", type=int, default=4000, help="simulated campaigns per row")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=list(TABLES), help="which to print")
    arguments = parser.parse_args(argv)
    for name in arguments.tables:
        print(f"### {name}\n\n{TABLES[name].__doc__}\n")
        for i, row in enumerate(TABLES[name](np.random.default_rng(arguments.seed), arguments.runs)):
            print("| " + " | ".join(row) + " |", *(["|" + "---|" * len(row)] if i == 0 else []), sep="\n", flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
