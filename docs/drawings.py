"""Draw the figures of the pages about how it works: ``python docs/drawings.py`` writes ``docs/*.svg``.

Each has a ground of its own and colours for light and dark, so that it can be read on any page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from bitflip.statistics import intervals  # noqa: E402
from bitflip.statistics.intervals import Interval  # noqa: E402

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 12px; fill: #57606a }
.head { font-weight: 600 }
.ground { fill: #fff; stroke: #d0d7de }
.box { fill: #f0f3f6; stroke: #8c959f }
.line { stroke: #57606a; stroke-width: 1.5; fill: none }
.dash { stroke: #57606a; stroke-width: 1.2; stroke-dasharray: 3 3; fill: none }
.hit { fill: #cf222e; stroke: none }
.soft { fill: #cf222e; fill-opacity: .15; stroke: #cf222e }
.good { fill: #1f7a3a; fill-opacity: .15; stroke: #1f7a3a }
.dot { fill: #0b62c4 }
.bar { stroke: #0b62c4; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .small { fill: #9da7b3 }
  .ground { fill: #161b22; stroke: #3d444d }
  .box { fill: #262c36; stroke: #6e7681 }
  .line, .dash { stroke: #9da7b3 }
  .hit { fill: #ff6b66 }
  .soft { fill: #ff6b66; stroke: #ff6b66 }
  .good { fill: #3fb950; stroke: #3fb950 }
  .dot { fill: #6cb1ff }
  .bar { stroke: #6cb1ff }
}
"""
WIDTH = 720
IMAGES = 200  # that a flip of a weight hits


def drawing(height: int, title: str, parts: list[str]) -> str:
    """A drawing with a ground; the title is for those who don't see it."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0L8 4L0 8z" fill="#7d8590"/></marker></defs>',
            f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="ground"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "line", *, tip: bool = True) -> str:
    """A straight line, with an arrowhead at its end."""
    end = ' marker-end="url(#tip)"' if tip else ""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"{end}/>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """A rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>'


def circle(x: float, y: float, radius: float, kind: str) -> str:
    """A circle."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="{kind}"/>'


def wave() -> str:
    """One clean pass, and faulty rows that fork from it, travel as windows, and leave."""
    steps = ("image", "Conv2d", "ReLU", "MaxPool2d", "Conv2d", "Linear")
    middle = [62 + 104 * i for i in range(len(steps))]
    side, gap = 40, 66
    parts = [text(16, 26, "one clean pass of the batch", "head")]
    for i, (x, name) in enumerate(zip(middle, steps, strict=True)):
        parts += [box(x - 42, 38, 84, 30), text(x, 58, name, anchor="middle")]
        if i:
            parts.append(line(middle[i - 1] + 42, 53, x - 42, 53))
    parts.append(text(middle[-1] + 48, 58, "class", "small"))
    lanes = (  # where the row forks, the share of the map's side that differs behind each step, and its end
        (0, (0.12, 0.35, 0.35, 0.4, 0.75, 1.0), "compared: another class"),
        (1, (0.12, 0.0), "as clean: leaves, masked"),
        (2, (0.12, 0.15, 0.45), "class can't change: leaves"),
        (4, (0.12, 1.0), "compared: the same class, benign"),
    )
    for lane, (start, *_) in enumerate(lanes):
        parts.append(line(middle[start], 68, middle[start], 120 + gap * lane - side / 2, "dash"))
    for lane, (start, shares, end) in enumerate(lanes):
        y = 120 + gap * lane
        for i, share in enumerate(shares, start=start):
            x = middle[i]
            if i > start:
                parts.append(line(middle[i - 1] + side / 2, y, x - side / 2, y))
            parts.append(box(x - side / 2, y - side / 2, side, side))
            if share:
                size = side * share
                parts.append(box(x - size / 2, y - size / 2, size, size, "hit"))
        last = start + len(shares) - 1
        if last == len(steps) - 1:
            parts.append(text(WIDTH - 16, y + side / 2 + 15, end, "small", "end"))
        else:
            parts.append(text(middle[last] + side / 2 + 8, y + 4, end, "small"))
    parts.append(
        text(
            16,
            384,
            "A square is a faulty copy of an image's values; only the red window is computed, and all travel together.",
            "small",
        )
    )
    return drawing(400, "One clean pass; at each layer faulty rows fork from it, travel as windows, and leave", parts)


def bound() -> str:
    """Why a fault that moves a layer by d can't change the class."""
    parts = [text(20, 28, "behind the struck layer", "head"), text(310, 28, "in front of the last layer", "head")]
    parts += [circle(110, 130, 26, "good"), circle(110, 130, 3.5, "dot"), line(110, 130, 134, 130, tip=False)]
    parts += [text(116, 122, "d", "small"), text(110, 180, "the fault moves the output by d", "small", "middle")]
    parts += [line(190, 130, 300, 130), text(245, 118, "at most L times", "small", "middle")]
    x, y = 420.0, 130.0
    parts += [circle(x, y, 46, "good"), circle(x, y, 3.5, "dot"), line(x, y, x + 46, y, tip=False)]
    parts += [text(x + 12, y - 6, "L d", "small"), text(x, y + 66, "never crosses: not run", "small", "middle")]
    parts += [line(x, y + 86, 560, y + 86), text((x + 560) / 2, y + 103, "margin", "small", "middle")]
    parts += [line(560, 44, 560, 236, "dash", tip=False), text(568, 58, "another class", "small")]
    parts += [circle(560, 176, 52, "soft"), circle(536, 176, 3.5, "dot"), text(618, 180, "may cross: run", "small")]
    return drawing(250, "A fault that moves the features by less than the margin leaves the class as it is", parts)


def interval() -> str:
    """How sure a rate is after so many faults."""
    parts: list[str] = []

    def panel(top: float, head: str, most: float, rows: list[tuple[str, float, Interval[float]]], tick: int) -> None:
        left, right = 250.0, 690.0
        bottom = top + 22 + 26 * len(rows)

        def at(rate: float) -> float:
            return left + (right - left) * rate / most

        parts.append(text(20, top, head, "head"))
        for i, (name, rate, around) in enumerate(rows):
            y = top + 26 + 26 * i
            parts.append(text(left - 14, y + 4, name, anchor="end"))
            parts.append(line(at(around.low), y, at(around.high), y, "bar", tip=False))
            parts.append(circle(at(rate), y, 5, "dot"))
        parts.append(line(left, bottom, right, bottom, tip=False))
        for percent in range(0, round(100 * most) + 1, tick):
            x = at(percent / 100)
            parts.append(line(x, bottom, x, bottom + 5, tip=False))
            parts.append(text(x, bottom + 19, f"{percent} %", "small", "middle"))

    neurons = [(n, n * 3 // 100) for n in (100, 600, 2400, 9600)]
    panel(
        28,
        "neurons: 3 in 100 faults misclassify",
        0.1,
        [(f"{n:,} faults", m / n, intervals.wilson(m, n)) for n, m in neurons],
        2,
    )
    panel(
        212,
        f"weights: no flip breaks any of its {IMAGES} images",
        0.8,
        [(f"{n:,} flips", 0.0, intervals.clustered(n, 0, n * IMAGES, 0, 0, n * IMAGES**2)) for n in (3, 30, 300)],
        20,
    )
    return drawing(
        350, "Confidence intervals of 95 % become narrower with more faults; a flip of a weight counts once", parts
    )


DRAWINGS: dict[str, Callable[[], str]] = {"wave": wave, "bound": bound, "interval": interval}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
