"""The columns of a run's tables: declared here, written by :mod:`bitflip.results.tables`, and asked for by reports.

A reader takes the columns that it knows of those that are there: a file of an earlier version has fewer, one of a later
version may have more. So a column that is added here is missing in today's files, and that is no mistake of theirs.
"""

from __future__ import annotations

PLACE = ("layer", "name", "path", "call")
INTERVAL = ("low", "high")
EFFECTS = ("masked", "benign", "sdc1", "sdc5", "sdc10", "sdc20", "nonfinite", "due")
BOUNDED = ("harmless", "proved", "audited", "sdc1", "sdc5", "nonfinite", "due")  # of a run with bounds, instead
KNOWN = tuple(dict.fromkeys(("flips", "injections", *EFFECTS, *BOUNDED)))  # of both
DUE = ("due_low", "due_high")  # interval of the share of DUE; see bitflip.statistics.rates.of_due
COUNTS = ("flips", "injections", *EFFECTS)
CHANGE = "largest_change"
SUMS = ("mm", "mn", "nn")  # what intervals of joined runs need; see bitflip.outcomes.counts.Totals
HITS = ("misclassified", "correct")
NEEDED = (*PLACE, *HITS)  # what even the oldest files have


def of_effects(*, bounded: bool) -> tuple[str, ...]:
    """Those that count what happened; ``bounded`` for a run with bounds."""
    return BOUNDED if bounded else EFFECTS


def of_outcomes(*, bounded: bool) -> tuple[str, ...]:
    """Those of what happened, but for counts of flips and injections."""
    return (*of_effects(bounded=bounded), *DUE, *([] if bounded else [CHANGE]))


def of_layers(seed: int | str, *, bounded: bool = False) -> tuple[str, ...]:
    """Those of the ``.csv``; rates are in percent, empty with nothing to divide by."""
    front = ("index", "name", rate_of(seed), "layer", "path", "call", "parameter")
    return (*front, *HITS, *INTERVAL, "flips", "injections", *of_outcomes(bounded=bounded), *SUMS)


def of_bits(*, bounded: bool = False) -> tuple[str, ...]:
    """Those of the ``_bits.csv``."""
    front = (*PLACE, "parameter", "bit", "flips", "injections", *HITS, "rate", *INTERVAL)
    return (*front, *of_outcomes(bounded=bounded), *SUMS)


def rate_of(seed: int | str) -> str:
    """The column of a seed's rate."""
    return f"seed_{seed}"
