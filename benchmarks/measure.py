"""One measurement, in a process of its own: ``python -m benchmarks.measure TASK_AS_JSON FOLDER``.

Writes ``measured.json`` (see :class:`benchmarks.task.Measured`) and ``top1.npy``: the clean top-1 of each image in the
first line, then one line for each layer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import random
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks import networks
from benchmarks.obvious import PyTorchFI
from benchmarks.task import Measured, Task
from bitflip.campaign import experiment
from bitflip.campaign.executor import portions
from bitflip.campaign.experiment import Experiment
from bitflip.data import digits
from bitflip.engines import graph
from bitflip.faults.sampled import Sampling
from bitflip.network import devices
from bitflip.network.layers import Layer
from bitflip.settings.hyperparameters import Hyperparameters

WARM_UP_IMAGES = 8
MIB = 1 << 20

Batches = list[tuple[Tensor, Tensor]]  # images (B, C, H, W) and labels (B,), on the device


@dataclass(frozen=True)
class Ready:
    """An engine with all that it needs, loaded.

    Attributes:
        name: of the engine.
        device: where it runs.
        batches: what it runs.
        layers: names of the layers that faults are put into.
        all_layers: number of layers that it could put faults into.
        run: puts faults into the layers on some batches; returns the top-1 of each image, clean in the first line,
            then per layer, (1 + L, N).
        alive: after the run, see :class:`Measured`.
    """

    name: str
    device: torch.device
    batches: Batches
    layers: list[str]
    all_layers: int
    run: Callable[[Batches], Tensor]
    alive: Callable[[], list[dict[str, Any]]] = list


def main() -> None:
    """Measure and write."""
    task, folder = Task(**json.loads(sys.argv[1])), Path(sys.argv[2])
    random.seed(task.seed)
    ready = pytorchfi(task) if task.engine == "pytorchfi" else engine(task)
    few = [(images[:WARM_UP_IMAGES], labels[:WARM_UP_IMAGES]) for images, labels in ready.batches[:1]]
    ready.run(few)
    synchronise(ready.device)
    start_mib = peak_mib(ready.device)
    before, cpu_before = time.perf_counter(), time.process_time()
    top1 = ready.run(ready.batches)
    synchronise(ready.device)
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    Measured(
        task=task,
        ran=ready.name,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        together=len(ready.batches[0][0]),
        layers=ready.layers,
        all_layers=ready.all_layers,
        changed=(top1[1:] != top1[0]).sum(dim=1).tolist(),
        peak_mib=peak_mib(ready.device),
        start_mib=start_mib,
        alive=ready.alive(),
        profile=profile(ready) if task.profile else {},
        machine=machine(ready.device),
    ).save(folder / "measured.json")
    np.save(folder / "top1.npy", top1.numpy())


def pytorchfi(task: Task) -> Ready:
    """What people do today."""
    device = devices.resolve(task.device)
    devices.pin_arithmetic("ieee")
    batches = load_batches(task, task.batch_size, lambda images: images.to(device))
    model = networks.build(task.model, device)
    injector = PyTorchFI(model, task.batch_size, batches[0][0].shape[1:], cuda=device.type == "cuda")
    chosen = evenly(len(injector.layers), task.layers)

    def run(batches: Batches) -> Tensor:
        clean = torch.empty(0)
        faulty = []
        with torch.no_grad():
            for layer in chosen:
                pairs = [injector.run(task.target, images, layer) for images, _ in batches]
                clean = torch.cat([pair[0] for pair in pairs])
                faulty.append(torch.cat([pair[1] for pair in pairs]))
        return torch.stack([clean, *faulty]).cpu()

    return Ready("pytorchfi", device, batches, [injector.layers[i] for i in chosen], len(injector.layers), run)


def engine(task: Task) -> Ready:
    """One of the project's engines, prepared as an experiment prepares it."""
    if task.engine == "as_they_come":
        vars(graph)["Invariant"] = AsTheyCome
    trained = task.model in networks.TRAINABLE
    settings = Hyperparameters(
        dataset="digits",
        model_name=f"{networks.__file__}:{task.model}",
        weights=networks.weights(task.model, devices.resolve(task.device)) if trained else None,
        img_size=networks.IMG_SIZE.get(task.model, 32),
        batch_size=task.batch_size,
        engine="reference" if task.engine == "reference" else "wave",
        prove=task.engine == "prove",
        device=task.device,
        seed=task.seed,
    ).resolved()
    prepared = experiment.prepare(settings, task.target)
    items = [prepared.targets[i] for i in evenly(len(prepared.targets), task.layers)]
    layers = [item.layer for item in items]
    network, source = prepared.network, prepared.source
    assert isinstance(source, Sampling)
    fitting = portions(network.engine, network.placement)

    def run(batches: Batches) -> Tensor:
        getattr(network.engine, "alive", {}).clear()
        found, first = [], 0
        for images, labels in batches:
            one = fitting.run(images, labels, source.flips(items, first, len(images)), first, lambda count: None)
            found.append(torch.cat([one.clean_top1[None], one.top1]))
            first += len(images)
        return torch.cat(found, dim=1)

    return Ready(
        task.engine if task.engine in ("as_they_come", "prove") else network.engine.name,
        network.placement.device,
        load_batches(task, prepared.cut.together, network.placement.inputs),
        [layer.path + (f"#{layer.call}" if layer.call else "") for layer in layers],
        len(prepared.targets),
        run,
        lambda: alive(prepared, layers, task.images),
    )


