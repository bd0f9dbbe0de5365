import os

import numpy as np
import pytest
import torch

from sea_peft.data.crops import CropSampler
from sea_peft.data.geometry import whole_geometry
from sea_peft.data.prepare import Scan
from sea_peft.data.recipe import Recipe
from sea_peft.data.spill import ScanCache, scan_bytes
from sea_peft.errors import DeviceError


def make(seed):
    shape = (20, 22, 24)
    image = torch.from_numpy(np.random.default_rng(seed).random((2, *shape), dtype=np.float32))
    label = (image[0] > 0.9).to(torch.uint8)
    return Scan(f"c{seed}", image, label, whole_geometry(shape, np.eye(4), "RAS", (1, 1, 1)))


def test_spilled_scans_give_the_same_crops(tmp_path):
    scans = [make(seed) for seed in range(3)]
    size = scans[0].image.nbytes + scans[0].label.nbytes
    with ScanCache(limit=size, folder=tmp_path) as cache:
        kept = [cache.keep(scan) for scan in scans]
        assert kept[0] is scans[0]
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert len(os.listdir(folder)) == 4
        batches = (CropSampler(some, (8, 8, 8), 0).batch(3, 6) for some in (kept, scans))
        for a, b in zip(*batches, strict=True):
            assert torch.equal(a, b)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with (
        ScanCache(limit=0, folder=tmp_path) as cache,
        pytest.raises(DeviceError, match="No space left on device"),
    ):
        cache.keep(make(0))


def test_the_estimate_is_the_uncropped_size():
    recipe = Recipe(spacing=(1.5, 1.5, 1.5))
    assert scan_bytes((512, 512, 600), (0.75, 0.75, 1.5), recipe, 2) == 256 * 256 * 600 * 9
