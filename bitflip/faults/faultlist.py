"""A fault list: faults as values, and the files that they are written to and read from.

Our own format is CSV with the header ``target,layer,call,index,bit,image``, one row a fault:

========  ==============================================================================================
target    ``neuron``, or the name of the parameter that is flipped, such as ``weight``
layer     the module's path in the model, empty for the model itself; for neurons, ``input`` is the image
call      0 for the module's first call in a forward pass, 1 for its second, ...
index     coordinates in one image's output, or in the parameter, joined by ``;``: ``3;0;2;1``
bit       counted from the most significant bit: of a float32, 0 is the sign, 1-8 exponent, 9-31 mantissa
image     index in the test set, or the first and the last of several, ``0-255``, or ``all``
========  ==============================================================================================

A last column ``repeat`` (0, 1, ...) is there only where a run draws several flips per image or batch, which can be
the very same fault.

The published format, ``Injection,Layer,TensorIndex,Bit,n_injections,masked,non_critical,critical``, is recognised by
its header. It lists flips in the ``weight`` of float32 models, each run on all images, and counts bits from the
least significant end; they are converted here and nowhere else.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from bitflip.errors import BadInput, nearest
from bitflip.network.layers import Layer
from bitflip.settings.hyperparameters import Hyperparameters, names

HEADER = ("target", "layer", "call", "index", "bit", "image")
REPEAT = "repeat"
PUBLISHED_HEADER = ("Injection", "Layer", "TensorIndex", "Bit", "n_injections", "masked", "non_critical", "critical")
PUBLISHED_WIDTH = 32
SETTING = "faults (--faults)"
SHOWN = 20  # bad rows that are printed

Key = tuple[str, str, int, int]  # target, path, call, bit

_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True)
class Fault:
    """One bit of one element, flipped for some images.

    Attributes:
        target: ``neuron``, or the name of the parameter, such as ``weight``.
        path: of the layer's module.
        call: of that module in a forward pass, from 0.
        index: coordinates of the element, in one image's output or in the parameter.
        bit: from the most significant one.
        images: of the test set, for which the fault is there; None for all.
        repeat: tells apart faults that are otherwise equal.
    """

    target: str
    path: str
    call: int
    index: tuple[int, ...]
    bit: int
    images: range | None = None
    repeat: int = 0

    @property
    def key(self) -> Key:
        """What it shares with the other faults of its bit in its layer."""
        return self.target, self.path, self.call, self.bit

    @property
    def image_text(self) -> str:
        """The images as in the file: ``all``, ``7`` or ``0-255``."""
        if self.images is None:
            return "all"
        return str(self.images[0]) if len(self.images) == 1 else f"{self.images[0]}-{self.images[-1]}"

    @property
    def row(self) -> tuple[str, str, int, str, int, str]:
        """The columns of :data:`HEADER`."""
        return self.target, self.path, self.call, ";".join(map(str, self.index)), self.bit, self.image_text


@dataclass(frozen=True)
class Published:
    """What the published format says of a fault.

    Attributes:
        injection: its number there.
        images: inferences under the fault.
        masked: those whose output was identical to clean.
        non_critical: those with another output, but the same top-1.
        critical: those whose top-1 changed.
    """

    injection: int
    images: int
    masked: int
    non_critical: int
    critical: int


@dataclass(frozen=True)
class FaultList:
    """The faults of a file.

    Attributes:
        faults: in the order of the file.
        lines: the line of each.
        published: what is known of each, in a file of the published format, else None.
        problems: (line, sentence) of each row that is no fault; empty once :meth:`check` has passed.
    """

    faults: tuple[Fault, ...]
    lines: tuple[int, ...]
    published: tuple[Published, ...] | None = None
    problems: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.faults)

    def only(self, chosen: Sequence[int]) -> FaultList:
        """Some of the faults, given by their places."""
        published = None if self.published is None else tuple(self.published[i] for i in chosen)
        return FaultList(
            tuple(self.faults[i] for i in chosen), tuple(self.lines[i] for i in chosen), published, self.problems
        )

    def check(self, path: Path, layers: Sequence[Layer], images: int, neurons: bool) -> None:
        """See that every fault can be injected.

        Args:
            path: of the file, for messages.
            layers: of the model.
            images: in the test set.
            neurons: whether neuron faults are to be run, or faults of parameters.

        Raises:
            BadInput: with all bad rows, those that :func:`read` found among them.
        """
        problems = list(self.problems)
        check = _Check(layers, images, neurons)
        for line, fault in zip(self.lines, self.faults, strict=True):
            problems += [(line, sentence) for sentence in check(fault)]
        if problems:
            raise BadInput(*sentences(path, sorted(problems)))


class _Check:
    """What is wrong with a fault, given the model and the test set."""

    def __init__(self, layers: Sequence[Layer], images: int, neurons: bool) -> None:
        self.layers = {(layer.path, layer.call): layer for layer in layers}
        self.paths = {layer.path for layer in layers}
        self.images = images
        self.neurons = neurons
        self.unknown: dict[str, str] = {}

    def __call__(self, fault: Fault) -> list[str]:
        found = []
        if (fault.target == "neuron") != self.neurons:
            found.append(
                f"target: expected neuron, got {fault.target!r}; weight.py runs faults of parameters"
                if self.neurons
                else "target: expected a parameter such as weight, got 'neuron'; neuron.py runs faults of neurons"
            )
        else:
            found += self._place(fault)
        if fault.images is not None and fault.images[-1] >= self.images:
            found.append(f"image: expected 0 to {self.images - 1}, or all, got {fault.image_text}")
        return found

    def _place(self, fault: Fault) -> list[str]:
        if fault.path not in self.paths:
            if fault.path not in self.unknown:
                name = fault.path[:200]
                self.unknown[fault.path] = f"layer: the model has no {name!r}; {nearest(name, self.paths)}"
            return [self.unknown[fault.path]]
        layer = self.layers.get((fault.path, fault.call))
        if layer is None:
            calls = sum(path == fault.path for path, _ in self.layers)
            return [f"call: expected 0 to {calls - 1} of {fault.path}, got {fault.call}"]
        if self.neurons and not layer.per_image:
            return [f"layer: {fault.path} has no output of its own for each image"]
        found = place_of(layer, fault.target)
        if found is None:
            return [f"target: {fault.path} has no parameter {fault.target[:200]!r} that can be flipped"]
        shape, width = found
        sentences = []
        if len(fault.index) != len(shape):
            sentences.append(
                f"index: expected {len(shape)} coordinates in {fault.path}, whose shape is {shape}, got {fault.index}"
            )
        elif any(i >= n for i, n in zip(fault.index, shape, strict=True)):
            sentences.append(f"index: expected an element of {fault.path}, whose shape is {shape}, got {fault.index}")
        if fault.bit >= width:
            sentences.append(f"bit: expected 0 to {width - 1} of a {width}-bit value, got {fault.bit}")
        return sentences


def place_of(layer: Layer, target: str) -> tuple[tuple[int, ...], int] | None:
    """Shape and width in bits of what a target flips in a layer; None if the layer has no such parameter."""
    if target == "neuron":
        return layer.shape, layer.bits
    parameter = layer.parameter(target)
    return None if parameter is None else (parameter.shape, parameter.bits)


def check_settings(settings: Hyperparameters) -> list[str]:
    """One sentence per setting that does not go with a fault list, or not without one."""
    problems = []
    if settings.save_faults is not None and not settings.save_faults.parent.is_dir():
        folder = settings.save_faults.parent
        problems.append(f"save_faults (--save-faults): expected the path of a file, but there is no folder {folder}")
    if settings.faults is None:
        if settings.limit is not None:
            problems.append("limit (--limit): expected a fault list, --faults FILE, to take so many faults of")
        if settings.save_faults is not None and settings.margin is not None:
            problems.append("save_faults (--save-faults): expected no margin, which draws faults as it goes on")
        return problems
    for name in names(lambda role: role.sampling):
        if getattr(settings, name) != type(settings).model_fields[name].default:
            flag = name.replace("_", "-")
            problems.append(f"{name} (--{flag}): expected no value with --faults, whose rows say what is flipped")
    if not settings.faults.is_file():
        problems.append(f"faults (--faults): expected the path of a fault list, but there is no file {settings.faults}")
    if settings.save_faults is not None and settings.save_faults.resolve() == settings.faults.resolve():
        problems.append(f"save_faults (--save-faults): expected another file than --faults, got {settings.save_faults}")
    return problems


def read(path: Path) -> FaultList:
    """Read a fault list, in our own or in the published format.

    Rows that are no faults are kept as ``problems``, to be reported by :meth:`FaultList.check` together with those
    that do not fit the model.

    Raises:
        BadInput: if the file can't be read, is no fault list, or holds no row.
    """
    table = rows(path)
    header = table[0][1] if table else []
    names = tuple(name.strip() for name in header)
    if names == PUBLISHED_HEADER:
        parse: Callable[[dict[str, str]], tuple[Fault, Published | None]] = _published
    elif names in (HEADER, (*HEADER, REPEAT)):
        parse = _own
    else:
        got = "an empty file" if not table else repr(",".join(header)[:200])
        raise BadInput(
            f"faults (--faults): expected the header {','.join(HEADER)} or {','.join(PUBLISHED_HEADER)} "
            f"in {path}, got {got}"
        )
    faults: dict[Fault, int] = {}
    published: list[Published] = []
    problems: list[tuple[int, str]] = []
    for line, row in table[1:]:
        if len(row) != len(names):
            problems.append((line, f"expected {len(names)} columns, got {len(row)}"))
            continue
        try:
            fault, known = parse({name: value.strip() for name, value in zip(names, row, strict=True)})
        except BadRow as error:
            problems += [(line, sentence) for sentence in error.args]
            continue
        if fault in faults:
            problems.append((line, f"the same fault as in line {faults[fault]}"))
            continue
        faults[fault] = line
        if known is not None:
            published.append(known)
    if not faults and not problems:
        raise BadInput(f"faults (--faults): expected at least one fault in {path}, got a header only")
    known_of_all = tuple(published) if parse is _published else None
    return FaultList(tuple(faults), tuple(faults.values()), known_of_all, tuple(problems))


def write(file: TextIO, faults: Iterable[Fault], *, repeats: bool | None = None) -> None:
    """Write faults in our own format, with or without ``repeat``; None for where it is needed."""
    if repeats is None:
        faults = list(faults)
        repeats = any(fault.repeat for fault in faults)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*HEADER, REPEAT] if repeats else HEADER)
    for fault in faults:
        writer.writerow([*fault.row, fault.repeat] if repeats else fault.row)


def stratified(faults: Sequence[Fault], count: int, seed: int) -> list[int]:
    """The places of ``count`` faults, so many of each layer and bit as is in proportion; in ascending order.

    Systematic sampling: the faults are put in order by layer and bit, in a random order within each of these strata,
    and taken at equal steps from a random start. So each fault is as likely as any other, and each stratum has
    the share of the sample that it has of the list, up to one fault (Cochran 1977, "Sampling Techniques", ch. 8).
    """
    count = min(count, len(faults))
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, len(faults)], dtype=np.uint64)))
    within = rng.permutation(len(faults))
    order = sorted(range(len(faults)), key=lambda i: (faults[i].bit, faults[i].path, faults[i].call, within[i]))
    start = rng.random()
    return sorted(order[min(int((start + k) * len(faults) / count), len(faults) - 1)] for k in range(count))


class BadRow(Exception):
    """What is wrong with a row; a sentence for each column."""


class Columns:
    """Reads the columns of a row, and collects what is wrong with them."""

    def __init__(self, row: dict[str, str]) -> None:
        self.row = row
        self.wrong: list[str] = []

    def number(self, name: str, most: int | None = None) -> int:
        """A whole number from 0."""
        text = self.row[name]
        value = int(text) if _NUMBER.fullmatch(text) else -1
        if value < 0 or (most is not None and value > most):
            upper = "" if most is None else f" to {most}"
            self.wrong.append(f"{name}: expected a whole number from 0{upper}, got {text[:40]!r}")
            return 0
        return value

    def name(self, name: str) -> str:
        """A text that is not empty."""
        text = self.row[name]
        if not text:
            self.wrong.append(f"{name}: expected a name, got nothing")
        return text

    def numbers(self, name: str, texts: list[str] | None, example: str) -> tuple[int, ...]:
        """Coordinates from their texts; None if they can't be told apart."""
        if texts is not None and all(_NUMBER.fullmatch(text.strip()) for text in texts):
            return tuple(int(text) for text in texts)
        self.wrong.append(f"{name}: expected coordinates such as {example}, got {self.row[name][:40]!r}")
        return ()

    def images(self) -> range | None:
        """The images of a fault in our own format; None for all."""
        text = self.row["image"]
        ends = [int(end) for end in text.split("-") if _NUMBER.fullmatch(end)]
        if text == "all":
            return None
        if len(ends) == text.count("-") + 1 <= 2 and ends[0] <= ends[-1]:
            return range(ends[0], ends[-1] + 1)
        self.wrong.append(f"image: expected an index, a range such as 0-255, or all, got {text[:40]!r}")
        return None

    def fault(self) -> Fault:
        """The fault of a row in our own format."""
        index = self.row["index"]
        return Fault(
            self.name("target"),
            self.row["layer"],  # empty: the model itself
            self.number("call"),
            self.numbers("index", index.split(";") if index else [], "3;0;2;1"),
            self.number("bit", most=63),
            self.images(),
            self.number(REPEAT) if REPEAT in self.row else 0,
        )

    def finish(self) -> None:
        """See that nothing was wrong.

        Raises:
            BadRow: with a sentence for each column.
        """
        if self.wrong:
            raise BadRow(*self.wrong)


