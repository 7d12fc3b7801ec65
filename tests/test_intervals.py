"""Do the intervals hold as often as they say? Simulated from fixed seeds, or computed where the truth is binomial."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from benchmarks import intervals as simulation
from benchmarks.intervals import (
    MEAN_SHARE,
    SHARES,
    Coverage,
    bit_rates,
    by_bit,
    exact_coverage,
    layer_rates,
    of_sums,
    stopped_neurons,
)
from bitflip.faults.allocation import allocation, strata
from bitflip.network.layers import Layer, Target
from bitflip.outcomes.counts import COLUMNS, Counts
from bitflip.statistics import intervals
from bitflip.statistics import rates as rates_of_layers
from bitflip.statistics.intervals import (
    Estimate,
    Interval,
    Sums,
    clustered,
    difference,
    mean,
    paired,
    stratified,
    unpaired,
    wilson,
)
from bitflip.statistics.sampling import enough, sample_size

Array = NDArray[Any]
RUNS = 4000
RATES = [0.0, 1e-4, 0.003, 0.05, 0.5, 0.97]


def generator(*seed: object) -> np.random.Generator:
    """Random numbers of a test's own, the same in every run."""
    return np.random.default_rng([sum(str(part).encode()) for part in seed])


def holds(coverage: Coverage, confidence: float = 0.95) -> bool:
    """Whether an interval holds often enough: nominal, less three standard errors of the simulation."""
    return coverage.holds >= confidence - 3 * coverage.error


# --- Wilson ---


@pytest.mark.parametrize("n", [20, 100, 600, 5000])
def test_wilson_never_holds_much_less_often_than_it_says(n: int) -> None:
    rates = np.geomspace(0.001 / n, 0.5, 500)
    coverage = exact_coverage(wilson, n, np.concatenate([rates, 1 - rates]))
    assert coverage.min() > 0.925
    assert coverage.mean() > 0.95
    assert coverage[:500][rates < 1 / n].min() >= 0.95  # near 0, where the plain interval drops to 0.84


@pytest.mark.parametrize("n", [100, 600, 10_000])
def test_wilson_holds_at_typical_rates(n: int) -> None:
    assert exact_coverage(wilson, n, RATES).min() > 0.94


def test_an_interval_of_90_percent_does_not_pass_for_one_of_95() -> None:
    def narrow(m: Array, n: Array) -> Interval[Array]:
        return wilson(m, n, 0.9)

    rates = np.geomspace(1e-6, 0.5, 500)
    assert exact_coverage(narrow, 600, rates).min() < 0.925
    assert exact_coverage(narrow, 600, rates).mean() < 0.95
    assert exact_coverage(narrow, 10_000, RATES).min() < 0.94


