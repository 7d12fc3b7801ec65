"""The files of a run with bit error rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitflip import csvs
from bitflip.files import replacing
from bitflip.results.columns import PLACE
from bitflip.results.tables import decimal

if TYPE_CHECKING:
    from bitflip.statistics.falls import Point

COLUMNS = (
    *("scope", *PLACE, "parameter", "bit_error_rate", "patterns", "flips", "images"),
    *("accuracy", "accuracy_low", "accuracy_high", "clean_correct", "misclassified", "rate", "low", "high"),
    *("sdc1", "nonfinite", "due"),
)
"""A row per scope and bit error rate.

scope: ``network``, all chosen layers, or ``layer``, one of them, in the columns from layer to parameter; flips: bits
that flip on average, in the network, or for one image; images: inferences under faults; accuracy: with the faults, in
percent; clean_correct: images that the clean model classifies correctly; misclassified, rate: those of them that get
another class, and their share in percent; sdc1: all images that do; nonfinite: with a logit that is not finite; due:
the model raised an exception; low, high: ends of the intervals."""


def write(path: Path, points: Sequence[Point]) -> None:
    """Write the table."""
    with replacing(path) as file:
        writer = csvs.Writer(file)
        writer.writerow(COLUMNS)
        for point in points:
            scope = point.scope
            place: list[object] = ["network", "", "", "", "", ""]
            if scope is not None:
                layer = scope.layer
                place = ["layer", scope.number, layer.type, layer.path, layer.call, scope.parameter]
            accuracy, rate = point.accuracy, point.misclassification
            writer.writerow(
                [
                    *(*place, f"{point.rate:g}", point.patterns, f"{point.flips:.6g}", point.images),
                    *(decimal(value) for value in (accuracy.value, accuracy.low, accuracy.high)),
                    *(point.clean_correct, point.misclassified),
                    *(decimal(value) for value in (rate.value, rate.low, rate.high)),
                    *(point.sdc1, point.nonfinite, point.due),
                ]
            )
