"""What protects a network, as a setting says it: ``relu6``, ``clamp:LOW:HIGH``, ``ranger``, ``nan+clip``, ``ecc:0.05``.

This module imports nothing slow, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Range = Literal["relu6", "clamp", "ranger", "ranger-channel"]

OWN = "own"  # begins the name of a user's own protection that is no file's

VALID = (
    "relu6, clamp:LOW:HIGH, ranger or ranger-channel, each alone or with +clip (0 instead of the bound) or +nan (0 "
    "instead of NaN and infinity); clip alone, which is ranger+clip; nan alone; FILE.py:factory; ecc:SHARE or "
    "ecc:SHARE:FILE for weights (SHARE of the bits, above 0 and up to 1), alone or with + behind any other"
)


@dataclass(frozen=True)
class Protection:
    """What becomes of a value that a protected layer puts out, and of flips of stored weights.

    Attributes:
        range: where values may be: in 0 to 6, in the given range, or in that of the layer (of each channel of it) that
            was seen in calibration; None: anywhere.
        low, high: the given range.
        clip: a value that is not in the range, NaN among them, becomes 0, instead of the nearer bound.
        nan: NaN and infinity become 0 before all else.
        own: what makes a user's own modules behind layers, ``FILE.py:factory``; in a program, the name of a function.
        ecc: share of the bits of the stored weights of which a flip is corrected.
        ranking: a file that says which bits come first; empty for their positions.
    """

    range: Range | None = None
    low: float = -math.inf
    high: float = math.inf
    clip: bool = False
    nan: bool = False
    own: str = ""
    ecc: float = 0.0
    ranking: str = ""

    @classmethod
    def of(cls, text: str) -> Protection:
        """Read a protection.

        >>> Protection.of("clip") == Protection.of("ranger+clip"), str(Protection.of("clamp:0:6+nan"))
        (True, 'nan+clamp:0.0:6.0')

        Raises:
            ValueError: if it is none.
        """
        found = cls()
        for part in text.split("+"):
            name, *bounds = part.strip().split(":")
            if name == "ecc" and bounds and not found.ecc:
                found = replace(found, ecc=_share(bounds[0]), ranking=":".join(bounds[1:]))
                continue
            if len(bounds) and all(bounds) and (":".join([name, *bounds[:-1]]).endswith(".py") or name == OWN):
                if found.own:
                    raise ValueError("two of one's own")
                found = replace(found, own=part.strip())
                continue
            if name in ("clip", "nan") and not bounds and not getattr(found, name):
                found = replace(found, clip=found.clip or name == "clip", nan=found.nan or name == "nan")
                continue
            if found.range is not None:
                raise ValueError("two ranges")
            found = replace(found, **_range(name, bounds))
        if found.own and (found.range is not None or found.clip or found.nan):
            raise ValueError("one's own and another")
        return replace(found, range="ranger") if found.clip and found.range is None else found

    def __str__(self) -> str:
        ends = f":{self.low}:{self.high}" if self.range == "clamp" else ""
        within = [] if self.range is None else [f"{self.range}{ends}"]
        ecc = f"ecc:{self.ecc:g}" + (f":{self.ranking}" if self.ranking else "")
        named = {"nan": self.nan, self.own: self.own, **dict.fromkeys(within, True), "clip": self.clip, ecc: self.ecc}
        return "+".join(name for name, there in named.items() if there)

    @property
    def guards(self) -> bool:
        """Whether it does anything to what layers put out."""
        return self.range is not None or self.nan or bool(self.own)

    @property
    def absolute(self) -> Protection:
        """The same with absolute paths."""
        own = str(Path(self.own).absolute()) if self.own else ""
        return replace(self, own=own, ranking=str(Path(self.ranking).absolute()) if self.ranking else "")

    @property
    def calibrated(self) -> bool:
        """Whether its bounds are measured."""
        return self.range in ("ranger", "ranger-channel")

    @property
    def operations(self) -> int:
        """For each value: a minimum and a maximum; to clip, two comparisons and a choice; to find NaN, one of each."""
        return (0 if self.range is None else 3 if self.clip else 2) + 2 * self.nan

    @property
    def jumps(self) -> bool:
        """Whether values that are near each other may end far apart: cutting to a range moves none further apart."""
        return self.clip or self.nan


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise ValueError("no share")
    return share


def _range(name: str, bounds: Sequence[str]) -> dict[str, Any]:
    if name == "clamp":
        low, high = (float(bound) for bound in bounds)
        if not low <= high:
            raise ValueError("no range")
        return {"range": name, "low": low, "high": high}
    if name not in ("relu6", "ranger", "ranger-channel") or bounds:
        raise ValueError("unknown")
    return {"range": name, **({"low": 0.0, "high": 6.0} if name == "relu6" else {})}
