"""Grey values that a network takes as they are: a recipe scales them to 0..1, and the network undoes that in front."""

from sea_peft.data.recipe import Window

_HOUNSFIELD = (-1024.0, 3071.0)  # of a scanner that stores 12 bits; air, and so what pads a scan, is the low end


def as_they_are(low: float, high: float) -> tuple[Window, dict[str, object]]:
    """The recipe's intensity and the network's settings for grey values that run from `low` to `high` and are not scaled.

    What surrounds a scan gets `low`, and adapters, augmentation and pictures see 0..1 as with every other network.
    """
    return Window(low=low, high=high), {"input_factor": high - low, "input_offset": low}


def hounsfield_units() -> tuple[Window, dict[str, object]]:
    """`as_they_are` for the Hounsfield units of a CT."""
    return as_they_are(*_HOUNSFIELD)
