"""What hospitals have: masks in masks, headers that contradict themselves, studies with extras,
segmentations of other tools.
"""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_scans import AFFINE, scan

from sea_peft.data.case_check import image_findings
from sea_peft.data.checks import check
from sea_peft.data.grids import laid_on
from sea_peft.data.layouts import open_dataset
from sea_peft.data.select import select
from sea_peft.data.volumes import Volume, header_grid, read_volume, write_volume
from sea_peft.data.write import write_datalist
from sea_peft.errors import DataError
from sea_peft.jobs.inputs import find_cases


def put(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array, affine))


def core(label: np.ndarray) -> np.ndarray:
    """The middle slices of a structure."""
    return (label * ((np.arange(label.shape[2]) > 3) & (np.arange(label.shape[2]) < 6))).astype(
        np.uint8
    )


# Overlapping structures


def test_the_smaller_of_two_structures_keeps_the_voxels(tmp_path):
    for number in range(2):
        image, label = scan(number)
        put(tmp_path / f"s{number}" / "ct.nii.gz", image)
        put(tmp_path / f"s{number}" / "segmentations" / "kidney.nii.gz", label)
        put(tmp_path / f"s{number}" / "segmentations" / "a_tumour.nii.gz", core(label))
    dataset = open_dataset(tmp_path)
    stored = dataset.cases[0].label()
    image, label = scan(0)
    np.testing.assert_array_equal(stored.array, np.where(core(label), 1, np.where(label, 2, 0)))
    inner, outer = int(core(label).sum()), int(label.sum())
    assert stored.notes == (
        (
            f"has {inner} voxels that are both a_tumour ({inner} voxels) and kidney ({outer}"
            " voxels); they are taken for a_tumour, the smaller one"
        ),
    )
    checked = check(dataset)
    assert [f.severity for f in checked.findings] == ["warning", "warning"]
    assert checked.cases[0].voxels == {"a_tumour": inner, "kidney": outer - inner}
    # the user says: the kidney with its tumour
    whole = select(dataset, ["kidney"]).cases[0].label()
    np.testing.assert_array_equal(whole.array, np.where(label, 2, 0))
    assert whole.notes == ()


def test_a_mask_of_which_nothing_is_left(tmp_path):
    image, label = scan(0)
    put(tmp_path / "s" / "ct.nii.gz", image)
    for name, mask in (
        ("lung", label),
        ("upper", label * (np.indices(label.shape)[0] < 7)),
        ("lower", label * (np.indices(label.shape)[0] >= 7)),
    ):
        put(tmp_path / "s" / "segmentations" / f"{name}.nii.gz", mask.astype(np.uint8))
    with pytest.raises(
        DataError,
        match=r"case s: nothing is left of lung \(\d+ voxels\): smaller structures cover all of it",
    ):
        open_dataset(tmp_path).cases[0].label()
    (finding,) = check(open_dataset(tmp_path)).errors
    assert "nothing is left of lung" in finding.sentence
    assert check(select(open_dataset(tmp_path), ["upper", "lower"])).errors == ()


def test_a_label_that_is_in_one_case_only(nnunet):
    root = nnunet(3)
    label = nibabel.load(root / "labelsTr" / "toy_001.nii.gz")
    array = np.asanyarray(label.dataobj).copy()
    array[array > 0] = 2
    nibabel.save(nibabel.Nifti1Image(array, label.affine), root / "labelsTr" / "toy_001.nii.gz")
    (finding,) = check(open_dataset(root)).findings
    assert (
        finding.sentence
        == "of 3 cases with labels, only one or none holds spleen (case toy_001); choose other"
        " labels, or label more cases"
    )


# Headers


