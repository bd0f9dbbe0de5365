"""Real scans, where they lie beside the repository."""

import numpy as np
import pytest
import torch

from sea_peft.data.checks import check
from sea_peft.data.intensity import choose_intensity
from sea_peft.data.layouts import open_dataset
from sea_peft.data.metrics import dice
from sea_peft.data.prepare import label_indices, prepare, restore
from sea_peft.data.recipe import Percentile, Recipe, Window
from sea_peft.data.select import select
from sea_peft.data.split import split
from sea_peft.data.volumes import read_volume, write_volume


def there_and_back(case, recipe, dataset):
    scan = prepare(case, recipe, dataset.channels, dataset.labels)
    copied = (
        torch.nn.functional.one_hot(scan.label.long(), len(dataset.labels) + 1)
        .movedim(-1, 0)
        .float()
    )
    stored = case.label()
    back = restore(copied, scan.geometry)
    assert back.shape == stored.shape
    return scan, dice(back > 0, label_indices(stored.array, dataset.labels) > 0), back


def test_brats2015(brats2015, tmp_path):
    """MR, stored as L P S, labels as float32, padded with the minimum instead of 0."""
    dataset = select(open_dataset(brats2015), ["tumour=1,2,3,4"], ["flair"])
    assert (dataset.layout, dataset.channels, len(dataset.cases)) == ("nnunet_raw", ("FLAIR",), 4)
    checked = check(dataset.with_cases(dataset.cases[:2]), shots=1)
    assert checked.findings == ()
    assert [entry.voxels["tumour"] for entry in checked.cases] == [173928, 120674]
    recipe, sentence = choose_intensity(Recipe(), dataset.cases, dataset.channels)
    assert recipe.intensity == Percentile()
    assert "FLAIR" in sentence
    scan, overlap, back = there_and_back(dataset.cases[0], recipe, dataset)
    assert overlap > 0.96  # a ragged tumour resampled from 1 to 1.5 mm; a smooth organ keeps 0.98
    assert max(scan.geometry.grid) < 135  # the head only, not the padding
    outside = float((scan.image == 0).float().mean())
    assert 0.2 < outside < 0.7
    source = brats2015 / "imagesTr" / "BRATS_003_0000.nii.gz"
    write_volume(
        tmp_path / "mask.nii.gz",
        type(dataset.cases[0].label())(back, scan.geometry.affine),
        like=source,
    )
    written = read_volume(tmp_path / "mask.nii.gz")
    assert np.array_equal(written.affine, read_volume(source).affine)
    assert written.array.dtype == np.uint8
    assert len(split(dataset, 3, 0).test) == 1


def test_pyradiomics(pyradiomics):
    """CT and MR in NRRD, slices of 2 to 6.5 mm, masks of 143 to 4137 voxels."""
    dataset = select(open_dataset(pyradiomics))
    assert (dataset.layout, [case.id for case in dataset.cases]) == (
        "folders",
        ["brain1", "breast1", "lung1"],
    )
    checked = check(dataset, shots=2)
    assert [finding.severity for finding in checked.findings] == ["warning"]
    assert "looks like CT in case lung1" in checked.findings[0].sentence
    assert [entry.voxels["label_1"] for entry in checked.cases] == [4137, 143, 837]
    lung = [case for case in dataset.cases if case.id == "lung1"]
    recipe, sentence = choose_intensity(Recipe(), lung, dataset.channels)
    assert (recipe.intensity, sentence) == (Window(low=-175, high=250), None)
    fine = Recipe(spacing=(0.75, 0.75, 2.0), intensity=Percentile())
    for case, least in zip(dataset.cases, (0.97, 0.85, 0.95), strict=True):
        _, overlap, _ = there_and_back(case, fine, dataset)
        assert overlap > least, case.id


@pytest.mark.slow
def test_every_brats_case_checks_clean(brats2015):
    assert check(select(open_dataset(brats2015)), shots=3).findings == ()