@pytest.mark.parametrize(
    ("m", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
    ids=["81 of 263", "15 of 148", "0 of 20"],
)
def test_wilson_is_the_published_interval(m: float, n: float, low: float, high: float) -> None:
    """The examples of Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I."""
    assert astuple(wilson(m, n)) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("m", [0, 1, 3, 4, 50, 97, 99, 100])
def test_wilson_of_the_opposite_is_its_mirror_image(m: int) -> None:
    one, other = wilson(m, 100), wilson(100 - m, 100)
    assert (1 - one.high, 1 - one.low) == pytest.approx(astuple(other), abs=1e-12)


def test_no_faults_say_nothing() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert clustered(0, 0, 0, 0, 0, 0) == Interval(0.0, 1.0)
    for nothing in (unpaired(0, 0, 0, 0), unpaired(1, 10, 0, 0), paired(0, 0, 0)):
        assert np.isnan(nothing.rate)
        assert (nothing.low, nothing.high) == (-1.0, 1.0)


# --- faults that hit many images ---


@pytest.mark.parametrize("flips", [3, 5, 10, 30, 100, 300])
@pytest.mark.parametrize("name", SHARES)
def test_clustered_holds(name: str, flips: int) -> None:
    rng = generator(name, flips)
    for images in (1, 64):
        sums = simulation.weight_flips(rng, SHARES[name](rng, (RUNS, flips)), images)
        assert holds(Coverage.of(MEAN_SHARE[name], of_sums(sums)))


@pytest.mark.parametrize("rate", RATES)
def test_clustered_holds_when_all_images_of_a_fault_fare_alike(rate: float) -> None:
    rng = generator(rate)
    sums = simulation.weight_flips(rng, rng.binomial(1, rate, (RUNS, 40)).astype(float))
    assert holds(Coverage.of(rate, of_sums(sums)))


def test_clustered_of_90_percent_does_not_pass_for_95() -> None:
    rng = generator("narrow")
    sums = simulation.weight_flips(rng, SHARES["top bit only"](rng, (RUNS, 300)))
    narrow = mean([sums], confidence=0.9)
    assert not holds(Coverage.of(MEAN_SHARE["top bit only"], narrow))
    assert holds(Coverage.of(MEAN_SHARE["top bit only"], narrow), 0.9)


def test_wilson_over_images_would_not_do_for_weights() -> None:
    rng = generator("naive")
    sums = simulation.weight_flips(rng, SHARES["random bits"](rng, (RUNS, 30)))
    assert Coverage.of(MEAN_SHARE["random bits"], wilson(sums.m, sums.n)).holds < 0.5


def test_clustered_is_not_wider_than_many_faults_deserve() -> None:
    rng = generator("width")
    shares = rng.beta(4, 6, (200, 1000))
    n = np.full(shares.shape, 10_000)
    m = np.round(n * shares)
    ends = clustered(*(v.sum(-1) for v in (np.ones(n.shape), m, n, m * m, m * n, 1.0 * n * n)))
    assert (ends.high - ends.low).mean() < 1.08 * 2 * 1.96 * shares.std() / np.sqrt(1000)


@pytest.mark.parametrize("flips", [1, 3, 50])
def test_faults_that_broke_nothing_leave_what_that_many_coins_would(flips: int) -> None:
    ends = clustered(flips, 0, 256 * flips, 0, 0, 256**2 * flips)
    assert ends.low == 0
    assert ends.high == pytest.approx(1 - 0.025 ** (1 / flips))


@pytest.mark.parametrize(("m", "n"), [(1, 20), (7, 20), (19, 20), (20, 1000), (500, 1000)])
def test_faults_of_one_image_get_the_exact_interval(m: int, n: int) -> None:
    ends = clustered(*astuple(Sums.single(m, n)))
    assert binom.sf(m - 1, n, ends.low) == pytest.approx(0.025)
    assert binom.cdf(m, n, ends.high) == pytest.approx(0.025)


def test_images_of_one_fault_are_no_further_faults() -> None:
    few, many = clustered(4, 6, 40, 20, 60, 400), clustered(4, 60, 400, 2000, 6000, 40_000)
    assert astuple(few) == pytest.approx(astuple(many))


counts = st.lists(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=12
)


def sums_of(faults: list[tuple[int, int]]) -> Sums[float]:
    """The sums over faults, each (m_i, n_i)."""
    m, n = np.array(faults, dtype=float).T
    return Sums(len(faults), *map(float, (m.sum(), n.sum(), (m * m).sum(), (m * n).sum(), (n * n).sum())))


@settings(deadline=None, derandomize=True)
@given(st.lists(counts, min_size=1, max_size=4))
def test_a_rate_lies_in_its_interval_and_that_in_0_to_1(layers: list[list[tuple[int, int]]]) -> None:
    whole = mean([sums_of(faults) for faults in layers])
    assert 0 <= whole.low <= whole.rate + 1e-12
    assert whole.rate - 1e-12 <= whole.high <= 1
    assert whole.high > whole.low


@settings(deadline=None, derandomize=True)
@given(counts)
def test_what_is_not_broken_has_the_mirror_image(faults: list[tuple[int, int]]) -> None:
    broken = clustered(*astuple(sums_of(faults)))
    spared = clustered(*astuple(sums_of([(n - m, n) for m, n in faults])))
    assert (1 - broken.high, 1 - broken.low) == pytest.approx(astuple(spared), abs=1e-6)


def test_arrays_give_what_their_numbers_give() -> None:
    m, n = np.array([0, 3, 40]), np.array([10, 50, 40])
    each = [wilson(float(a), float(b)) for a, b in zip(m, n, strict=True)]
    together = wilson(m, n)
    assert together.low.tolist() == [e.low for e in each]
    assert together.high.tolist() == [e.high for e in each]
    assert type(each[0].low) is float


# --- several layers ---


@pytest.mark.parametrize("name", ["alike and small", "from 0.01 % to 10 %", "one at 90 %"])
@pytest.mark.parametrize("layers", [2, 7, 60])
def test_mean_of_layers_holds_for_neurons(layers: int, name: str) -> None:
    rng, rates = generator(layers, name), layer_rates(name, layers)
    for n in (100, 600, 10_000):
        m = rng.binomial(n, rates, (RUNS, layers)).astype(float)
        assert holds(Coverage.of(rates.mean(), stratified(list(m.T), list(np.full(m.T.shape, float(n))))))


@pytest.mark.parametrize("flips", [1, 2, 3, 30])
@pytest.mark.parametrize("layers", [2, 20])
@pytest.mark.parametrize("name", ["random bits", "top bit only"])
def test_mean_of_layers_holds_for_weights(name: str, layers: int, flips: int) -> None:
    rng = generator(layers, flips)
    ease = np.linspace(0.1, 1, layers)
    parts = [simulation.weight_flips(rng, scale * SHARES[name](rng, (RUNS, flips)), images=16) for scale in ease]
    assert holds(Coverage.of(MEAN_SHARE[name] * ease.mean(), mean(parts)))


@pytest.mark.parametrize("rate", [*RATES, "unequal"])
def test_weighted_mean_of_unequal_layers_holds(rate: float | str) -> None:
    rng = generator("weights", rate)
    rates = np.array([0.3, 0.001, 0.0, 0.02]) if isinstance(rate, str) else np.full(4, rate)
    sizes, weights = np.array([60, 600, 6000, 200]), [1.0, 5.0, 50.0, 3.0]
    m = rng.binomial(sizes, rates, (RUNS, 4)).astype(float)
    estimate = stratified(list(m.T), list(np.broadcast_to(sizes.astype(float), m.shape).T), weights)
    assert holds(Coverage.of(float(rates @ weights / sum(weights)), estimate))


def test_mean_of_90_percent_does_not_pass_for_95() -> None:
    rng, rates = generator("narrow mean"), layer_rates("from 0.01 % to 10 %", 7)
    m = rng.binomial(10_000, rates, (RUNS, 7)).astype(float)
    assert not holds(Coverage.of(rates.mean(), stratified(list(m.T), list(np.full((7, RUNS), 1e4)), confidence=0.9)))


def test_mean_weighs_layers_not_faults() -> None:
    parts = [Sums.single(10, 100), Sums.single(0, 10_000)]
    assert mean(parts).rate == pytest.approx(0.05)
    assert mean(parts, [3, 1]).rate == pytest.approx(0.075)
    assert mean(parts, [30, 10]) == mean(parts, [3, 1])


def test_mean_of_one_layer_is_the_layer() -> None:
    whole = mean([Sums(5.0, 30.0, 500.0, 400.0, 3000.0, 50_000.0)])
    assert whole.rate == 0.06
    assert Interval(whole.low, whole.high) == clustered(5.0, 30.0, 500.0, 400.0, 3000.0, 50_000.0)


def test_many_layers_are_known_better_than_one() -> None:
    one, ten = mean([Sums.single(5, 600)]), mean([Sums.single(5, 600)] * 10)
    assert (ten.high - ten.low) < 0.4 * (one.high - one.low)


def test_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        mean([])


# --- bits ---


@pytest.mark.parametrize("name", ["top bit 40 %", "exponent", "all 1 %"])
@pytest.mark.parametrize("shares", [np.full(32, 1 / 32), allocation(32)], ids=["uniform", "importance"])
def test_stratified_holds(shares: Array, name: str) -> None:
    rng = generator(name, shares[0])
    for n in (64, 600, 10_000):
        assert holds(Coverage.of(bit_rates(name).mean(), by_bit(rng, name, shares, n, RUNS)))


def test_importance_needs_a_quarter_of_the_faults() -> None:
    rng, rate = generator("factor"), float(bit_rates("top bit 40 %").mean())
    chosen = Coverage.of(rate, by_bit(rng, "top bit 40 %", allocation(32), 10_000, 500))
    assert simulation.faults_for_width(rate, chosen.width) > 4 * 10_000


def test_a_bit_without_faults_can_have_any_rate() -> None:
    whole, part = stratified([0, 30], [100, 100]), stratified([0, 30, 0], [100, 100, 0], [1, 1, 2])
    assert part.rate == whole.rate
    assert (part.low, part.high) == pytest.approx((whole.low / 2, whole.high / 2 + 0.5))


@pytest.mark.parametrize(
    ("bits", "kind", "top"), [(32, "float", 1), (16, "float", 1), (64, "float", 1), (8, "integer", 0)]
)
def test_allocation_leaves_no_bit_out(bits: int, kind: Any, top: int) -> None:
    shares = allocation(bits, kind)
    assert shares.shape == (bits,)
    assert shares.sum() == pytest.approx(1)
    assert shares.argmax() == top
    assert shares.min() > 0.5 / bits


@pytest.mark.parametrize(("bits", "kind"), [(32, "float"), (16, "float"), (8, "integer"), (2, "float"), (1, "float")])
def test_strata_are_bits_that_are_drawn_alike(bits: int, kind: Any) -> None:
    shares, groups = allocation(bits, kind), strata(bits, kind)
    assert sorted(bit for group, _ in groups for bit in group) == list(range(bits))
    for group, share in groups:
        assert share == pytest.approx(len(group) / bits)
        assert np.ptp(shares[list(group)]) == 0


@pytest.mark.parametrize("name", ["top bit 40 %", "exponent", "all 1 %"])
def test_bits_that_are_drawn_alike_are_known_better_together(name: str) -> None:
    """Than as strata of their own, each of which can have any rate while it was not hit."""
    rng, n = generator("pooled", name), 300
    size = rng.multinomial(n, allocation(32), 500)
    m = rng.binomial(size, bit_rates(name))
    own = stratified(list(m.T.astype(float)), list(size.T.astype(float)))
    together = by_bit(generator("pooled", name), name, allocation(32), n, 500)
    assert np.mean(together.high - together.low) < 0.75 * np.mean(own.high - own.low)


# --- differences ---

PAIRS = [(0.0, 0.0), (1e-4, 0.0), (0.003, 0.003), (0.05, 0.003), (0.5, 0.3), (0.03, 0.97)]


@pytest.mark.parametrize("rates", PAIRS, ids=str)
def test_differences_hold(rates: tuple[float, float]) -> None:
    rng, (p, q) = generator(rates), rates
    for n in (600, 10_000):
        size = np.full(10 * RUNS, n)
        other = np.full(10 * RUNS, n // 2)
        apart = unpaired(rng.binomial(size, p), size, rng.binomial(other, q), other)
        b, c, _ = rng.multinomial(n, [p, q, max(1 - p - q, 0)], 10 * RUNS).T
        together = paired(b, c, size)
        for estimate in (apart, together):
            assert Coverage.of(p - q, estimate).holds > 0.94  # like Wilson's, it swings about 0.95


def test_differences_of_90_percent_do_not_pass_for_95() -> None:
    rng, size = generator("narrow difference"), np.full(10 * RUNS, 10_000)
    b, c, _ = rng.multinomial(10_000, [0.05, 0.02, 0.93], 10 * RUNS).T
    assert Coverage.of(0.03, paired(b, c, size, 0.9)).holds < 0.94
    apart = unpaired(rng.binomial(size, 0.05), size, rng.binomial(size, 0.02), size, 0.9)
    assert Coverage.of(0.03, apart).holds < 0.94


def test_unpaired_is_the_published_interval() -> None:
    """56 / 70 less 48 / 80 in Newcombe 1998, table II."""
    assert astuple(unpaired(56, 70, 48, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_the_same_faults_tell_two_runs_apart_sooner() -> None:
    same, other = paired(12, 2, 1000), unpaired(112, 1000, 102, 1000)
    assert same.rate == pytest.approx(other.rate)
    assert same.low > 0 > other.low


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 1000), (0, 0, 50), (30, 40, 100), (1, 0, 600)])
def test_paired_ends_where_the_score_test_rejects(b: int, c: int, n: int) -> None:
    estimate = paired(b, c, n)
    for end in (estimate.low, estimate.high):
        # The likelihood of the discordant shares q + end and q, on a fine grid of q.
        q = np.linspace(max(0.0, -end), (1 - end) / 2, 400_001)[1:-1]
        q = q[(q > 0) & (q + end > 0) & (1 - 2 * q - end > 0)]
        best = q[np.argmax(b * np.log(q + end) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - end))]
        score = (b - c - n * end) / np.sqrt(n * (2 * best + end * (1 - end)))
        assert abs(score) == pytest.approx(intervals.z_value(0.95), rel=2e-3)


