"""Every injection of a run as one row of a Parquet file.

The rows are written in parts, as the run goes on; at the end the parts are strung together, so that neither the run nor
its end needs memory for all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitflip.campaign.unfinished import damaged
from bitflip.files import replacing_bytes
from bitflip.network.layers import Numbered
from bitflip.outcomes.batch import COUNTED, BatchOutcomes, Effect

CRC_BYTES = 4
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
before and after; label, clean_top1, top1: classes; masked to nonfinite: see :class:`bitflip.outcomes.batch.Effect`;
change: of the clean top-1 class's probability.
"""


def rows(batch: BatchOutcomes, items: Sequence[Numbered], seed: int) -> pa.Table:
    """The injections of one batch, by the flips of one seed: image by image, in the order of the layers."""
    item_of = {item.where: item for item in items}
    count = len(batch.labels)
    slots = [slot for slot, flips in enumerate(batch.flips) if flips.seed == seed]
    flips = [batch.flips[slot] for slot in slots]
    each = [item_of[one.where] for one in flips]

    def by_slot(values: Sequence[object]) -> NDArray[Any]:
        return np.tile(np.array(values, dtype=object), count)

    def by_image(values: Tensor) -> NDArray[Any]:
        return np.repeat(values.numpy(), len(slots))

    def by_flip(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """One value per image, or one for all images of a slot."""
        return np.stack([np.broadcast_to(value, count) for value in values], axis=1).ravel()

    def by_fault(values: Tensor) -> NDArray[Any]:
        return values[slots].T.reshape(-1).numpy()

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
        "top1": by_fault(batch.top1),
        "masked": ~by_fault(batch.having(Effect.CHANGED)),
        **{name: by_fault(batch.having(effect)) for name, effect in COUNTED.items()},
        "change": by_fault(batch.change),
    }
    return pa.table([pa.array(columns[field.name]).cast(field.type) for field in SCHEMA], schema=SCHEMA)


def write_part(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write the rows of some batches: a CRC-32, as Parquet's own checksums skip its headers, and a Parquet file."""
    table = pa.concat_tables(tables).unify_dictionaries()
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=max(1, len(table)))
    content = buffer.getvalue().to_pybytes()
    with replacing_bytes(path) as file:
        file.write(zlib.crc32(content).to_bytes(CRC_BYTES, "big"))
        file.write(content)


def _content(part: Path) -> pa.BufferReader:
    content = part.read_bytes()
    checksum, content = content[:CRC_BYTES], content[CRC_BYTES:]
    if checksum != zlib.crc32(content).to_bytes(CRC_BYTES, "big"):
        raise ValueError("wrong checksum")
    return pa.BufferReader(content)


def rows_of(part: Path) -> int:
    """The number of rows of a part.

    Raises:
        BadInput: if it is damaged.
    """
    with damaged(part):
        return int(pq.read_metadata(_content(part)).num_rows)


def join(parts: Sequence[Path], path: Path) -> None:
    """String parts together, to the same bytes however the rows are spread over the parts.

    Raises:
        BadInput: if a part is damaged.
    """
    with replacing_bytes(path) as file, pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer:
        waiting = SCHEMA.empty_table()
        for part in parts:
            with damaged(part):
                table = pq.read_table(_content(part), schema=SCHEMA)
            waiting = pa.concat_tables([waiting, table])
            whole = len(waiting) // ROW_GROUP * ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                writer.write_table(waiting.slice(start, ROW_GROUP).combine_chunks().unify_dictionaries())
            waiting = waiting.slice(whole)
        if len(waiting):
            writer.write_table(waiting.combine_chunks().unify_dictionaries())
