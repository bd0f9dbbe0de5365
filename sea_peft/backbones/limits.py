"""The input sizes that a network takes, axis by axis: stages that do not halve every axis need
less along some.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

Size = tuple[int, int, int]
Settings = Mapping[str, Any]  # keyword arguments of an architecture, by name
"""One whole number per axis: D, H, W."""


def per_axis(given: int | Sequence[int]) -> Size:
    """Three numbers, or one for all three axes. Raises ValueError for anything but whole numbers
    from 1 up.

    Examples:
        >>> per_axis(96)
        (96, 96, 96)
        >>> per_axis([96, 96, 64])
        (96, 96, 64)
    """
    numbers = (given,) * 3 if isinstance(given, int) else tuple(given)
    if len(numbers) != 3 or not all(isinstance(n, int) and n >= 1 for n in numbers):
        raise ValueError(f"{given!r} is neither a whole number from 1 up nor three of them")
    d, h, w = numbers
    return d, h, w


@dataclasses.dataclass(frozen=True)
class Limits:
    """The input sizes that a network takes, in voxels along D, H, W.

    Attributes:
        divisor: each side must be a multiple of it.
        minimum: the least length of each side.
        exact: the only size that it takes, if position embeddings are tied to one.
        bottom: the least number of voxels at the bottom, where the input is `divisor` times
            smaller.
    """

    divisor: Size
    minimum: Size
    exact: Size | None = None
    bottom: int = 1

    @property
    def sides(self) -> str:
        """The sides that it takes, in words."""
        multiples = f"multiples of {in_words(self.divisor)}"
        return (
            multiples
            if self.minimum == self.divisor
            else f"{multiples} and at least {in_words(self.minimum)}"
        )

    @property
    def small(self) -> Size:
        """A small size that it takes, with at least two voxels per side at the bottom, so that all
        of the network acts.
        """
        return self.exact or self.holding([2 * n for n in self.divisor])

    def fits_sides(self, size: Sequence[int]) -> bool:
        """Whether every side is a multiple of its divisor and no less than its minimum."""
        return all(
            n % d == 0 and n >= m for n, d, m in zip(size, self.divisor, self.minimum, strict=True)
        )

    def fits_bottom(self, size: Sequence[int]) -> bool:
        """Whether enough voxels are left at the bottom."""
        return math.prod(n // d for n, d in zip(size, self.divisor, strict=True)) >= self.bottom

    def holding(self, size: Sequence[int]) -> Size:
        """The smallest sides that it takes and that are nowhere shorter than `size`."""
        d, h, w = (
            -(-max(n, m) // d) * d for n, d, m in zip(size, self.divisor, self.minimum, strict=True)
        )
        return d, h, w


def in_words(size: Size) -> str:
    """One number if all axes have the same, else one for each axis."""
    d, h, w = size
    return str(d) if d == h == w else f"{d}, {h} and {w} along D, H and W"
