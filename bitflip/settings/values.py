"""How values of settings are read that are lists, or names of several forms."""

from __future__ import annotations

import math
import re

from pydantic import BaseModel, ValidationInfo, field_validator

from bitflip.settings.kind import kind_of_fault
from bitflip.settings.protection import Protection

MAX_SEED = 2**63 - 1
MAX_SEEDS = 10_000  # in one run


class Read(BaseModel):
    """The settings' validators, which raise ValueError for what is no value, and give what is one its usual form."""

    @field_validator("channels", check_fields=False)
    @classmethod
    def _one_or_three(cls, value: int) -> int:
        if value == 2:
            raise ValueError("1 or 3")
        return value

    @field_validator("device", check_fields=False)
    @classmethod
    def _device_name(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("unknown device")
        return value

    @field_validator("ray", check_fields=False)
    @classmethod
    def _ray_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"auto|(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", value):
            raise ValueError("no address")
        return value

    @field_validator("seeds", mode="before", check_fields=False)
    @classmethod
    def _seed_list(cls, value: object) -> str | None:
        if value is None:
            return None
        text = re.sub(r"\s", "", str(value))
        if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
            raise ValueError("not seeds")
        ranges = ranges_of(text)
        if any(first > last or last > MAX_SEED for first, last in ranges):
            raise ValueError("not ranges")
        if sum(last - first + 1 for first, last in ranges) > MAX_SEEDS:
            raise ValueError("too many")
        seeds = [seed for first, last in ranges for seed in range(first, last + 1)]
        if len(seeds) != len(set(seeds)):
            raise ValueError("a seed twice")
        return text

    @field_validator("protect", check_fields=False)
    @classmethod
    def _protection(cls, value: str | None) -> str | None:
        return None if value is None else str(Protection.of(value))

    @field_validator("layer_type", "parameters", "protect_layers", check_fields=False)
    @classmethod
    def _list_of_names(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if not all(names):
            raise ValueError("empty name")
        return ",".join(dict.fromkeys(names))

    @field_validator("fault", check_fields=False)
    @classmethod
    def _kind_of_fault(cls, value: str) -> str:
        kind_of_fault(value)
        return value

    @field_validator("bit_error_rate", mode="before", check_fields=False)
    @classmethod
    def _probabilities(cls, value: object) -> str | None:
        if value is None:
            return None
        numbers = [float(part) for part in str(value).split(",")]
        if not all(0 < number <= 0.5 for number in numbers):
            raise ValueError("no probabilities")
        return ",".join(f"{number:g}" for number in dict.fromkeys(numbers))

    @field_validator("mean", "std", check_fields=False)
    @classmethod
    def _numbers_per_channel(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        numbers = [float(part) for part in value.split(",")]
        if not all(map(math.isfinite, numbers)) or (info.field_name == "std" and min(numbers) <= 0):
            raise ValueError("not finite, or not above 0")
        return ",".join(map(str, numbers))

    @field_validator("layer_num", mode="before", check_fields=False)
    @classmethod
    def _layer_num_list(cls, value: object) -> str:
        text = str(value).strip()
        if text == "all":
            return text
        numbers = [part.strip() for part in text.split(",")]
        if not all(re.fullmatch(r"\d+", number) for number in numbers):
            raise ValueError("not numbers")
        return ",".join(str(n) for n in sorted({int(number) for number in numbers}))


def ranges_of(seeds: str) -> list[tuple[int, int]]:
    """The ranges of ``1,5,9-12``, ends included."""
    parts = [part.partition("-") for part in seeds.split(",")]
    return [(int(first), int(last or first)) for first, _, last in parts]
