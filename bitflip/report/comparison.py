"""Two runs held against each other: by how much does the misclassification rate of each layer differ, and how surely?

Where both runs made the same faults, each fault is compared with itself. What the faults have in common then cancels
out, and the interval is narrower, often much, than that of two independent rates. docs/statistics.md says more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitflip.errors import BadInput
from bitflip.faults.allocation import Stratum, strata
from bitflip.report import record
from bitflip.report.runs import Place, Row, Run, parameters_of
from bitflip.report.summary import sums
from bitflip.settings.hyperparameters import Hyperparameters, changes_results, role_of
from bitflip.statistics import intervals
from bitflip.statistics.intervals import Estimate, Sums
from bitflip.statistics.rates import Part, weights

Ints = NDArray[np.int64]
Key = tuple[str, int, str]  # path, call and parameter of a layer


@dataclass(frozen=True)
class Difference:
    """How two rates differ; all numbers are in percent, or percentage points.

    Attributes:
        first, second: the rates; None with no image that could be misclassified.
        value: the second less the first.
        low, high: its confidence interval.
        compared: faulty inferences that were compared with themselves; None if the faults are not the same.
    """

    first: float | None
    second: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    compared: int | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out that there is no difference."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """The second of two runs against the first.

    Attributes:
        layers: the layers that both have, each with its difference.
        network: the difference of the means over these layers, each of which counts the same; None without it.
        paired: whether each fault was compared with itself.
        why: a sentence that says why, or why not.
        unmatched: a sentence for each layer that only one of the runs has.
        differing: in what the runs differ beside the faults: model, data, settings that results depend on.
        confidence: of the intervals.
    """

    layers: tuple[tuple[Place, Difference], ...]
    network: Difference | None
    paired: bool
    why: str
    unmatched: tuple[str, ...]
    confidence: float
    differing: tuple[str, ...] = ()


def compare(first: Run, second: Run) -> Comparison:
    """Compare two runs layer by layer; layers are matched by module path, call and parameter.

    Raises:
        BadInput: if they flip different things, have no layer in common, or a file is damaged.
    """
    if first.target != second.target:
        raise BadInput(
            f"expected two runs of one target, got {first.target} faults in {first.files.table.name} and "
            f"{second.target} faults in {second.files.table.name}"
        )
    if first.confidence != second.confidence:
        raise BadInput(
            f"expected two runs with the same confidence, got {first.confidence:g} in {first.files.table.name} and "
            f"{second.confidence:g} in {second.files.table.name}"
        )
    rows, others = ({_key(row.place, run.target): row for row in run.layers} for run in (first, second))
    common = [key for key in rows if key in others]
    unmatched = [f"{rows[key].place.named} is only in the first run" for key in rows if key not in others]
    unmatched += [f"{others[key].place.named} is only in the second run" for key in others if key not in rows]
    if not common:
        raise BadInput(
            f"{first.files.table.name} and {second.files.table.name} have no layer in common (module path, call and "
            "parameter)"
        )
    differing = tuple(_differing(first, second))
    pairs = _pairs(first, second, [(rows[key], others[key]) for key in common])
    if isinstance(pairs, str):
        layers = tuple((rows[key].place, _unpaired(rows[key], others[key], first, second)) for key in common)
        network = None if unmatched else _means(first, second)
        return Comparison(layers, network, False, pairs, tuple(unmatched), first.confidence, differing)
    of_bits = [
        strata(first.width_of(rows[key].place), first.number_of(rows[key].place)) if first.weighted else None
        for key in common
    ]
    layers = tuple(
        (rows[key].place, _paired(pair, groups, first.confidence))
        for key, pair, groups in zip(common, pairs, of_bits, strict=True)
    )
    known = [index for index, pair in enumerate(pairs) if pair.images]
    network = None
    if known and not unmatched:
        parts = [pairs[index].parts(of_bits[index]) for index in known]
        firsts, seconds = (
            float(np.mean([getattr(layers[index][1], name) for index in known])) for name in ("first", "second")
        )
        found = _of_parts(parts, first.confidence)
        found = replace(found, rate=(seconds - firsts) / 100)  # a layer counts the same if a bit of it was not hit
        network = _percent(firsts / 100, seconds / 100, found, sum(pairs[index].images for index in known))
    why = "both runs made the same faults on the same images, so each is compared with itself"
    return Comparison(layers, network, True, why, tuple(unmatched), first.confidence, differing)


def _differing(one: Run, other: Run) -> Iterator[str]:
    """In what two runs of one target differ that results depend on, as far as their files say; a phrase each."""
    first, second = one.facts, other.facts
    for what, name, key in (
        ("weights", "model", "sha256"),
        ("model code", "model", "code_sha256"),
        ("images or labels", "data", "sha256"),
        ("bounds of the protection", "protection", "bounds_sha256"),
    ):
        a, b = (facts.get(name) for facts in (first, second))
        if isinstance(a, dict) and isinstance(b, dict) and key in a and key in b and a[key] != b[key]:
            yield what
    listed = one.listed or other.listed
    settings = {**one.settings, **other.settings} if one.settings and other.settings else {}
    for name in settings:
        if changes_results(name, one.target) and not (listed and role_of(name).sampling):
            a, b = _set(one, name), _set(other, name)
            alike = name == "number_format" and {a, b} == {None, "float32"} and _float32(one) and _float32(other)
            if a != b and UNKNOWN not in (a, b) and not alike:
                yield f"{name} ({written(a)}, {written(b)})"
    for name in ("engine", "device"):  # that were used, whatever was asked for
        if name in first and name in second and first[name] != second[name]:
            yield f"{name} ({first[name]}, {second[name]})"


UNKNOWN = object()


def written(value: object) -> str:
    """A setting's value for a reader."""
    return "none" if value is None else str(value)


