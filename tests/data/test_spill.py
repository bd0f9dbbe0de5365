import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sea_peft.data.crops import CropSampler
from sea_peft.data.geometry import whole_geometry
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan, restore, restore_probability
from sea_peft.data.recipe import Recipe
from sea_peft.data.sliding import SlidingWindow
from sea_peft.data.spill import ScanCache, scan_bytes
from sea_peft.errors import DiskError


def make(seed):
    shape = (20, 22, 24)
    image = torch.from_numpy(np.random.default_rng(seed).random((2, *shape), dtype=np.float32))
    label = (image[0] > 0.9).to(torch.uint8)
    return Scan(
        id=f"c{seed}",
        image=image,
        label=label,
        geometry=whole_geometry(shape, np.eye(4), "RAS", (1, 1, 1)),
    )


def test_spilled_scans_give_the_same_crops(tmp_path):
    scans = [make(seed) for seed in range(3)]
    size = scans[0].image.nbytes + scans[0].label.nbytes
    cache = ScanCache(limit=size, folder=tmp_path)
    kept = [cache.keep(scan) for scan in scans]
    assert kept[0] is scans[0]
    assert all(mapped_from(tmp_path, scan) for scan in kept[1:])
    batches = (
        CropSampler(some, SlidingWindow(patch=(8, 8, 8)), 0).batch(3, 6) for some in (kept, scans)
    )
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a, b)


def mapped_from(folder, scan):
    """Whether the image is a file mapped into memory, of which the folder shows nothing."""
    (address,) = {scan.image.data_ptr()}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return name.startswith(str(folder)) and "(deleted)" in name and not os.listdir(folder)
    return False


def test_nothing_is_left_however_the_program_ends(tmp_path):
    """A program that is killed leaves no file of a patient behind."""
    code = (
        "import sys, os, signal, torch, pathlib\n"
        "from sea_peft.data.planes import Planes\n"
        "planes = Planes((2, 4, 8, 8), limit=0, folder=pathlib.Path(sys.argv[1]))\n"
        "planes.append(torch.ones(2, 4, 8, 8))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DiskError, match="No space left on device"):
        ScanCache(limit=0, folder=tmp_path).keep(make(0))


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_planes_are_what_was_appended(tmp_path, limit):
    values = torch.rand(3, 7, 5, 4)
    planes = Planes((3, 7, 5, 4), limit, tmp_path)
    for start, stop in ((0, 2), (2, 3), (3, 7)):
        planes.append(values[:, start:stop])
    assert planes.tensor().dtype == torch.float32
    torch.testing.assert_close(planes.tensor(), values, atol=5e-4 if limit == 0 else 0, rtol=0)
    torch.testing.assert_close(planes.read(5, 99), values[:, 5:], atol=5e-4, rtol=0)
    assert Planes.of(values).tensor() is not None
    assert torch.equal(Planes.of(values).read(1, 3), values[:, 1:3])


def test_a_spilled_prediction_gives_the_same_mask(tmp_path):
    geometry = whole_geometry((21, 18, 17), np.diag([0.9, 1.1, 3, 1]), "LPS", (1.5, 1.5, 1.5))
    probabilities = torch.rand(
        3, *geometry.grid, generator=torch.Generator().manual_seed(0)
    ).softmax(dim=0)
    spilled = Planes((3, *geometry.grid), 0, tmp_path)
    spilled.append(probabilities)
    kept, there = (restore(p, geometry) for p in (probabilities, spilled))
    assert (
        np.mean(kept == there) > 0.998
    )  # equal but where two labels are within float16's rounding
    a, b = (restore_probability(p, 1, geometry) for p in (probabilities, spilled))
    np.testing.assert_allclose(a, b, atol=5e-4)


def test_the_estimate_is_the_uncropped_size():
    recipe = Recipe(spacing=(1.5, 1.5, 1.5))
    assert scan_bytes((512, 512, 600), (0.75, 0.75, 1.5), recipe, 2) == 256 * 256 * 600 * 9
