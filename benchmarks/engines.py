"""Measure the engines against each other, and against what people do today, on the same model, images and faults.

    python benchmarks/engines.py                                             # VGG-11-BN, 512 digits, every layer
    python benchmarks/engines.py --model resnet20 --target weight --output resnet20.json
    python benchmarks/engines.py --engines wave --growth --profile --output growth.json
    python benchmarks/engines.py --model resnet50 --images 24 --batch-size 8 --reference-layers 16
    python benchmarks/engines.py --markdown vgg11.json resnet20.json         # the tables of earlier runs again

Each measurement runs in a process of its own, one at a time; with --repeats the engines take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script, Python looks in benchmarks/ only

from benchmarks import tables  # noqa: E402
from benchmarks.task import DEFAULT_ENGINES, ENGINES, FAMILIES, MODELS, TRAINED, Measured, Task  # noqa: E402

Top1 = NDArray[np.int64]  # (1 + layers, images), the first line clean


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; return the exit code."""
    options = parse(arguments)
    if options.markdown:
        print("\n\n".join(tables.markdown(json.loads(path.read_text())) for path in options.markdown))
        return 0
    task = Task("wave", options.model, options.target, options.images, None, options.batch_size, 0, options.device)
    try:
        if options.model in TRAINED:
            python("benchmarks.networks", options.model)  # trains it, if that has not been done
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(Path(folder))
            report = compare(runner, options, task)
            if options.growth:
                report["growth"] = growth(runner, task, report["layers"], options.repeats)
            if options.profile:
                say("profiling the wave")
                report["profile"] = runner.run(dataclasses.replace(task, profile=True))[0].profile
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd[2:4])} failed, see above", file=sys.stderr)
        return 1
    print(tables.markdown(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0], epilog="\n".join(lines[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="vgg11_bn", help="default vgg11_bn")
    parser.add_argument("--target", choices=("neuron", "weight"), default="neuron", help="default neuron")
    parser.add_argument("--images", type=positive, default=512, help="default 512")
    parser.add_argument("--batch-size", type=positive, default=256, help="default 256")
    text = "default all but as_they_come, which is the wave on kernels that are not batch invariant"
    parser.add_argument("--engines", choices=ENGINES, nargs="+", default=DEFAULT_ENGINES, help=text)
    parser.add_argument("--repeats", type=positive, default=3, help="measurements of each engine; default 3")
    for name, layers in (("pytorchfi", 4), ("reference", None)):
        text = f"measure {name} on so many layers, evenly spaced, and scale the time up; default {layers or 'all'}"
        parser.add_argument(f"--{name}-layers", type=positive, default=layers, help=text)
        text = f"measure {name} on so many images, and scale the time up; default all"
        parser.add_argument(f"--{name}-images", type=positive, help=text)
    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda or cuda:N")
    parser.add_argument("--growth", action="store_true", help="also time the wave over images, layers and depth")
    parser.add_argument("--profile", action="store_true", help="also measure what the wave's time goes into")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, nargs="+", metavar="FILE", help="only print the tables of JSON files")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def compare(runner: Runner, options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """Run the engines in turns, ``repeats`` times."""
    found: dict[str, list[Measured]] = {}
    top1: dict[str, Top1] = {}
    for turn in range(options.repeats):
        for engine in dict.fromkeys(options.engines):
            measured, top1[engine] = runner.run(
                dataclasses.replace(
                    task,
                    engine=engine,
                    layers=getattr(options, f"{engine}_layers", None),
                    images=min(task.images, getattr(options, f"{engine}_images", None) or task.images),
                )
            )
            say(f"{engine}, {turn + 1} of {options.repeats}: {measured.seconds:.2f} s")
            found.setdefault(engine, []).append(measured)
    # PyTorchFI runs fewer layers than the project's engines; its time is scaled up to theirs.
    layers = max(runs[0].all_layers for runs in found.values())
    some = next(iter(found.values()))[0]
    report = {
        "command": ["benchmarks/engines.py", *sys.argv[1:]],
        "model": task.model,
        "weights": "trained on digits" if task.model in TRAINED else "random",
        "target": task.target,
        "images": task.images,
        "layers": layers,
        "batch_size": task.batch_size,
        "machine": some.machine,
        "engines": {engine: summary(runs, task.images, layers) for engine, runs in found.items()},
    }
    if "wave" in found:
        report["alive"] = found["wave"][0].alive
    if {"wave", "reference"} <= found.keys():
        report["agreement"] = agreement(found["reference"][0], top1["reference"], found["wave"][0], top1["wave"])
    if {"wave", "prove"} <= found.keys():
        report["agreement_prove"] = agreement(found["wave"][0], top1["wave"], found["prove"][0], top1["prove"])
    return report


def summary(runs: list[Measured], images: int, layers: int) -> dict[str, Any]:
    """The repeated measurements of one engine in a form for the report; lists have one entry for each."""
    one = runs[0]
    return {
        "ran": one.ran,
        "layers": one.layers,
        "images": one.task.images,
        "together": one.together,
        "changed": one.changed,
        "seconds": [run.seconds for run in runs],
        "cpu_seconds": [run.cpu_seconds for run in runs],
        "scaled": [run.scaled(images, layers) for run in runs],
        "peak_mib": max(run.peak_mib for run in runs),
        "start_mib": max(run.start_mib for run in runs),
    }


def agreement(reference: Measured, its: Top1, wave: Measured, other: Top1) -> dict[str, int]:
    """How many of the faults that both engines ran end in another top-1."""
    images = min(reference.task.images, wave.task.images)
    layers = [name for name in reference.layers if name in wave.layers]
    rows = [1 + reference.layers.index(name) for name in layers], [1 + wave.layers.index(name) for name in layers]
    a, b = its[rows[0], :images], other[rows[1], :images]
    clean = its[0, :images] != other[0, :images]
    counts = (a != its[0, :images]).sum(axis=1), (b != other[0, :images]).sum(axis=1)
    return {
        "layers": len(layers),
        "faults": a.size,
        "changed": int(counts[0].sum()),
        "layers_with_other_count": int((counts[0] != counts[1]).sum()),
        "faults_with_other_top1": int((a != b).sum()),
        "images_with_other_clean_top1": int(clean.sum()),
    }


def growth(runner: Runner, task: Task, layers: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds of the wave over the number of images, over the number of layers, and over models of growing depth."""
    points = [("images", str(n), dataclasses.replace(task, images=n)) for n in parts(task.images)]
    points += [("layers", str(n), dataclasses.replace(task, layers=None if n == layers else n)) for n in parts(layers)]
    family = next((models for models in FAMILIES.values() if task.model in models), ())
    for model in family:
        python("benchmarks.networks", model)
        points.append(("depth", model, dataclasses.replace(task, model=model)))
    found: dict[Task, list[Measured]] = {}
    for turn in range(repeats):
        for one in dict.fromkeys(point[2] for point in points):
            say(f"wave on {one.model}, {one.images} images, {one.layers or 'all'} layers, {turn + 1} of {repeats}")
            found.setdefault(one, []).append(runner.run(one)[0])
    return [
        {
            "axis": axis,
            "value": value,
            "layers": len(found[one][0].layers),
            "images": one.images,
            "seconds": [measured.seconds for measured in found[one]],
        }
        for axis, value, one in points
    ]


def parts(whole: int) -> list[int]:
    """A quarter, a half and all of it, each at least 1."""
    return [max(1, whole // 4), max(1, whole // 2), whole]


class Runner:
    """Runs measurements, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, task: Task) -> tuple[Measured, Top1]:
        """Run one measurement."""
        python("benchmarks.measure", json.dumps(dataclasses.asdict(task)), str(self.folder))
        return Measured.load(self.folder / "measured.json"), np.load(self.folder / "top1.npy")


def python(module: str, *arguments: str) -> None:
    """Run a module of this checkout, without the settings that the environment may hold for main.py.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, env=environment())


def environment() -> dict[str, str]:
    """That of this process, without the settings that it may hold for main.py."""
    return {name: value for name, value in os.environ.items() if name.isupper()}


def say(text: str) -> None:
    """Tell whoever waits what is going on."""
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
