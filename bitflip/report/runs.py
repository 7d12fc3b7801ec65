"""What a run found out, as its result files hold it: one frozen type per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitflip.faults.allocation import Number, number
from bitflip.network.fields import SEVERAL
from bitflip.network.names import label, named
from bitflip.results import columns
from bitflip.results.paths import Paths
from bitflip.statistics.rates import Rate


@dataclass(frozen=True)
class Place:
    """Where bits were flipped: a layer's output, or one parameter tensor of a layer.

    Attributes:
        layer: its number.
        type: of the layer's module, such as ``Conv2d``.
        path: of the module in the model.
        call: which call of the module, from 0.
        parameter: name of the tensor; empty for neurons and in files of earlier versions.
    """

    layer: int
    type: str
    path: str
    call: int
    parameter: str

    @property
    def label(self) -> str:
        """The place for people: ``layer1.0.relu (2nd call)``, ``conv1.bias``."""
        return label(self.path, self.call, self.parameter)

    @property
    def named(self) -> str:
        """The place as sentences name it: ``#5 Linear (path 4)``."""
        return named(self.layer, self.type, self.path, self.call, self.parameter)


@dataclass(frozen=True)
class Outcomes:
    """What happened to the faulty inferences of a row, as far as its file says.

    Attributes:
        counts: by column of :data:`bitflip.results.columns.KNOWN`; flips and injections are always there.
        largest_change: of the clean top-1 class's probability, 0 to 1; None if not known.
        squares: sums over flips that clustered intervals need, see :class:`bitflip.outcomes.counts.Totals`; None if not
            known.
    """

    counts: Mapping[str, int]
    largest_change: float | None
    squares: tuple[int, ...] | None = None

    def __getitem__(self, column: str) -> float | None:
        return self.largest_change if column == columns.CHANGE else self.counts.get(column)

    @property
    def flips(self) -> int:
        """Flips that were made."""
        return self.counts["flips"]

    @property
    def injections(self) -> int:
        """Images that were run with a flip."""
        return self.counts["injections"]

    def share(self, column: str) -> float | None:
        """Percent of the injections that a count is; None if it is not known, or there are none."""
        count = self[column]
        return None if count is None or not self.injections else 100 * count / self.injections

    def __add__(self, other: Outcomes) -> Outcomes:
        counts = {name: count + other.counts[name] for name, count in self.counts.items() if name in other.counts}
        change = squares = None
        if self.largest_change is not None and other.largest_change is not None:
            change = max(self.largest_change, other.largest_change)
        if self.squares is not None and other.squares is not None:
            squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        return Outcomes(counts, change, squares)