def nifti(path: Path, array: np.ndarray, **fields: object) -> Path:
    """A NIfTI whose header fields are written as they are given; nibabel would mend them."""
    image = nibabel.Nifti1Image(array, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    raw = bytearray(image.to_bytes())
    at = {
        "dim": (40, "<i2"),
        "pixdim": (76, "<f4"),
        "units": (123, "u1"),
        "qcode": (252, "<i2"),
        "scode": (254, "<i2"),
        "quaternion": (256, "<f4"),
        "srow": (280, "<f4"),
    }
    for name, value in fields.items():
        start, kind = at[name]
        new = np.asarray(value, kind).tobytes()
        raw[start : start + len(new)] = new
    path.write_bytes(bytes(raw))
    return path


def test_a_quaternion_a_rounding_error_too_long(tmp_path):
    array = np.zeros((4, 5, 6), np.int16)
    volume = read_volume(nifti(tmp_path / "a.nii", array, quaternion=[0, 0, 1.000001]))
    assert volume.notes == ()
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    only = read_volume(nifti(tmp_path / "b.nii", array, quaternion=[0, 0, 1.000001], scode=0))
    np.testing.assert_allclose(only.affine, AFFINE, atol=1e-4)
    assert header_grid(tmp_path / "b.nii")[1] == pytest.approx((1.2, 1.0, 2.0), abs=1e-5)
    bent = read_volume(nifti(tmp_path / "c.nii", array, quaternion=[0, 0, 3.0]))
    assert bent.notes == ("has a qform that is no rotation; the sform is used",)
    with pytest.raises(DataError, match="a qform that is no rotation, and no sform"):
        read_volume(nifti(tmp_path / "d.nii", array, quaternion=[0, 0, 3.0], scode=0))


def test_pixdim_against_the_sform(tmp_path):
    array = np.zeros((4, 5, 6), np.int16)
    path = nifti(tmp_path / "a.nii", array, srow=np.eye(4)[:3].ravel(), qcode=0)
    assert read_volume(path).notes == (
        (
            "has voxels of 1.2 × 1 × 2 mm by its pixdim, but of 1 × 1 × 1 mm by its sform; the"
            " sform is used"
        ),
    )
    assert header_grid(path)[1] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("units", "factor", "spacing", "note"),
    [
        (1, 1e-3, (1.2, 1.0, 2.0), "gives its places in metres, which are turned into millimetres"),
        (
            3,
            1e3,
            (1.2, 1.0, 2.0),
            "gives its places in micrometres, which are turned into millimetres",
        ),
        (
            1,
            1.0,
            (1.2, 1.0, 2.0),
            "gives a voxel size of 1.2 × 1 × 2 metres, which cannot be; millimetres are taken",
        ),
        (2, 1.0, (1.2, 1.0, 2.0), None),
        (0, 1.0, (1.2, 1.0, 2.0), None),
    ],
)
def test_units_of_length_are_honoured(tmp_path, units, factor, spacing, note):
    affine = AFFINE.copy()
    affine[:3] *= factor
    pixdim = [1, *(np.array([1.2, 1.0, 2.0]) * factor)]
    path = nifti(
        tmp_path / "a.nii",
        np.zeros((4, 5, 6), np.int16),
        units=units,
        srow=affine[:3].ravel(),
        pixdim=pixdim,
        qcode=0,
    )
    volume = read_volume(path)
    assert volume.spacing == pytest.approx(spacing, rel=1e-4)
    assert volume.notes == ((note,) if note else ())
    assert header_grid(path)[1] == pytest.approx(spacing, rel=1e-4)
    # what is written on this grid has the header of the scan
    write_volume(
        tmp_path / "mask.nii", Volume(np.ones((4, 5, 6), np.uint8), volume.affine), like=path
    )
    assert read_volume(tmp_path / "mask.nii").spacing == pytest.approx(spacing, rel=1e-4)
    np.testing.assert_array_equal(
        nibabel.load(tmp_path / "mask.nii").affine, nibabel.load(path).affine
    )


