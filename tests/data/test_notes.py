"""What readers assume or are warned of reaches the user as a finding, and nothing of it the
terminal.
"""

import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_scans import AFFINE, scan

from sea_peft.data.capture_stdout import capture_stdout
from sea_peft.data.checks import check
from sea_peft.data.layouts import open_dataset
from sea_peft.data.prepare import prepare
from sea_peft.data.recipe import Recipe
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import DataError


def two_folders(root, save):
    for number in range(2):
        image, label = scan(number)
        for folder, array in (("images", image), ("labels", label)):
            (root / folder).mkdir(exist_ok=True)
            save(array, root / folder / f"a{number}.nii.gz")
    return open_dataset(root)


def test_a_scan_without_orientation(tmp_path):
    def save(array, path):
        image = nibabel.Nifti1Image(array, None)
        image.header["pixdim"][1:4] = (1.2, 1.0, 2.0)
        assert (image.header["qform_code"], image.header["sform_code"]) == (0, 0)
        nibabel.save(image, path)

    dataset = two_folders(tmp_path, save)
    findings = check(dataset).findings
    assert [(f.case, f.field, f.severity) for f in findings] == [
        (case, field, "warning") for case in ("a0", "a1") for field in ("channel image", "label")
    ]
    assert (
        findings[0].sentence
        == "case a0: channel image states no orientation (qform and sform are unset): its axes are"
        " taken to run to the left, to the front and up; make sure that left and right are not"
        " swapped"
    )
    volume = dataset.cases[0].image("image")
    assert nibabel.aff2axcodes(volume.affine) == ("L", "A", "S")
    assert prepare(dataset.cases[0], Recipe(), ["image"]).notes == (findings[0].sentence,)


def test_two_orientations_that_disagree(tmp_path):
    def save(array, path):
        image = nibabel.Nifti1Image(array, None)
        image.set_sform(AFFINE, code=1)
        image.set_qform(AFFINE + np.diag([0, 0, 0.5, 0]), code=1)
        nibabel.save(image, path)

    dataset = two_folders(tmp_path, save)
    assert (
        "channel image has a qform and an sform that lie 4 mm apart; the sform is used"
        in check(dataset).findings[0].sentence
    )
    np.testing.assert_allclose(dataset.cases[0].image("image").affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize(
    ("printed", "note"),
    [
        (
            (
                b"WARNING: In /build/itkX.cxx, line 80\nX (0x55d0c0): Non uniform sampling or"
                b" missing slices detected, by 2\n\n"
            ),
            "was read with a warning (Non uniform sampling or missing slices detected, by 2)",
        ),
        (b"Uncompress failed\n", None),
        (
            (
                b"Non uniform sampling or missing slices detected\nMET_UncompressStream: ERROR"
                b" Stream is not valid!\n"
            ),
            None,
        ),
        (b"harmless chatter\n" * 30 + b"Premature end of JPEG file\n", None),
    ],
)
def test_what_itk_prints_is_a_note_or_damage(tmp_path, monkeypatch, capfd, printed, note):
    """ITK goes on after damage, with voxels that are none; only what is known to be harmless is
    one.
    """
    path = tmp_path / "x.nrrd"
    write_volume(path, Volume(scan(0)[0], AFFINE))
    real = sitk.ImageFileReader.Execute

    def chatty(self):
        os.write(2, printed)
        return real(self)

    monkeypatch.setattr(sitk.ImageFileReader, "Execute", chatty)
    if note is not None:
        assert read_volume(path).notes == (note,)
    else:
        with pytest.raises(
            DataError, match=r"x\.nrrd is damaged, or of a kind that ITK does not read"
        ) as caught:
            read_volume(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_itk_itself_is_kept_quiet(tmp_path, capfd):
    (tmp_path / "broken.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: gzip\n\nnonsense"
    )
    with pytest.raises(DataError):
        read_volume(tmp_path / "broken.nrrd")
    assert capfd.readouterr() == ("", "")


def test_captured_gives_the_terminal_back(capfd):
    notes: list[str] = []

    def broken():
        os.write(2, b"lost\n" * 100)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), capture_stdout(notes):
        broken()
    os.write(1, b"out")
    os.write(2, b"err")
    assert capfd.readouterr() == ("out", "err")
    assert notes == ["lost"]