@dataclass(frozen=True)
class Row:
    """A row of the ``.csv`` (``bit`` is None) or of the ``_bits.csv``.

    Attributes:
        place: the layer.
        misclassified: clean-correct images whose top-1 changed.
        correct: faulty inferences whose image the clean model classifies correctly.
        rate: in percent.
        outcomes: None in files of earlier versions.
        bit: counted from the most significant one.
        seeds: in a joined table, the rate of each seed.
    """

    place: Place
    misclassified: int
    correct: int
    rate: Rate
    outcomes: Outcomes | None
    bit: int | None = None
    seeds: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Mean:
    """The mean rate of the network, or of the layers of one type (``of``)."""

    of: str
    name: str
    rate: Rate
    seeds: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run, or several seeds joined.

    Attributes:
        files: where it is.
        seeds: one, or those that were joined.
        layers: a row per layer.
        bits: a row per layer and bit; empty in results of earlier versions.
        means: as the run wrote them, or of the joined seeds.
        facts: the content of the ``.json``, empty when it is not there.
        left_out: sentences on what was not joined.
        output_path: the setting, which says nothing about where the files are now.
    """

    files: Paths
    seeds: tuple[int, ...]
    layers: tuple[Row, ...]
    bits: tuple[Row, ...]
    means: tuple[Mean, ...]
    facts: Mapping[str, Any]
    left_out: tuple[str, ...] = field(default=())
    output_path: str | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The hyperparameters."""
        settings: Mapping[str, Any] = self.facts.get("settings", {})
        return settings

    @property
    def target(self) -> str:
        """``neuron`` or ``weight``."""
        prefix = "weight" if self.files.stem.startswith("weight_") else "neuron"
        return str(self.facts.get("target", prefix))

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.facts.get("complete", not self.files.stem.endswith("_partial")))

    @property
    def confidence(self) -> float:
        """Of the intervals."""
        return float(self.facts.get("confidence") or 0.95)

    @property
    def weighted(self) -> bool:
        """Whether bits were drawn unequally, so that a layer's rate is no longer misclassified / correct."""
        fixed = self.settings.get("bit_flip_pos", -1) >= 0
        return self.settings.get("bit_sampling") == "importance" and not fixed and bool(self.bits)

    @property
    def form(self) -> object:
        """Number format of all values that were struck, or :data:`SEVERAL`; None if it is not known."""
        found = {self.form_of(row.place) for row in self.layers}
        return found.pop() if len(found) == 1 else SEVERAL

    @property
    def by_format(self) -> list[Run]:
        """The run of each number format, for bits mean something else in each; the order of the first layers."""
        forms = list(dict.fromkeys(self.form_of(row.place) for row in self.layers))
        if len(forms) == 1:
            return [self]

        def of(rows: tuple[Row, ...], form: object) -> tuple[Row, ...]:
            return tuple(row for row in rows if self.form_of(row.place) == form)

        return [replace(self, layers=of(self.layers, form), bits=of(self.bits, form)) for form in forms]

    def form_of(self, place: Place) -> object:
        """Number format of the values of a layer; in a network of ``int8``, some parameters are of another."""
        setting = self.settings.get("number_format")
        return next((item["format"] for item in self._values(place) if item.get("format")), setting)

    def number_of(self, place: Place) -> Number:
        """Kind of the values of a layer."""
        return number(self.form_of(place)) if self.width_of(place) == 8 else "float"

    def _values(self, place: Place | None) -> list[dict[str, Any]]:
        """What the ``.json`` says of the values of a layer, or of all."""
        layers = [item for item in self.facts.get("layers", []) if isinstance(item, dict)]
        chosen = [item for item in layers if place is None or item.get("number") == place.layer]
        if self.target != "weight":
            return chosen
        name = None if place is None else place.parameter or "weight"
        tensors = [tensor for item in chosen for tensor in parameters_of(item)]
        return [tensor for tensor in tensors if name in (None, tensor.get("name"))]

    def width_of(self, place: Place | None = None) -> int:
        """Bits of the values of a layer, or of the widest; at least as many as a flip has hit."""
        known = [item.get("bits") for item in self._values(place)]
        widest = max([bits for bits in known if isinstance(bits, int) and bits <= 64], default=0)
        hit = [row.bit for row in self.bits if row.bit is not None and place in (None, row.place)]
        seen = max(hit, default=0) + 1
        return max(widest, seen) if widest else next(width for width in (32, 64) if seen <= width)

    @property
    def has_intervals(self) -> bool:
        """Whether any layer has an interval."""
        return any(row.rate.interval for row in self.layers)

    @property
    def bounded(self) -> bool:
        """Whether bounds showed of some faults that they are harmless, so that they were not run."""
        return bool(self.settings.get("prove"))

    @property
    def any_due(self) -> bool:
        """Whether the model raised an exception in any faulty inference."""
        return any(row.outcomes and row.outcomes["due"] for row in self.layers)

    @property
    def name(self) -> str:
        """Model and data set."""
        if not self.settings:
            return self.files.stem
        return f"{self.settings.get('model_name')} on {self.settings.get('dataset')}"

    @property
    def title(self) -> str:
        """The run in a line."""
        parts = [f"{self.name}: {self.target} faults"]
        if "images" in self.facts:
            parts.append(f"{self.facts['images']} images")
        parts.append(f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else self.origin)
        if not self.complete:
            parts.append("interrupted")
        return ", ".join(parts)

    @property
    def listed(self) -> str | None:
        """Name of the fault list that was run; None if the faults were sampled."""
        return Path(str(self.settings["faults"])).name if self.settings.get("faults") else None

    @property
    def origin(self) -> str:
        """Where the faults of a single run came from."""
        return f"seed {self.seeds[0]}" if self.listed is None else f"faults of {self.listed}"

    @property
    def types(self) -> list[str]:
        """Layer types in order of appearance."""
        return list(dict.fromkeys(row.place.type for row in self.layers))


def parameters_of(layer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameter tensors of a layer in the ``.json``: name, shape and bits of each."""
    if isinstance(layer.get("weight_shape"), list):  # an earlier version knew only the weight
        return [{"name": "weight", "shape": layer["weight_shape"], "bits": layer.get("weight_bits")}]
    found = layer.get("parameters")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
