"""A fault list: faults as values, and the files that they are written to and read from.

Our own format is CSV with the header ``target,layer,call,index,bit,image``, one row a fault:

========  ==============================================================================================
target    ``neuron``, or the name of the parameter that is flipped, such as ``weight``
layer     the module's path in the model, empty for the model itself; for neurons, ``input`` is the image
call      0 for the module's first call in a forward pass, 1 for its second, ...
index     coordinates in one image's output, or in the parameter, joined by ``;``: ``3;0;2;1``
bit       counted from the most significant bit: of a float32, 0 is the sign, 1-8 exponent, 9-31 mantissa; several
          bits are joined by ``;``
image     index in the test set, or the first and the last of several, ``0-255``, or ``all``
========  ==============================================================================================

A column ``fault`` says what happens to the bits, if it is not ``flip`` for all: ``flip``, ``stuck0``, ``stuck1``, or,
without a bit, ``zero`` or ``value:X``, see :mod:`bitflip.faults.kinds`. A last column ``repeat`` (0, 1, ...) is there
only where a run draws several flips per image or batch, which can be the very same fault.

The published format, ``Injection,Layer,TensorIndex,Bit,n_injections,masked,non_critical,critical``, is recognised by
its header. It lists flips in the ``weight`` of float32 models, each run on all images, and counts bits from the
least significant end; they are converted here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from bitflip import csvs, files
from bitflip.csvs import BadRow, Row
from bitflip.errors import BadInput, nearest
from bitflip.faults import kinds
from bitflip.faults.kinds import Kind
from bitflip.network.layers import Layer
from bitflip.settings.hyperparameters import Hyperparameters, names

HEADER = ("target", "layer", "call", "index", "bit", "image")
FAULT = "fault"
REPEAT = "repeat"
PUBLISHED_HEADER = ("Injection", "Layer", "TensorIndex", "Bit", "n_injections", "masked", "non_critical", "critical")
PUBLISHED_WIDTH = 32
SETTING = "faults (--faults)"
SAVE = "save_faults (--save-faults)"
LISTED = "flip, stuck0, stuck1, zero or value:X"
SHOWN = 20  # bad rows that are printed

Key = tuple[str, str, int, int]  # target, path, call, bit


@dataclass(frozen=True)
class Fault:
    """Bits of one element, flipped or stuck for some images.

    Attributes:
        target: ``neuron``, or the name of the parameter, such as ``weight``.
        path: of the layer's module.
        call: of that module in a forward pass, from 0.
        index: coordinates of the element, in one image's output or in the parameter.
        bit: from the most significant one; of several the first, 0 of a whole value.
        images: of the test set, for which the fault is there; None for all.
        repeat: tells apart faults that are otherwise equal.
        kind: what happens to the bits: ``flip``, ``stuck0``, ``stuck1``, ``zero`` or ``value:X``.
        more: the other bits, ascending.
    """

    target: str
    path: str
    call: int
    index: tuple[int, ...]
    bit: int
    images: range | None = None
    repeat: int = 0
    kind: str = "flip"
    more: tuple[int, ...] = ()

    @property
    def bits(self) -> tuple[int, ...]:
        """All bits that are named; none of a whole value."""
        return () if kinds.of(self.kind).whole else (self.bit, *self.more)

    @property
    def key(self) -> Key:
        """What it shares with the other faults of its bit in its layer."""
        return self.target, self.path, self.call, self.bit

    def further(self, columns: Sequence[str]) -> list[str | int]:
        """What is in further columns, :data:`FAULT` and :data:`REPEAT`."""
        return [self.kind if column == FAULT else self.repeat for column in columns]

    @property
    def image_text(self) -> str:
        """The images as in the file: ``all``, ``7`` or ``0-255``."""
        if self.images is None:
            return "all"
        return str(self.images[0]) if len(self.images) == 1 else f"{self.images[0]}-{self.images[-1]}"

    @property
    def row(self) -> tuple[str, str, int, str, str, str]:
        """The columns of :data:`HEADER`."""
        index, struck = (";".join(map(str, some)) for some in (self.index, self.bits))
        return self.target, self.path, self.call, index, struck, self.image_text


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
        path: of the file.
    """

    faults: tuple[Fault, ...]
    lines: tuple[int, ...]
    published: tuple[Published, ...] | None = None
    problems: tuple[tuple[int, str], ...] = ()
    path: Path = Path("faults.csv")

    def __len__(self) -> int:
        return len(self.faults)

    def only(self, chosen: Sequence[int]) -> FaultList:
        """Some of the faults, given by their places."""
        published = None if self.published is None else tuple(self.published[i] for i in chosen)
        faults, lines = tuple(self.faults[i] for i in chosen), tuple(self.lines[i] for i in chosen)
        return replace(self, faults=faults, lines=lines, published=published)

    def check(self, layers: Sequence[Layer], images: int, neurons: bool, *, single: bool = False) -> None:
        """See that every fault can be injected.

        Args:
            layers: of the model.
            images: in the test set.
            neurons: whether neuron faults are to be run, or faults of parameters.
            single: whether each has to be of one bit, which is what a code corrects.

        Raises:
            BadInput: with all bad rows, those that :func:`read` found among them.
        """
        problems = [*self.problems, *(self._of_several() if single else [])]
        check = _Check(layers, images, neurons)
        for line, fault in zip(self.lines, self.faults, strict=True):
            problems += [(line, sentence) for sentence in check(fault)]
        if problems:
            raise BadInput(*sentences(self.path, sorted(problems)))

    def require_single(self) -> None:
        """See that every fault is of one bit, which is what a code corrects; needs no model.

        Raises:
            BadInput: with all rows that are not.
        """
        if problems := self._of_several():
            raise BadInput(*sentences(self.path, problems))

    def _of_several(self) -> list[tuple[int, str]]:
        said = "bit: expected one with protect (--protect) ecc, which corrects one bit, got"
        return [
            (line, f"{said} {'several' if fault.bits else 'a whole value'}")
            for line, fault in zip(self.lines, self.faults, strict=True)
            if len(fault.bits) != 1
        ]


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
        if (last := (fault.bit, *fault.more)[-1]) >= width:
            sentences.append(f"bit: expected 0 to {width - 1} of a value of {width} bits, got {last}")
        if len(fault.kind) > len("value:0x") + width // 4 and kinds.of(fault.kind).check(width, None, ""):
            sentences.append(f"fault: expected bits of a value of {width} bits, got {fault.kind}")
        return sentences


