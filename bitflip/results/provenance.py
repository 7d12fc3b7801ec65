"""When, from which code and with which packages a run was made."""

from __future__ import annotations

import datetime
import functools
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bitflip import __version__

PACKAGES = ("torch", "torchvision", "pytorchfi", "numpy", "bitstring", "scikit-learn")


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of this program, of Python, and of the packages that results may depend on."""
    return {
        "bitflip": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, of all that the results of a run depend on beside its settings.

    Args:
        then, now: what the ``.json`` of a run says: device, precision, engine, model, data, versions,
            git_commit.
    """
    found = []
    for name in ("device", "precision", "engine", "git_commit"):
        if then.get(name) is not None and then[name] != now[name]:
            found.append(f"{name.replace('_', ' ')} {then[name]} then, {now[name]} now")
    for group in ("model", "data", "versions"):
        known = then.get(group)
        earlier = known if isinstance(known, dict) else {}
        for name, value in now[group].items():
            if name in earlier and earlier[name] != value:
                words = (f"{text!s:.12}..." if "sha256" in name else str(text) for text in (earlier[name], value))
                found.append(f"{'' if group == 'versions' else f'{group} '}{name} {' then, '.join(words)} now")
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit that the program runs from, with ``-dirty`` if files differ from it; None outside a checkout.

    A checkout that holds an installed package without tracking it, such as the user's own project, says nothing of it.
    """
    here = Path(__file__)
    try:
        _git("ls-files", "--error-unmatch", here.name, folder=here.parent)
        said = _git("describe", "--always", "--dirty", "--abbrev=40", "--match=", folder=here.parent)
    except (OSError, subprocess.SubprocessError):
        return None
    return said or None


def _git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
