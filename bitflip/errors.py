"""What is raised for a user's mistake."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class BadInput(Exception):
    """One or more mistakes of the user; each is one sentence that names the setting and its valid values.

    Entry scripts print the sentences and exit with code 2, without a traceback.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(map(_of_one_line, problems))

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, ...]]:
        """Several mistakes stay several when they come from another process."""
        return type(self), self.problems


def _of_one_line(text: str) -> str:
    """A sentence in which nothing, such as a path with a line break in its name, ends the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def refuse(error: BadInput) -> int:
    """Print the mistakes, and return the exit code."""
    print(*(f"error: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
    return 2


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


MANY = 30  # names that a reader still looks through
MOST = 300  # that are listed where none is close; torchvision has about a hundred models, timm over a thousand


def nearest(name: str, valid: Iterable[str]) -> str:
    """``valid`` as text for an error message: close matches of ``name``, then all of it unless it is long.

    >>> nearest("ReLu", ["Conv2d", "ReLU"])
    "did you mean 'ReLU'? valid: Conv2d, ReLU"
    >>> nearest("nope", map(str, range(1000)))
    'there are 1,000, such as 0, 399, 699'
    """
    names = sorted(valid)
    folded = {other.lower(): other for other in names}  # relu is close to ReLU
    close = [folded[other] for other in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    if not hint and len(names) > MOST:
        return f"there are {len(names):,}, such as {', '.join(names[:: len(names) // 3][:3])}"
    return hint if hint and len(names) > MANY else f"{hint} valid: {', '.join(names)}".lstrip()
