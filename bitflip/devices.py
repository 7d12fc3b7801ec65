"""Where a run computes, and in which arithmetic."""

from __future__ import annotations

import platform

import torch

from bitflip.hyperparameters import Precision


def check(name: str) -> list[str]:
    """One sentence if the device is asked for and absent."""
    if not name.startswith("cuda"):
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if index < count:
        return []
    there = f"cuda:0 to cuda:{count - 1}" if count else "no CUDA device"
    return [f"device (--device): expected auto, cpu or a CUDA device that is there ({there}), got {name!r}"]


def resolve(name: str) -> torch.device:
    """The device that a checked name stands for; ``auto`` is a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)  # PyTorchFI makes its dummy image on the current device
    return device


def pin_arithmetic(precision: Precision) -> None:
    """Make float32 arithmetic IEEE or TF32, and kernels repeatable.

    PyTorch's default on CUDA is TF32 for convolutions, which drops the low 13 mantissa bits of inputs and weights
    and so hides flips there.
    """
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def describe(device: torch.device) -> str:
    """The device in words, for the results."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"
