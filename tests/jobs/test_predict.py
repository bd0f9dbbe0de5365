from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from toys import AFFINE, SHAPE, make_adapter, toy_scan

from sea_peft.backbones.typed import Typed
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import DataError, UsageError, WeightsError
from sea_peft.jobs.case_results import mask_values
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.predict import predict


def test_mask_lies_on_the_input_grid(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    scan = toy / "imagesTr" / "toy_0_0000.nii.gz"
    (status,) = predict(adapter, [scan], tmp_path / "out", typed=Typed(weights=str(weights)))
    mask = nibabel.load(tmp_path / "out" / "toy_0.nii.gz")
    source = nibabel.load(scan)
    assert (status.case, status.status, status.mask, status.error) == (
        "toy_0",
        "done",
        "toy_0.nii.gz",
        None,
    )
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[field], source.header[field])
    assert mask.get_data_dtype() == np.uint8
    values = np.asanyarray(mask.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2}
    voxel = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    assert status.volumes["organ"] == pytest.approx(np.count_nonzero(values == 1) * voxel, abs=1e-3)


def test_sidecar_names_the_values_and_no_path(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    predict(
        adapter,
        [toy / "imagesTr" / "toy_0_0000.nii.gz"],
        tmp_path / "out",
        typed=Typed(weights=str(weights)),
    )
    text = (tmp_path / "out" / "toy_0.json").read_text()
    assert json.loads(text)["labels"] == {"background": 0, "organ": 1, "spot": 2}
    assert str(tmp_path) not in text
    assert str(toy) not in text


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_other_formats_keep_their_format_and_geometry(
    adapter: Path, weights: Path, tmp_path: Path, suffix: str
) -> None:
    image, _ = toy_scan(0)
    scan = tmp_path / f"ä scan{suffix}"
    write_volume(scan, Volume(image, AFFINE))
    predict(adapter, [scan], tmp_path / "out", typed=Typed(weights=str(weights)))
    mask = tmp_path / "out" / f"ä scan{suffix}"
    np.testing.assert_allclose(read_volume(mask).affine, read_volume(scan).affine, rtol=0, atol=0)
    if suffix != ".nii":
        ours, theirs = sitk.ReadImage(str(mask)), sitk.ReadImage(str(scan))
        assert ours.GetOrigin() == theirs.GetOrigin()
        assert ours.GetDirection() == theirs.GetDirection()
        assert ours.GetSpacing() == theirs.GetSpacing()


def test_probabilities_and_preview(adapter: Path, weights: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scan = toy / "imagesTr" / "toy_1_0000.nii.gz"
    predict(
        adapter, [scan], out, typed=Typed(weights=str(weights)), probabilities=True, preview=True
    )
    mask = read_volume(out / "toy_1.nii.gz").array
    organ, spot = (
        read_volume(out / f"toy_1_probability_{name}.nii.gz") for name in ("organ", "spot")
    )
    assert organ.array.dtype == np.float32
    assert organ.shape == SHAPE
    assert (organ.array + spot.array).max() <= 1 + 1e-5
    background = 1 - organ.array - spot.array
    strongest = np.argmax([background, organ.array, spot.array], axis=0)
    assert np.mean(strongest == mask) > 0.999  # equal up to rounding where two are as strong
    assert (out / "toy_1.png").read_bytes().startswith(b"\x89PNG")


def test_existing_results_are_kept_unless_told_otherwise(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    out, scan = tmp_path / "out", toy / "imagesTr" / "toy_3_0000.nii.gz"
    predict(adapter, [scan], out, typed=Typed(weights=str(weights)))
    (out / "toy_3.nii.gz").write_text("an earlier result")
    with pytest.raises(UsageError, match=r"toy_3\.(nii\.gz|json) exists already.*--overwrite"):
        predict(adapter, [toy], out, typed=Typed(weights=str(weights)))
    assert sorted(path.name for path in out.iterdir()) == [
        "toy_3.json",
        "toy_3.nii.gz",
    ]  # nothing was begun
    predict(adapter, [scan], out, typed=Typed(weights=str(weights)), overwrite=True)
    assert read_volume(out / "toy_3.nii.gz").shape == SHAPE
    (out / "toy_3.nii.gz").unlink()  # a sidecar alone is what a killed process left
    predict(adapter, [scan], out, typed=Typed(weights=str(weights)))
    assert read_volume(out / "toy_3.nii.gz").shape == SHAPE


@pytest.mark.parametrize("sidecar", [None, "{}", "not JSON"])
def test_what_is_no_result_is_never_replaced(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path, sidecar: str | None
) -> None:
    (tmp_path / "toy_3.nii.gz").write_text("somebody's work")
    if sidecar is not None:
        (tmp_path / "toy_3.json").write_text(sidecar)
    for overwrite in (False, True):
        with pytest.raises(
            UsageError,
            match=r"toy_3\.nii\.gz exists and is no earlier prediction .*; choose another --out",
        ):
            predict(
                adapter, [toy], tmp_path, typed=Typed(weights=str(weights)), overwrite=overwrite
            )
    assert (tmp_path / "toy_3.nii.gz").read_text() == "somebody's work"
    assert not (tmp_path / "toy_0.json").exists()


def test_an_input_is_never_replaced(adapter: Path, weights: Path, tmp_path: Path) -> None:
    image, _ = toy_scan(0)
    write_volume(tmp_path / "a.nii.gz", Volume(image, AFFINE))
    with pytest.raises(UsageError, match="is an input and would be replaced"):
        predict(
            adapter,
            [tmp_path / "a.nii.gz"],
            tmp_path,
            typed=Typed(weights=str(weights)),
            overwrite=True,
        )


def test_one_bad_case_does_not_cost_the_others_theirs(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(toy / "imagesTr" / "toy_0_0000.nii.gz", scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"not a scan")
    bad, good = predict(adapter, [scans], tmp_path / "out", typed=Typed(weights=str(weights)))
    assert (bad.status, good.status) == ("failed", "done")
    assert "bad.nii.gz" in str(bad.error)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "good.json",
        "good.nii.gz",
    ]


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_name_that_leaves_no_room_for_results_costs_no_other_case_its_mask(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path, probabilities: bool
) -> None:
    names = ["-rf", "a;b & c", "Größe 1", "日本", "latin\udce9", "x" * 230]
    (tmp_path / "scans").mkdir()
    for name in names:
        shutil.copy(toy / "imagesTr" / "toy_0_0000.nii.gz", tmp_path / "scans" / f"{name}.nii.gz")
    typed, out = Typed(weights=str(weights)), tmp_path / "out"
    statuses = {
        s.case: s
        for s in predict(
            adapter, [tmp_path / "scans"], out, typed=typed, probabilities=probabilities
        )
    }
    assert len(statuses) == len(names)
    assert (
        sum(s.status == "done" and (out / str(s.mask)).is_file() for s in statuses.values())
        == len(names) - 1
    )
    assert "too long for a file name" in str(statuses[names[-1]].error)
    assert not list(out.glob(".*")), "nothing half-written is left"


def test_the_same_input_gives_the_same_mask(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    scan = [toy / "imagesTr" / "toy_2_0000.nii.gz"]
    for name in ("a", "b"):
        predict(adapter, scan, tmp_path / name, typed=Typed(weights=str(weights)))
    a, b = (read_volume(tmp_path / name / "toy_2.nii.gz").array for name in ("a", "b"))
    np.testing.assert_array_equal(a, b)


def test_large_codes_need_sixteen_bits(weights: Path, toy: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tmp_path / "adapter", weights, {"organ": [1], "spot": [2000]}, ["CT"], ("affine",)
    )
    predict(
        adapter,
        [toy / "imagesTr" / "toy_0_0000.nii.gz"],
        tmp_path / "out",
        typed=Typed(weights=str(weights)),
    )
    mask = nibabel.load(tmp_path / "out" / "toy_0.nii.gz")
    assert mask.get_data_dtype() == np.uint16
    assert set(np.unique(np.asanyarray(mask.dataobj))) <= {0, 1, 2000}


def test_mask_values() -> None:
    assert mask_values({"liver": [6], "spleen": [3]}) == {"liver": 6, "spleen": 3}
    assert mask_values({"tumour": [1, 2, 4], "cyst": [3]}) == {"tumour": 1, "cyst": 2}


def test_refusals(adapter: Path, weights: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(WeightsError, match="no adapter folder"):
        predict(tmp_path / "nowhere", [toy], out)
    with pytest.raises(DataError, match="no such file or folder"):
        predict(adapter, [tmp_path / "nowhere"], out, typed=Typed(weights=str(weights)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no scans"):
        predict(adapter, [tmp_path / "empty"], out, typed=Typed(weights=str(weights)))
    assert not out.exists()


def _files(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_channels_are_grouped_by_number(tmp_path: Path) -> None:
    folder = _files(
        tmp_path / "s", "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"
    )
    a, b = find_cases([folder], ["FLAIR", "T1c"])
    assert (a.id, b.id) == ("a", "b")
    assert {name: image.path.name for name, image in a.images.items()} == {
        "FLAIR": "a_0000.nii.gz",
        "T1c": "a_0001.nii.gz",
    }


def test_numbers_that_are_part_of_a_name(tmp_path: Path) -> None:
    folder = _files(tmp_path / "s", "patient_0012.nii.gz", "patient_0013.nii.gz", "c_0000.nii.gz")
    assert [case.id for case in find_cases([folder], ["CT"])] == [
        "c",
        "patient_0012",
        "patient_0013",
    ]


def test_numbers_of_names_under_a_dataset_json_that_lists_them(tmp_path: Path) -> None:
    """As in AMOS22."""
    images = _files(tmp_path / "amos" / "imagesTr", "amos_0001.nii.gz", "amos_0004.nii.gz")
    _files(tmp_path / "amos" / "labelsTr", "amos_0001.nii.gz", "amos_0004.nii.gz")
    listed = [
        {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}
        for name in ("amos_0001.nii.gz",)
    ]
    (tmp_path / "amos" / "dataset.json").write_text(
        json.dumps({"modality": {"0": "CT"}, "training": listed})
    )
    assert [case.id for case in find_cases([images], ["CT"])] == ["amos_0001", "amos_0004"]


def test_a_second_channel_is_not_taken_for_the_first(tmp_path: Path) -> None:
    folder = _files(tmp_path / "s", "a_0000.nii.gz", "a_0001.nii.gz")
    with pytest.raises(
        DataError, match=r"case a has the channels _0000, _0001, but the adapter takes 1 \(CT\)"
    ):
        find_cases([folder], ["CT"])
    with pytest.raises(DataError, match="has no channel number"):
        find_cases([_files(tmp_path / "t", "a.nii.gz")], ["FLAIR", "T1c"])


def test_channels_by_the_names_of_dataset_json(tmp_path: Path) -> None:
    images = _files(tmp_path / "d" / "imagesTs", "a_0000.nii.gz", "a_0001.nii.gz")
    (tmp_path / "d" / "dataset.json").write_text('{"channel_names": {"0": "FLAIR", "1": "T1c"}}')
    (case,) = find_cases([images], ["T1c"])
    assert case.images["T1c"].path.name == "a_0001.nii.gz"
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz is FLAIR by its dataset.json"):
        find_cases([images / "a_0000.nii.gz"], ["T1c"])


def test_a_data_set_gives_its_images_not_its_labels(toy: Path) -> None:
    cases = find_cases([toy], ["CT"])
    assert [case.id for case in cases] == [f"toy_{n}" for n in range(5)]
    assert all(case.label_file is None for case in cases)


def test_two_inputs_of_one_name(tmp_path: Path) -> None:
    one, two = (_files(tmp_path / name, "scan.nii.gz") for name in ("a", "b"))
    with pytest.raises(DataError, match="two inputs are called scan"):
        find_cases([one, two], ["CT"])