def _set(run: Run, name: str) -> object:
    """What a run had for a setting; an earlier version, which did not know it, did as its default says."""
    if name == "faults":  # wherever the list was
        return run.listed
    field = Hyperparameters.model_fields.get(name)
    return run.settings.get(name, UNKNOWN if field is None else field.default)


def _float32(run: Run) -> bool:
    """Whether its ``.json`` knows of layers and parameters of float32 only, which ``float32`` leaves as they are."""
    layers = [item for item in run.facts.get("layers", []) if isinstance(item, dict)]
    stored = [*layers, *(tensor for layer in layers for tensor in parameters_of(layer))]
    return bool(stored) and all(item.get("format") == "float32" for item in stored)


def _key(place: Place, target: str) -> Key:
    return place.path, place.call, "" if target == "neuron" else place.parameter or "weight"


# --- other faults ---


def _unpaired(a: Row, b: Row, first: Run, second: Run) -> Difference:
    nothing = Difference(a.rate.value, b.rate.value)
    if a.rate.value is None or b.rate.value is None:
        return nothing
    if _single(a, first) and _single(b, second):
        m1, n1, m2, n2 = map(float, (b.misclassified, b.correct, a.misclassified, a.correct))
        found = intervals.unpaired(m1, n1, m2, n2, first.confidence)
        return _percent(a.rate.value / 100, b.rate.value / 100, found)
    estimates = [_estimate(row.rate.value, row.rate.interval) for row in (b, a)]
    if None in estimates:
        return replace(nothing, value=b.rate.value - a.rate.value)
    found = intervals.difference(*(estimate for estimate in estimates if estimate is not None))
    return _percent(a.rate.value / 100, b.rate.value / 100, found)


def _single(row: Row, run: Run) -> bool:
    """Whether the faults of a row are independent images: not where a list has faults that hit several each."""
    if run.target != "neuron" or run.weighted:
        return False
    all_ = sums([row], run.target)
    return all_.nn == all_.n


def _means(first: Run, second: Run) -> Difference | None:
    """The difference of the networks' mean rates, as the runs wrote them."""
    rates = [next((mean.rate for mean in run.means if mean.of == "network"), None) for run in (first, second)]
    a, b = (None if rate is None else _estimate(rate.value, rate.interval) for rate in rates)
    return None if a is None or b is None else _percent(a.rate, b.rate, intervals.difference(b, a))


def _estimate(value: float | None, interval: tuple[float, float] | None) -> Estimate[float] | None:
    if value is None or interval is None:
        return None
    return Estimate(value / 100, interval[0] / 100, interval[1] / 100)


# --- the same faults ---