def test_swapping_the_runs_turns_the_difference_around() -> None:
    for one, other in [(paired(12, 2, 100), paired(2, 12, 100)), (unpaired(9, 70, 4, 80), unpaired(4, 80, 9, 70))]:
        assert astuple(one) == pytest.approx((-other.rate, -other.high, -other.low))


def test_difference_of_weight_rates_holds() -> None:
    rng = generator("weight difference")
    first, second = (
        mean([simulation.weight_flips(rng, scale * SHARES["random bits"](rng, (RUNS, 30)))]) for scale in (1.0, 0.3)
    )
    assert holds(Coverage.of(0.7 * MEAN_SHARE["random bits"], difference(first, second)))


# --- how many are enough ---


@pytest.mark.parametrize(("images", "margin"), [(20, 0.05), (20, 0.02), (600, 0.02), (10_000, 0.005)])
def test_the_interval_of_a_run_that_stopped_holds(images: int, margin: float) -> None:
    coverage = [stopped_neurons(rate, images, margin)[0] for rate in [*np.geomspace(1e-5, 0.5, 20), *RATES]]
    assert min(coverage) > 0.925  # as without stopping
    assert np.mean(coverage) > 0.95


def test_a_run_takes_no_more_passes_than_it_needs() -> None:
    most = sample_size(10**12, 0.02)
    assert stopped_neurons(0.5, 20, 0.02)[1] <= most + 20
    assert stopped_neurons(0.001, 20, 0.02)[1] < most / 10


