"""Parsers as people wrote them for the results of the vessl example, which know of nothing that this project adds."""

from __future__ import annotations

import csv
import io

Block = dict[str, str]

VALUES = ["Original value", "Original binary", "Flip bit", "Error value", "Error binary"]
NEURON = ["Layer", "Batch", "Position", *VALUES, "Label", "Model output"]
FLIP = ["Layer", "Layer type", "Position", *VALUES]
IMAGE = ["Batch", "Image", "Label", "Model output"]


def rates(text: str) -> list[tuple[str, str]]:
    """Rate and layer type of each layer, from a ``.txt``."""
    found = []
    for line in text.splitlines():
        if line.startswith("Layer #"):
            *_, rate, name = line.split()
            found.append((rate, name))
    return found


def table(text: str, seed: int) -> list[tuple[str, float]]:
    """Layer type and rate in percent, from a ``.csv``."""
    return [(row["name"], float(row[f"seed_{seed}"])) for row in csv.DictReader(io.StringIO(text))]


def neurons(text: str) -> list[Block]:
    """The misclassifications in a ``_detailed.txt`` of neurons."""
    return [_values(block, NEURON) for block in _split(text, "\n\n\n")]


def weights(text: str) -> list[tuple[Block, list[Block]]]:
    """The flips in a ``_detailed.txt`` of weights, each with the images that it broke."""
    found: list[tuple[Block, list[Block]]] = []
    for block in _split(text, "\n\n"):
        if block.startswith("Layer: "):
            found.append((_values(block, FLIP), []))
        else:
            found[-1][1].append(_values(block, IMAGE))
    return found


def _split(text: str, end: str) -> list[str]:
    *blocks, last = text.split(end)
    assert last == ""
    return blocks


def _values(block: str, keys: list[str]) -> Block:
    """The values of a block, which has the keys as its first lines, in their order."""
    lines = [line.split(": ", 1) for line in block.split("\n")]
    assert [key for key, _ in lines[: len(keys)]] == keys
    assert len({key for key, _ in lines}) == len(lines)
    return {key: value.strip() for key, value in lines}
