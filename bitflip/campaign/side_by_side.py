"""A campaign with and without protections, under the same faults."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitflip.campaign.protecting import OwnProtection
from bitflip.errors import BadInput
from bitflip.faults.faultlist import FaultList
from bitflip.report import protections
from bitflip.report.protections import BARE, Measured
from bitflip.report.result import Picture, Result, Rows
from bitflip.settings.protection import VALID, Protection

if TYPE_CHECKING:
    from bitflip.campaign.api import Campaign
    from bitflip.campaign.sampling import Sampled

MEASURED = ("bounds", "percentile")  # mean something to protections whose bounds are measured


class Protections:
    """What protections do to the same faults.

    Args:
        results: of the runs, by the name of the protection; the first is that of the unprotected network.
        holder: what keeps the files' folder; None if that stays by itself.
    """

    def __init__(self, results: Mapping[str, Result], holder: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self._holder = holder
        self.results = dict(results)
        self.rows: Rows[Measured] = Rows(protections.measured({name: one.files.table for name, one in results.items()}))

    def __repr__(self) -> str:
        return f"<Protections: {', '.join(self.results)}>"

    def __getitem__(self, name: str) -> Measured:
        """What one of them does."""
        return self.rows[list(self.results).index(name)]

    def plot(self) -> Picture:
        """The rates by layer, and what is gained against the accuracy lost."""
        return Picture(**protections.picture(self.rows))

    def to_pandas(self) -> Any:
        """A row for each protection and layer, and for the network, as a ``pandas.DataFrame``.

        Raises:
            ImportError: without pandas.
        """
        import pandas

        return pandas.DataFrame(list(protections.rows(self.rows)), columns=list(protections.HEAD))


def compare(
    campaign: Campaign,
    faults: Sampled | FaultList,
    ways: Sequence[str | OwnProtection],
    folder: str | Path | None,
    options: dict[str, Any],
) -> Protections:
    """See :meth:`bitflip.campaign.api.Campaign.compare_protections`."""
    known = [(name, way, _guards(way)) for way in ways for name in [_name(way)]]
    if twice := [name for name, *_ in known if [one for one, *_ in known].count(name) > 1]:
        raise BadInput(f"protections: expected each once, got {twice[0]} again")
    if wrong := {"protect", "prove", "audit", "fault_table"} & options.keys():
        raise BadInput(f"{min(wrong)}: expected no value beside protections, whose runs all have a table of all faults")
    holder = tempfile.TemporaryDirectory(prefix="bitflip-") if folder is None else None
    root = Path(holder.name if holder is not None else str(folder))
    results = {}
    for place, (name, way, guards) in enumerate([(BARE, None, None), *known]):
        own = {key: value for key, value in options.items() if guards is not None or key != "protect_layers"}
        if guards is None or not guards.calibrated:
            own = {key: value for key, value in own.items() if key not in MEASURED}
        results[name] = campaign.run(faults, protect=way, fault_table=True, folder=root / str(place), **own)
    return Protections(results, holder)


def _name(way: str | OwnProtection) -> str:
    return str(_read(way)) if isinstance(way, str) else str(getattr(way, "__qualname__", type(way).__name__))


def _guards(way: str | OwnProtection) -> Protection:
    return _read(way) if isinstance(way, str) else Protection()


def _read(text: str) -> Protection:
    try:
        return Protection.of(text)
    except ValueError:
        raise BadInput(f"protections: expected functions, or texts, each {VALID}; got {text!r}") from None
