"""Single-bit-flip fault injection for classifiers: what happens when one bit flips?

    campaign = bitflip.Campaign(model, test_set)
    result = campaign.run(bitflip.Sampled("neuron", seed=1))
    result.layers, result.plot("heatmap"), result.save("output")

What a name below needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitflip.campaign.api import Campaign, read_faults
    from bitflip.campaign.sampling import Sampled
    from bitflip.errors import BadInput
    from bitflip.report.result import Result, compare

__all__ = ["BadInput", "Campaign", "Result", "Sampled", "__version__", "compare", "read_faults"]
__version__ = "0.1.0"

_HOME = {
    "BadInput": "bitflip.errors",
    "Campaign": "bitflip.campaign.api",
    "Result": "bitflip.report.result",
    "Sampled": "bitflip.campaign.sampling",
    "compare": "bitflip.report.result",
    "read_faults": "bitflip.campaign.api",
}

logging.getLogger("bitflip").addHandler(logging.NullHandler())  # what it says is for whoever listens


def __getattr__(name: str) -> object:
    """A name of the library, imported now."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The names of the library."""
    return sorted(__all__)