def test_a_nrrd_that_leaves_its_place_open(tmp_path):
    head = b"NRRD0005\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
    for name, more, notes in (
        ("a", b"spacings: 2 2 3\n", ["states no orientation (no 'space')"]),
        ("b", b"", ["states no voxel size", "states no orientation"]),
        (
            "c",
            (
                b"space: scanner-xyz\nspace directions: (2,0,0) (0,2,0) (0,0,3)\nspace origin:"
                b" (0,0,0)\n"
            ),
            ["lies in the space 'scanner-xyz'"],
        ),
        ("d", b"space: RAS\nspace directions: (2,0,0) (0,2,0) (0,0,3)\n", ["states no origin"]),
        (
            "e",
            b"space: RAS\nspace directions: (2,0,0) (0,2,0) (0,0,3)\nspace origin: (0,0,0)\n",
            [],
        ),
    ):
        (tmp_path / f"{name}.nrrd").write_bytes(head + more + b"\n" + bytes(8))
        found = read_volume(tmp_path / f"{name}.nrrd").notes
        assert len(found) == len(notes), name
        assert all(note.startswith(start) for note, start in zip(found, notes, strict=True)), found


def test_channels_as_itk_writes_them(tmp_path):
    """X, Y, Z, 1, C."""
    array = np.arange(4 * 5 * 6 * 2, dtype=np.int16).reshape(4, 5, 6, 1, 2)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "a.nii.gz")
    sitk.WriteImage(
        sitk.GetImageFromArray(np.moveaxis(array[:, :, :, 0], (0, 1, 2), (2, 1, 0)), isVector=True),
        str(tmp_path / "b.nrrd"),
    )
    for name in ("a.nii.gz", "b.nrrd"):
        for channel in (0, 1):
            np.testing.assert_array_equal(
                read_volume(tmp_path / name, channel, 2).array, array[..., 0, channel]
            )
        with pytest.raises(DataError, match="holds 2 channels, but 3 are declared"):
            read_volume(tmp_path / name, 0, 3)
        with pytest.raises(DataError, match=r"5×6.* 3D volume is needed|2 values per voxel"):
            read_volume(tmp_path / name)


def test_channels_declared_and_found(nnunet):
    root = nnunet(2)
    entries = [
        {"image": f"./imagesTr/toy_00{n}_0000.nii.gz", "label": f"./labelsTr/toy_00{n}.nii.gz"}
        for n in range(2)
    ]
    (root / "datalist.json").write_text(
        json.dumps(
            {
                "modality": {"0": "T2", "1": "ADC"},
                "labels": {"0": "background", "1": "PZ"},
                "training": entries,
            }
        )
    )
    dataset = open_dataset(root / "datalist.json")
    for channels in ([], ["T2"], ["ADC"]):
        errors = check(select(dataset, [], channels)).errors
        assert "holds 1 channel, but 2 are declared" in errors[0].sentence


# Grey values


def test_large_values_of_an_mr_are_grey_values():
    """Scans scaled by floating-point numbers reach some millions; a few voxels far beyond all
    others do not belong.
    """
    rng = np.random.default_rng(0)
    usual = rng.gamma(2.0, 1e5, (20, 20, 20)).astype(np.float32)
    usual[0, 0, 0] = 1.7e6
    broken = rng.gamma(2.0, 100, (20, 20, 20)).astype(np.float32)
    broken[0, 0, 0] = 5e6

    def said(array):
        return [
            "grey values?" in finding.sentence
            for finding in image_findings("a", "T1", Volume(array, AFFINE))
        ]

    assert said(usual) == []
    assert said(broken) == [True]
    assert said(usual * 1e28) == [True]


# Names and reasons


def test_labels_whose_names_hold_signs(nnunet):
    root = nnunet(2, labels={"background": 0, "T2=hyper": 1, "tumour/edema, left (Ödem) & co": 2})
    dataset = open_dataset(root)
    assert dict(select(dataset, ["T2=hyper"]).labels) == {"T2=hyper": (1,)}
    assert dict(select(dataset, ["tumour/edema, left (Ödem) & co"]).labels) == {
        "tumour/edema, left (Ödem) & co": (2,)
    }
    assert dict(select(dataset, ["T2=hyper=1,2"]).labels) == {"T2=hyper": (1, 2)}
    assert dict(select(dataset, ["all=1,2"]).labels) == {"all": (1, 2)}


