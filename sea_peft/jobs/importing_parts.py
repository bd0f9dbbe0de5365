"""`seapeft backbones import` of a folder with several networks, such as nnU-Net's results folder
with TotalSegmentator's five parts.
"""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sea_peft.backbones.typed import Typed
from sea_peft.errors import SeaPeftError
from sea_peft.jobs.expected import Given
from sea_peft.jobs.importing import Imported, import_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedPart:
    """One network of the folder.

    Attributes:
        folder: below the one that was given.
        name: of the weights.
        imported: the weights; None if it was refused.
        refused: why it was refused.
    """

    folder: Path
    name: str
    imported: Imported | None
    refused: str = ""


def parts_in(folder: Path) -> list[Path]:
    """The trained networks in nnU-Net's results folder
    (`Dataset007_Name/Trainer__Plans__Configuration`), sorted; [] for any other.
    """
    return sorted(
        found
        for found in folder.glob("Dataset*/*__*__*")
        if any(found.glob("fold_*/checkpoint_final.pth"))
    )


def import_parts(
    folder: Path, name: str, backbone: str | Typed, given: Given, origin: str = "auto"
) -> list[ImportedPart]:
    """Import every network of the folder as `name_291`, `name_292`, … by the numbers of their data
    sets.

    A network that cannot be imported does not stop the others.

    Args: as of `import_weights`.

    Raises:
        UsageError: as `import_weights` for the first network, if none can be imported.
        WeightsError: the same.
    """
    networks = parts_in(folder)
    parts = []
    first: SeaPeftError | None = None
    for network, called in zip(networks, _names(networks, name), strict=True):
        below = network.relative_to(folder)
        try:
            imported = import_weights(network, called, backbone, given, origin)
        except SeaPeftError as error:
            first = first or error
            parts.append(ImportedPart(folder=below, name=called, imported=None, refused=str(error)))
        else:
            parts.append(ImportedPart(folder=below, name=called, imported=imported))
    if first is not None and all(part.imported is None for part in parts):
        raise first
    return parts


def _names(networks: Sequence[Path], name: str) -> list[str]:
    """The name of each: its data set's number, with configuration and folder if a data set has
    several.
    """
    numbers = [
        network.parent.name.removeprefix("Dataset").partition("_")[0] for network in networks
    ]
    ways = [
        numbers,
        [
            f"{number}_{network.name.split('__')[2]}"
            for number, network in zip(numbers, networks, strict=True)
        ],
        [f"{number}_{network.name}" for number, network in zip(numbers, networks, strict=True)],
    ]
    clear = [
        {part for part, count in collections.Counter(way).items() if count == 1} for way in ways
    ]

    def shortest(i: int) -> str:
        return next(
            (way[i] for way, parts in zip(ways, clear, strict=True) if way[i] in parts), ways[-1][i]
        )

    return [f"{name}_{shortest(i)}" for i in range(len(networks))]
