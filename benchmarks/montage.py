"""Draws the sources and every target, one row each: `python -m benchmarks.montage`.

Three planes without and with labels, patient's right on the left, through one support case, on the
voxels that the network gets. A target of several sequences shows another one in each plane. Writes
`benchmarks/results/targets.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sea_peft.phantom import SOURCES, TARGETS, Target, phantom_dataset, phantom_target
from sea_peft.phantom.brain import TUMOUR
from sea_peft.phantom.patient import STRUCTURES

OUT = Path(__file__).parent / "results" / "targets.png"
WINDOW = (-175.0, 250.0)
SHOWN = (*STRUCTURES, *TUMOUR)  # one colour each
_PALETTE = [matplotlib.colormaps["tab20"](i) for i in range(len(STRUCTURES))] + [
    "#e6194b",
    "#3cb44b",
    "#ffe119",
]
COLOURS = ListedColormap(["#000000", *_PALETTE])
NORM = BoundaryNorm(np.arange(len(SHOWN) + 2) - 0.5, COLOURS.N)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, default=1, help="which support case of each target")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    names = sorted(
        [*SOURCES, *TARGETS], key=lambda n: phantom_target(n).region.structures is TUMOUR
    )
    figure, axes = plt.subplots(len(names), 6, figsize=(12.5, 2.05 * len(names)), facecolor="black")
    for row, name in zip(axes, names, strict=True):
        case = phantom_dataset(name).cases[args.case]
        label = case.label()
        assert label is not None
        _row(
            row, phantom_target(name), {c: case.image(c).array for c in case.channels}, label.array
        )
    handles = [Patch(color=COLOURS(i + 1), label=s.replace("_", " ")) for i, s in enumerate(SHOWN)]
    figure.legend(
        handles=handles, loc="lower center", ncol=9, fontsize=8, labelcolor="white", frameon=False
    )
    figure.subplots_adjust(
        left=0.005, right=0.995, top=0.985, bottom=0.035, wspace=0.02, hspace=0.14
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100, facecolor="black")
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


def _row(
    row: NDArray[np.object_],
    target: Target,
    images: dict[str, NDArray[np.int16]],
    label: NDArray[np.uint8],
) -> None:
    row[0].set_title(
        f"{target.name}: {target.reason}", loc="left", fontsize=8, color="white", pad=3
    )
    first = SHOWN.index(target.region.structures[0])
    shown = np.where(label > 0, label + first, 0)
    channels = [list(images)[-1 - i % len(images)] for i in range(3)]
    for plane, (axis, channel) in enumerate(zip((2, 1, 0), channels, strict=True)):
        index = _fullest(label, axis)
        grey, codes = (np.take(a, index, axis).T for a in (images[channel], shown))
        if axis:  # the first image axis runs to the patient's right, which is shown on the left
            grey, codes = grey[:, ::-1], codes[:, ::-1]
        low, high = WINDOW if channel == "CT" else np.percentile(images[channel], (0.5, 99.7))
        for axes, over in ((row[2 * plane], False), (row[2 * plane + 1], True)):
            axes.imshow(
                grey, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bilinear"
            )
            if over:
                overlay = np.ma.masked_equal(codes, 0)
                axes.imshow(
                    overlay,
                    cmap=COLOURS,
                    norm=NORM,
                    alpha=0.6,
                    origin="lower",
                    interpolation="nearest",
                )
            elif channel != "CT":
                axes.text(1, 1, channel, color="white", fontsize=7)
            axes.axis("off")


def _fullest(label: NDArray[np.uint8], axis: int) -> int:
    """The slice that shows the most structures, and of those the one with the most labelled
    voxels.
    """
    slices = np.moveaxis(label, axis, 0)
    return max(
        range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i]))
    )


if __name__ == "__main__":
    main()