def test_reasons_are_kept(tmp_path, nnunet):
    root = nnunet(2, name="a")
    for path in sorted((root / "labelsTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_manual.nii")))
    with pytest.raises(
        DataError,
        match=(
            r"toy_000_manual\.nii\.gz is ignored: there is no image"
            r" imagesTr/toy_000_manual_0000\.nii\.gz"
        ),
    ):
        open_dataset(root)
    root = nnunet(2, name="b", file_ending=".tif")
    with pytest.raises(
        DataError,
        match=(
            r"file_ending is '\.tif', a format that is not read; convert images and labels to one"
            r" of \.nii\.gz"
        ),
    ):
        open_dataset(root)
    image, label = scan(0)
    put(tmp_path / "c" / "images" / "x.nii.gz", image)
    put(tmp_path / "c" / "labels" / "x.nii.gz", label)
    cut = tmp_path / "c" / "labels" / "x.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"no label map can be read: .*gzip stream is damaged"):
        open_dataset(tmp_path / "c")


def test_linked_case_folders(tmp_path):
    for number in range(2):
        image, label = scan(number)
        for part, array in (("flair", image), ("seg", label)):
            put(tmp_path / "store" / f"B_{number}" / f"B_{number}_{part}.nii.gz", array)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"B_{number}").symlink_to(tmp_path / "store" / f"B_{number}")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    assert [case.id for case in open_dataset(tmp_path / "data").cases] == ["B_0", "B_1"]


# 3D Slicer


