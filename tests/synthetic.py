"""Result files of runs that never were: any number of layers, types and seeds, with rates to order."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitflip.statistics import intervals, rates
from bitflip.statistics.intervals import Sums

TYPES = ("Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Linear")
COUNTS = ("flips", "injections", "masked", "benign", "sdc1", "sdc5", "sdc10", "sdc20", "nonfinite")

Layer = tuple[str, str]  # type and path
Shares = Callable[[int, int], float]  # layer, bit -> share of images that are misclassified


def layers_like(count: int, types: Sequence[str] = TYPES) -> list[Layer]:
    """So many layers, whose types take turns."""
    return [(types[i % len(types)], f"features.{i}") for i in range(count)]


def fragile_exponent(layer: int, bit: int) -> float:
    """Shares as networks have them: the top exponent bit hurts, less so in deep layers; the rest hardly does."""
    return {1: 0.6 / (1 + layer / 8), 0: 0.01, 2: 0.004}.get(bit, 0.0)


def write_run(
    folder: Path,
    seed: int = 1,
    layers: Sequence[Layer] = tuple(layers_like(7)),
    shares: Shares = fragile_exponent,
    *,
    target: str = "neuron",
    images: int = 640,
    correct: int = 600,
    bits: Sequence[int] = range(32),
    prefix: str = "",
    old: bool = False,
    complete: bool = True,
    model: str = "net",
    **settings: Any,
) -> Path:
    """Write the files of a run and return its ``.csv``; ``old`` leaves out what earlier versions left out."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    stem = f"{prefix}{model}_digits_{seed}" + ("" if complete else "_partial")
    parameter = "weight" if target == "weight" else ""
    rows: list[list[object]] = []
    by_bit: list[list[object]] = []
    for number, (kind, path) in enumerate(layers):
        flips = 5 if target == "weight" else images
        hits = random.choice(list(bits), flips)
        total = dict.fromkeys([*COUNTS, "misclassified", "correct"], 0)
        begun = most = 0
        hit = dict.fromkeys(range(32), (0, 0))
        for bit in sorted(set(hits.tolist())):
            n_flips = int((hits == bit).sum())
            n = n_flips * (images // flips)
            right = (begun + n) * correct // images - begun * correct // images  # so that all bits have all of them
            begun += n
            wrong = int(random.binomial(right, shares(number, bit)))
            masked = int((n - wrong) * 0.6)
            cell = {
                "flips": n_flips,
                "injections": n,
                "misclassified": wrong,
                "correct": right,
                "masked": masked,
                "benign": n - wrong - masked,
                "sdc1": wrong,
                "sdc5": wrong // 3,
                "sdc10": wrong,
                "sdc20": wrong // 2,
                "nonfinite": wrong // 4,
            }
            most = max(most, wrong)
            hit[bit] = wrong, right
            for name, value in cell.items():
                total[name] += value
            by_bit.append([number, kind, path, 0, parameter, bit, *_measured(cell, target, wrong)])
        measured = _measured(total, target, most)
        if settings.get("bit_sampling") == "importance":  # of neurons
            (top, of_top), others = hit[1], [hit[bit] for bit in range(32) if bit != 1]
            rest, of_rest = (float(sum(counts)) for counts in zip(*others, strict=True))
            parts = [rates.Part(Sums.single(top, of_top), 1 / 32), rates.Part(Sums.single(rest, of_rest), 31 / 32)]
            weighted = rates.mean([parts], 0.95)
            measured[4:7] = [
                f"{value:.6f}" for value in (weighted.value, weighted.low, weighted.high) if value is not None
            ]
        if old:
            rows.append([len(rows), kind, measured[4], number, path, 0, total["misclassified"], total["correct"]])
        else:
            low, high = measured[5:7]
            front = [len(rows), kind, measured[4], number, path, 0, parameter]
            rows.append([*front, *measured[2:4], low, high, *measured[:2], *measured[7:]])
    middle = "" if old else "parameter,"
    end = "" if old else "," + ",".join(["low", "high", *COUNTS, "largest_change"])
    header = f"index,name,seed_{seed},layer,path,call,{middle}misclassified,correct{end}"
    _write(folder / f"{stem}.csv", header, rows)
    if not old:
        measured_names = f"flips,injections,misclassified,correct,rate,low,high,{','.join(COUNTS[2:])},largest_change"
        _write(folder / f"{stem}_bits.csv", f"layer,name,path,call,parameter,bit,{measured_names}", by_bit)
    run = {
        "complete": complete,
        "target": target,
        "engine": "wave",
        "settings": {
            "dataset": "digits",
            "model_name": model,
            "weights": None,
            "seed": seed,
            "batch_size": 128,
            "bit_flip_pos": -1,
            "detailed_log": False,
            "device": "auto",
            "output_path": str(folder),
            **settings,
        },
        "device": "cpu",
        "model": {"source": "here", "weights": "net.pt", "sha256": "ab" * 32},
        "images": images,
        "clean_correct": correct,
        "layers": [
            {
                "number": i,
                "path": path,
                "call": 0,
                "type": kind,
                "per_image": True,
                "bits": 32,
                "parameters": [{"name": "weight", "shape": [4], "bits": 32}],
            }
            for i, (kind, path) in enumerate(layers)
        ],
        "versions": {"bitflip": "0.1.0", "torch": "2.5.0"},
        "git_commit": None,
    }
    if not old:
        run["confidence"] = 0.95
    (folder / f"{stem}.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return folder / f"{stem}.csv"


def _measured(cell: dict[str, int], target: str, most: int) -> list[object]:
    n, wrong = cell["correct"], cell["misclassified"]
    low, high = ("", "")
    if n:
        found = intervals.wilson(float(wrong), float(n))
        if target == "weight":  # as if each flip broke all of its images or none
            flips = float(cell["flips"])
            each = n / flips
            found = intervals.clustered(flips, float(wrong), float(n), wrong * each, wrong * each, n * each)
        low, high = f"{100 * found.low:.6f}", f"{100 * found.high:.6f}"
    front = [cell["flips"], cell["injections"], wrong, n, f"{100 * wrong / n:.6f}" if n else "", low, high]
    return [*front, *(cell[name] for name in COUNTS[2:]), f"{min(1.0, most / 7):.6f}"]


def _write(path: Path, header: str, rows: Sequence[Sequence[object]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(rows)
    path.write_text(buffer.getvalue(), encoding="utf-8")
