"""The records of a run, of every injection in its ``_faults.parquet``, of every fault of a list in its ``_faults.csv``:
what their columns say, and counts of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitflip import csvs
from bitflip.errors import BadInput, first_line
from bitflip.outcomes import NAMES
from bitflip.results import columns

Where = tuple[int | str, ...]
"""Number of a layer, or its path and call, and parameter of it (empty for neurons)."""
Counts = dict[tuple[Where, int | None], dict[str, float]]
"""By where, and bit: by the names of :mod:`bitflip.results.columns`, as far as a record has them."""

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


def counted(path: Path) -> Counts | None:
    """The counts of a record of every injection, by number of the layer.

    Returns:
        None where pyarrow is not installed.

    Raises:
        BadInput: if the file is damaged.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        return None
    found: Counts = {}
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = [*_PLACE, *_CLASSES, *(name for name in (*_FLAGS, "change") if name in file.schema_arrow.names)]
            for batch in file.iter_batches(columns=names):
                _count(found, {name: batch.column(name) for name in names})
    except Exception as error:  # a damaged file makes its reader raise anything
        raise damaged(path, error) from error
    return found


def _count(found: Counts, batch: dict[str, Any]) -> None:
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
        total = found.setdefault(((layer, str(names[code])), bit), {})
        for name, each in counts.items():
            total[name] = total.get(name, 0) + float(each[i])
        if change is not None:
            total[columns.CHANGE] = max(total.get(columns.CHANGE, 0.0), float(most[i]))


def of_list(path: Path) -> Counts:
    """The counts of a record of every fault of a list, by path and call of the layer.

    Raises:
        BadInput: if the file is damaged.
    """
    found: Counts = {}
    table = csvs.Table(path, ended=True)
    known = [name for name in (*columns.HITS, *columns.KNOWN) if NAMES.get(name, name) in table.header]
    table.require(("target", "layer", "call", "bit", "images"), table.header)

    def read(row: csvs.Row) -> None:
        parameter = "" if row["target"] == "neuron" else row["target"]
        where = (row["layer"], row.count("call"), parameter)
        counts: dict[str, float] = {name: row.count(NAMES.get(name, name)) for name in known}
        most = row.number(columns.CHANGE, 1)
        total = found.setdefault((where, _first(row)), {})
        row.finish()
        counts["flips"] = 1
        if {*columns.HITS} <= counts.keys():
            m, n = (counts[name] for name in columns.HITS)
            counts |= zip(columns.SUMS, (m * m, m * n, n * n), strict=True)
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
        if most is not None:
            total[columns.CHANGE] = max(total.get(columns.CHANGE, 0.0), most)

    for _ in table.values(read):
        pass
    return found


def _first(row: csvs.Row) -> int:
    """The bit under which tables count a fault: the first of several, 0 of one that replaces the value."""
    bits = [csvs.whole(text) for text in (row["bit"] or "0").split(";")]
    known = [bit for bit in bits if bit is not None and bit < 64]
    if len(known) != len(bits):
        return row.unlike("bit", "bits from 0 to 63, such as 1;7", 0)
    return min(known)