def seg_nrrd(
    path: Path,
    layers: np.ndarray,
    segments: list[tuple[str, int, int]],
    affine: np.ndarray = AFFINE,
) -> None:
    """As Slicer writes: layers `[L, I, J, K]`, each segment with its name, layer and value."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    ways = " ".join("(" + ",".join(f"{v:g}" for v in lps[:3, axis]) + ")" for axis in range(3))
    many = len(layers) > 1
    head = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {4 if many else 3}",
        "space: left-posterior-superior",
        "sizes: " + " ".join(map(str, (*([len(layers)] if many else []), *layers.shape[1:]))),
        "space directions: " + ("none " if many else "") + ways,
        "kinds: " + ("list " if many else "") + "domain domain domain",
        "encoding: gzip",
        "space origin: (" + ",".join(f"{v:g}" for v in lps[:3, 3]) + ")",
    ]
    for number, (name, layer, value) in enumerate(segments):
        head += [
            f"Segment{number}_ID:=Segment_{number}",
            f"Segment{number}_Name:={name}",
            f"Segment{number}_Layer:={layer}",
            f"Segment{number}_LabelValue:={value}",
            f"Segment{number}_Color:=0.5 0.5 0.1",
        ]
    import gzip

    stored = (layers if many else layers[0]).astype(np.uint8).tobytes(order="F")
    path.write_bytes(("\n".join(head) + "\n\n").encode() + gzip.compress(stored))


def test_segments_of_3d_slicer_go_by_their_names(tmp_path):
    """Values differ from file to file; overlapping segments lie in layers; only the part that
    is drawn in is stored.
    """
    image, label = scan(0)
    inner = core(label)
    put(tmp_path / "a.nrrd", image)
    put(tmp_path / "b.nrrd", image + 1)
    seg_nrrd(tmp_path / "a.seg.nrrd", (label + inner)[None], [("Leber", 0, 1), ("Läsion", 0, 2)])
    shift = AFFINE.copy()
    shift[:3, 3] = (AFFINE @ (2, 2, 1, 1))[:3]
    seg_nrrd(
        tmp_path / "b.seg.nrrd",
        np.stack([inner, label])[:, 2:12, 2:10, 1:8],
        [("Läsion", 0, 1), ("Leber", 1, 1)],
        shift,
    )
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dict(dataset.labels)) == ("folders", {"Leber": (1,), "Läsion": (2,)})
    for case in dataset.cases:
        np.testing.assert_array_equal(
            case.label().array, np.where(inner, 2, label), err_msg=case.id
        )
    assert check(dataset).errors == ()
    (lesion,) = (case for case in select(dataset, ["Läsion"]).cases if case.id == "b")
    np.testing.assert_array_equal(lesion.label().array, 2 * inner)


def test_segmentations_of_older_slicers(tmp_path):
    """Before 4.11 each segment had a layer of its own, of ones, and neither was named."""
    image, label = scan(0)
    inner = core(label)
    put(tmp_path / "a.nrrd", image)
    seg_nrrd(tmp_path / "a.seg.nrrd", np.stack([label, inner]), [("liver", 0, 1), ("lesion", 1, 1)])
    content = (tmp_path / "a.seg.nrrd").read_bytes()
    for entry in (
        b"Segment0_Layer:=0\n",
        b"Segment1_Layer:=1\n",
        b"Segment0_LabelValue:=1\n",
        b"Segment1_LabelValue:=1\n",
    ):
        assert entry in content
        content = content.replace(entry, b"")
    (tmp_path / "a.seg.nrrd").write_bytes(content)
    (case,) = open_dataset(tmp_path).cases
    np.testing.assert_array_equal(case.label().array, np.where(inner, 1, 2 * label))
    with pytest.raises(DataError, match="in segments of 3D Slicer, which a datalist cannot say"):
        write_datalist(tmp_path)  # values mean something else in each file


def test_a_mask_stored_another_way_round():
    _, label = scan(0)
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        affine = np.eye(4)
        affine[:, :3] = AFFINE[:, [*order]]
        affine[:, 3] = AFFINE[:, 3]
        turned, ends = (
            label.transpose(order)[::-1],
            AFFINE @ np.append(np.eye(3)[order[0]] * (label.shape[order[0]] - 1), 1),
        )
        affine[:3, 0] *= -1
        affine[:3, 3] = ends[:3]
        back = laid_on(Volume(turned, affine), label.shape, AFFINE)
        np.testing.assert_array_equal(back.array, label)
        np.testing.assert_array_equal(back.affine, AFFINE)
    other = Volume(label, AFFINE + np.diag([0.1, 0, 0, 0]))
    assert laid_on(other, label.shape, AFFINE) is other


# DICOM


@pytest.fixture
def dicom():
    pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
    import dicom_scans

    return dicom_scans


def edited(path: Path, edit) -> None:
    import pydicom

    file = pydicom.dcmread(path)
    edit(file)
    file.save_as(path)


@pytest.fixture
def study(tmp_path, dicom):
    image, label = scan(0)
    paths = dicom.write_series(tmp_path / "p" / "ct", np.rint(image), AFFINE)
    dicom.write_seg(tmp_path / "p" / "seg.dcm", paths, {"organ": label})
    return tmp_path, paths, label


def test_a_seg_is_laid_where_its_frames_lie(study):
    root, paths, label = study

    def renamed(file):
        file.SOPInstanceUID = f"1.2.3.{file.InstanceNumber}"

    for path in paths[::2]:  # exported again, half of them under new numbers
        edited(path, renamed)
    np.testing.assert_array_equal(open_dataset(root).cases[0].label().array, label)

    def mirrored(file):
        """The same places, stored the other way round: rows and columns run against the series'."""
        shared = file.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        measures = file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        way = np.array(shared.ImageOrientationPatient, float)
        rows, columns = (float(v) for v in measures.PixelSpacing)
        for frame in file.PerFrameFunctionalGroupsSequence:
            place = frame.PlanePositionSequence[0]
            end = (
                np.array(place.ImagePositionPatient, float)
                + way[:3] * columns * (file.Columns - 1)
                + way[3:] * rows * (file.Rows - 1)
            )
            place.ImagePositionPatient = [float(v) for v in end]
        shared.ImageOrientationPatient = [float(-v) for v in way]

    edited(root / "p" / "seg.dcm", mirrored)
    np.testing.assert_array_equal(open_dataset(root).cases[0].label().array, label[::-1, ::-1])


