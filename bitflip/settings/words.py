"""Settings in words: those of a run that are no defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from bitflip.settings.hyperparameters import Hyperparameters

# What the title of a run says anyway, or its end.
SAID = {
    *("dataset", "model_name", "seed", "seeds", "faults", "device", "precision", "engine", "prove", "protect"),
    "output_path",
}


def asked(settings: Hyperparameters, target: Literal["neuron", "weight"], from_environment: Sequence[str]) -> str:
    """What follows the title of a run: its settings that are no defaults, and those that came from the environment."""
    variables = f"from the environment: {', '.join(from_environment)}" if from_environment else ""
    return "".join(f"; {part}" for part in (", ".join(chosen(settings, target)), variables) if part)


def chosen(settings: Hyperparameters, target: Literal["neuron", "weight"]) -> list[str]:
    """What is not as it is without being asked for, such as ``bit 1``, ``Conv2d only``, ``6 flips per image``."""
    usual = Hyperparameters(dataset=settings.dataset, model_name=settings.model_name).resolved().values
    what = "patterns" if settings.bit_error_rate else "flips" if settings.fault == "flip" else "faults"
    words: Mapping[str, Callable[[Any], str]] = {
        "bit_flip_pos": lambda bit: f"bit {bit}" if bit >= 0 else "",
        "layer_type": lambda types: f"{types} only",
        "layer_num": lambda _: f"layer{'s' * (len(settings.layer_numbers or ()) > 1)} {_numbers(settings)} only",
        "parameters": lambda names: "all parameters" if names == "all" else f"parameters {names}",
        "repeats": lambda count: f"{count} {what} per {'image' if target == 'neuron' else 'batch'}",
        "max_images": lambda count: f"the first {count} images at most",
    }
    asked = {name: value for name, value in settings.values.items() if name not in SAID and value != usual[name]}
    return [text for name, value in asked.items() if (text := words.get(name, partial(_words, name))(value))]


def _words(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{name}"
    return f"{name} {value}"


def _numbers(settings: Hyperparameters) -> str:
    """The chosen layers, with ranges where there are some: ``0-5,12``."""
    spans: list[list[int]] = []
    for number in settings.layer_numbers or ():
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ",".join("-".join(map(str, span)) for span in spans)
