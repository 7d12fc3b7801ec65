"""How values of settings are read that are lists, or names of several forms."""

from __future__ import annotations

import math
import re

from pydantic import BaseModel, ValidationInfo, field_validator

from bitflip.settings.kind import kind_of_fault
from bitflip.settings.protection import Protection

MAX_SEED = 2**63 - 1
MAX_SEEDS = 10_000  # in one run
MAX_LAYERS = 100_000


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
        seeds = numbers_of(str(value), MAX_SEEDS)
        if len(seeds) != len(set(seeds)) or max(seeds) > MAX_SEED:
            raise ValueError("a seed twice, or too large")
        return re.sub(r"\s", "", str(value))

    @field_validator("protect", check_fields=False)
    @classmethod
    def _protection(cls, value: str | None) -> str | None:
        return None if value is None else str(Protection.of(value))

    @field_validator("layer_type", "parameters", "protect_layers", check_fields=False)
    @classmethod
    def _list_of_names(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if not all(names) or ("all" in names and set(names) != {"all"}):
            raise ValueError("empty name, or all and some")
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
        return text if text == "all" else ",".join(map(str, sorted(set(numbers_of(text, MAX_LAYERS)))))


def numbers_of(text: str, most: int) -> list[int]:
    """The numbers of ``1,5,9-12``, ends included.

    Raises:
        ValueError: if it is no such text, or stands for more than ``most``.
    """
    text = re.sub(r"\s", "", text)
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ValueError("not numbers")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    ranges = [range(numbers[0], numbers[-1] + 1) for numbers in ends]
    if not all(ranges) or sum(numbers.stop - numbers.start for numbers in ranges) > most:
        raise ValueError("an empty range, or too many")
    return [number for numbers in ranges for number in numbers]