@pytest.mark.parametrize("kind", ["LABELMAP", "BINARY", "FRACTIONAL"])
def test_every_kind_of_segmentation_object(tmp_path, dicom, kind):
    import highdicom
    import pydicom
    from pydicom.sr.codedict import codes

    from sea_peft.data.dicom.segmentation import read_segmentation

    image, label = scan(0)
    inner = core(label)
    values = np.where(inner, 2, label).transpose(2, 1, 0).astype(np.uint8)
    paths = dicom.write_series(tmp_path / "a", np.rint(image), AFFINE)
    if kind == "FRACTIONAL":
        first, second = values == 1, values == 2
        values = np.stack([0.8 * first + 0.2 * second, 0.8 * second + 0.2 * first], axis=-1).astype(
            np.float32
        )
    described = [
        highdicom.seg.SegmentDescription(number, name, codes.SCT.Organ, codes.SCT.Liver, "MANUAL")
        for number, name in enumerate(("organ", "lesion"), start=1)
    ]
    sources = [pydicom.dcmread(path) for path in paths]
    highdicom.seg.Segmentation(
        sources,
        values,
        kind,
        described,
        highdicom.UID(),
        7,
        highdicom.UID(),
        1,
        "ACME",
        "tool",
        "1",
        "0",
    ).save_as(tmp_path / "seg.dcm")
    stored = read_segmentation(tmp_path / "seg.dcm", paths, {1: (1,), 2: (2,)})
    np.testing.assert_array_equal(stored.array, np.where(inner, 2, label))


def test_frames_without_a_slice_are_counted(study):
    root, paths, label = study
    drawn = [k for k in range(label.shape[2]) if label[:, :, k].any()]
    os.remove(paths[-1])
    os.remove(paths[-2])
    os.remove(paths[-3])
    lost = sum(k >= label.shape[2] - 3 for k in drawn)
    (finding,) = check(open_dataset(root)).errors
    assert (
        f"{lost} of its {len(drawn)} frames lie where the series has no slice" in finding.sentence
    )


def shifted(file):
    for frame in file.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, y, float(z) + 2.0]


def aside(file):
    for frame in file.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [float(x) + 1.2, y, z]


def wider(file):
    file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [1.1, 1.2]


def turned(file):
    file.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [
        0,
        1,
        0,
        1,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            shifted,
            (
                "frames lie on another slice than the one that they say they were drawn on|lie"
                " where the series has no slice"
            ),
        ),
        (aside, "frames lie where the series has no slice"),
        (wider, "frames lie where the series has no slice"),
        (turned, "frames lie where the series has no slice"),
    ],
)
def test_no_seg_is_shifted_or_turned_in_silence(study, spoil, sentence):
    root, _, _ = study
    edited(root / "p" / "seg.dcm", spoil)
    (finding,) = check(open_dataset(root)).errors
    assert "cannot be laid over its series" in finding.sentence
    assert re.search(sentence, finding.sentence), finding.sentence