@dataclass(frozen=True)
class _Pairs:
    """The faults of one layer, over the images that both runs classify correctly: a value per flip.

    Attributes:
        size: images of each flip.
        first, second: those of them that it breaks in the one run and the other.
        only_first, only_second: those that it breaks in one run only.
        bit: that flips.
        single: whether each is one image of its own, so that all of them are independent.
    """

    size: Ints
    first: Ints
    second: Ints
    only_first: Ints
    only_second: Ints
    bit: Ints
    single: bool = False

    @property
    def images(self) -> int:
        """Faulty inferences that are compared."""
        return int(self.size.sum())

    def parts(self, of_bits: Sequence[Stratum] | None) -> list[Part]:
        """Sums over flips of a share in 0..1: (1 + d) / 2, where d is the difference of the shares that a flip breaks.

        Args:
            of_bits: groups of bits that weigh as given, whatever the number of their flips; one part for each.
        """
        if of_bits is None:
            return [Part(self._sums(self.size > 0))]
        return [Part(self._sums((self.size > 0) & np.isin(self.bit, group)), share) for group, share in of_bits]

    def _sums(self, chosen: NDArray[np.bool_]) -> Sums[float]:
        n = self.size[chosen].astype(np.float64)
        m = (n + self.second[chosen] - self.first[chosen]) / 2
        totals = (m.sum(), n.sum(), (m * m).sum(), (m * n).sum(), (n * n).sum())
        return Sums(float(len(n)), *map(float, totals))


def _paired(pairs: _Pairs, of_bits: Sequence[Stratum] | None, confidence: float) -> Difference:
    """The difference of one layer; see :meth:`_Pairs.parts`."""
    if not pairs.images:
        return Difference(None, None, compared=0)
    n = pairs.images
    first, second = int(pairs.first.sum()) / n, int(pairs.second.sum()) / n
    if pairs.single and of_bits is None:
        only = (float(pairs.only_second.sum()), float(pairs.only_first.sum()))
        return _percent(first, second, intervals.paired(*only, float(n), confidence), n)
    found = _of_parts([pairs.parts(of_bits)], confidence)
    if of_bits is not None:  # the rates of a random bit, like the difference
        first, second = (_of_random_bit(pairs, broken, of_bits) for broken in (pairs.first, pairs.second))
    return _percent(first, second, found, n)


def _of_parts(layers: Sequence[Sequence[Part]], confidence: float) -> Estimate[float]:
    """The mean difference of layers."""
    sums = [part.sums for parts in layers for part in parts]
    return _signed(intervals.mean(sums, weights(layers), confidence))


def _of_random_bit(pairs: _Pairs, broken: Ints, of_bits: Sequence[Stratum]) -> float:
    """The rate of a random bit, as far as it is known."""
    chosen = [(np.isin(pairs.bit, group), share) for group, share in of_bits]
    known = [(hit, share) for hit, share in chosen if pairs.size[hit].any()]
    each = [share * broken[hit].sum() / pairs.size[hit].sum() for hit, share in known]
    return float(sum(each) / sum(share for _, share in known))


def _signed(share: Estimate[float]) -> Estimate[float]:
    """Of (1 + d) / 2 to d."""
    return Estimate(2 * share.rate - 1, 2 * share.low - 1, 2 * share.high - 1)


def _percent(first: float, second: float, found: Estimate[float], compared: int | None = None) -> Difference:
    return Difference(100 * first, 100 * second, 100 * found.rate, 100 * found.low, 100 * found.high, compared)


_STRUCK = ("image", "element", "bit")
_COLUMNS = (*_STRUCK, "label", "clean_top1", "top1")


def _pairs(first: Run, second: Run, rows: Sequence[tuple[Row, Row]]) -> list[_Pairs] | str:
    """The faults of each layer, or why they can't be paired.

    What counts as one is an image with a flip of its own if the faults of neurons were sampled, a batch if those of
    weights were, and all images that a fault of a list hits.
    """
    for run in (first, second):
        if not run.files.faults.exists():
            return f"faults can't be paired without {run.files.faults.name} (--fault-table)"
    listed = first.listed is not None and second.listed is not None
    sizes = {run.settings.get("batch_size") for run in (first, second)}
    if first.target == "weight" and not listed and len(sizes) > 1:
        return "the batches that a weight flip hits differ in size"
    tables = [faults_by_layer(run.files.faults) for run in (first, second)]
    batch = next(iter(sizes))
    size = batch if isinstance(batch, int) and batch > 0 else 1
    found = []
    for row, other in rows:
        place = row.place
        a, b = (table.get((at.layer, at.parameter)) for table, at in zip(tables, (place, other.place), strict=True))
        if a is None or b is None:
            return f"the fault tables do not both hold the layer {place.named}"
        if any(not np.array_equal(a[name], b[name]) for name in _COLUMNS[:4]):
            return f"the runs made other faults, or on other images (such as in the layer {place.named})"
        if first.target == "neuron" and (not listed or _single(row, first) or _single(other, second)):
            found.append(_by_image(a, b))
        else:
            found.append(_by_flip(a, b, None if listed else size))
    return found


