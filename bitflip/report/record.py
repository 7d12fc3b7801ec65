"""The record of every injection of a run, its ``_faults.parquet``: what its columns say, and counts of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitflip.errors import BadInput, first_line
from bitflip.results import columns

Cell = tuple[int, str, int | None]
"""Number of a layer, parameter of it (empty for neurons), and bit, if it is one of them."""

_PLACE = ("layer", "parameter", "bit")
_CLASSES = ("label", "clean_top1", "top1")
_FLAGS = tuple(name for name in columns.EFFECTS if name != "benign")  # which is what the others leave


def misclassified(label: NDArray[Any], clean_top1: NDArray[Any], top1: NDArray[Any]) -> NDArray[np.bool_]:
    """Which injections misclassify an image that is right without; one in which the model raised has no class, -1."""
    found: NDArray[np.bool_] = (label == clean_top1) & (top1 != clean_top1) & (top1 >= 0)
    return found


def damaged(path: Path, error: Exception) -> BadInput:
    """What to say of a record that can't be read."""
    return BadInput(f"{path}: expected a table of faults, and it is damaged ({first_line(error)})")


def counted(path: Path) -> dict[Cell, dict[str, float]] | None:
    """The counts of a record by layer and bit, by the names of :mod:`bitflip.results.columns`, as far as it has them.

    Returns:
        None where pyarrow is not installed.

    Raises:
        BadInput: if the file is damaged.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        return None
    found: dict[Cell, dict[str, float]] = {}
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = [*_PLACE, *_CLASSES, *(name for name in (*_FLAGS, "change") if name in file.schema_arrow.names)]
            for batch in file.iter_batches(columns=names):
                _count(found, {name: batch.column(name) for name in names})
    except Exception as error:  # a damaged file makes its reader raise anything
        raise damaged(path, error) from error
    return found


def _count(found: dict[Cell, dict[str, float]], batch: dict[str, Any]) -> None:
    parameters = batch.pop("parameter").cast("string").to_numpy(zero_copy_only=False).astype(str)
    names, parameter = np.unique(parameters, return_inverse=True)
    values = {name: column.to_numpy(zero_copy_only=False) for name, column in batch.items()}
    label, clean, top1 = (values.pop(name) for name in _CLASSES)
    change = values.pop("change", None)
    keys = np.stack([values.pop("layer").astype(np.int64), parameter.ravel(), values.pop("bit").astype(np.int64)])
    cells, where = np.unique(keys, axis=1, return_inverse=True)
    where = where.ravel()
    flags = {"correct": label == clean, "misclassified": misclassified(label, clean, top1), **values}
    if {"masked", "sdc1"} <= values.keys():
        flags["benign"] = ~(values["masked"] | values["sdc1"] | values.get("due", False))
    counts = {name: np.bincount(where, weights=true, minlength=cells.shape[1]) for name, true in flags.items()}
    counts["injections"] = np.bincount(where, minlength=cells.shape[1])
    most = np.zeros(cells.shape[1])
    if change is not None:
        np.maximum.at(most, where, change)
    for i, (layer, code, bit) in enumerate(cells.T.tolist()):
        total = found.setdefault((layer, str(names[code]), bit), {})
        for name, each in counts.items():
            total[name] = total.get(name, 0) + float(each[i])
        if change is not None:
            total[columns.CHANGE] = max(total.get(columns.CHANGE, 0.0), float(most[i]))
