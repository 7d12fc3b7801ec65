"""Faults that a program asks for, as the settings of a script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from bitflip.errors import BadInput
from bitflip.faults.flips import TargetKind
from bitflip.faults.kinds import Own


@dataclass(frozen=True)
class Sampled:
    """Faults that are drawn at random.

    Attributes:
        target: ``neuron``, one flip per input and layer, or ``weight``, one per batch and parameter tensor.
        seed: the same seed draws the same faults, from 0.
        repeats: flips per input (or batch) in each layer.
        bit: the bit to flip, counted from the most significant; None for a random one per fault.
        fault: its kind, as the setting ``fault``; or a kind of your own: a function of values, (N,), and random words,
            (N,) of int64, that returns values, (N,), each of which may depend on its own value and word alone.
        bit_sampling: how random bits are drawn, ``uniform`` or ``importance``.
        layer_type: class names of the layers; None for all.
        layer_num: numbers of the layers among those that ``layer_type`` leaves; None for all.
        parameters: names of the parameter tensors that weight faults strike; None for all.
        margin: go on until half the width of every layer's interval is at most so many percentage points; None for one
            round through the test set.
    """

    target: TargetKind = "neuron"
    seed: int = 0
    repeats: int = 1
    bit: int | None = None
    bit_sampling: Literal["uniform", "importance"] = "uniform"
    fault: str | Own = "flip"
    layer_type: Sequence[str] | None = None
    layer_num: Sequence[int] | None = None
    parameters: Sequence[str] | None = ("weight",)
    margin: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The same as settings of a script."""
        return {
            "seed": self.seed,
            "repeats": self.repeats,
            "bit_flip_pos": -1 if self.bit is None else self.bit,
            "bit_sampling": self.bit_sampling,
            "fault": self.fault if isinstance(self.fault, str) else "random",
            "layer_type": as_text(self.layer_type),
            "layer_num": as_text(self.layer_num),
            "parameters": as_text(self.parameters),
            "margin": self.margin,
        }

    def check(self) -> None:
        """Refuse what the settings of a script do not tell apart, or have no place for.

        Raises:
            BadInput: with a sentence for each mistake.
        """
        if self.target not in ("neuron", "weight"):
            raise BadInput(f"target: expected neuron or weight, got {self.target!r}")
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise BadInput(f"seed: expected a whole number from 0, got {self.seed!r}")
        if self.target == "neuron" and self.settings["parameters"] not in ("weight", "all"):
            raise BadInput(f"parameters: expected weight with faults of neurons, got {self.settings['parameters']}")


def as_text(given: object) -> str:
    """What a setting that is a list is given: several, classes among them, or a single one; None for all."""
    if given is None:
        return "all"
    several = [given] if isinstance(given, str | type) or not isinstance(given, Iterable) else given
    return ",".join(one.__name__ if isinstance(one, type) else str(one) for one in several)
