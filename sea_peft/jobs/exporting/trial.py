"""The trial of an export before its folder appears: a synthetic scan, on which the receiving tool's
mask must equal that of `predict`.
"""

import dataclasses
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sea_peft.data.cases import FileCase, ImageFile
from sea_peft.data.prepare import restore
from sea_peft.data.recipe import Window
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import WeightsError
from sea_peft.jobs.case_results import mask_values
from sea_peft.jobs.inference import Forward, probabilities
from sea_peft.jobs.predictor import Predictor

AGREEMENT = 0.999
"""Least share of voxels in which the receiving tool's mask must equal `predict`'s."""
OFF_GRID = (1.1, 0.93, 1.0)
"""Voxel size, as multiples of the recipe's, so that the scan is resampled."""
ON_GRID = (1.0, 1.0, 1.0)
_WINDOWS = 1.2  # sides of the scan, so that windows overlap


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """The scan's files, one per channel, alone in `folder`; the same as a case; and `predict`'s
    mask of it, as stored `[I, J, K]`.
    """

    folder: Path
    scans: tuple[Path, ...]
    case: FileCase
    mask: np.ndarray

    @classmethod
    def of(
        cls, predictor: Predictor, folder: Path, size: tuple[float, float, float] = OFF_GRID
    ) -> "Trial":
        """A scan with smooth shapes in an ellipsoid, stored in DICOM's axis order, and its mask.
        `size`: of its voxels, as multiples of the recipe's.
        """
        scans = _write_scan(predictor, folder, size)
        images = {
            name: ImageFile(path) for name, path in zip(predictor.channels, scans, strict=True)
        }
        case = FileCase(id="trial", images=images)
        return cls(folder, scans, case, _stored(predictor, predictor.label_map(case)))

    def agreement(self, mask: Path, tool: str) -> float:
        """The share of voxels in which the mask file that `tool` wrote has the right label. Raises
        WeightsError if it is too low.
        """
        return _enough(_share(self.mask, _read(mask)), tool)

    def agreement_of_classes(
        self, mask: Path, tool: str, classes: np.ndarray, values: Mapping[int, int]
    ) -> float:
        """As `agreement`, for a tool that gives a voxel to the strongest class, however weak: it
        is held to that. How far its mask is then that of `predict`, which this returns, depends on
        how sure the network is, and is no fault of the export.

        Args:
            mask: the file.
            tool: the name of what made it.
            classes: the strongest class of every voxel.
            values: class → value that `predict` writes; other classes are background there.
        """
        theirs = _read(mask)
        _enough(_share(classes, theirs), tool, "the strongest class")
        labelled = np.vectorize(lambda code: values.get(code, 0), otypes=[int])(theirs)
        return _share(self.mask, labelled)

    def classes(self, predictor: Predictor, network: Forward) -> np.ndarray:
        """The strongest class of every voxel, as stored. `network`: windows → logits of classes."""
        scan = predictor.prepared(self.case)
        (output,) = probabilities(network, scan, predictor.config.window, predictor.device, batch=1)
        return restore(output, scan.geometry)

    def agrees(self, predictor: Predictor, forward: Forward, tool: str) -> float:
        """As `agreement`, for a network in this process. `forward`: windows → target logits."""
        scan = predictor.prepared(self.case)
        (output,) = probabilities(forward, scan, predictor.config.window, predictor.device, batch=1)
        return _enough(_share(self.mask, _stored(predictor, restore(output, scan.geometry))), tool)


def _read(mask: Path) -> np.ndarray:
    return np.rint(read_volume(mask).array).astype(int)


def _share(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.mean(ours == theirs)) if ours.shape == theirs.shape else 0.0


def _enough(share: float, tool: str, what: str = "predict's mask") -> float:
    if share < AGREEMENT:
        raise WeightsError(
            f"{tool} gives {what} in {share:.2%} of the voxels of a trial scan only, so"
            " nothing was written; use the adapter as it is."
        )
    return share


def _stored(predictor: Predictor, indices: np.ndarray) -> np.ndarray:
    """Label indices → the values in a mask."""
    return np.array([0, *mask_values(predictor.labels).values()])[indices]


def run_tool(
    command: Sequence[str], tool: str, cwd: Path, env: dict[str, str] | None = None
) -> None:
    """Run the receiving tool. If it fails, raises WeightsError with its last message."""
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1][:300]
        lacking = re.search(r"No module named '([\w.]+)'", said)
        way = f"{tool} lacks {lacking[1]}: install it" if lacking else "use the adapter as it is"
        raise WeightsError(
            f"{tool} cannot run what was exported ({said}), so nothing was written; {way}."
        )


def _write_scan(
    predictor: Predictor, folder: Path, size: tuple[float, float, float]
) -> tuple[Path, ...]:
    from scipy.ndimage import gaussian_filter

    recipe, rng, scans = predictor.recipe, np.random.default_rng(0), []
    spacing = [mm * share for mm, share in zip(recipe.spacing, size, strict=True)]
    sides = zip(predictor.config.window.patch, size, strict=True)
    shape = [max(8, round(_WINDOWS * side / share)) for side, share in sides]
    low, high = (
        (recipe.intensity.low, recipe.intensity.high)
        if isinstance(recipe.intensity, Window)
        else (1.0, 1000.0)
    )
    outside = low - 500.0 if low < 0 else 0.0
    at = np.indices(shape, dtype=np.float32)
    inside = sum(((axis / n - 0.5) / 0.48) ** 2 for axis, n in zip(at, shape, strict=True)) <= 1
    for number in range(len(predictor.channels)):
        smooth = gaussian_filter(rng.normal(size=shape), sigma=[max(1.0, n / 12) for n in shape])
        grey = np.where(
            inside, low + (high - low) * (smooth - smooth.min()) / np.ptp(smooth), outside
        )
        scans.append(folder / f"trial_{number:04d}.nii.gz")
        write_volume(
            scans[-1],
            Volume(grey.astype(np.float32), np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])),
        )
    return tuple(scans)
