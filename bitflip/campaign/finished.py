"""The finished results that those of a run will replace: they must be of the very same run, unless the user says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitflip.campaign import identity
from bitflip.errors import BadInput, first_line
from bitflip.results.paths import Paths
from bitflip.settings.hyperparameters import role_of


class Finished:
    """Results where those of a run will be.

    Args:
        finals: where those of the run will be: of each seed, or of a list.
    """

    def __init__(self, finals: Sequence[Paths] = ()) -> None:
        self._files = [paths.run for paths in finals]

    @property
    def there(self) -> list[Path]:
        """The ``.json`` of each that is there."""
        return [path for path in self._files if path.is_file()]

    def require(self, here: Mapping[str, Any], after: str = "") -> None:
        """See that results which are there are of the run that begins.

        Those may lack files that the run will add, such as a log; they may not have more.

        Args:
            here: what the run is, as far as is known.
            after: a time, in UTC; what ended until then may be replaced, whatever it is of.

        Raises:
            BadInput: if some are of another run.
        """
        others = {path: differ for path in self.there if (differ := _differ(path, here, after))}
        if others:
            path, differ = next(iter(others.items()))
            more = f" (and {len(others) - 1} more like it)" if len(others) > 1 else ""
            raise BadInput(
                f"output_path (--output-path): {path}{more} {differ}; give --fresh to replace these results, or choose "
                "another folder"
            )


def _differ(path: Path, here: Mapping[str, Any], after: str) -> str | None:
    """What is wrong with finished results, given their ``.json``; None if they may be replaced."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["ended"] <= after:
            return None
        there = identity.of_finished(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if after:  # what comes while a run is under way comes whole
            return None
        return f"can't be read as that of a finished run ({type(error).__name__}: {first_line(error)})"
    names = [
        name
        for name in identity.differing(there, {name: here[name] for name in here if name in there})
        if not (role_of(name).adds and here[name])
    ]
    if not names:
        return None
    return f"is of a finished run with other settings ({identity.difference(there, here, names)})"