def _own(row: dict[str, str]) -> tuple[Fault, None]:
    columns = Columns(row)
    fault = columns.fault()
    columns.finish()
    return fault, None


def _published(row: dict[str, str]) -> tuple[Fault, Published]:
    columns = Columns(row)
    text = row["TensorIndex"]
    inside = text[1:-1].strip().removesuffix(",")
    parts = (inside.split(",") if inside else []) if text[:1] + text[-1:] == "()" else None
    fault = Fault(
        "weight",
        columns.name("Layer"),
        0,
        columns.numbers("TensorIndex", parts, "(3, 0, 2, 1)"),
        PUBLISHED_WIDTH - 1 - columns.number("Bit", most=PUBLISHED_WIDTH - 1),
    )
    names = ("Injection", "n_injections", "masked", "non_critical", "critical")
    known = Published(*(columns.number(name) for name in names))
    if not columns.wrong and (known.images == 0 or known.masked + known.non_critical + known.critical != known.images):
        columns.wrong.append(
            f"masked, non_critical, critical: expected a sum of n_injections, more than 0, got {known.masked} + "
            f"{known.non_critical} + {known.critical} of {known.images}"
        )
    columns.finish()
    return fault, known


def rows(path: Path, setting: str = SETTING) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, each with its line; ``setting`` names it in messages."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{setting}: {path} can't be read ({error.strerror})") from error
    wrong, where = "", 0
    try:
        text = data.decode("utf-8-sig")
        wrong, where = ("a NUL byte", data.index(b"\0")) if "\0" in text else ("", 0)
    except UnicodeDecodeError as error:
        text, wrong, where = "", "bytes that are not UTF-8", error.start
    if wrong:
        line = data.count(b"\n", 0, where) + 1
        raise BadInput(f"{setting}: expected text in {path}, got {wrong} in line {line}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found = []
    try:
        for row in reader:
            if row:
                found.append((reader.line_num, row))
    except csv.Error as error:
        raise BadInput(f"{setting}: {path}, line {reader.line_num}: {error}") from error
    return found


def sentences(path: Path, problems: Sequence[tuple[int, str]]) -> list[str]:
    """What is wrong with the lines of a file, in words; the first :data:`SHOWN` of them."""
    shown = [f"faults (--faults): {path}, line {line}: {sentence}" for line, sentence in problems[:SHOWN]]
    left = len(problems) - len(shown)
    return [*shown, f"faults (--faults): {path}: and {left} more"] if left else shown
