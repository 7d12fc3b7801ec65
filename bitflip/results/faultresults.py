"""The files of a fault list's run: a row per fault, and where the critical inferences are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitflip import csvs
from bitflip.csvs import Row
from bitflip.errors import BadInput
from bitflip.faults import faultlist
from bitflip.faults.faultlist import Fault, Key
from bitflip.files import replacing
from bitflip.outcomes.per_fault import BOUNDED, COUNTS, PerFault
from bitflip.results.paths import LISTED_FAULTS, Paths

CHANGE = "largest_change"
EVERY = tuple(dict.fromkeys((*COUNTS, *BOUNDED)))
HEADER = (*faultlist.HEADER, faultlist.FAULT, faultlist.REPEAT, *EVERY, CHANGE)
NEEDED = ("images", "critical")  # what is compared
SETTING = "results (--results)"
IMAGES_HEADER = ("image", "correct", "target", "layer", "call", "bit", "critical")


def write_faults(path: Path, found: PerFault) -> None:
    """Write one row per fault: what it is, the inferences under it, and what became of them.

    ``images`` = ``masked`` (logits bit-identical to clean) + ``benign`` (top-1 the same) + ``critical`` (top-1
    changed, SDC-1) + ``due`` (the model raised an exception); ``sdc5`` to ``nonfinite`` are counted beside, see
    :class:`bitflip.outcomes.batch.Effect`.
    ``misclassified`` are the critical ones among the ``correct``, those that the clean model classifies correctly.
    A run with bounds has ``harmless`` for ``masked`` + ``benign``, and what was ``proved`` and ``audited`` of it.
    """
    bounded = "harmless" in found.counts
    counts: list[list[Any]] = [one.tolist() for one in found.counts.values()]
    if not bounded:
        counts.append([f"{value:.6f}" for value in found.change.tolist()])
    needed = faultlist.columns_of(found.faults)
    with replacing(path) as file:
        writer = csvs.Writer(file)
        more = [name for name in (faultlist.FAULT, faultlist.REPEAT) if name in (faultlist.REPEAT, *needed)]
        writer.writerow([*faultlist.HEADER, *more, *found.counts, *([] if bounded else [CHANGE])])
        for fault, *row in zip(found.faults, *counts, strict=True):
            writer.writerow([*fault.row, *fault.further(more), *row])


def write_images(path: Path, found: PerFault) -> None:
    """Write, for each image, layer and bit, how many faults were critical; rows of zeros are left out.

    Every image that was run has at least one row: without a critical inference, that row names no layer.
    """
    order = dict.fromkeys(fault.key for fault in found.faults)  # whatever came first when it ran
    keys = [key for key in order if key in found.by_image]
    counts = np.array([found.by_image[key] for key in keys]).reshape(len(keys), found.size)
    with replacing(path) as file:
        writer = csvs.Writer(file)
        writer.writerow(IMAGES_HEADER)
        for image in np.flatnonzero(found.seen).tolist():
            which = np.flatnonzero(counts[:, image]).tolist()
            correct = int(found.seen_correct[image])
            for key in which:
                writer.writerow([image, correct, *keys[key], int(counts[key, image])])
            if not which:
                writer.writerow([image, correct, "", "", "", "", 0])


@dataclass(frozen=True)
class Read:
    """What the files of a list's run hold.

    Attributes:
        faults: of the list.
        counts: of each fault, by those names of :data:`EVERY` that the file has, (F,) each.
        by_image: critical inferences of each image that was run, (images,), by (target, path, call, bit).
    """

    faults: tuple[Fault, ...]
    counts: dict[str, NDArray[np.int64]]
    by_image: dict[Key, NDArray[np.int64]]

    @classmethod
    def of(cls, found: PerFault) -> Read:
        """What the files of these outcomes would hold."""
        by_image = {key: counted[found.seen].astype(np.int64) for key, counted in found.by_image.items()}
        return cls(tuple(found.faults), found.counts, by_image)


def read(path: Path) -> Read:
    """Read a row-per-fault file and, beside it, that of the images.

    Raises:
        BadInput: if they can't be read or are not such files.
    """
    if not path.name.endswith(LISTED_FAULTS):
        raise BadInput(f"{SETTING}: expected a file whose name ends in {LISTED_FAULTS}, got {path}")
    beside = Paths(path.parent, path.name.removesuffix(LISTED_FAULTS)).listed_images
    table = csvs.Table(path, SETTING, ended=True)
    table.require((*faultlist.HEADER, *NEEDED), HEADER)
    rows = [row for _, row in table.values(_fault)]
    if not rows:
        raise BadInput(f"{SETTING}: expected at least one fault in {path}, got a header only")
    by_name = {name: np.array([counts[name] for _, counts in rows]) for name in rows[0][1]}
    if (by_name["images"] == 0).any():
        raise BadInput(f"{SETTING}: expected at least one image for each fault in {path}")
    images = csvs.Table(beside, SETTING, ended=True)
    images.require(IMAGES_HEADER, IMAGES_HEADER)
    seen: dict[int, int] = {}
    cells: list[tuple[Key, int, int]] = []
    for _, (image, key, critical) in images.values(_image):
        place = seen.setdefault(image, len(seen))
        if key is not None:
            cells.append((key, place, critical))
    by_image: dict[Key, NDArray[np.int64]] = {}
    for key, image, critical in cells:
        by_image.setdefault(key, np.zeros(len(seen), dtype=np.int64))[image] = critical
    of_faults: dict[Key, int] = {}
    for (fault, _), count in zip(rows, by_name["critical"].tolist(), strict=True):
        of_faults[fault.key] = of_faults.get(fault.key, 0) + count
    for key in [*of_faults, *(key for key in by_image if key not in of_faults)]:
        expected, got = of_faults.get(key, 0), int(by_image[key].sum()) if key in by_image else 0
        if expected != got:
            raise BadInput(
                f"{SETTING}: {path} and {beside} are not of one run: expected {expected} critical inferences under "
                f"faults of {', '.join(map(str, key))}, got {got}"
            )
    return Read(tuple(fault for fault, _ in rows), by_name, by_image)


def _fault(row: Row) -> tuple[Fault, dict[str, int]]:
    fault, counts = faultlist.own(row), {name: row.count(name) for name in EVERY if name in row}
    row.finish()
    images, kinds = counts["images"], ("harmless",) if "harmless" in counts else ("masked", "benign")
    if all(name in counts for name in kinds):
        ended = sum(counts[name] for name in (*kinds, "critical")) + counts.get("due", 0)  # earlier files do without
        if ended != images:
            row.wrong.append(f"expected {' + '.join(kinds)} + critical + due to be images, {images}, got {ended}")
    for less, more in (("misclassified", "critical"), ("misclassified", "correct"), ("correct", "images")):
        if less in counts and more in counts and counts[less] > counts[more]:
            row.wrong.append(f"expected {less} <= {more}, got {counts[less]} and {counts[more]}")
    row.finish()
    return fault, counts


def _image(row: Row) -> tuple[int, Key | None, int]:
    """An image, what was struck, and how many faults there were critical; None where none was."""
    key = (row["target"], row["layer"], row.count("call"), row.count("bit")) if row["target"] else None
    found = row.count("image"), key, row.count("critical")
    row.finish()
    return found
