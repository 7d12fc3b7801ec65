"""The record of every injection of a run, its ``_faults.parquet``: what its columns say."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def misclassified(label: NDArray[Any], clean_top1: NDArray[Any], top1: NDArray[Any]) -> NDArray[np.bool_]:
    """Which injections misclassify an image that is right without; one in which the model raised has no class, -1."""
    found: NDArray[np.bool_] = (label == clean_top1) & (top1 != clean_top1) & (top1 >= 0)
    return found