class AsTheyCome(contextlib.nullcontext[None]):
    """In place of batch invariance: kernels round a row as its company has it. Shows what batch invariance costs."""

    met = 0


def load_batches(task: Task, together: int, place: Callable[[Tensor], Tensor]) -> Batches:
    """The task's images on the device, so many in a batch; the labels are not used."""
    size = networks.IMG_SIZE.get(task.model)
    if size is None:
        digit = digits.load("test").tensors[0]
        images = digit[torch.arange(task.images) % len(digit)]
    else:
        images = torch.randn(task.images, 3, size, size, generator=torch.Generator().manual_seed(0))
    parts = [place(part) for part in torch.split(images, together)]
    return [(part, torch.zeros(len(part), dtype=torch.int64, device=part.device)) for part in parts]


def evenly(count: int, wanted: int | None) -> list[int]:
    """The middles of ``wanted`` equal parts of range(count), or all of it.

    >>> evenly(10, 2), evenly(3, None)
    ([2, 7], [0, 1, 2])
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def alive(prepared: Experiment, layers: list[Layer], images: int) -> list[dict[str, Any]]:
    """Per step of the wave that rows went through: its name, the rows, and their share of those forked before it."""
    went_through: dict[int, int] = getattr(prepared.network.engine, "alive", {})
    program = getattr(prepared.network.engine, "program", None)
    if program is None or not went_through:
        return []
    chosen = {(layer.path, layer.call) for layer in layers}
    found, forked = [], 0
    for i, step in enumerate(program.steps):
        if forked and i in went_through:
            rows = went_through[i]
            found.append({"step": str(step.node), "rows": rows, "forked": forked, "share": rows / forked})
        forked += images * (step.layer in chosen)
    return found


# Operations by name, first match counts. Of a wave on a trained network these make up nearly all of the time.
CATEGORIES = {
    "convolution": re.compile(r"conv|mm$|linear|matmul|cudnn(?!_batch)"),
    "comparing": re.compile(r"::(ne|eq|any|nonzero|not_equal|bitwise)"),
    "copying": re.compile(r"::(_?index|where|cat|clone|copy_|_to_copy|contiguous|gather|scatter|take|fill_|zero)"),
    "other layers": re.compile(r"batch_norm|relu|pool|clamp|add|mul|mean|pad|dropout|softmax|gelu|silu|sigmoid|norm"),
}


def profile(ready: Ready) -> dict[str, Any]:
    """Run once more under the profiler: seconds of the device's own time by category, what is left, and GFLOP/s.

    What is left is Python and the cost of calling operations; on a GPU, the time in which it has nothing to do.
    """
    cuda = ready.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities, with_flops=True) as profiler:
        before = time.perf_counter()
        ready.run(ready.batches)
        synchronise(ready.device)
        wall = time.perf_counter() - before
    seconds = dict.fromkeys([*CATEGORIES, "other operations"], 0.0)
    waits, operations = 0, 0
    for event in profiler.key_averages():
        operations += event.flops
        if event.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize"):
            waits += event.count
        if event.device_type.name != "CPU":  # kernels: their time is also with the operation that launched them
            continue
        category = next((name for name, pattern in CATEGORIES.items() if pattern.search(event.key)), "other operations")
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        seconds[category] += microseconds / 1e6
    seconds["idle" if cuda else "Python"] = max(0.0, wall - sum(seconds.values()))
    gflops = {"run": operations / wall / 1e9, "matrix product": matrix_product(ready.device)}
    return {"seconds": seconds, "wall": wall, "host_waits": waits if cuda else None, "gflops": gflops}


def matrix_product(device: torch.device, size: int = 2048) -> float:
    """GFLOP/s of a large matrix product in float32, the best of several."""
    a, b = torch.randn(2, size, size, device=device)
    least = math.inf
    for _ in range(10):
        synchronise(device)
        before = time.perf_counter()
        a @ b
        synchronise(device)
        least = min(least, time.perf_counter() - before)
    return 2 * size**3 / least / 1e9


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(device: torch.device) -> float:
    """The most memory in use so far, in MiB: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024  # bytes there, KiB elsewhere


def machine(device: torch.device) -> dict[str, Any]:
    """What the measurement ran on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