def place_of(layer: Layer, target: str) -> tuple[tuple[int, ...], int] | None:
    """Shape and width in bits of what a target flips in a layer; None if the layer has no such parameter."""
    if target == "neuron":
        return layer.shape, layer.bits
    parameter = layer.parameter(target)
    return None if parameter is None else (parameter.shape, parameter.bits)


def check_settings(settings: Hyperparameters) -> list[str]:
    """One sentence per setting that does not go with a fault list, or not without one."""
    problems = [] if settings.save_faults is None else files.check_place(SAVE, settings.save_faults)
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
    table = csvs.Table(path, SETTING)
    names = tuple(name.strip() for name in table.header)
    more = [name for name in (FAULT, REPEAT) if name in names]
    if names not in (PUBLISHED_HEADER, (*HEADER, *more)):
        raise BadInput(
            f"{SETTING}: expected the header {','.join(HEADER)} or {','.join(PUBLISHED_HEADER)} in {path}, "
            f"got {table.got}"
        )

    def parse(row: Row) -> tuple[Fault, Published | None]:
        row.cells = {name.strip(): text.strip() for name, text in row.cells.items()}
        found = _published(row) if names == PUBLISHED_HEADER else (own(row), None)
        row.finish()
        return found

    faults: dict[Fault, int] = {}
    published: list[Published] = []
    problems: list[tuple[int, str]] = []
    for line, (fault, known) in table.values(parse, problems):
        if fault in faults:
            problems.append((line, f"the same fault as in line {faults[fault]}"))
            continue
        faults[fault] = line
        if known is not None:
            published.append(known)
    if not faults and not problems:
        raise BadInput(f"{SETTING}: expected at least one fault in {path}, got a header only")
    known_of_all = tuple(published) if names == PUBLISHED_HEADER else None
    return FaultList(tuple(faults), tuple(faults.values()), known_of_all, tuple(problems), path)


