"""Segmentations of 3D Slicer (`.seg.nrrd`): the segments of a file, from its header.

Source: https://apidocs.slicer.org/main/classvtkMRMLSegmentationStorageNode.html.
"""

import re
from pathlib import Path

from sea_peft.data.nrrd import read_nrrd_header
from sea_peft.errors import DataError

_SEGMENT = re.compile(r"Segment(?P<number>\d{1,5})_(?P<entry>Name|LabelValue|Layer)")


def segments_of(path: Path) -> dict[str, tuple[tuple[int, int], ...]]:
    """Segment name → (layer, value) of each segment of this name; empty if the file names none or
    cannot be read, which the checks report.
    """
    if not path.name.lower().endswith(".nrrd"):
        return {}
    try:
        keys = read_nrrd_header(path).keys
    except (DataError, OSError):
        return {}
    entries: dict[int, dict[str, str]] = {}
    for key, value in keys.items():
        if match := _SEGMENT.fullmatch(key):
            entries.setdefault(int(match["number"]), {})[match["entry"]] = value
    found: dict[str, tuple[tuple[int, int], ...]] = {}
    for number, entry in sorted(entries.items()):
        # files from before Slicer 4.11 give neither: each segment has its own layer with the value
        # 1
        layer, value = (
            entry.get("Layer", "0" if "LabelValue" in entry else str(number)),
            entry.get("LabelValue", "1"),
        )
        if not (entry.get("Name") and layer.isdecimal() and value.isdecimal()):
            return {}
        found[entry["Name"]] = (*found.get(entry["Name"], ()), (int(layer), int(value)))
    return found
