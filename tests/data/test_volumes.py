import gzip
import os
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from sea_peft.data.volumes import Volume, read_volume, volume_stem, write_volume
from sea_peft.errors import DataError

AFFINE = np.array([[0, -0.7, 0, 11.5], [0.9, 0, 0, -3], [0, 0, 2.5, 40], [0, 0, 0, 1.0]])
ARRAY = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.bool_, np.int64])
def test_what_is_written_is_read(tmp_path, suffix, dtype):
    path = tmp_path / f"a scan, ä, 大{suffix}"
    array = (ARRAY % 2).astype(dtype)
    write_volume(path, Volume(array, AFFINE))
    back = read_volume(path)
    assert np.array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(back.spacing, (0.9, 0.7, 2.5), atol=1e-6)
    assert os.listdir(tmp_path) == [path.name]


def test_geometry_agrees_with_other_readers(tmp_path):
    """A point of the scan has the same place in the world for ITK (LPS) as for nibabel (RAS)."""
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        path = tmp_path / f"x{suffix}"
        write_volume(path, Volume(ARRAY, AFFINE))
        image = sitk.ReadImage(str(path))
        lps = image.TransformIndexToPhysicalPoint((1, 2, 3))
        np.testing.assert_allclose(
            np.array(lps) * (-1, -1, 1), (AFFINE @ (1, 2, 3, 1))[:3], atol=1e-4
        )
        assert image[1, 2, 3] == ARRAY[1, 2, 3]


def test_header_geometry_of_the_input_is_kept_to_the_last_digit(tmp_path):
    source, mask = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    image = nibabel.Nifti1Image(ARRAY, None)
    image.set_sform(AFFINE + np.diag([1e-3, 0, 0, 0]), code=2)
    image.set_qform(AFFINE, code=1)
    image.header["descrip"] = b"DOE^JANE"
    nibabel.save(image, source)
    write_volume(
        mask, Volume(np.ones((5, 6, 7), np.uint8), read_volume(source).affine), like=source
    )
    ours, theirs = nibabel.load(mask).header, nibabel.load(source).header
    for field in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "qoffset_x",
        "pixdim",
    ):
        assert np.array_equal(np.ravel(ours[field])[:4], np.ravel(theirs[field])[:4])
    assert np.array_equal(nibabel.load(mask).affine, nibabel.load(source).affine)
    assert bytes(ours["descrip"]).strip(b"\0") == b""


def test_nifti2_and_itk_inputs_keep_their_geometry(tmp_path):
    source, mask = tmp_path / "scan.nii", tmp_path / "mask.nii"
    affine = AFFINE + np.pi / 1e5
    affine[3] = (0, 0, 0, 1)
    nibabel.save(nibabel.Nifti2Image(ARRAY, affine), source)
    write_volume(mask, Volume(ARRAY, affine), like=source)
    assert np.array_equal(nibabel.load(mask).affine, nibabel.load(source).affine)
    write_volume(tmp_path / "a.nrrd", Volume(ARRAY, affine))
    write_volume(tmp_path / "b.nrrd", Volume(ARRAY, np.eye(4)), like=tmp_path / "a.nrrd")
    a, b = (read_volume(tmp_path / name).affine for name in ("a.nrrd", "b.nrrd"))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)  # NRRD stores spacing times direction


def test_one_channel_of_a_4d_file(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(np.stack([ARRAY, ARRAY + 1], -1), AFFINE), tmp_path / "x.nii.gz"
    )
    assert np.array_equal(read_volume(tmp_path / "x.nii.gz", component=1, of=2).array, ARRAY + 1)
    with pytest.raises(DataError, match=r"4 axes \(5×6×7×2\); a 3D volume is needed"):
        read_volume(tmp_path / "x.nii.gz")
    with pytest.raises(DataError, match="holds 2 channels, but 3 are declared"):
        read_volume(tmp_path / "x.nii.gz", component=2, of=3)


def _nifti(**header) -> bytes:
    image = nibabel.Nifti1Image(ARRAY, AFFINE)
    raw = bytearray(image.to_bytes())
    offsets = {
        "dim": (40, "<8h"),
        "datatype": (70, "<h"),
        "pixdim": (76, "<8f"),
        "sform_code": (254, "<h"),
    }
    offsets |= {"scl_slope": (112, "<f"), "srow_x": (280, "<4f"), "qform_code": (252, "<h")}
    for field, value in header.items():
        at, kind = offsets[field]
        struct.pack_into(kind, raw, at, *np.atleast_1d(value).tolist())
    return bytes(raw)


def _mha(**changes: str) -> bytes:
    entries = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": "5 6 7",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    } | changes
    return (
        "".join(f"{key} = {value}\n" for key, value in entries.items()).encode() + ARRAY.tobytes()
    )


