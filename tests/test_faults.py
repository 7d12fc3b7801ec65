"""A fault is a function of seed, layer and image (or batch), and every element and bit has the same chance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from bitflip.faults.flips import Flips, _below, neuron_flips, parameter_flip
from bitflip.network.layers import Layer, Parameter

LAYER = Layer(
    position=3,
    path="features.3",
    call=0,
    type="Conv2d",
    shape=(4, 5, 6),
    per_image=True,
    bits=32,
    parameters=(Parameter("weight", (7, 4), 32),),
)

# Drawn once, with seed 2024.
NEURONS_2024 = [(21, 5), (104, 29), (31, 29), (105, 0)]
WEIGHTS_2024 = [(21, 15), (23, 2), (23, 1), (9, 9)]


def at(position: int, layer: Layer = LAYER) -> Layer:
    """The layer at another place of the call order."""
    return dataclasses.replace(layer, position=position)


def pairs(flips: Flips) -> list[tuple[int, int]]:
    """Element and bit of each flip."""
    return list(zip(flips.element.tolist(), flips.bit.tolist(), strict=True))


def in_batches(size: int, images: int = 512, seed: int = 5) -> list[tuple[int, int]]:
    """The flips of a test set that is run in batches of ``size``."""
    return [pair for first in range(0, images, size) for pair in pairs(neuron_flips(seed, LAYER, first, size))]


@pytest.mark.parametrize("size", [1, 7 * 8, 64, 256], ids="batches of {}".format)
def test_batch_size_changes_no_neuron_fault(size: int) -> None:
    assert in_batches(size)[:504] == pairs(neuron_flips(5, LAYER, 0, 504))


def test_a_fault_can_be_had_without_those_before_it() -> None:
    whole = pairs(neuron_flips(5, LAYER, 0, 9000))
    assert pairs(neuron_flips(5, LAYER, 8999, 1)) == whole[8999:]


def test_other_layers_change_no_fault() -> None:
    """The draw for one layer has no memory of a draw for another."""
    alone = pairs(neuron_flips(5, LAYER, 0, 64))
    for position in range(10):
        neuron_flips(5, at(position), 0, 64)
    assert pairs(neuron_flips(5, LAYER, 0, 64)) == alone


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: neuron_flips(6, LAYER, 0, 64), id="seed"),
        pytest.param(lambda: neuron_flips(2**63 - 1, LAYER, 0, 64), id="largest seed"),
        pytest.param(lambda: neuron_flips(5, at(4), 0, 64), id="layer"),
        pytest.param(lambda: neuron_flips(5, LAYER, 64, 64), id="images"),
        pytest.param(lambda: neuron_flips(5, LAYER, 0, 64, repeat=1), id="repeat"),
        pytest.param(lambda: neuron_flips(3, at(5), 0, 64), id="seed and layer swapped"),
    ],
)
def test_another_key_gives_other_faults(other: object) -> None:
    """About 1 of 120 elements agrees by chance."""
    assert callable(other)
    base, flips = neuron_flips(5, LAYER, 0, 64), other()
    assert isinstance(flips, Flips)
    assert np.count_nonzero(base.element == flips.element) < 8
    assert np.count_nonzero(base.bit == flips.bit) < 12


def test_neighbouring_images_have_unrelated_faults() -> None:
    flips = neuron_flips(5, LAYER, 0, 4000)
    element, bit = flips.element.astype(float), flips.bit.astype(float)
    assert abs(np.corrcoef(element[1:], element[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(element, bit)[0, 1]) < 0.05


def test_neurons_and_weights_have_streams_of_their_own() -> None:
    """With an output and a weight of the same shape, image n and batch n still differ."""
    layer = dataclasses.replace(LAYER, shape=(1000,), parameters=(Parameter("weight", (1000,), 32),))
    neurons = pairs(neuron_flips(5, layer, 0, 64))
    weights = [pairs(parameter_flip(5, layer, batch, parameter="weight"))[0] for batch in range(64)]
    assert sum(a == b for a, b in zip(neurons, weights, strict=True)) == 0
    assert len({element for element, _ in weights}) > 50  # and each batch has its own


def test_a_weight_fault_is_one_flip_of_the_batch() -> None:
    flips = parameter_flip(5, LAYER, 3, parameter="weight")
    assert len(flips) == 1
    assert 0 <= flips.element[0] < math.prod((7, 4))
    assert pairs(flips) == pairs(parameter_flip(5, LAYER, 3, parameter="weight"))
    assert pairs(flips) != pairs(parameter_flip(5, LAYER, 3, repeat=1, parameter="weight"))


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1], ids="seed {}".format)
def test_the_global_random_state_is_neither_read_nor_moved(seed: int) -> None:
    np.random.seed(1)
    first = pairs(neuron_flips(seed, LAYER, 0, 16))
    assert np.random.random() == np.random.RandomState(1).random_sample()
    np.random.seed(2)
    assert pairs(neuron_flips(seed, LAYER, 0, 16)) == first


def test_faults_stay_as_they_are() -> None:
    """Published seeds must go on meaning the same faults; a change here breaks every earlier result."""
    assert pairs(neuron_flips(2024, LAYER, 0, 4)) == NEURONS_2024
    assert [pairs(parameter_flip(2024, LAYER, batch, parameter="weight"))[0] for batch in range(4)] == WEIGHTS_2024


@pytest.mark.parametrize("bit", [0, 1, 31])
def test_a_given_bit_is_used_and_leaves_the_elements_alone(bit: int) -> None:
    random, given = neuron_flips(5, LAYER, 0, 64), neuron_flips(5, LAYER, 0, 64, bit)
    assert set(given.bit.tolist()) == {bit}
    assert np.array_equal(given.element, random.element)
    assert parameter_flip(5, LAYER, 0, bit, parameter="weight").bit.tolist() == [bit]


@pytest.mark.parametrize("width", [16, 32, 64], ids="{} bits".format)
def test_bits_are_uniform_over_the_width_of_the_values(width: int) -> None:
    flips = neuron_flips(11, dataclasses.replace(LAYER, bits=width), 0, 64_000)
    assert_uniform(flips.bit, width)


@pytest.mark.parametrize("shape", [(10,), (4, 5, 6), (3, 7)], ids=str)
def test_elements_are_uniform(shape: tuple[int, ...]) -> None:
    flips = neuron_flips(11, dataclasses.replace(LAYER, shape=shape), 0, 64_000)
    assert_uniform(flips.element, math.prod(shape))


def test_weight_elements_are_uniform() -> None:
    elements = np.array([parameter_flip(11, LAYER, batch, parameter="weight").element[0] for batch in range(3000)])
    assert_uniform(elements, math.prod((7, 4)))


def assert_uniform(values: NDArray[np.int64], n: int) -> None:
    """Check that all of [0, n) is reached, nothing else is, and that the counts pass a chi-square test."""
    counts = np.bincount(values, minlength=n)
    assert len(counts) == n
    assert counts.min() > 0
    expected = len(values) / n
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    deviation = (chi_square - (n - 1)) / math.sqrt(2 * (n - 1))  # of n - 1 degrees of freedom, in standard deviations
    assert abs(deviation) < 4


def test_the_last_element_of_a_large_layer_is_reached_and_not_passed() -> None:
    words = np.array([0, 2**64 - 1], dtype=np.uint64)
    for n in (1, 3, 2**31 + 1, 2**53):
        assert _below(words, n).tolist() == [0, n - 1]


@pytest.mark.parametrize(
    ("shape", "element", "expected"),
    [((4, 5, 6), 119, (3, 4, 5)), ((4, 5, 6), 31, (1, 0, 1)), ((9,), 8, (8,)), ((), 0, ())],
    ids=["last", "middle", "one dimension", "no dimensions"],
)
def test_coordinates(shape: tuple[int, ...], element: int, expected: tuple[int, ...]) -> None:
    layer = dataclasses.replace(LAYER, shape=shape, parameters=(Parameter("weight", shape, 32),))
    for parameter in ("", "weight"):
        assert Flips(layer, np.array([element]), np.array([0]), parameter).coordinates(0) == expected
