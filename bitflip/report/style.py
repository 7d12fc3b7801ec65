"""How the plots look, whatever the user's own style, and their bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 300
INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is a $
    "hatch.linewidth": 0.4,
    "figure.dpi": DPI,
    "svg.hashsalt": "bitflip",  # the same bytes each time
}


@contextmanager
def styled() -> Iterator[None]:
    """Our style instead of the user's, whose own settings come back afterwards."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name; it is drawn as a box
        mpl.rcdefaults()
        cast(Any, mpl.rcParams).update(STYLE)
        yield


def saved(figure: Figure | None) -> dict[str, bytes] | None:
    """A figure in both formats; ``savefig`` would draw it five times instead of twice."""
    if figure is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from PIL import Image

    png, svg = io.BytesIO(), io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256).save(png, "png", dpi=(DPI, DPI))  # a third of the bytes, and all colours that it has
    figure.set_layout_engine("none")  # everything has its place by now
    canvas = FigureCanvasSVG(figure)
    canvas.print_svg(svg, metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
