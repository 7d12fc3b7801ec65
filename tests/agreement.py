"""Run whole campaigns of every kind on both engines, and compare the tables that they write, byte by byte.

    python tests/agreement.py                          # on the CPU, two minutes on two cores
    python tests/agreement.py --device cuda --jobs 8   # what no test of the suite does on a GPU

All runs share one cache of what was found out about kernels, as the runs of a user do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMON = ["--dataset=digits", "--max-images=150", "--batch-size=50", "--no-plots"]
CAMPAIGNS = """
main.py
main.py --number-format=int8
main.py --number-format=float8_e4m3fn
main.py --number-format=bfloat16
main.py --number-format=float16
main.py --number-format=float64
main.py --fault=stuck1
main.py --fault=flips:2
main.py --fault=random
main.py --protect=ranger
main.py --protect=ranger-channel
main.py --protect=relu6
main.py --bit-sampling=importance --repeats=2
main.py --seeds=1-3
main.py --margin=3
main.py --detailed-log
main.py --bit-error-rate=1e-6,1e-5
weight.py --parameters=weight,bias
weight.py --number-format=int8
weight.py --number-format=float8_e5m2
weight.py --number-format=bfloat16
weight.py --number-format=float64
weight.py --number-format=int8 --parameters=weight.scale,output.scale,output.zero_point
weight.py --fault=burst:3
weight.py --fault=zero
weight.py --protect=nan+clip
weight.py --protect=ecc:0.1
weight.py --bit-error-rate=1e-6,1e-5,1e-4
weight.py --number-format=int8 --bit-error-rate=1e-5,1e-4 --by-layer
""".strip().splitlines()
ENGINES = ("wave", "reference")


def main() -> int:
    """Run all, say which agree, and return how many do not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once; default 2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:

        def tables(number: int, engine: str) -> list[bytes] | str:
            return run(CAMPAIGNS[number], engine, options.device, Path(folder), f"{number}-{engine}")

        found = {engine: pool.map(tables, range(len(CAMPAIGNS)), [engine] * len(CAMPAIGNS)) for engine in ENGINES}
        apart = 0
        for campaign, *both in zip(CAMPAIGNS, *found.values(), strict=True):
            agree = both[0] == both[1] and isinstance(both[0], list) and len(both[0]) > 0
            apart += not agree
            print("the same:" if agree else "NOT THE SAME:", campaign, flush=True)
            for failed in both:
                if isinstance(failed, str):
                    print(failed)
    return apart


def run(campaign: str, engine: str, device: str, folder: Path, name: str) -> list[bytes] | str:
    """The tables of a campaign, or what it said when it failed."""
    script, *own = campaign.split()
    seed = [] if "--seeds" in campaign else ["--seed=3"]
    command = [sys.executable, script, *COMMON, *own, *seed, f"--engine={engine}", f"--device={device}"]
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    (output := folder / name).mkdir()
    done = subprocess.run(
        [*command, f"--output-path={output}"], cwd=ROOT, env={**os.environ, **cache}, capture_output=True, text=True
    )
    return done.stderr if done.returncode else [path.read_bytes() for path in sorted(output.glob("*.csv"))]


if __name__ == "__main__":
    sys.exit(main())
