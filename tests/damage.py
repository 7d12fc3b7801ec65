"""What can happen to a file."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a file.

    Attributes:
        way: what.
        place: where, as a share of the file.
        noise: bytes that were not there.
    """

    way: str
    place: float
    noise: bytes

    def of(self, content: bytes) -> bytes:
        """The content of a file, damaged."""
        at = int(self.place * len(content))
        return {
            "cut off": content[:at],
            "a bit": content[:at] + bytes([content[at] ^ (1 << self.noise[0] % 8)]) + content[at + 1 :],
            "overwritten": content[:at] + self.noise + content[at + len(self.noise) :],
            "longer": content + self.noise,
            "other": self.noise,
        }[self.way]


damages = st.builds(
    Damage,
    st.sampled_from(["cut off", "a bit", "overwritten", "longer", "other"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=40),
)
bounded = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
