"""Documents changed at random: what a stranger, an editor or a disk could make of them. A seed
gives the same ones again.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

NAMES = [
    "",
    " ",
    "x",
    "os:system",
    "trap:factory",
    "trap.factory",
    "../trap",
    "/etc/passwd",
    "backbone",
    "backbone.safetensors",
    "segresnet",
    "unet",
    "phantom_unet",
    "\x1b[31mred\x1b]0;title\x07",
    "a\0b",
    "ä" * 300,
    "肝",
    "a//b",
    "__class__",
    "nan",
    "1",
    "-1",
    "null",
    "x" * 100_000,
    "\ud800",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    256,
    65535,
    65536,
    2**31,
    2**63,
    2**64,
    10**30,
    10**400,
    -(10**30),
    0.5,
    -0.0,
    1e-300,
    1e300,
    1e38,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    False,
]


def _odd(rng: random.Random) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(NAMES)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(
            [
                None,
                [],
                {},
                [[]],
                [None],
                {"": None},
                [0] * 300,
                {"kind": "eval"},
                [1, "a", None],
                {"0": "CT"},
            ]
        )
    if kind == 3:
        return {rng.choice(NAMES): _odd(rng) for _ in range(rng.randrange(1, 3))}
    if kind == 4:
        return [_odd(rng) for _ in range(rng.randrange(1, 4))]
    deep: Any = 0
    for _ in range(rng.choice([3, 50, 400])):
        deep = [deep]
    return deep


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every container in a document with each of its keys."""
    found, waiting = [], [document]
    while waiting:
        node = waiting.pop()
        keys = (
            list(node)
            if isinstance(node, dict)
            else range(len(node))
            if isinstance(node, list)
            else ()
        )
        for key in keys:
            found.append((node, key))
            waiting.append(node[key])
    return found


def mutated(document: Any, rng: random.Random) -> Any:
    """A copy with one to three changes of its values, keys or order."""
    changed = copy.deepcopy(document)
    for _ in range(rng.randrange(1, 4)):
        places = _places(changed)
        if not places:
            return _odd(rng)
        node, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 2:
            node[key] = _odd(rng)
        elif kind == 3:
            del node[key]
        elif kind == 4:
            other, at = rng.choice(places)
            node[key] = copy.deepcopy(
                other.get(at) if isinstance(other, dict) else other[at] if at < len(other) else None
            )
        elif kind == 5 and isinstance(node, dict):
            node[rng.choice([*NAMES, str(key).upper(), f"{key}s"])] = node.pop(key)
        elif kind == 6 and isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[key]))
        elif isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
            node[key] = node[key] * rng.choice([-1, 0, 2, 10, 1000, 0.1]) + rng.choice(
                [0, 0, 1, -1]
            )
    return changed


def as_bytes(document: Any, rng: random.Random) -> bytes:
    """A document as a file, of which one in four has damaged bytes too."""
    return (
        damaged(json.dumps(document).encode("utf-8", "surrogatepass"), rng)
        if rng.randrange(4) == 0
        else json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    )


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a part replaced, doubled, cut off or put in."""
    new = rng.choice(
        [
            b"",
            b"\0",
            b"[",
            b"{",
            b'"',
            b"NaN",
            b"[" * 100_000,
            b"9" * 5000,
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b",,",
            b"\\ud800",
            b"1e999",
        ]
    )
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + new + data[at:]
    if kind == 2:
        return data[:at] + new + data[at + max(1, len(new)) :]
    return data[:at] + data[at // 2 :]
