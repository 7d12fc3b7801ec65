"""Make sample-output/ again: ``python tests/samples.py``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample-output"
RUNS = (
    ("main.py", "--seed=1234", "--detailed-log", f"--output-path={SAMPLES.name}"),
    ("neuron.py", "--seed=1234", "--detailed-log", f"--output-path={SAMPLES.name}"),
    (
        "weight.py",
        "--seed=1234",
        "--detailed-log",
        "--batch-size=32",
        "--repeats=8",
        f"--output-path={SAMPLES.name}",
    ),
    ("main.py", "--seeds=1-10", "--layer-type=Conv2d,Linear", f"--output-path={SAMPLES.name}/ten-seeds"),
)

if __name__ == "__main__":
    shutil.rmtree(SAMPLES, ignore_errors=True)
    for run in RUNS:
        print("python", *run, "--dataset=digits", flush=True)
        subprocess.run([sys.executable, *run, "--dataset=digits"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
