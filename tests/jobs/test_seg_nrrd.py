"""Segmentations for 3D Slicer, read back by slicerio, SimpleITK and sea_peft itself."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from toys import AFFINE, toy_scan

from sea_peft.backbones.typed import Typed
from sea_peft.data.layouts.slicer import segments_of
from sea_peft.data.slicer import write_segments
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.jobs.predict import predict


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_segments_lie_where_the_mask_does(adapter, weights, tmp_path, suffix):
    scan = tmp_path / f"one{suffix}"
    write_volume(scan, Volume(toy_scan(0)[0], AFFINE))
    out = tmp_path / "out"
    (status,) = predict(adapter, [scan], out, typed=Typed(weights=str(weights)), seg_nrrd=True)
    assert status.error is None
    mask = np.asarray(read_volume(out / f"one{suffix}").array)
    assert mask.any()
    image = sitk.ReadImage(str(out / "one.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), mask)
    np.testing.assert_allclose(read_volume(out / "one.seg.nrrd").affine, AFFINE, atol=1e-4)
    assert [image.GetMetaData(f"Segment{n}_Name") for n in range(2)] == ["organ", "spot"]
    assert segments_of(out / "one.seg.nrrd") == {"organ": ((0, 1),), "spot": ((0, 2),)}
    slicerio = pytest.importorskip("slicerio")
    read = slicerio.read_segmentation(str(out / "one.seg.nrrd"))
    segments = {segment["name"]: segment for segment in read["segments"]}
    assert {name: segment["labelValue"] for name, segment in segments.items()} == {
        "organ": 1,
        "spot": 2,
    }
    assert len({tuple(segment["color"]) for segment in segments.values()}) == 2
    np.testing.assert_array_equal(read["voxels"], mask)


def test_extents_and_names_of_a_header(tmp_path):
    mask = np.zeros((6, 5, 4), dtype=np.uint16)
    mask[1:4, 2, 0:3] = 300
    labels = {"Leber, rechts\nunten": 300, "none": 7}
    file = tmp_path / "m.seg.nrrd"
    write_segments(file, Volume(mask, AFFINE), labels, dict.fromkeys(labels, "#336699"))
    said = sitk.ReadImage(str(file))
    assert said.GetMetaData("Segment0_Name") == "Leber, rechts unten"
    assert said.GetMetaData("Segment0_Extent") == "1 3 2 2 0 2"
    assert said.GetMetaData("Segment1_Extent") == "0 -1 0 -1 0 -1"
    assert said.GetMetaData("Segment0_Color") == "0.2 0.4 0.6"
    assert set(segments_of(file)) == {"Leber, rechts unten", "none"}
