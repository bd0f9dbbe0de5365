"""Names of a network's classes, from files beside checkpoints: JSON, ITK-SNAP's label description,
3D Slicer's colour table, or one name per line.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from sea_peft.errors import UsageError

_MOST_BYTES = 1 << 20
_BACKGROUND = ("background", "unknown", "clear label", "clear_label", "unlabeled", "unlabelled")
_ITK_SNAP = re.compile(r'\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*')
_SLICER = re.compile(r"\s*(\d+)\s+(\S+)(?:\s+\d+){4}\s*")
_NUMBERED = re.compile(r"\s*(\d+)[\s,;:=]+(.*\S)\s*")


def read_label_names(file: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers, without the background (number 0, or a first name
    that says so).

    Raises:
        UsageError: the file cannot be read, names no class, or leaves out a number.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UsageError(
                f"{file.name} is too large for a list of labels; give one with a name a line."
            )
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The labels in {file} cannot be read ({error}); give names as a,b,c."
        ) from error
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return _in_order(_of_lines(text), file.name)
    return _in_order(_of_json(found), file.name)


def _of_lines(text: str) -> dict[int, str]:
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    for pattern in (_ITK_SNAP, _SLICER, _NUMBERED):
        matches = [pattern.fullmatch(line) for line in lines]
        if all(matches):
            return {int(match[1]): match[2].strip() for match in matches if match is not None}
    return _counted([line.strip() for line in lines])


def _of_json(found: object) -> dict[int, str]:
    """From a list, or from `labels` of a dataset.json or a colour map: a list, name → number,
    or number → name.
    """
    if isinstance(found, Mapping) and isinstance(found.get("labels"), list | Mapping):
        found = found["labels"]
    if isinstance(found, Mapping):
        pairs = [(v, k) if isinstance(v, int) else (k, v) for k, v in found.items()]
        if all(str(number).isdigit() and isinstance(name, str) for number, name in pairs):
            return {int(number): name for number, name in pairs}
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return _counted(found)
    return {}


def _counted(names: list[str]) -> dict[int, str]:
    first = 0 if names and names[0].lower() in _BACKGROUND else 1
    return dict(enumerate(names, start=first))


def _in_order(numbered: Mapping[int, str], file: str) -> tuple[str, ...]:
    wanted = {number: name for number, name in numbered.items() if number != 0}
    if not wanted:
        raise UsageError(f"{file} names no labels; write one name a line, or give them as a,b,c.")
    if sorted(wanted) != list(range(1, len(wanted) + 1)):
        missing = min(set(range(1, max(wanted) + 1)) - wanted.keys())
        raise UsageError(
            f"{file} has no name for output {missing}; every output of the network needs one, in"
            " its order."
        )
    return tuple(wanted[number] for number in sorted(wanted))
