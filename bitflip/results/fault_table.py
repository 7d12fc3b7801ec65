"""Every injection of a run as one row of a Parquet file.

The rows are written in parts to a file that grows as the run goes on; at the end the parts are strung together, so that
neither the run nor its end needs memory for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitflip.files import replacing_bytes
from bitflip.network.layers import Target
from bitflip.outcomes.batch import COUNTED, BatchOutcomes

LENGTH_BYTES = 8
ROW_GROUP = 1 << 17  # rows that are compressed together
SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("layer", pa.int32()),
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("call", pa.int32()),
        ("parameter", pa.dictionary(pa.int32(), pa.string())),
        ("image", pa.int64()),
        ("element", pa.int64()),
        ("bit", pa.int8()),
        ("original", pa.float64()),
        ("error", pa.float64()),
        ("label", pa.int32()),
        ("clean_top1", pa.int32()),
        ("top1", pa.int32()),
        ("masked", pa.bool_()),
        *((name, pa.bool_()) for name in COUNTED),
        ("change", pa.float32()),
    ]
)
"""One row per image that was run with a flip.

seed, layer (number), path, call, parameter (empty: the layer's output): where; image: index in the test set; element:
flat index into the image's output, or into the parameter; bit: from the most significant; original, error: the value
before and after; label, clean_top1, top1: classes, -1 where the model raised an exception; masked to due: see
:class:`bitflip.outcomes.batch.Effect`; change: of the clean top-1 class's probability.
"""


def rows(batch: BatchOutcomes, items: Sequence[Target], seed: int) -> pa.Table:
    """The injections of one batch, by the flips of one seed: image by image, in the order of the layers."""
    item_of = {item.where: item for item in items}
    count = len(batch.labels)
    slots = [slot for slot, flips in enumerate(batch.flips) if flips.seed == seed]
    flips = [batch.flips[slot] for slot in slots]
    each = [item_of[one.where] for one in flips]
    struck = np.ones((count, len(slots)), dtype=bool)  # unless neurons of some images only
    for place, one in enumerate(flips):
        if one.rows is not None:
            struck[:, place] = np.isin(np.arange(count), one.rows)

    def by_slot(values: Sequence[object]) -> NDArray[Any]:
        return np.tile(np.array(values, dtype=object), count)

    def by_image(values: Tensor) -> NDArray[Any]:
        return np.repeat(values.numpy(), len(slots))

    def by_flip(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """One value per image, or one for all images of a slot."""
        found = []
        for one, value in zip(flips, values, strict=True):
            whole = np.broadcast_to(value, count if one.rows is None else len(one))
            if one.rows is not None:
                some, whole = whole, np.zeros(count, dtype=whole.dtype)
                whole[one.rows] = some
            found.append(whole)
        return np.stack(found, axis=1).ravel()

    def by_fault(values: NDArray[Any]) -> NDArray[Any]:
        return values[slots].T.reshape(-1)

    columns: dict[str, NDArray[Any]] = {
        "seed": np.full(len(slots) * count, seed),
        "layer": by_slot([item.number for item in each]),
        "path": by_slot([item.layer.path for item in each]),
        "call": by_slot([item.layer.call for item in each]),
        "parameter": by_slot([item.parameter for item in each]),
        "image": by_image(torch.arange(batch.first, batch.first + count)),
        "element": by_flip([one.element for one in flips]),
        "bit": by_flip([one.bit for one in flips]),
        "original": by_flip([batch.original[slot].double().numpy() for slot in slots]),
        "error": by_flip([batch.error[slot].double().numpy() for slot in slots]),
        "label": by_image(batch.labels),
        "clean_top1": by_image(batch.clean_top1),
        "top1": by_fault(batch.top1.numpy()),
        "change": by_fault(batch.change.numpy()),
    }
    columns |= {name: by_fault(true) for name, true in batch.columns().items() if name in SCHEMA.names}
    made = [pa.array(columns[field.name][struck.ravel()]).cast(field.type) for field in SCHEMA]
    return pa.table(made, schema=SCHEMA)


def part(tables: Sequence[pa.Table]) -> bytes:
    """The rows of some batches as part of a file that grows: the length of a Parquet file, and that file."""
    table = pa.concat_tables(tables).unify_dictionaries()
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=max(1, len(table)))
    content: bytes = buffer.getvalue().to_pybytes()
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def _parts(file: BinaryIO, size: int) -> Iterator[pa.Table]:
    while file.tell() < size:
        length = int.from_bytes(file.read(LENGTH_BYTES), "big")
        yield pq.read_table(pa.BufferReader(file.read(length)), schema=SCHEMA)


def join(parts: Path, size: int, path: Path) -> None:
    """Write the table whose parts are the first ``size`` bytes of a file, the same bytes whatever the parts are."""
    with (
        parts.open("rb") as growing,
        replacing_bytes(path) as file,
        pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer,
    ):
        waiting = SCHEMA.empty_table()
        for table in _parts(growing, size):
            waiting = pa.concat_tables([waiting, table])
            whole = len(waiting) // ROW_GROUP * ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                writer.write_table(waiting.slice(start, ROW_GROUP).combine_chunks().unify_dictionaries())
            waiting = waiting.slice(whole)
        if len(waiting):
            writer.write_table(waiting.combine_chunks().unify_dictionaries())
