"""The files of a run: one property per path, one writer per file, each written beside and renamed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from torch import Tensor

from bitflip import bits, models
from bitflip.faults import Target
from bitflip.hyperparameters import Hyperparameters
from bitflip.layers import Numbered
from bitflip.outcomes import BatchOutcomes, Tally


@dataclass(frozen=True)
class Paths:
    """Where the files of one run are.

    Attributes:
        folder: the output path.
        stem: what all file names start with, ``MODEL_DATASET_SEED`` with the script's prefix.
    """

    folder: Path
    stem: str

    @classmethod
    def of(cls, settings: Hyperparameters, prefix: str) -> Paths:
        """The paths of a run with these settings; ``prefix`` tells the scripts apart."""
        model = models.file_stem(str(settings.model_name))
        return cls(settings.output_path, f"{prefix}{model}_{settings.dataset}_{settings.seed}")

    @property
    def summary(self) -> Path:
        """Layer summary and result lines, for people."""
        return self.folder / f"{self.stem}.txt"

    @property
    def table(self) -> Path:
        """One row per layer, for plotting."""
        return self.folder / f"{self.stem}.csv"

    @property
    def detail(self) -> Path:
        """Every misclassification."""
        return self.folder / f"{self.stem}_detailed.txt"

    @property
    def run(self) -> Path:
        """Everything that is needed to repeat the run."""
        return self.folder / f"{self.stem}.json"

    def partial(self) -> Paths:
        """The paths for the results of an interrupted run, which must not pass for those of a whole one."""
        return Paths(self.folder, f"{self.stem}_partial")


def check_folder(folder: Path) -> list[str]:
    """One sentence if files can't be written to the folder; it is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [
            f"output_path (--output-path): expected a folder that can be written to, got {folder} ({error.strerror})"
        ]


class Beside:
    """A file that is written beside its place; it vanishes unless it is :meth:`put` there."""

    def __init__(self, folder: Path) -> None:
        self._temporary = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed in __exit__
            "w", encoding="utf-8", newline="\n", dir=folder, prefix=".bitflip-", suffix=".tmp", delete=False
        )
        self.file: TextIO = cast(TextIO, self._temporary)
        self._done = False

    def __enter__(self) -> Beside:
        return self

    def put(self, path: Path) -> None:
        """Let the file, complete and on the disk, take the place of ``path``."""
        self.file.flush()
        os.fsync(self.file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(self._temporary.name, 0o666 & ~umask)  # temporary files are private, results are not
        os.replace(self._temporary.name, path)
        self._done = True

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        if not self._done:
            os.unlink(self._temporary.name)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a file for writing that takes the place of ``path`` when the block ends well, and vanishes otherwise."""
    with Beside(path.parent) as beside:
        yield beside.file
        beside.put(path)


def result_lines(chosen: Sequence[Numbered], tallies: Mapping[int, Tally]) -> list[str]:
    """One line per chosen layer: ``Layer #7: 931 / 7375 = 12.6237%, MaxPool2d``."""
    lines = []
    for item in chosen:
        tally = tallies.get(item.number)
        if tally is None:
            reason = "no weight" if item.layer.per_image else "no output of its own for each image"
            lines.append(f"Layer #{item.number} has {reason}")
        elif tally.rate is None:
            lines.append(f"Layer #{item.number}: no image is classified correctly without a fault, {item.layer.type}")
        else:
            rate = f"{tally.misclassified} / {tally.correct} = {tally.rate:.4f}%"
            lines.append(f"Layer #{item.number}: {rate}, {item.layer.type}")
    return lines


def write_summary(path: Path, heading: str, seed: int, bit: int | None, lines: Sequence[str]) -> None:
    """Write the ``.txt``: PyTorchFI's layer summary and the run in words (``heading``), then a line per layer."""
    with replacing(path) as file:
        file.write(f"{heading}\n\n===== Result =====\nSeed: {seed}\nSpecific bit flip position: {bit}\n")
        file.writelines(f"{line}\n" for line in lines)


def write_table(path: Path, seed: int, tallies: Sequence[Tally]) -> None:
    """Write the ``.csv``: one row per layer that was run; the rate is in percent, empty with nothing to divide by."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["index", "name", f"seed_{seed}", "layer", "path", "call", "misclassified", "correct"])
    for index, tally in enumerate(tallies):
        layer, rate = tally.chosen.layer, tally.rate
        writer.writerow(
            [
                index,
                layer.type,
                "" if rate is None else f"{rate:.6f}",
                tally.chosen.number,
                layer.path,
                layer.call,
                tally.misclassified,
                tally.correct,
            ]
        )
    with replacing(path) as file:
        file.write(buffer.getvalue())


def write_run(path: Path, run: Mapping[str, Any]) -> None:
    """Write the ``.json``."""
    with replacing(path) as file:
        json.dump(run, file, indent=2, default=str)
        file.write("\n")


def write_detail(
    file: TextIO, target: Target, chosen: Sequence[Numbered], batch_size: int, batch: BatchOutcomes
) -> None:
    """Append the misclassifications of one batch of outcomes to the ``_detailed.txt``.

    Batches and positions in them are those of ``batch_size``, however many images were run together.

    Neurons: a line per misclassified image. Weights: a line per flip, and one for each image that it broke.
    """
    lines: list[str] = []  # written at once, so that Ctrl-C leaves no part of a batch
    items = {item.layer: item for item in chosen}
    original, error = [v.cpu() for v in batch.original], [v.cpu() for v in batch.error]
    for start in range(0, len(batch.labels), batch_size):
        number = (batch.first + start) // batch_size
        misclassified = batch.misclassified[:, start : start + batch_size]
        for slot, position in misclassified.nonzero().tolist():
            flips, image = batch.flips[slot], start + position
            row = image if target == "neuron" else 0
            where = (*([position] if target == "neuron" else []), *flips.coordinates(row, target))
            values = original[slot][row], error[slot][row]
            flip = _flip_text(items[flips.layer], number, where, *values, int(flips.bit[row]))
            broken = f"Label: {int(batch.labels[image])}, Model output: {int(batch.top1[slot, image])}"
            if target == "neuron":
                lines.append(f"{flip}, {broken}\n")
            else:
                first = not misclassified[slot, :position].any()
                lines.append((f"{flip}\n" if first else "") + f"    Image: {position}, {broken}\n")
    file.write("".join(lines))


def _flip_text(item: Numbered, batch: int, where: tuple[int, ...], original: Tensor, error: Tensor, bit: int) -> str:
    return (
        f"Layer: {item.number}, Layer type: {item.layer.type}, Batch: {batch}, Position: {list(where)}, "
        f"Original value: {bits.decimal(original)}, Original binary: {bits.text(original)}, Flip bit: {bit}, "
        f"Error value: {bits.decimal(error)}, Error binary: {bits.text(error)}"
    )
