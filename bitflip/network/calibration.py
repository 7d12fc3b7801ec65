"""The range of the values that layers put out without a fault, measured on images that are not those of the test.

After Chen, Li and Pattabiraman 2021, "A Low-cost Fault Corrector for Deep Neural Networks through Range Restriction"
(Ranger): a value outside of what a layer puts out in training is taken for faulty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.errors import BadInput
from bitflip.network import protections
from bitflip.network.names import label
from bitflip.network.protections import Call
from bitflip.network.state import State

FORMAT = "bitflip bounds 1"
SETTING = "bounds (--bounds)"
BINS = 1 << 14  # of a histogram for percentiles, so that these are sharp to a share of the range

Per = Literal["layer", "channel"]
Mode = Callable[[], AbstractContextManager[object]]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Bounds:
    """The ranges of layers, one for a whole layer or one per channel.

    Attributes:
        per: layer or channel.
        ranges: the smallest and the largest values, (1,) or (channels,) each, by the layer's path and call.
        origin: what they were measured on, for people: percentile, images, weights.
    """

    per: Per
    ranges: dict[Call, tuple[tuple[float, ...], tuple[float, ...]]]
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of the ranges."""
        return hashlib.sha256(json.dumps([self.per, self._rows]).encode()).hexdigest()

    @property
    def count(self) -> int:
        """Numbers that a protected network has to keep."""
        return 2 * sum(len(low) for low, _ in self.ranges.values())

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return [{"path": p, "call": c, "low": [*low], "high": [*high]} for (p, c), (low, high) in self.ranges.items()]

    def write(self, path: Path) -> None:
        """Write them as JSON, to be read again by :func:`read`."""
        head = json.dumps({"format": FORMAT, "per": self.per, **self.origin}, indent=1)
        rows = ",\n".join(f"  {json.dumps(row)}" for row in self._rows)
        path.write_text(f'{head[:-2]},\n "layers": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def read(path: Path) -> Bounds:
    """Read what :meth:`Bounds.write` wrote.

    Raises:
        BadInput: if it is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = found["layers"]
        ranges = {(str(row["path"]), int(row["call"])): (_numbers(row["low"]), _numbers(row["high"])) for row in rows}
        sizes = {
            len(low) == len(high) and all(a <= b for a, b in zip(low, high, strict=True))
            for low, high in ranges.values()
        }
        if found["format"] != FORMAT or found["per"] not in ("layer", "channel") or sizes != {True}:
            raise ValueError("no bounds")
        if found["per"] == "layer" and any(len(low) != 1 for low, _ in ranges.values()):
            raise ValueError("several bounds of a layer")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no such file, or damaged"
        raise BadInput(f"{SETTING}: expected a file of bounds that a run wrote, got {path} ({reason})") from error
    return Bounds(found["per"], ranges, {k: v for k, v in found.items() if k not in ("format", "per", "layers")})


def _numbers(values: list[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def measure(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Callable[[], Iterable[Inputs]],
    per: Per,
    percentile: float,
    mode: Mode,
) -> Bounds:
    """Run images through a model and look at what modules put out.

    Args:
        model: in eval mode; its state is as it was afterwards.
        modules: of it, by path.
        batches: the images, such as (B, C, H, W) each, anew at each call.
        per: whether to take all values of a layer together.
        percentile: of the values that the upper bound is; the lower one is as far from the other end. 100: the largest
            and the smallest.
        mode: in which the passes run.

    Raises:
        BadInput: if a value is NaN or infinite, or a module returns no tensor of floating-point values.
    """
    ends: dict[Call, tuple[Tensor, Tensor]] = {}

    def look(call: Call, output: Any) -> None:
        values = _by_channel(call, output, per)
        found = values.amin(1), values.amax(1)
        if not bool(torch.stack(found).isfinite().all()):
            raise BadInput(f"calibration_images (--calibration-images): the output of {label(*call)} is not finite")
        low, high = ends.get(call, found)
        ends[call] = torch.minimum(low, found[0]), torch.maximum(high, found[1])

    passes(model, modules, batches(), look, mode)
    if percentile < 100:

        def again(see: Callable[[Call, Tensor], None]) -> None:
            passes(model, modules, batches(), lambda call, out: see(call, _by_channel(call, out, per)), mode)

        ends = cut(ends, percentile, again)
    ranges = {call: (tuple(low.double().tolist()), tuple(high.double().tolist())) for call, (low, high) in ends.items()}
    return Bounds(per, ranges)


def passes(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Inputs],
    see: Callable[[Call, Any], None],
    mode: Mode,
) -> None:
    """Run images through a model, which is in the same state before each batch, and see what modules return."""
    state = State.of(model)
    try:
        for batch in batches:
            state.restore()
            with mode():
                protections.watched(lambda: inputs.call(model, inputs.clone(batch)), modules, see)  # noqa: B023
    finally:
        state.restore()


def _by_channel(call: Call, output: Any, per: Per) -> Tensor:
    """What a layer put out, a line for each channel, or one: (C, N)."""
    require_values(call, output)
    if per == "layer":
        return output.detach().reshape(1, -1)  # type: ignore[no-any-return]
    return output.detach().movedim(1, 0).flatten(1) if output.dim() > 1 else output.detach()[None]  # type: ignore[no-any-return]


def require_values(call: Call, output: Any) -> None:
    """Refuse what can't be guarded.

    Raises:
        BadInput: if it is no tensor of floating-point values.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
        raise BadInput(
            f"{protections.SETTING}: expected layers or blocks that return a tensor of numbers, but "
            f"{label(*call)} returns {type(output).__name__}"
        )


def cut(
    ends: dict[Key, tuple[Tensor, Tensor]],
    percentile: float,
    run: Callable[[Callable[[Key, Tensor], None]], None],
) -> dict[Key, tuple[Tensor, Tensor]]:
    """The ranges without the shares at both ends, from histograms of a second look at the values.

    A bound is the outer edge of the bin that the percentile is in, so it cuts no more than was asked for.

    Args:
        ends: the smallest and the largest values, (C,) each, of whatever has some.
        percentile: of the values that the upper bound is; the lower one is as far from the other end.
        run: has all values seen once more, (C, N) at a time.
    """
    counts = {call: torch.zeros(len(low), BINS, dtype=torch.int64) for call, (low, _) in ends.items()}

    def count(call: Key, values: Tensor) -> None:
        values = values.double()
        low, high = (end.double()[:, None] for end in ends[call])
        place = ((values - low) / (high - low) * BINS).nan_to_num(0.0).long().clamp(0, BINS - 1)
        lines = torch.arange(len(values), device=values.device)[:, None] * BINS
        found = torch.bincount((place + lines).flatten(), minlength=counts[call].numel())
        counts[call] += found.view_as(counts[call]).cpu()

    run(count)
    found = {}
    for call, (low, high) in ends.items():
        share = counts[call].double().cumsum(1) / counts[call].sum(1, keepdim=True)
        width = (high.double() - low.double()).cpu() / BINS
        upper = (share >= percentile / 100).double().argmax(
            1
        ) + 1  # the first bin that so many values lie below the end of
        lower = (share > 1 - percentile / 100).double().argmax(1)
        base = low.double().cpu()
        found[call] = (
            (base + lower * width).to(low.dtype),
            torch.minimum((base + upper * width), high.double().cpu()).to(low.dtype),
        )
    return found


def check_file(path: Path | None) -> list[str]:
    """One sentence if there is a file of bounds, and it can't be read."""
    if path is None:
        return []
    try:
        read(path)
    except BadInput as error:
        return [*error.problems]
    return []
