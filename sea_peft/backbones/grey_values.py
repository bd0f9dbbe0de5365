"""Networks that take unscaled grey values: a recipe scales these to 0..1, and a map in front of the
network reverses it.
"""

from sea_peft.data.recipe import Window

_HOUNSFIELD = (
    -1024.0,
    3071.0,
)  # of a scanner that stores 12 bits; air, which also pads a scan, is the low end


def as_they_are(low: float, high: float) -> tuple[Window, dict[str, object]]:
    """The recipe's intensity and the network's settings for unscaled grey values from `low` to
    `high`.

    Padding gets `low`; adapters, augmentation and pictures see 0..1 as with every other network.
    """
    return Window(low=low, high=high), {"input_factor": high - low, "input_offset": low}


def hounsfield_units() -> tuple[Window, dict[str, object]]:
    """`as_they_are` for the Hounsfield units of a CT."""
    return as_they_are(*_HOUNSFIELD)
