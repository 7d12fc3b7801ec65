"""A user's own code: how it is imported, and its source, with the modules beside it that it imports."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType


def imported(file: Path) -> ModuleType:
    """A module from its file, found anew at each call; like ``python FILE.py``, it finds the modules beside it.

    Raises:
        Exception: whatever its code raises.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(file.parent.resolve()) not in sys.path:
        sys.path.append(str(file.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def sha256(file: Path | None) -> str | None:
    """Of the names and the contents of :func:`sources`; None of nothing."""
    if file is None:
        return None
    sha = hashlib.sha256()
    for path in sources(file):
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def described(function: Callable[..., object]) -> str:
    """A function by its name and the sources that it is from, or of a notebook, its own."""
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        file = Path(inspect.getsourcefile(function) or "")
        digest = sha256(file) if file.is_file() else hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (TypeError, OSError):  # an object that can be called, or a function that was never in a file
        digest = None
    return f"{name}:{(digest or 'unknown')[:16]}"


def sources(file: Path) -> list[Path]:
    """The files that a module's source names as imports, and those that these name, as far as they lie beside it.

    Beside it: in its folder, or in the package that it belongs to. Nothing is imported to find out.
    """
    file = file.resolve()
    found = {file: None}
    waiting = [file]
    while waiting:
        for path in _imported(waiting.pop()):
            if path not in found:
                found[path] = None
                waiting.append(path)
    return sorted(found)


def _imported(file: Path) -> Iterator[Path]:
    folder = file.parent
    root = folder  # of the package, if it is in one
    while (root / "__init__.py").is_file():
        root = root.parent
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # such as a stub of another language version; it counts by its bytes
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, places = [alias.name for alias in node.names], {root, folder}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
            places = {[folder, *folder.parents][node.level - 1]} if node.level else {root, folder}
        else:
            continue
        for place in sorted(places):
            for name in filter(None, names):
                parts = name.split(".")
                for depth in range(1, len(parts) + 1):
                    path = place.joinpath(*parts[:depth])
                    yield from (p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file())