def columns_of(faults: Sequence[Fault]) -> tuple[str, ...]:
    """The columns that some faults need beside those of :data:`HEADER`."""
    needed = {FAULT: any(fault.kind != "flip" for fault in faults), REPEAT: any(fault.repeat for fault in faults)}
    return tuple(name for name, true in needed.items() if true)


def write(file: TextIO, faults: Iterable[Fault], more: Sequence[str] | None = None) -> None:
    """Write faults in our own format, with the further columns :data:`FAULT`, :data:`REPEAT`; None for those needed."""
    if more is None:
        faults = list(faults)
        more = columns_of(faults)
    writer = csvs.Writer(file)
    writer.writerow([*HEADER, *more])
    for fault in faults:
        writer.writerow([*fault.row, *fault.further(more)])


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


def own(row: Row) -> Fault:
    """The fault of a row in our own format; what is wrong is noted there."""
    index = row["index"]
    kind = row.get(FAULT) or "flip"
    if not kinds.is_listed(kind):
        kind = row.unlike(FAULT, LISTED, "flip")
    bit, *more = _bits(row, kinds.of(kind))
    return Fault(
        row.name("target"),
        row["layer"],  # empty: the model itself
        row.count("call"),
        _coordinates(row, "index", index.split(";") if index else [], "3;0;2;1"),
        bit,
        _images(row),
        row.count(REPEAT) if REPEAT in row else 0,
        kind,
        tuple(more),
    )


def _bits(row: Row, kind: Kind) -> list[int]:
    """The bits of a row, ascending."""
    if kind.whole:
        return [0] if not row["bit"] else row.unlike("bit", f"nothing, as {row[FAULT]} replaces the value", [0])
    if ";" not in row["bit"]:
        return [row.count("bit", most=63)]
    found = _coordinates(row, "bit", row["bit"].split(";"), "1;7")
    if len(set(found)) != len(found) or max(found, default=0) > 63:
        return row.unlike("bit", "different bits from 0 to 63, such as 1;7", [0])
    return sorted(found) or [0]


def _published(row: Row) -> tuple[Fault, Published]:
    text = row["TensorIndex"]
    inside = text[1:-1].strip().removesuffix(",")
    parts = (inside.split(",") if inside else []) if text[:1] + text[-1:] == "()" else ["?"]
    fault = Fault(
        "weight",
        row.name("Layer"),
        0,
        _coordinates(row, "TensorIndex", parts, "(3, 0, 2, 1)"),
        PUBLISHED_WIDTH - 1 - row.count("Bit", most=PUBLISHED_WIDTH - 1),
    )
    known = Published(
        *(row.count(name) for name in ("Injection", "n_injections", "masked", "non_critical", "critical"))
    )
    row.finish()
    if known.images == 0 or known.masked + known.non_critical + known.critical != known.images:
        raise BadRow(
            f"masked, non_critical, critical: expected a sum of n_injections, more than 0, got {known.masked} + "
            f"{known.non_critical} + {known.critical} of {known.images}"
        )
    return fault, known


def _coordinates(row: Row, column: str, texts: Sequence[str], example: str) -> tuple[int, ...]:
    found = tuple(number for text in texts if (number := csvs.whole(text.strip())) is not None)
    return found if len(found) == len(texts) else row.unlike(column, f"coordinates such as {example}", ())


def _images(row: Row) -> range | None:
    first, *more = map(csvs.whole, row["image"].split("-"))
    last = first if not more else more[0]
    if first is not None and last is not None and first <= last and len(more) < 2:
        return range(first, last + 1)
    return None if row["image"] == "all" else row.unlike("image", "an index, a range such as 0-255, or all", None)


def sentences(path: Path, problems: Sequence[tuple[int, str]]) -> list[str]:
    """What is wrong with the lines of a file, in words: each complaint once, and the first :data:`SHOWN` of them."""
    lines: dict[str, list[int]] = {}
    for line, sentence in problems:
        lines.setdefault(sentence, []).append(line)
    shown = [
        f"{SETTING}: {path}, line {of[0]}{f' and {len(of) - 1} more' if of[1:] else ''}: {sentence}"
        for sentence, of in list(lines.items())[:SHOWN]
    ]
    left = sum(map(len, list(lines.values())[SHOWN:]))
    return [*shown, f"{SETTING}: {path}: and {left} more"] if left else shown
