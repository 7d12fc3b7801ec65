"""What was found out about the kernels of this machine, kept for the next run.

A verdict answers a question about a subject, which says all that the answer depends on but the kernels themselves.
Those are told apart by a fingerprint of processor, library builds, instruction set, threads and what else chooses among
them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitflip.engines import memory
from bitflip.files import replacing

_FORM = 2  # of keys and values: to be raised when they change their meaning
_CHOOSES = ("MKL_", "ONEDNN_", "DNNL_", "ATEN_", "OMP_", "KMP_", "OPENBLAS_", "CUBLAS_", "CUDNN_", "NVIDIA_TF32")
"""How the environment variables begin that make libraries choose other kernels."""


class Verdicts:
    """Answers, small JSON values, that are found once.

    Args:
        path: of the file that keeps them between processes; None for none. One that can't be read counts as empty, and
            one that can't be written is done without.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known = _read(path)
        self._fresh = False

    def find(self, subject: str, question: str, how: Callable[[], Any]) -> Any:
        """What is known about a subject, or what ``how`` finds out, which is kept unless it is None."""
        answers = self._known.setdefault(subject, {})
        if question in answers:
            return answers[question]
        found = how()
        if found is not None:
            answers[question] = found
            self._fresh = True
        return found

    def holds(self, subject: str, question: str, how: Callable[[], bool]) -> bool:
        """Whether something is so; for now it is not, if the memory does not suffice to try it."""
        return bool(self.find(subject, question, lambda: _tried(how)))

    def save(self) -> None:
        """Keep what is new; what another process found in the meantime stays."""
        if self._fresh and self.path is not None:
            self._fresh = False
            for subject, answers in _read(self.path).items():
                self._known[subject] = {**answers, **self._known.get(subject, {})}
            with contextlib.suppress(OSError):  # it is found out again then
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path) as file:
                    json.dump(self._known, file)


def _tried(how: Callable[[], bool]) -> bool | None:
    try:
        return how()
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
    memory.let_go()
    return None


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    try:
        found = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    subjects = {subject: answers for subject, answers in found.items() if isinstance(answers, dict)}
    return {subject: {k: v for k, v in one.items() if _is_answer(v)} for subject, one in subjects.items()}


def _is_answer(value: Any) -> bool:
    """Whether it is a yes, a no, or a number above 0."""
    return isinstance(value, bool) or (isinstance(value, int | float) and 0 < value < math.inf)


def folder() -> Path | None:
    """Where answers are kept: ``bitflip`` in the user's cache folder; None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "bitflip" if os.path.isabs(cache) else None


@functools.cache
def kept_in(name: str) -> Verdicts:
    """Answers that are kept in a file of the cache folder."""
    where = folder()
    verdicts = Verdicts(None if where is None else where / name)
    atexit.register(verdicts.save)
    return verdicts


def of(device: torch.device) -> Verdicts:
    """The verdicts on the kernels that this process runs now."""
    return _kept(str(device), torch.get_num_threads(), _chosen())


def _chosen() -> tuple[object, ...]:
    """Switches of torch that choose among kernels."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.backends.mkldnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
    )


@functools.cache
def _kept(device: str, threads: int, chosen: tuple[object, ...]) -> Verdicts:
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _processor()
    parts = [_FORM, where.type, name, threads, chosen, torch.__version__, torch.__config__.show()]
    parts += [torch.backends.cpu.get_cpu_capability(), sorted(_selecting().items())]
    fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return kept_in(f"kernels/{fingerprint}.json")


def _selecting() -> dict[str, str]:
    """The environment variables that are set and make libraries choose other kernels."""
    return {name: value for name, value in os.environ.items() if name.startswith(_CHOOSES) and value}


def _processor() -> str:
    """The kind of the first processor, with its instruction sets."""
    with contextlib.suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")
        told = ("model", "cpu family", "stepping", "flags", "CPU ", "Features")
        return "\n".join(line for line in first.splitlines() if line.startswith(told))
    return f"{platform.machine()} {platform.processor()}"