@pytest.mark.parametrize("name", ["random bits", "all or nothing", "top bit hardly matters", "nearly all broken"])
@pytest.mark.parametrize("batches", [3, 40])
def test_the_interval_of_a_weight_run_that_stopped_holds(batches: int, name: str) -> None:
    ends, _ = simulation.stopped_weights(generator(batches, name), name, batches, 0.05, RUNS)
    assert holds(Coverage.of(MEAN_SHARE[name], ends))


def test_enough_is_half_the_width() -> None:
    assert enough(Interval(0.0, 0.01), 0.005)
    assert enough(Estimate(0.001, 0.0, 0.01), 0.005)
    assert not enough(Interval(0.0, 0.0101), 0.005)


@pytest.mark.parametrize(
    ("population", "margin", "confidence", "expected"),
    [(10**12, 0.01, 0.95, 9604), (10**12, 0.05, 0.95, 385), (10**12, 0.01, 0.99, 16_588), (100, 0.05, 0.95, 80)],
)
def test_sample_size_is_the_textbook_one(population: int, margin: float, confidence: float, expected: int) -> None:
    assert sample_size(population, margin, confidence) == expected


def test_sample_size_never_exceeds_what_there_is() -> None:
    assert sample_size(1, 0.01) == 1
    assert sample_size(500, 1e-9) == 500
    assert sample_size(10**6, 0.01, p=0.01) < sample_size(10**6, 0.01)


