"""Short names of sites: module paths are up to 60 characters long, and a terminal has 80."""

import collections
import re
from collections.abc import Iterable, Mapping

_STAGES = {"encoder": "enc", "bottleneck": "mid", "decoder": "dec"}


def block(site: str) -> str:
    """The block of a site: the first two components of its module path."""
    return ".".join(site.split(".")[:2])


def short_names(sites: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Site → a name such as `dec3.conv2`: the second convolution in the third block of the decoder.

    Sites are counted in execution order, so the same sites always get the same names. A stage of
    one block has no number.

    Args:
        sites: path, stage and kind of each, in execution order.

    Examples:
        >>> sites = [("up.0.conv", "decoder", "conv"), ("up.0.norm", "decoder", "norm")]
        >>> short_names([*sites, ("up.1.conv", "decoder", "conv")])
        {'up.0.conv': 'dec1.conv1', 'up.0.norm': 'dec1.norm1', 'up.1.conv': 'dec2.conv1'}
    """
    blocks: dict[str, dict[str, int]] = {}
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    placed = []
    for path, stage, kind in sites:
        number = blocks.setdefault(stage, {}).setdefault(block(path), len(blocks[stage]) + 1)
        counts[stage, block(path), kind] += 1
        placed.append((path, stage, number, f"{kind}{counts[stage, block(path), kind]}"))
    return {
        path: f"{_STAGES.get(stage, stage)}{number if len(blocks[stage]) > 1 else ''}.{leaf}"
        for path, stage, number, leaf in placed
    }


def in_short(text: str, names: Mapping[str, str]) -> str:
    """A unit's id, or a sentence that names units, with the short names of sites that have one."""
    return re.sub(r"@([\w.]*\w)", lambda found: "@" + names.get(found[1], found[1]), text)
