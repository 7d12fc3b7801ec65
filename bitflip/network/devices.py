"""Where a run computes, and in which arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bitflip.data import inputs
from bitflip.data.inputs import Batch
from bitflip.network.state import State
from bitflip.settings.hyperparameters import Precision

AMPERE = (8, 0)  # compute capability of the first GPUs that have TF32
_LIMITS = ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment variables
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def check(name: str) -> list[str]:
    """One sentence if the device is asked for and absent."""
    if not name.startswith("cuda"):
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if _numbered(name) < count:
        return []
    there = f"cuda:0 to cuda:{count - 1}" if count else "no CUDA device"
    return [f"device (--device): expected auto, cpu or a CUDA device that is there ({there}), got {name!r}"]


def check_precision(precision: Precision, name: str) -> list[str]:
    """One sentence if a device that is there does not have the arithmetic."""
    if precision == "ieee" or check(name):
        return []
    cpu = name == "cpu" or not torch.cuda.is_available()
    if not cpu and torch.cuda.get_device_capability(_numbered(name)) >= AMPERE:
        return []
    there = "the CPU" if cpu else torch.cuda.get_device_name(_numbered(name))
    return [
        f"precision (--precision): expected ieee on {there}, got {precision!r}, which takes an NVIDIA GPU of compute "
        "capability 8.0 (Ampere) or later"
    ]


def _numbered(name: str) -> int:
    """The number of the GPU that ``auto``, ``cuda`` or ``cuda:N`` stands for."""
    return int(name.partition(":")[2] or 0)


def resolve(name: str) -> torch.device:
    """The device that a checked name stands for; ``auto`` is a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)  # PyTorchFI makes its dummy image on the current device
    return device


@dataclass(frozen=True)
class Placement:
    """Where and in which form a run keeps its model and inputs.

    Attributes:
        device: where.
        dtype: of floating-point inputs, such as images, which is that of the model's parameters.
    """

    device: torch.device
    dtype: torch.dtype

    @property
    def channels_last(self) -> bool:
        """On the CPU, where convolutions and pooling of images are faster so; it changes no value's meaning."""
        return self.device.type == "cpu"

    def model(self, model: nn.Module) -> nn.Module:
        """The model, in place."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        model = model.to(self.device)
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 4:  # `nn.Module.to` would do it to those of five as well, which have no such format
                tensor.data = tensor.data.to(memory_format=memory_format)
        return model

    def inputs(self, batch: Batch) -> Batch:
        """A batch of inputs, such as images (B, C, H, W)."""
        return inputs.to(batch, self.device, self.dtype, channels_last=self.channels_last)


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """A model that may be moved and put into eval mode, and is as it was when the block ends, tensor by tensor."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    own = [(dict(module._parameters), dict(module._buffers)) for module in modules]
    values = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    state = State.of(model)
    try:
        yield
    finally:
        state.restore()
        for module, mode, (parameters, buffers) in zip(modules, modes, own, strict=True):
            module.training = mode
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        for tensor, value in values:
            tensor.data = value


@contextlib.contextmanager
def as_they_were() -> Iterator[None]:
    """PyTorch's settings are as they were when the block ends: those that :func:`pin_arithmetic` makes, and the GPU."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    fast = torch.backends.mha.get_fastpath_enabled()
    nnpack = torch.backends.nnpack.set_flags(False)  # type: ignore[no-untyped-call] # the only way to ask
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.nnpack.set_flags(*nnpack)  # type: ignore[no-untyped-call]
        if device is not None:
            torch.cuda.set_device(device)


def pin_arithmetic(precision: Precision) -> None:
    """Make float32 arithmetic IEEE or TF32, and kernels repeatable.

    PyTorch's default on CUDA, and what ``tf32`` stands for here, is TF32 for convolutions, where cuDNN has a kernel
    for it, and IEEE for matrix products. TF32 rounds inputs and weights to 10 mantissa bits and so hides flips in the
    last 12 of the others.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.nnpack.set_flags(False)  # type: ignore[no-untyped-call] # spreads a huge value over others
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # In eval mode, attention takes a shortcut that rounds otherwise, but not where a hook, as of a fault, is in
    # its way.
    torch.backends.mha.set_fastpath_enabled(False)


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors give back, where it is the GNU one.

    It would return blocks of megabytes to the system and get them again, zeroed page by page, for nearly every
    result of a layer: a fifth of the time of a run on the CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def describe(device: torch.device) -> str:
    """The device in words, for the results."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {kernels()})"


def arithmetic(kind: str) -> str:
    """A kind of device, with what chooses its kernels, as far as that is known."""
    return f"{kind} ({kernels()})" if kind == "cpu" else kind


def kernels() -> str:
    """What chooses the CPU kernels, and with them the last bits of results: instruction set, limits to it, threads."""
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *limits, f"{torch.get_num_threads()} threads"])
