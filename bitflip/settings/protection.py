"""What protects the outputs of layers, as a setting says it: ``relu6``, ``clamp:LOW:HIGH``, ``ranger``, ``nan+clip``.

This module imports nothing slow, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Range = Literal["relu6", "clamp", "ranger", "ranger-channel"]

VALID = (
    "relu6, clamp:LOW:HIGH, ranger or ranger-channel, each alone or with +clip (0 instead of the bound) or +nan (0 "
    "instead of NaN and infinity); clip alone, which is ranger+clip; nan alone"
)


@dataclass(frozen=True)
class Protection:
    """What becomes of a value that a protected layer puts out.

    Attributes:
        range: where values may be: in 0 to 6, in the given range, or in that of the layer (of each channel of it) that
            was seen in calibration; None: anywhere.
        low, high: the given range.
        clip: a value that is not in the range, NaN among them, becomes 0, instead of the nearer bound.
        nan: NaN and infinity become 0 before all else.
    """

    range: Range | None = None
    low: float = -math.inf
    high: float = math.inf
    clip: bool = False
    nan: bool = False

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
            if name in ("clip", "nan") and not bounds and not getattr(found, name):
                found = replace(found, clip=found.clip or name == "clip", nan=found.nan or name == "nan")
                continue
            if found.range is not None:
                raise ValueError("two ranges")
            found = replace(found, **_range(name, bounds))
        return replace(found, range="ranger") if found.clip and found.range is None else found

    def __str__(self) -> str:
        ends = f":{self.low}:{self.high}" if self.range == "clamp" else ""
        within = [] if self.range is None else [f"{self.range}{ends}"]
        return "+".join([*(["nan"] if self.nan else []), *within, *(["clip"] if self.clip else [])])

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


def _range(name: str, bounds: Sequence[str]) -> dict[str, Any]:
    if name == "clamp":
        low, high = (float(bound) for bound in bounds)
        if not low <= high:
            raise ValueError("no range")
        return {"range": name, "low": low, "high": high}
    if name not in ("relu6", "ranger", "ranger-channel") or bounds:
        raise ValueError("unknown")
    return {"range": name, **({"low": 0.0, "high": 6.0} if name == "relu6" else {})}
