"""The tables of a measurement, in Markdown, made from its JSON only."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

TITLES = {
    "pytorchfi": "PyTorchFI 0.6.0 as documented",
    "reference": "reference",
    "wave": "wave",
    "prove": "wave with bounds (`--prove`)",
    "as_they_come": "wave on kernels as they come",
}
MAX_DEPTHS = 12


def markdown(report: dict[str, Any]) -> str:
    """All tables of one report."""
    parts = [heading(report), engines(report)]
    if "agreement" in report:
        parts.append(agreement(report["agreement"]))
    if "agreement_prove" in report:
        parts.append(agreement(report["agreement_prove"], "Wave with and without bounds"))
    if report.get("alive"):
        parts.append(alive(report["alive"]))
    if "growth" in report:
        parts.append(growth(report["growth"]))
    if "profile" in report:
        parts.append(profile(report["profile"]))
    return "\n\n".join(parts)


def heading(report: dict[str, Any]) -> str:
    """What was measured, and on what."""
    machine = report["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    if machine["gpu"]:
        where = f"{machine['gpu']} ({where})"
    return (
        f"**{report['model']}** (weights: {report['weights']}), {report['target']} faults in {report['layers']} "
        f"layers, {report['images']} images in batches of {report['batch_size']}, IEEE float32. {where}, "
        f"torch {machine['torch']}, Python {machine['python']}.\n\n`python {' '.join(report['command'])}`"
    )


def engines(report: dict[str, Any]) -> str:
    """Seconds, ratios, rates and memory of each engine."""
    faults = report["images"] * report["layers"]
    wave = report["engines"].get("wave")
    rows = []
    for name, engine in report["engines"].items():
        scaled = engine["scaled"]
        measured = f"{len(engine['layers'])} layers, {engine['images']} images"
        if engine["together"] > report["batch_size"]:
            measured += f" ({engine['together']} at once)"
        note = measured if scaled == engine["seconds"] else f"{measured}, scaled up"
        ratio = f"{min(scaled) / min(wave['scaled']):.2f}x" if wave else ""
        rows.append(
            [
                TITLES[name] if engine["ran"] == name else f"{TITLES[name]} (handed to {engine['ran']})",
                note,
                f"{min(scaled):.2f}",
                f"{median(scaled):.2f}",
                f"{min(scaled) / report['layers']:.3f}",
                ratio,
                f"{faults / min(scaled):,.0f}",
                f"{sum(engine['cpu_seconds']) / sum(engine['seconds']):.1f}",
                f"{engine['peak_mib']:,.0f}",
                f"{engine['start_mib']:,.0f}",
            ]
        )
    columns = ["engine", "measured on", "seconds, min", "median", "per layer", "wave is faster by", "faults/s"]
    return table([*columns, "cores busy", "peak MiB", "before the campaign"], rows)


def agreement(counts: dict[str, int], who: str = "Reference and wave") -> str:
    """Whether the two engines gave the same outcomes."""
    if not counts["faults_with_other_top1"] and not counts["images_with_other_clean_top1"]:
        return (
            f"{who} agree on all {counts['faults']:,} faults in {counts['layers']} layers, of which "
            f"{counts['changed']:,} change the top-1."
        )
    return (
        f"{who} DIFFER: {counts['faults_with_other_top1']:,} of {counts['faults']:,} faults have another "
        f"top-1, {counts['layers_with_other_count']} of {counts['layers']} layers another count, "
        f"{counts['images_with_other_clean_top1']} images another clean top-1."
    )


def alive(steps: list[dict[str, Any]]) -> str:
    """How the pool of the wave develops, at some steps."""
    shown = {round(i * (len(steps) - 1) / (MAX_DEPTHS - 1)): None for i in range(MAX_DEPTHS)}
    rows = [[s["step"], f"{s['forked']:,}", f"{s['rows']:,}", f"{s['share']:.1%}"] for s in (steps[i] for i in shown)]
    return table(["wave: at step", "faults so far", "still in the pool", "share"], rows)


def growth(points: list[dict[str, Any]]) -> str:
    """Seconds of the wave as the work grows."""
    rows = [
        [
            f"{point['axis']}: {point['value']}",
            str(point["images"]),
            str(point["layers"]),
            f"{min(point['seconds']):.2f}",
            f"{1e6 * min(point['seconds']) / point['images'] / point['layers']:.0f}",
        ]
        for point in points
    ]
    return table(["wave, growing in", "images", "layers", "seconds, min", "µs per fault"], rows)


def profile(found: dict[str, Any]) -> str:
    """What the wave's time goes into."""
    total = sum(found["seconds"].values())
    rows = [[name, f"{s:.2f}", f"{s / total:.0%}"] for name, s in found["seconds"].items()]
    text = table([f"wave, profiled, {found['wall']:.2f} s", "seconds", "share"], rows)
    reached, product = found["gflops"]["run"], found["gflops"]["matrix product"]
    text += f"\n\n{reached:,.0f} GFLOP/s over all of it, {reached / product:.2f} of one large matrix product's."
    if found["host_waits"] is not None:
        text += f"\n\nThe host waited for the device {found['host_waits']:,} times."
    return text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text, the others numbers; columns that are empty throughout are left out."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], *[[row[i] for i in kept] for row in rows]]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(kept))]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
