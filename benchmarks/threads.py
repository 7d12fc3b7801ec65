"""On a CPU, do the last bits of a result depend on the number of threads?

python benchmarks/threads.py
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

THREADS = (1, 2, 3, 4, 8, 16)
LINEAR = (
    *((512, 10), (512, 512), (64, 10), (2048, 1000), (4096, 4096), (9216, 4096), (768, 3072), (768, 768), (3072, 768)),
)
ROWS = (16, 17, 64, 128, 256, 300)
CONVOLUTIONS = (  # channels in and out, kernel, height and width, stride
    *((3, 64, 3, 32, 1), (64, 64, 3, 32, 1), (128, 128, 3, 16, 1), (512, 512, 3, 2, 1), (512, 512, 3, 4, 1)),
    *((3, 64, 7, 112, 2), (64, 256, 1, 28, 1), (256, 64, 1, 28, 1), (1024, 256, 1, 14, 1), (16, 16, 3, 32, 1)),
)
IMAGES = (1, 4, 16, 64, 128)


def differing(module: nn.Module, x: Tensor) -> list[int]:
    """The numbers of threads with which a module gives other bits than with one."""
    found = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        with torch.no_grad():
            found[threads] = module(x).contiguous().view(torch.int32)
    return [threads for threads in THREADS if not torch.equal(found[threads], found[1])]


def main() -> int:
    """Print each operation whose bits depend on the number of threads."""
    torch.manual_seed(0)
    cases: list[tuple[str, nn.Module, Tensor]] = [
        (f"Linear({i}, {o}), {rows} rows", nn.Linear(i, o), torch.randn(rows, i)) for i, o in LINEAR for rows in ROWS
    ]
    for i, o, kernel, size, stride in CONVOLUTIONS:
        convolution = nn.Conv2d(i, o, kernel, stride, kernel // 2).to(memory_format=torch.channels_last)
        for images in IMAGES:
            x = torch.randn(images, i, size, size).to(memory_format=torch.channels_last)
            cases.append((f"Conv2d({i}, {o}, {kernel}), {images} x {size} x {size}", convolution, x))
    changed = 0
    for name, module, x in cases:
        if threads := differing(module, x):
            changed += 1
            print(f"{name}: other bits with {', '.join(map(str, threads))} threads than with 1")
    print(f"{changed} of {len(cases)} depend on the number of threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