NAN = float("nan")
UNREADABLE = {
    "empty.nii.gz": (b"", "is empty \\(0 bytes\\)"),
    "cut.nii.gz": (gzip.compress(_nifti())[:-40], "gzip stream is damaged or cut short"),
    "flipped.nii.gz": (gzip.compress(_nifti())[:-8] + b"12345678", "gzip stream is damaged"),
    "text.nii.gz": (b"<html>404</html>" * 40, "wrong magic bytes"),
    "text.nrrd": (b"<html>404</html>" * 40, "not a NRRD file .wrong magic bytes"),
    "text.mha": (b"<html>404</html>" * 40, "no NDims in its header"),
    "short.nii": (_nifti()[:400], "promises 772 bytes of voxels .5×6×7., the file holds 400"),
    "lies.nii": (_nifti(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "30000×30000×30000"),
    "lies.nrrd": (
        (
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9000 9000 9000\nendian: little\n"
            b"encoding: raw\n\n123"
        ),
        "promises 1458000000000 bytes of voxels .9000×9000×9000., the file holds 3",
    ),
    "flat.nii": (
        _nifti(dim=[2, 5, 6, 1, 1, 1, 1, 1]),
        r"has 2 axes \(5×6\); a 3D volume is needed, and this is one picture",
    ),
    "negative.nii": (_nifti(dim=[3, -5, 6, 7, 1, 1, 1, 1]), "negative.nii"),
    "rgb.nii": (_nifti(datatype=128, dim=[3, 5, 6, 2, 1, 1, 1, 1]), "real numbers are needed"),
    "nan_affine.nii": (_nifti(srow_x=[NAN, 0, 0, 0]), "unusable orientation"),
    "singular.nii": (_nifti(srow_x=[0, 0, 0, 0]), "unusable orientation"),
    "no_spacing.nii": (
        _nifti(sform_code=0, pixdim=[1, 0, 1, 1, 1, 1, 1, 1]),
        "voxel size of 0, 1, 1 mm",
    ),
    "axes.mha": (_mha(NDims="99999999"), "has '99999999' axes"),
    "printf.mha": (
        _mha(ElementDataFile="%s%s"),
        "names '%s%s' as its data file; one file beside it",
    ),
    "outside.mhd": (_mha(ElementDataFile="../x.raw"), "as its data file"),
    "sizes.mha": (_mha(DimSize="5 6"), "header entry DimSize = '5 6'; 3 numbers are needed"),
    "nan.mha": (_mha(ElementSpacing="1 nan 1"), "3 numbers are needed"),
    "no_spacing.mha": (_mha().replace(b"ElementSpacing", b"ElementSpycing"), "no ElementSpacing"),
    "header_only.mha": (b"ObjectType = Image\nNDims = 3\n", "no DimSize in its header"),
    "scan.png": (b"png", "is not a volume"),
    "vector.nrrd": (
        (
            b"NRRD0004\ntype: short\ndimension: 4\nsizes: 2 1 1 1\n"
            b"kinds: vector domain domain domain\nendian: little\nencoding: raw\n\n1234"
        ),
        "2 values per voxel",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_get_one_sentence(tmp_path, name, capfd):
    content, sentence = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_volume(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_integers_stored_with_a_scale_factor(tmp_path):
    (tmp_path / "m.nii").write_bytes(_nifti(scl_slope=0.5))
    array = read_volume(tmp_path / "m.nii").array
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, ARRAY * 0.5)


def test_a_plain_mha_and_a_detached_header(tmp_path):
    (tmp_path / "a.mha").write_bytes(_mha())
    (tmp_path / "b.mhd").write_bytes(_mha(ElementDataFile="b.raw").split(b"b.raw")[0] + b"b.raw\n")
    (tmp_path / "b.raw").write_bytes(ARRAY.tobytes())
    for name in ("a.mha", "b.mhd"):
        assert np.array_equal(
            read_volume(tmp_path / name).array.transpose(2, 1, 0).ravel(), ARRAY.ravel()
        )


def test_what_is_no_file_at_all(tmp_path):
    loop = tmp_path / "loop.nii.gz"
    loop.symlink_to(loop)
    (tmp_path / "folder.nii.gz").mkdir()
    for name, sentence in (
        ("gone", "does not exist"),
        ("folder", "is a folder"),
        ("loop", "cannot be opened"),
    ):
        with pytest.raises(DataError, match=sentence):
            read_volume(tmp_path / f"{name}.nii.gz")


def test_a_name_with_a_newline_stays_one_line(tmp_path):
    write_volume(tmp_path / "a\nb.nii.gz", Volume(ARRAY, AFFINE))
    assert read_volume(tmp_path / "a\nb.nii.gz").shape == (5, 6, 7)
    (tmp_path / "c\nd.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_volume(tmp_path / "c\nd.nii.gz")
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        nibabel, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(DataError, match="No space left"):
        write_volume(tmp_path / "x.nii.gz", Volume(ARRAY, AFFINE))
    assert os.listdir(tmp_path) == []
    with pytest.raises(DataError, match="must end in one of"):
        write_volume(tmp_path / "x.png", Volume(ARRAY, AFFINE))
    with pytest.raises(DataError, match="cannot write"):
        write_volume(tmp_path / "no folder" / "x.nii.gz", Volume(ARRAY, AFFINE))


def test_stems():
    from pathlib import Path

    assert volume_stem(Path("a.b.nii.gz")) == "a.b"
    assert volume_stem(Path("A.NRRD")) == "A"