def _broken(a: Mapping[str, Ints], b: Mapping[str, Ints]) -> list[NDArray[np.bool_]]:
    """Of each row of two tables: whether it is compared, broken in the one, the other, and only in one of them."""
    both = (a["clean_top1"] == a["label"]) & (b["clean_top1"] == b["label"])
    broken, other = (both & record.misclassified(run["label"], run["clean_top1"], run["top1"]) for run in (a, b))
    return [both, broken, other, broken & ~other, other & ~broken]


def _by_image(a: Mapping[str, Ints], b: Mapping[str, Ints]) -> _Pairs:
    size, *counts = (true.astype(np.int64) for true in _broken(a, b))
    return _Pairs(size, counts[0], counts[1], counts[2], counts[3], a["bit"], single=True)


def _by_flip(a: Mapping[str, Ints], b: Mapping[str, Ints], batch_size: int | None) -> _Pairs:
    """The images of each flip in each batch, or in all batches together if there is no ``batch_size``.

    Faults of a list that change the same bit of the same value, in other ways, are as many as they are on an image; on
    different images they are taken as one: the table does not tell them apart.
    """
    bit, flip = flips_of(a, batch_size)
    size, *counts = (np.bincount(flip, true, len(bit)).astype(np.int64) for true in _broken(a, b))
    return _Pairs(size, counts[0], counts[1], counts[2], counts[3], bit)


def flips_of(table: Mapping[str, Ints], batch_size: int | None) -> tuple[Ints, Ints]:
    """The bit of each flip, and which one each row of a table is of; for ``batch_size`` see :func:`_by_flip`.

    What was drawn more than once, as the few bits of a zero point are, is so many flips.
    """
    keys = np.stack([table[name] for name in _STRUCK])  # rows that are alike follow each other
    starts = np.flatnonzero(np.r_[True, (np.diff(keys) != 0).any(axis=0)][: keys.shape[1]])
    copy = np.arange(keys.shape[1]) - np.repeat(starts, np.diff(np.r_[starts, keys.shape[1]]))
    batch = np.zeros_like(keys[0]) if batch_size is None else keys[0] // batch_size
    flips, flip = np.unique(np.stack([batch, *keys[1:], copy]), axis=1, return_inverse=True)
    return flips[2], flip.ravel()


def faults_by_layer(path: Path) -> dict[tuple[int, str], dict[str, Ints]]:
    """The columns that matter of a fault table, by layer and parameter, each in one order.

    That is by what is struck. Rows that are alike in this stay as they follow each other in the table, which is the
    order of their faults, whatever came of them.
    """
    try:
        table = pq.read_table(path, columns=["layer", "parameter", *_COLUMNS], page_checksum_verification=True)
        names = table.column("parameter").cast("string").to_numpy(zero_copy_only=False).astype(str)
        columns = {name: table.column(name).to_numpy().astype(np.int64) for name in ("layer", *_COLUMNS)}
    except Exception as error:  # a damaged file makes its reader raise anything
        raise record.damaged(path, error) from error
    known, code = np.unique(names, return_inverse=True)
    order = np.lexsort([columns[name] for name in reversed(_STRUCK)] + [code, columns["layer"]])
    layer, code = columns["layer"][order], code[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(layer) != 0) | (np.diff(code) != 0)]) if len(order) else order
    ends = np.r_[starts[1:], len(order)]
    return {
        (int(layer[start]), str(known[code[start]])): {name: columns[name][order[start:end]] for name in _COLUMNS}
        for start, end in zip(starts, ends, strict=False)
    }
