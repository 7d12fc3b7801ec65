"""What depends on a setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Role:
    """What depends on a setting; each declares it once.

    Attributes:
        unfinished: whether a run can only be gone on with if it has the same value.
        joined: of which runs the results depend on it, so that those that are joined must have the same value, and
            those that are compared name it: all, those of weight faults, or none.
        sampling: whether it says which faults are sampled, so that it means nothing with a fault list.
        rerun: whether a rerun takes it from the earlier run.
        planned: whether it means something to a plan.
        path: whether it names something that every worker reads for itself.
        adds: whether all that it does is to add files to the results.
    """

    unfinished: bool = True
    joined: Literal["all", "weight", "none"] = "all"
    sampling: bool = False
    rerun: bool = True
    planned: bool = True
    path: bool = False
    adds: bool = False


RESULT = Role()
SAMPLING = Role(sampling=True)
LOG = Role(joined="none", planned=False, adds=True)
PLACE = Role(unfinished=False, joined="none")
SOURCE = Role(unfinished=False, joined="none", path=True)
ASIDE = Role(unfinished=False, joined="none", rerun=False, planned=False)