def test_a_study_with_extras(study):
    """A dose report in colours, a structure set, copies of the slices: passed over, with a word."""
    root, paths, label = study

    def dose(file):
        file.SOPInstanceUID = file.SeriesInstanceUID = "1.2.3.99"
        file.SamplesPerPixel, file.PhotometricInterpretation = 3, "RGB"
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(file, tag)

    def structures(file):
        file.SOPInstanceUID, file.SeriesInstanceUID, file.Modality = (
            "1.2.3.98",
            "1.2.3.97",
            "RTSTRUCT",
        )
        for tag in ("Rows", "Columns", "PixelData"):
            delattr(file, tag)

    for name, edit in (("dose.dcm", dose), ("rs.dcm", structures)):
        shutil.copy(paths[0], root / "p" / name)
        edited(root / "p" / name, edit)
    shutil.copy(paths[1], root / "p" / "ct" / "a copy")
    dataset = open_dataset(root)
    np.testing.assert_array_equal(dataset.cases[0].label().array, label)
    text = "\n".join(dataset.warnings)
    assert "dose.dcm is a colour picture, not a scan" in text
    assert (
        "rs.dcm is a structure set (RTSTRUCT), which is not read; convert it to DICOM-SEG or NIfTI"
        in text
    )
    assert "holds one of its images twice, taken once" in text
    os.remove(root / "p" / "seg.dcm")
    with pytest.raises(DataError, match=r"no labelled one: .*RTSTRUCT"):
        open_dataset(root)


def test_two_files_that_claim_to_be_one_image(study):
    root, paths, _ = study
    shutil.copy(paths[1], root / "p" / "ct" / "other")

    def brighter(file):
        file.PixelData = bytes(len(file.PixelData))

    edited(root / "p" / "ct" / "other", brighter)
    with pytest.raises(DataError, match="have the same SOP instance number but differ"):
        open_dataset(root)


@pytest.mark.parametrize("where", ["p.nii.gz", "labels/p.nii.gz", "p/p_seg.nrrd", "p.seg.nrrd"])
def test_a_series_with_a_mask_of_another_format(tmp_path, dicom, where):
    """As dcm2niix and Slicer write them: called like the series' folder, the axes stored their
    own way.
    """
    image, label = scan(0)
    dicom.write_series(tmp_path / "p", np.rint(image), AFFINE)
    flipped = AFFINE.copy()
    flipped[:3, 1] *= -1
    flipped[:3, 3] = (AFFINE @ (0, label.shape[1] - 1, 0, 1))[:3]
    put(tmp_path / where, label[:, ::-1] * 3, flipped)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dict(dataset.labels)) == ("dicom", {"label_3": (3,)})
    np.testing.assert_array_equal(dataset.cases[0].label().array, label * 3)
    assert check(dataset).errors == ()


# What predict is given


def test_channels_of_predict_are_named(tmp_path):
    for channel in (0, 1):
        put(tmp_path / "scans" / f"x_{channel:04d}.nii.gz", scan(0)[0] + channel)
    with pytest.raises(DataError, match=r"or their numbers in that order \(--channel 0\)"):
        find_cases([tmp_path / "scans"], ["FLAIR"])
    (case,) = find_cases([tmp_path / "scans"], ["FLAIR"], ["1"])
    assert {name: image.path.name for name, image in case.images.items()} == {
        "FLAIR": "x_0001.nii.gz"
    }
    (case,) = find_cases([tmp_path / "scans"], ["A", "B"], ["_0001", "channel_0"])
    assert [image.path.name for image in case.images.values()] == ["x_0001.nii.gz", "x_0000.nii.gz"]
    with pytest.raises(DataError, match="has no file _0003"):
        find_cases([tmp_path / "scans"], ["FLAIR"], ["3"])


def test_channels_of_a_data_set_are_named_for_predict(nnunet):
    root = nnunet(1, channels=("T2", "ADC"))
    for given in (root, root / "imagesTr"):
        (case,) = find_cases([given], ["FLAIR"], ["ADC"])
        assert case.images["FLAIR"].path.name == "toy_000_0001.nii.gz"
    assert dataclasses.is_dataclass(case)


def test_names_that_are_no_text(tmp_path):
    put(tmp_path / "a.nii.gz", scan(0)[0])
    os.rename(tmp_path / "a.nii.gz", os.fsencode(tmp_path) + b"/latin\xe9.nii.gz")
    (case,) = find_cases([tmp_path], ["CT"])
    assert case.id == "latin_"
    case.id.encode()
