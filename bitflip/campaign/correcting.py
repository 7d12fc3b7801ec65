"""Which bits of the stored weights an error-correcting code protects, given how many it may.

A code that corrects one flip and detects two (SECDED) has 8 check bits for 64 bits: Hsiao 1970, "A class of optimal
minimum odd-weight-column SEC-DED codes". Here it covers only the bits that matter most; a flip of one of them is
drawn and counted as any other, and read back corrected.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitflip import csvs
from bitflip.errors import BadInput
from bitflip.faults.allocation import by_effect
from bitflip.network.layers import Parameter, Target
from bitflip.network.names import printable
from bitflip.settings.protection import Protection

SETTING = "protect (--protect)"
WORD, CHECK = 64, 8  # bits that are protected together, and what they take

Cell = tuple[str, str, int]  # path of a layer, its parameter, a bit of each of its values


@dataclass(frozen=True)
class Corrected:
    """What is protected.

    Attributes:
        bits: by path of the layer and parameter.
        protected, whole: how many bits are, and how many there are in what faults strike.
    """

    bits: Mapping[tuple[str, str], frozenset[int]]
    protected: int
    whole: int

    @property
    def sha256(self) -> str:
        """Of what is protected."""
        found = sorted([*where, sorted(bits)] for where, bits in self.bits.items())
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Check bits, in bytes."""
        return math.ceil(self.protected / WORD) * CHECK // 8

    @property
    def facts(self) -> dict[str, Any]:
        """For the results."""
        each = Counter(bit for bits in self.bits.values() for bit in bits)
        return {
            "protected_bits": self.protected,
            "protected_share": round(self.protected / self.whole, 6),
            "layers_by_protected_bit": {str(bit): each[bit] for bit in sorted(each)},
            "protected_sha256": self.sha256,
        }


def choose(protection: Protection, targets: Sequence[Target]) -> Corrected:
    """As many bits as the share allows, in the order of their positions, or of a file, as long as each fits.

    Args:
        protection: with a share, and a file if there is one.
        targets: parameters that faults strike.

    Raises:
        BadInput: if the file is none that ``bitflip budget`` wrote for such layers.
    """
    sizes = {(item.layer.path, item.parameter): _parameter(item) for item in targets}
    whole = sum(math.prod(one.shape) * one.bits for one in sizes.values())
    room = protection.ecc * whole * (1 + 1e-9)  # a share of 3 / 32 is no exact one
    ranked = _of_file(Path(protection.ranking), sizes) if protection.ranking else _by_position(sizes)
    chosen: dict[tuple[str, str], set[int]] = {}
    protected = 0
    for path, parameter, bit in ranked:
        size = math.prod(sizes[path, parameter].shape)
        if protected + size > room and not protected:
            raise BadInput(
                f"{SETTING}: expected a share behind ecc: of at least {size / whole:.6g}, which bit {bit} of "
                f"{printable(path)} takes, the first that is to be protected, got {protection.ecc:g}"
            )
        if protected + size > room:
            break
        protected += size
        chosen.setdefault((path, parameter), set()).add(bit)
    return Corrected({where: frozenset(bits) for where, bits in chosen.items()}, protected, whole)


def _parameter(item: Target) -> Parameter:
    found = item.layer.parameter(item.parameter)
    assert found is not None
    return found


def _by_position(sizes: Mapping[tuple[str, str], Parameter]) -> list[Cell]:
    """Bit by bit, each in all layers before the next."""
    ranks = [
        (rank, place, (*where, bit))
        for place, (where, one) in enumerate(sizes.items())
        for rank, bit in enumerate(by_effect(one.bits, one.format))
    ]
    return [cell for _, _, cell in sorted(ranks)]


def _of_file(path: Path, sizes: Mapping[tuple[str, str], Parameter]) -> Iterator[Cell]:
    """The rows of a file that ``bitflip budget`` wrote, of the layers that are struck here."""
    table = csvs.Table(path, SETTING, ended=True)
    needed = ("rank", "path", "parameter", "bit", "protected")
    if not {*needed} <= {*table.header}:
        raise BadInput(f"{SETTING}: expected the _budget.csv of bitflip budget behind ecc:SHARE:, got {path}")

    def read(row: csvs.Row) -> Cell | None:
        if not row.count("rank"):  # nothing is protected
            return None
        where, bit = (row["path"], row["parameter"]), row.count("bit")
        if where in sizes and bit >= sizes[where].bits:
            row.unlike("bit", f"a bit of {sizes[where].bits}", 0)
        row.finish()
        return (*where, bit) if where in sizes else None

    found = [cell for _, cell in table.values(read) if cell is not None]
    if not found:
        raise BadInput(f"{SETTING}: expected a ranking of parameters that are struck here, got none in {path}")
    known: dict[tuple[str, str], set[int]] = {}
    for module, parameter, bit in found:
        known.setdefault((module, parameter), set()).add(bit)
    for where, bits in known.items():  # a run of one bit ranks that alone
        if len(bits) not in (1, sizes[where].bits):
            raise BadInput(
                f"{SETTING}: expected a ranking of all {sizes[where].bits} bits of {printable('.'.join(where))}, got "
                f"{len(bits)} of them in {path}, as of another number format"
            )
    return iter(dict.fromkeys(found))
