"""Bit error rates on a Ray cluster: patterns of each batch go to workers, and what they count comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bitflip.campaign.experiment import Experiment
from bitflip.campaign.patterned import Advance, Grid, Part
from bitflip.cluster import shards
from bitflip.cluster.driver import Cluster


class OnCluster:
    """Workers that run parts; see :class:`bitflip.campaign.error_rates.Runner`.

    Args:
        cluster: whose workers have loaded the experiment.
        experiment: as the driver has loaded it.
    """

    def __init__(self, cluster: Cluster, experiment: Experiment) -> None:
        self._cluster = cluster
        self._grid = Grid(experiment)

    def parts(self, batches: Sequence[range]) -> list[list[Part]]:
        """The patterns of each batch in parts."""
        count = len(self._grid.patterns)
        each = shards.patterns_each(count, len(batches), self._cluster.places)
        chunks = [range(first, min(first + each, count)) for first in range(0, count, each)]
        return [[Part(span, chunk) for chunk in chunks] for span in batches]

    def run(self, parts: Sequence[Part], advance: Advance) -> Iterator[NDArray[np.int64]]:
        """The counts of parts, in their order.

        Raises:
            BadInput: if an image can't be read, or workers die again and again.
        """
        for part, (table, refusal) in self._cluster.in_turn(parts, shards.PATTERNS):
            if refusal is not None:
                raise refusal.error()
            advance(len(part.images) * len(part.patterns) * self._grid.cells)
            yield table
