"""Where a Ray cluster is: the mistakes that show before joining it, and joining or starting it.

Ray is an optional requirement, and takes seconds to import: nothing here does so before a run asks for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from pathlib import Path
from typing import Any

import torch

from bitflip.errors import BadInput, first_line
from bitflip.settings.hyperparameters import Hyperparameters

INSTALL = "pip install 'ray>=2.49'"
PATIENCE_S = 5.0  # for an address to answer
STORE_BYTES = 512 << 20  # shared memory of a cluster that is started here
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a notice about a default that changes
}


def check(settings: Hyperparameters) -> list[str]:
    """One sentence per mistake about ``ray`` that shows before anything is loaded."""
    if settings.ray is None:
        return []
    problems = []
    if importlib.util.find_spec("ray") is None:
        problems.append(f"ray (--ray): Ray is not installed; {INSTALL}, or leave --ray out")
    elif settings.ray != "auto" and (reason := _unreachable(settings.ray)):
        problems.append(
            f"ray (--ray): expected auto, or HOST:PORT of a Ray cluster that runs (ray start --head), got "
            f"{settings.ray!r} ({reason})"
        )
    if settings.device.startswith("cuda:"):
        problems.append(f"device (--device): expected auto, cpu or cuda with ray, got {settings.device!r}")
    return problems


def hint(settings: Hyperparameters, device: torch.device) -> str | None:
    """One sentence if there are more GPUs than the run uses."""
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if settings.ray is not None or settings.device != "auto" or count < 2:
        return None
    install = "" if importlib.util.find_spec("ray") else f"{INSTALL} and "
    return f"one of {count} GPUs is used; {install}give --ray auto to use them all, for the same results"


def _unreachable(address: str) -> str | None:
    """Why no Ray can be at an address. Ray itself would try for more than a minute."""
    host, _, port = address.rpartition(":")
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S) as connection:
            connection.sendall(greeting)  # gRPC speaks HTTP/2, and answers with its settings, a frame of type 4
            frame = connection.recv(9)
    except (OSError, ValueError, OverflowError) as error:
        return first_line(error)
    return None if len(frame) > 3 and frame[3] == 4 else "something else answers there"


def join(address: str) -> Any:
    """Join the cluster at an address; with ``auto``, the one on this machine, or start one; the ``ray`` module.

    Raises:
        BadInput: if Ray can't.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if address == "auto":
        address = _running_here() or "local"
    if address == "local":
        own: dict[str, Any] = {"object_store_memory": STORE_BYTES}
    else:  # other machines get this very code
        own = {"runtime_env": {"py_modules": [str(Path(__file__).parents[1])], "excludes": ["__pycache__"]}}
    try:
        ray.init(address, **quiet, **own)
    except Exception as error:  # of many kinds: no machine of this cluster, another version, no room for processes
        raise BadInput(
            f"ray (--ray): Ray can't {'start' if address == 'local' else f'join the cluster at {address}'} "
            f"({first_line(error)}); the driver has to run on a machine of the cluster"
        ) from error
    return ray


def _running_here() -> str | None:
    """The address of the cluster that this machine belongs to, if one answers."""
    current = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # written by `ray start`
    address = os.environ.get("RAY_ADDRESS", "")
    with contextlib.suppress(OSError):
        address = address or current.read_text().strip()
    return address if address and _unreachable(address) is None else None
