"""Random networks for a short time; ``python tests/fuzz.py --minutes 30`` tries many more."""

from __future__ import annotations

import fuzz
import pytest


@pytest.mark.parametrize("seed", range(12))
def test_all_ways_agree(seed: int) -> None:
    counted = fuzz.try_network(seed)
    assert counted["refused"] or counted["inferences"] == sum(counted[kind] for kind in fuzz.NAMES)


def test_a_wrong_engine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself can fail: a loop that leaves the flips out is told from the engines."""
    monkeypatch.setattr(fuzz, "struck", lambda values, *fault: values.clone())
    with pytest.raises(fuzz.Differs, match=r": \('(sdc1|benign|due)', .*\), not \('masked', "):
        fuzz.try_network(0)
