"""`python -m benchmarks.memory ['5 mm'] ['1.5 mm']`: the memory that adapting to and predicting
large scans takes, each in a process of its own.

Two CT scans of 512×512×600 voxels (0.8×0.8×1 mm, int16, 300 MB each) are generated in a temporary
folder: a body with one organ and noise. `adapt` trains on one and is scored on the other, `predict`
writes mask, probabilities and picture of one. Once at the bundled weights' own 5 mm, once at the
1.5 mm that large pretrained networks use. Time is that of a machine that may be busy; memory is the
largest resident set that the kernel counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sea_peft.data.volumes import Volume, write_volume

SHAPE = (512, 512, 600)
SPACING = (0.8, 0.8, 1.0)
LIMIT = 8 << 30
RESULT = Path(__file__).parent / "results" / "memory.json"
_STEPS = ["--shots", "1", "--steps", "20", "--cycles", "2", "--device", "cpu", "--no-mlflow"]
_ARMS = {"5 mm": ["--backbone", "segresnet"], "1.5 mm": ["--backbone", "unet", "--spacing", "1.5"]}


def generate(root: Path) -> None:
    """Two scans and their labels as `images` and `labels`."""
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    for seed in range(2):
        rng = np.random.default_rng(seed)
        image, label = np.empty(SHAPE, np.int16, order="F"), np.zeros(SHAPE, np.uint8, order="F")
        for k in range(SHAPE[2]):
            body = ((x - 256) / 220) ** 2 + ((y - 256) / 160) ** 2 <= 1
            organ = ((x - 200) / 80) ** 2 + ((y - 256) / 70) ** 2 + (
                (k - 280 - 20 * seed) / 150
            ) ** 2 <= 1
            image[:, :, k] = np.where(organ, 110, np.where(body, 40, -1000)) + rng.normal(
                0, 15, SHAPE[:2]
            )
            label[:, :, k] = organ
        for folder, array in (("images", image), ("labels", label)):
            (root / folder).mkdir(exist_ok=True)
            write_volume(root / folder / f"ct{seed}.nii.gz", Volume(array, affine))


def measured(*arguments: object) -> dict[str, object]:
    """Run `seapeft` with these arguments. Raises RuntimeError when it fails."""
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sea_peft", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(said)
    announced = next((line for line in said.splitlines() if "needs about" in line), "")
    return {
        "max_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "seconds": round(time.monotonic() - began, 1),
        "announced": announced.rpartition("needs about ")[2].removesuffix("."),
    }


def main() -> None:
    """Measure the voxel sizes that were named (all of them where none was) and put their rows
    into the result.
    """
    wanted = sys.argv[1:] or list(_ARMS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root)
        for name in wanted:
            run, out = root / f"run {name}", root / f"masks {name}"
            adapted = measured("adapt", root, "--out", run, *_STEPS, *_ARMS[name])
            scan = root / "images" / "ct0.nii.gz"
            predicted = measured(
                "predict",
                run,
                scan,
                "--out",
                out,
                "--probabilities",
                "--preview",
                "--device",
                "cpu",
            )
            record(name, {"adapt": adapted, "predict --probabilities --preview": predicted})


def record(name: str, rows: dict[str, dict[str, object]]) -> None:
    """Put the rows of one voxel size into the result; those of others stay."""
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    arms = {**result.get("prepared_at", {}), name: rows}
    worst = max(row["max_rss_bytes"] for arm in arms.values() for row in arm.values())
    result = {
        "scan": {"shape": SHAPE, "spacing_mm": SPACING, "bytes_per_voxel": 2},
        "limit_bytes": LIMIT,
        "within_limit": worst < LIMIT,
        "threads": 1,
        "prepared_at": arms,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
