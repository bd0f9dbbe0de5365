"""One colour per adapter family, the same in every figure of a run."""

from collections.abc import Iterable

# Okabe-Ito first (distinct under the common kinds of colour blindness), then darker and lighter
# relatives
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#6A3D9A",
    "#8C564B", "#1B5E20", "#A4DE02", "#4D4D4D", "#A6761D", "#66C2A5", "#B2182B", "#7570B3",
)  # fmt: skip
REFUSED = "#D9D9D9"
UNDECIDED = "#FFFFFF"


def family_colours(families: Iterable[str]) -> dict[str, str]:
    """Family → hex colour, in alphabetical order. Beyond 16 families the colours repeat."""
    return {family: _COLOURS[i % len(_COLOURS)] for i, family in enumerate(sorted(set(families)))}
