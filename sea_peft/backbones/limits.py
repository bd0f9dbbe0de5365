"""The input sizes that a network takes, axis by axis: stages that do not halve every axis ask less of some."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

Size = tuple[int, int, int]
Settings = Mapping[str, Any]  # what an architecture is built with, by name
"""One whole number for each of the axes D, H, W."""


def per_axis(given: int | Sequence[int]) -> Size:
    """Three numbers, or one for all three axes. Raises ValueError for anything but whole numbers from 1 up."""
    numbers = (given,) * 3 if isinstance(given, int) else tuple(given)
    if len(numbers) != 3 or not all(isinstance(n, int) and n >= 1 for n in numbers):
        raise ValueError(f"{given!r} is neither a whole number from 1 up nor three of them")
    d, h, w = numbers
    return d, h, w


@dataclasses.dataclass(frozen=True)
class Limits:
    """Input sizes that a network takes, in voxels along D, H, W.

    `divisor`: every side must be a multiple of its own. `minimum`: the least that every side may be. `bottom`: how many voxels there
    must be in all where the input is `divisor` times smaller. `exact`: the one size it takes at all, where position embeddings are tied
    to it.
    """

    divisor: Size
    minimum: Size
    exact: Size | None = None
    bottom: int = 1

    @property
    def sides(self) -> str:
        """What sides are taken, in words."""
        multiples = f"multiples of {in_words(self.divisor)}"
        return multiples if self.minimum == self.divisor else f"{multiples} and at least {in_words(self.minimum)}"

    @property
    def small(self) -> Size:
        """A size that is taken, with two voxels a side at the bottom or more: small, and all of the network acts at it."""
        return self.exact or self.holding([2 * n for n in self.divisor])

    def fits_sides(self, size: Sequence[int]) -> bool:
        """Whether every side is a multiple of its divisor and no less than its minimum."""
        return all(n % d == 0 and n >= m for n, d, m in zip(size, self.divisor, self.minimum, strict=True))

    def fits_bottom(self, size: Sequence[int]) -> bool:
        """Whether enough voxels are left at the bottom."""
        return math.prod(n // d for n, d in zip(size, self.divisor, strict=True)) >= self.bottom

    def holding(self, size: Sequence[int]) -> Size:
        """The smallest sides that go and are nowhere shorter than `size`."""
        d, h, w = (-(-max(n, m) // d) * d for n, d, m in zip(size, self.divisor, self.minimum, strict=True))
        return d, h, w


def in_words(size: Size) -> str:
    """One number where all axes have the same, else one for each axis."""
    d, h, w = size
    return str(d) if d == h == w else f"{d}, {h} and {w} along D, H and W"
