"""What workers on a Ray cluster cost and gain against one process, on this machine.

python benchmarks/scaling.py                  # on a quiet machine; a few minutes
python benchmarks/scaling.py --workers 1 2 4 --script weight.py -- --repeats 8
python benchmarks/scaling.py --sizes          # bytes of a fault, and the driver's time for it, for ResNet-50

Every process has one thread, so that all runs do the same work; "threads" is one process with as many threads as the
most workers. Compared are the seconds of the campaign, and of the whole command with Ray's start and all loading.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CAMPAIGN = ["--dataset", "digits", "--seed", "1", "--batch-size", "32", "--repeats", "8", "--no-plots"]


def run(script: str, folder: Path, arguments: list[str], threads: int) -> tuple[float, float, dict[str, bytes]]:
    """Seconds of the campaign and of the command, and the tables that it wrote."""
    command = [sys.executable, str(ROOT / script), *arguments, "--output-path", str(folder)]
    began = time.perf_counter()
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = time.perf_counter() - began
    (facts,) = (path for path in folder.glob("*.json"))
    tables = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    return json.loads(facts.read_text())["campaign_seconds"], whole, tables


def compare(script: str, arguments: list[str], workers: list[int]) -> None:
    """Print a line per way to run."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone, whole, expected = run(script, folder / "alone", arguments, 1)
        print(f"{'':22}{'campaign':>10}{'faster by':>11}{'command':>10}", flush=True)
        print(f"{'one process':22}{alone:9.1f}s{1:10.2f}x{whole:9.1f}s", flush=True)
        seconds, whole, _ = run(script, folder / "threads", arguments, max(workers))
        print(f"{f'  {max(workers)} threads':22}{seconds:9.1f}s{alone / seconds:10.2f}x{whole:9.1f}s", flush=True)
        for count in workers:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": count, "include_dashboard": False})
            try:
                on_ray = [*arguments, "--ray", cluster.address]
                seconds, whole, found = run(script, folder / str(count), on_ray, 1)
            finally:
                cluster.shutdown()  # type: ignore[no-untyped-call]
            assert found == expected, "other tables than those of one process"
            label = f"Ray, {count} worker{'s' * (count > 1)}"
            print(f"{label:22}{seconds:9.1f}s{alone / seconds:10.2f}x{whole:9.1f}s", flush=True)


def sizes() -> None:
    """Print bytes per fault, and the driver's time per fault."""
    import torch
    import torchvision
    from PIL import Image

    from bitflip.cluster.shards import Parcel
    from bitflip.data import imagefiles
    from bitflip.engines.injection import Injector, WithInput
    from bitflip.faults.sampled import Sampling
    from bitflip.faults.tasks import Task
    from bitflip.network.layers import Target
    from bitflip.outcomes.batch import BatchOutcomes
    from bitflip.outcomes.counts import Counts
    from bitflip.settings.hyperparameters import Hyperparameters

    torch.set_num_threads(1)
    model, batch = torchvision.models.resnet50().eval(), 256
    injector = Injector(WithInput(model), batch, torch.zeros(1, 3, 224, 224))
    items = [Target(i, layer) for i, layer in enumerate(injector.layers)]
    sampling = Sampling("neuron", (1,), batch, 1, None)

    def timed(what: Any) -> tuple[float, Any]:
        before = time.process_time()
        result = what()
        return time.process_time() - before, result

    drawing, flips = timed(lambda: sampling.flips(items, 0, batch))
    outcomes = BatchOutcomes(torch.randint(1000, (batch,)), flips, 0, lambda count: None)
    outcomes.clean_top1, outcomes.top1 = outcomes.labels, outcomes.labels.expand(len(flips), -1).clone()
    outcomes.effects = torch.randint(2, (len(flips), batch), dtype=torch.uint8)
    outcomes.original = outcomes.error = [torch.randn(batch) for _ in flips]
    faults = len(flips) * batch
    print(
        f"ResNet-50: {len(items)} layers, {sum(v.nbytes for v in model.state_dict().values()) / 1e6:.0f} MB of weights"
    )
    for values in (False, True):
        size = len(pickle.dumps(Parcel.of(outcomes, values=values), 5))
        print(
            f"outcomes {'with' if values else 'without'} values: {size / faults:.2f} bytes per fault, {size:,} a shard"
        )
    parcel, counts = Parcel.of(outcomes, values=False), Counts((1,), items)
    unpacking, back = timed(lambda: parcel.outcomes(flips))
    counting, _ = timed(lambda: counts.add(Task(range(batch), flips), back))
    for name, seconds in (("drawing", drawing), ("unpacking", unpacking), ("counting", counting)):
        print(f"{name}: {1e6 * seconds / faults:.2f} us per fault")
    noise = np.random.default_rng(0).normal(128, 20, (24, 32, 3)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    preprocess = imagefiles.preprocessing(Hyperparameters(dataset="imagenet").resolved())
    reading, _ = timed(lambda: [preprocess(Image.open(file).convert("RGB")) for _ in range(20)])
    print(f"reading a JPEG of 500 x 375 pixels: {1e3 * reading / 20:.1f} ms")


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", action="store_true", help="bytes and the driver's time per fault instead")
    parser.add_argument("--script", default="main.py")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("campaign", nargs="*", default=[], help=f"after --: settings beside {' '.join(CAMPAIGN)}")
    given = parser.parse_args()
    if given.sizes:
        sizes()
    else:
        compare(given.script, [*CAMPAIGN, *given.campaign], given.workers)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