def test_so_many_faults_make_the_interval_that_narrow() -> None:
    n = sample_size(10**12, 0.01)
    assert enough(wilson(n // 2, n), 0.01)
    assert not enough(wilson(n // 2 - 200, n - 400), 0.01)


def part(m: float, n: float, share: float = 1.0) -> rates_of_layers.Part:
    return rates_of_layers.Part(Sums.single(m, n), share)


def test_layers_count_the_same_in_a_mean_however_many_parts_they_have() -> None:
    one, two = [part(4.0, 10.0)], [part(1.0, 10.0), part(3.0, 10.0)]
    found = rates_of_layers.mean([one, two], 0.95)
    assert found.value == pytest.approx((40 + 20) / 2)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 30 < found.high


def test_parts_of_a_layer_count_by_their_shares() -> None:
    layer, other = [part(4.0, 10.0, 1 / 32), part(1.0, 100.0, 31 / 32)], [part(5.0, 10.0)]
    found = rates_of_layers.mean([layer, other], 0.95)
    assert found.value == pytest.approx(100 * ((0.4 + 31 * 0.01) / 32 + 0.5) / 2)
    unhit = rates_of_layers.mean([[layer[0], part(0.0, 0.0, 31 / 32)]], 0.95)
    assert unhit.value == pytest.approx(40), "as far as it is known"
    assert unhit.high is not None
    assert unhit.high > 100 * 31 / 32


def test_layers_count_the_same_in_a_mean_however_many_of_their_bits_were_hit() -> None:
    none = part(0.0, 0.0)
    layers = [[part(4.0, 10.0), none, none], [part(m, 10.0) for m in (0.0, 1.0, 2.0)]]
    found = rates_of_layers.mean([*layers, [none, none]], 0.95)
    assert found.value == pytest.approx((40 + 10) / 2)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 25 < found.high
    assert found.high - found.low > 100 * (2 / 3 + 1) / 3, "bits that were not hit can have any rate"
    extreme = rates_of_layers.mean([[part(1e6, 1e6), none, none], [part(0.0, 1e6)] * 3], 0.95)
    assert extreme.interval is not None
    assert extreme.value == pytest.approx(50)
    assert extreme.interval[0] < 50 < extreme.interval[1]


# --- from sums to rates ---


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_a_fault_of_a_neuron_counts_once_however_many_images_it_hits(pairs: list[tuple[int, int]]) -> None:
    broken, hit = np.sort(np.array(pairs, dtype=np.float64)).T
    sums = Sums(
        *(float(len(pairs)), float(broken.sum()), float(hit.sum())),
        *(float(product.sum()) for product in (broken * broken, broken * hit, hit * hit)),
    )
    got = rates_of_layers.of(sums, "neuron", 0.95)
    if sums.n == 0:
        assert got == rates_of_layers.Rate()
        return
    ends = wilson(sums.m, sums.n) if hit.max() == 1 else clustered(*astuple(sums))
    assert got.interval == pytest.approx((100 * ends.low, 100 * ends.high), rel=1e-12)
    assert got == rates_of_layers.of_each([sums, sums], "neuron", 0.95)[1]


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_estimates_are_made_at_once_and_as_one_by_one(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call for each layer and bit takes longer than a round of faults through a small network."""
    layers = [Layer(i, f"layer{i}", 0, "ReLU", (4,), True, 32, ()) for i in range(5)]
    counts = Counts([1], [Target(i, layer) for i, layer in enumerate(layers)])
    rng = generator("at once", weighted)
    n = rng.integers(0, 40, (5, 32))
    m = rng.binomial(n, 0.3)
    table = {"correct": n, "misclassified": m, "mm": m, "mn": m, "nn": n, "flips": n + 1, "injections": n + 1}
    for name, values in table.items():
        counts.table[0, :, :32, COLUMNS.index(name)] = values
    calls = []

    def counted(m: Any, n: Any, confidence: float) -> Interval[Any]:
        calls.append(1)
        return wilson(m, n, confidence)

    monkeypatch.setattr(intervals, "wilson", counted)
    found = rates_of_layers.of_layers(counts, "neuron", 0.95, None, weighted=weighted)
    assert len(calls) <= 4
    for estimate in found:
        for one, rate, _ in estimate.by_bit.values():
            sums = Sums(*map(float, (one.flips, one.misclassified, one.correct, one.mm, one.mn, one.nn)))
            assert rate == rates_of_layers.of(sums, "neuron", 0.95)
        alone = rates_of_layers.of(estimate.parts[0].sums, "neuron", 0.95)
        assert estimate.weighted == weighted
        assert weighted or estimate.rate == alone
