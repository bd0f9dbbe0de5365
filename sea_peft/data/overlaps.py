"""From one mask per structure to one label map. Where masks overlap the smaller structure keeps the
voxels, and every overlap is reported.

Otherwise a tumour drawn inside its organ would vanish when the organ is painted over it.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from sea_peft.errors import DataError

_PAIRS_NAMED = 5


class LabelMap:
    """A label map that is painted mask by mask.

    Args:
        shape: voxels `(I, J, K)`.
        names: label code → name, for sentences.
    """

    def __init__(self, shape: tuple[int, int, int], names: Mapping[int, str]) -> None:
        self._labels = np.zeros(shape, dtype=np.uint16)
        self._names = names
        self._counts: dict[int, int] = {}
        self._contested: dict[
            int, list[np.ndarray]
        ] = {}  # code → flat places that another code wants too

    def paint(self, code: int, mask: np.ndarray) -> None:
        """Add the mask `[I, J, K]` (bool) of one label."""
        places = np.flatnonzero(mask)
        flat = self._labels.reshape(-1)
        self._counts[code] = self._counts.get(code, 0) + len(places)
        held = flat[places]
        for other in np.unique(held[(held > 0) & (held != code)]):
            both = places[held == other]
            self._contested.setdefault(int(other), []).append(both)
            self._contested.setdefault(code, []).append(both)
        flat[places[held == 0]] = code

    def finished(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The codes, uint16 `[I, J, K]`, and a part of a sentence for each pair that overlaps.

        Raises:
            DataError: nothing is left of a structure.
        """
        wanted = {
            code: np.unique(np.concatenate(places)) for code, places in self._contested.items()
        }
        flat = self._labels.reshape(-1)
        # the smallest last; of two of equal size, the smaller code
        for code in sorted(wanted, key=lambda code: (-self._counts[code], -code)):
            flat[wanted[code]] = code
        shared = [
            (a, b, len(both))
            for a, b in combinations(sorted(wanted), 2)
            if len(both := np.intersect1d(wanted[a], wanted[b], assume_unique=True))
        ]
        for code in wanted:
            if (
                np.count_nonzero(flat[wanted[code]] == code) != len(wanted[code])
                and not (flat == code).any()
            ):
                covered = (
                    f"nothing is left of {self._about(code)}: smaller structures cover all of it"
                )
                raise DataError(
                    f"{covered}; take a mask out, or choose one of the labels", "labels"
                )
        notes = [
            f"has {count} voxels that are both {self._about(a)} and {self._about(b)}; they are"
            f" taken for {self._names[min((a, b), key=lambda code: (self._counts[code], code))]},"
            " the smaller one"
            for a, b, count in shared[:_PAIRS_NAMED]
        ]
        if len(shared) > _PAIRS_NAMED:
            rest = sum(count for _, _, count in shared[_PAIRS_NAMED:])
            notes.append(
                f"has {len(shared) - _PAIRS_NAMED} more pairs of structures that overlap, in {rest}"
                " voxels"
            )
        return self._labels, tuple(notes)

    def _about(self, code: int) -> str:
        return f"{self._names[code]} ({self._counts[code]} voxels)"
