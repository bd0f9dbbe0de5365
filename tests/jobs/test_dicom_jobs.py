"""A DICOM series through predict: the mask on its grid, and a DICOM-SEG that refers to it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from toys import AFFINE, toy_scan

from sea_peft import cli
from sea_peft.backbones.typed import Typed
from sea_peft.data.layouts import open_dataset
from sea_peft.data.volumes import read_volume
from sea_peft.errors import DataError
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.predict import predict

pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
sys.path.insert(
    0, str(Path(__file__).parents[1] / "data")
)  # the writer of DICOM series lies beside the tests of reading them

from dicom_scans import rasterised, write_seg, write_series


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients: one with a segmentation, one with a second series that is PET."""
    root = tmp_path_factory.mktemp("dicom")
    for number in range(2):
        image, label = toy_scan(number)
        paths = write_series(root / f"p{number}" / "ct", image, AFFINE)
        if number == 0:
            write_seg(root / "mask.dcm", paths, {"organ": label == 1, "spot": label == 2})
    write_series(root / "p1" / "pet", toy_scan(2)[0], AFFINE, modality="PT", number=8)
    return root


def test_masks_and_dicom_seg(adapter: Path, weights: Path, series: Path, tmp_path: Path) -> None:
    code = cli.run(
        [
            "predict",
            str(adapter),
            str(series),
            "--out",
            str(tmp_path / "m"),
            "--weights",
            str(weights),
            "--dicom-seg",
            "-q",
        ]
    )
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert names == [f"p{n}_ct.{suffix}" for n in range(2) for suffix in ("dcm", "json", "nii.gz")]
    case = open_dataset(series).cases[0]
    mask = read_volume(tmp_path / "m" / "p0_ct.nii.gz")
    np.testing.assert_allclose(mask.affine, case.image("CT").affine, atol=1e-5)
    assert mask.shape == case.image("CT").shape
    sidecar = json.loads((tmp_path / "m" / "p0_ct.json").read_text())
    assert sidecar["dicom_seg"] == "p0_ct.dcm"
    assert "DOE" not in json.dumps(sidecar)
    # read back as the segmentation of its series, by reference alone
    (series / "mask.dcm").rename(tmp_path / "away")
    (tmp_path / "m" / "p0_ct.dcm").rename(series / "ours.dcm")
    try:
        again = open_dataset(series)
        stored = again.cases[0].label()
        codes = {name: code for name, (code,) in again.labels.items()}
        values = sidecar["labels"]
        for name, code in codes.items():
            np.testing.assert_array_equal(stored.array == code, mask.array == values[name])
    finally:
        (series / "ours.dcm").unlink()
        (tmp_path / "away").rename(series / "mask.dcm")


def test_only_series_of_the_adapters_kind(series: Path) -> None:
    assert [case.id for case in find_cases([series], ["CT"])] == ["p0_ct", "p1_ct"]
    assert [case.id for case in find_cases([series / "p1" / "ct"], ["CT"])] == ["ct"]
    with pytest.raises(DataError, match="no channel 'FLAIR'"):
        find_cases([series], ["FLAIR"])
    first = sorted((series / "p0" / "ct").iterdir())[0]
    with pytest.raises(DataError, match="it is one DICOM file: give its folder"):
        find_cases([first], ["CT"])


def test_what_was_taken_once_or_passed_over_is_said(series: Path, tmp_path: Path) -> None:
    said: list[str] = []
    find_cases([series], ["CT"], say=said.append)
    assert said == []
    shutil.copytree(series / "p1" / "ct", tmp_path / "ct")
    for file in sorted((tmp_path / "ct").iterdir()):
        shutil.copy(file, file.with_name(f"copy of {file.name}"))
    (case,) = find_cases([tmp_path / "ct"], ["CT"], say=said.append)
    slices = len(list((series / "p1" / "ct").iterdir()))
    assert case.images["CT"].slices is not None
    assert len(case.images["CT"].slices) == slices
    (sentence,) = said
    assert sentence.endswith(f"holds {slices} copies of its images, taken once.")


def test_structure_sets(adapter: Path, weights: Path, series: Path, tmp_path: Path) -> None:
    given = [
        "predict",
        str(adapter),
        str(series),
        "--out",
        str(tmp_path / "m"),
        "--weights",
        str(weights),
        "-q",
    ]
    assert cli.run([*given, "--rtstruct"]) == 0
    names = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert names == [
        f"p{n}_ct{end}" for n in range(2) for end in (".json", ".nii.gz", "_rtstruct.dcm")
    ]
    sidecar = json.loads((tmp_path / "m" / "p0_ct.json").read_text())
    assert sidecar["rtstruct"] == "p0_ct_rtstruct.dcm"
    assert "DOE" not in json.dumps(sidecar)
    file, mask = tmp_path / "m" / "p0_ct_rtstruct.dcm", read_volume(tmp_path / "m" / "p0_ct.nii.gz")
    drawn = rasterised(file, sorted((series / "p0" / "ct").iterdir()))
    found = {
        name: np.asarray(mask.array) == value for name, value in sidecar["labels"].items() if value
    }
    assert drawn.keys() == {name for name, where in found.items() if where.any()}
    for name, where in drawn.items():
        np.testing.assert_array_equal(where, found[name])
    # kept as it is by --resume, and made again if it is gone
    before = file.stat().st_mtime_ns
    assert cli.run([*given, "--rtstruct", "--resume"]) == 0
    assert file.stat().st_mtime_ns == before
    file.unlink()
    assert cli.run([*given, "--rtstruct", "--resume", "--overwrite"]) == 0
    assert file.is_file()


@pytest.mark.parametrize("what", ["dicom_seg", "rtstruct"])
def test_dicom_out_needs_a_series(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path, what: str
) -> None:
    flag = f"--{what.replace('_', '-')}"
    with pytest.raises(DataError, match=rf"case toy_0 is no DICOM series.*leave {flag} out"):
        predict(adapter, [toy], tmp_path / "m", typed=Typed(weights=str(weights)), **{what: True})
    assert not (tmp_path / "m").exists()


def test_evaluate_on_dicom(adapter: Path, weights: Path, series: Path, tmp_path: Path) -> None:
    code = cli.run(
        [
            "evaluate",
            str(adapter),
            str(series),
            "--weights",
            str(weights),
            "--channel",
            "CT",
            "-q",
            "--out",
            str(tmp_path / "e"),
        ]
    )
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "scores.csv",
        "scores.json",
        "scores.png",
    ]
