"""Whether two adapters do the same task: give masks of the same labels, from the same view of a
scan.
"""

from collections.abc import Sequence
from itertools import zip_longest

from sea_peft.artefacts.adapter_file import AdapterConfig
from sea_peft.documents import Record


def difference(ours: AdapterConfig, theirs: AdapterConfig) -> str | None:
    """The first thing in which two adapters' masks cannot be compared, in words; None if there
    is none.
    """
    labels = zip_longest(ours.labels.items(), theirs.labels.items())
    for number, (a, b) in enumerate(labels, start=1):
        if a != b:
            return f"its label {number} is {_label(b)}, the first adapter's is {_label(a)}"
    if ours.channels != theirs.channels:
        return (
            f"its channels are {', '.join(theirs.channels)}, the first adapter's"
            f" {', '.join(ours.channels)}"
        )
    for part, a, b in (("", ours.recipe, theirs.recipe), ("window's ", ours.window, theirs.window)):
        for name, value in _fields(a).items():
            if value != (other := _fields(b)[name]):
                return f"its {part}{name} is {_value(other)}, the first adapter's {_value(value)}"
    return None


def _label(item: tuple[str, Sequence[int]] | None) -> str:
    if item is None:
        return "none"
    name, codes = item
    return f"{name} ({', '.join(map(str, codes))})" if codes else name


def _fields(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in type(record).model_fields}


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return " × ".join(f"{part:g}" for part in value)
    return " ".join(map(str, _fields(value).values())) if isinstance(value, Record) else str(value)
