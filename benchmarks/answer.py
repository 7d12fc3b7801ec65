"""Measure the time to the answer: seconds until the 95 % interval of every layer is within a margin.

    python benchmarks/answer.py                                              # digits_vgg, neurons, 1 point
    python benchmarks/answer.py --model vgg11_bn --output vgg11-answer.json
    python benchmarks/answer.py --target weight --margin 2
    python benchmarks/answer.py --markdown vgg11-answer.json                 # the table of an earlier run again

Our runs are whole: ``main.py`` or ``weight.py``, with --margin. PyTorchFI has no intervals and draws bits uniformly, so
it needs as many faulty images as our plain run did; its time is that number times its seconds for one, measured on some
layers. Everything runs in a process of its own, one at a time; with --repeats they take turns. Seconds are those of the
processor, all threads together, which other work on the machine changes little; with --device cuda, use --wall.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script, Python looks in benchmarks/ only

from benchmarks import engines, networks  # noqa: E402
from benchmarks.task import TRAINED, Task  # noqa: E402

IMAGES = 600  # the digits test part
PYTORCHFI = "PyTorchFI 0.6.0 as documented"
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "importance": ("--bit-sampling=importance",),
    "prove": ("--prove",),
    "importance and prove": ("--bit-sampling=importance", "--prove"),
}


@dataclass(frozen=True)
class Answer:
    """What one run took.

    Attributes:
        faults: faulty images that it counted, over all layers.
        seconds: of its campaign, without loading, by the clock or of the processor.
        widest: half the width of the widest interval of a layer, in points.
    """

    faults: int
    seconds: float
    widest: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; return the exit code."""
    options = parse(arguments)
    if options.markdown:
        print("\n\n".join(markdown(json.loads(path.read_text())) for path in options.markdown))
        return 0
    try:
        report = measure(options)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd[1:4]))} failed, see above", file=sys.stderr)
        return 1
    print(markdown(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0], epilog="\n".join(lines[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = ("digits_vgg", *TRAINED)
    parser.add_argument("--model", choices=models, default=models[0], help=f"default {models[0]}")
    parser.add_argument("--target", choices=("neuron", "weight"), default="neuron", help="default neuron")
    parser.add_argument("--margin", type=float, default=1.0, help="points to either side; default 1")
    parser.add_argument("--batch-size", type=engines.positive, default=256, help="default 256")
    parser.add_argument("--repeats", type=engines.positive, default=3, help="measurements of each way; default 3")
    text = "measure PyTorchFI on so many layers, evenly spaced; default 4"
    parser.add_argument("--pytorchfi-layers", type=engines.positive, default=4, help=text)
    parser.add_argument("--wall", action="store_true", help="seconds by the clock instead of the processor's")
    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, nargs="+", metavar="FILE", help="only print the tables of JSON files")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all ways in turns, each time with another seed, which is the same for all of them."""
    if options.model in TRAINED:
        engines.python("benchmarks.networks", options.model)  # trains it, if that has not been done
    found: dict[str, list[Answer]] = {way: [] for way in WAYS}
    each: list[float] = []  # PyTorchFI's seconds for a faulty image
    machine: dict[str, Any] = {}
    for seed in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            task = Task("pytorchfi", options.model, options.target, IMAGES, options.pytorchfi_layers,
                        options.batch_size, seed, options.device)  # fmt: skip
            measured = engines.Runner(Path(folder)).run(task)[0]
            each.append((measured.seconds if options.wall else measured.cpu_seconds) / measured.faults)
            machine = measured.machine
            engines.say(f"PyTorchFI, {seed + 1} of {options.repeats}: {1 / each[-1]:,.0f} faulty images a second")
            for way, flags in WAYS.items():
                answer = ours(options, flags, seed, Path(folder) / way.replace(" ", "-"))
                engines.say(f"{way}, {seed + 1} of {options.repeats}: {answer.seconds:.2f} s")
                found[way].append(answer)
    return {
        "command": ["benchmarks/answer.py", *sys.argv[1:]],
        "model": options.model,
        "target": options.target,
        "margin": options.margin,
        "machine": machine,
        "clock": "the clock" if options.wall else "the processor",
        "pytorchfi": [one * plain.faults for one, plain in zip(each, found["plain"], strict=True)],
        "ways": {way: [asdict(answer) for answer in answers] for way, answers in found.items()},
    }


def ours(options: argparse.Namespace, flags: Sequence[str], seed: int, folder: Path) -> Answer:
    """A run of the script that a user would start."""
    model = ["--model-name=digits_vgg"]
    if options.model in TRAINED:
        weights = networks.CACHE / f"{options.model}.pt"
        model = [f"--model-name={networks.__file__}:{options.model}", f"--weights={weights}"]
    own = [f"--margin={options.margin}", f"--batch-size={options.batch_size}", f"--seed={seed}", *flags]
    places = [f"--output-path={folder}", f"--device={options.device}", "--no-plots"]
    script, taken = "weight.py" if options.target == "weight" else "main.py", folder.with_suffix(".seconds")
    timed = [str(ROOT / "benchmarks" / "timed.py"), str(taken), script]
    command = [sys.executable, *timed, "--dataset=digits", *model, *own, *places]
    subprocess.run(command, check=True, env=engines.environment(), stdout=subprocess.DEVNULL, cwd=ROOT)
    (facts,) = folder.glob("*.json")
    with facts.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    widest = max((float(row["high"]) - float(row["low"])) / 2 for row in rows)
    faults = sum(int(row["injections"]) for row in rows)
    seconds = json.loads(facts.read_text())["campaign_seconds"] if options.wall else json.loads(taken.read_text())
    return Answer(faults, seconds, widest)


def markdown(report: dict[str, Any]) -> str:
    """The table of a report."""
    machine, base = report["machine"], report["pytorchfi"]
    counts = {way: round(median(answer["faults"] for answer in answers)) for way, answers in report["ways"].items()}
    seconds = {way: [answer["seconds"] for answer in answers] for way, answers in report["ways"].items()}
    rows = [(PYTORCHFI, counts["plain"], base), *((way, counts[way], taken) for way, taken in seconds.items())]
    lines = [
        f"**{report['model']}**, {report['target']} faults, until every layer's 95 % interval is within "
        f"{report['margin']:g} points. {machine['gpu'] or machine['cpu']}, {machine['threads']} threads, "
        f"torch {machine['torch']}.",
        "",
        f"`python {' '.join(report['command'])}`",
        "",
        f"| | faulty images | seconds of {report['clock']}, least | median | times faster: least, median |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for way, count, taken in rows:
        ratios = f"{min(base) / min(taken):.1f}x, {median(base) / median(taken):.1f}x"
        lines.append(f"| {way} | {count:,} | {min(taken):.2f} | {median(taken):.2f} | {ratios} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
