"""DICOM series and segmentations, written by pydicom and highdicom and read by what users'
files are read by.
"""

import builtins
import os

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from synthetic_scans import scan

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")

from dicom_scans import rasterised, write_seg, write_series  # noqa: E402

from sea_peft.data.checks import check  # noqa: E402
from sea_peft.data.dicom.segmentation import read_segmentation, segmentation_bytes  # noqa: E402
from sea_peft.data.dicom.series import read_series  # noqa: E402
from sea_peft.data.dicom.structures import structure_set_bytes  # noqa: E402
from sea_peft.data.grids import skewness  # noqa: E402
from sea_peft.data.layouts import open_dataset  # noqa: E402
from sea_peft.data.select import select  # noqa: E402
from sea_peft.data.write import write_datalist  # noqa: E402
from sea_peft.errors import DataError  # noqa: E402
from sea_peft.phantom.dataset import phantom_dataset  # noqa: E402

STRAIGHT = np.array([[-1.2, 0, 0, 30], [0, -1.0, 0, 20], [0, 0, 2.0, -10], [0, 0, 0, 1.0]])
CORONAL = np.array([[-1.2, 0, 0, 30], [0, 0, 2.0, 20], [0, -1.0, 0, 44], [0, 0, 0, 1.0]])
TURNED = STRAIGHT.copy()
TURNED[:2, :2] = [[-1.2 * np.cos(0.3), np.sin(0.3)], [-1.2 * np.sin(0.3), -np.cos(0.3)]]


def whole(seed=0):
    image, label = scan(seed)
    return np.rint(image), label


@pytest.mark.parametrize("affine", [STRAIGHT, CORONAL, TURNED], ids=["axial", "coronal", "oblique"])
def test_a_series_keeps_every_voxels_place_and_value(tmp_path, affine):
    image, _ = whole()
    paths = write_series(tmp_path, image, affine)
    volume = read_series(paths[::-1])
    # slices run along the normal of the slices; the array that was written may run against it
    back = (
        volume.array if np.allclose(volume.affine, affine, atol=1e-4) else volume.array[:, :, ::-1]
    )
    np.testing.assert_array_equal(back, image)
    for index in ((0, 0, 0), (13, 5, 8), (3, 11, 2)):
        place = (affine @ (*index, 1))[:3]
        there = np.linalg.solve(volume.affine, (*place, 1))[:3]
        assert volume.array[tuple(np.rint(there).astype(int))] == image[index]


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1.0, 0.0), (1.0, -1024.0), (0.5, -1024.0), (2.5, 10.5)]
)
def test_rescale_slope_and_intercept(tmp_path, slope, intercept):
    image, _ = whole()
    volume = read_series(write_series(tmp_path, image, STRAIGHT, slope=slope, intercept=intercept))
    np.testing.assert_allclose(
        volume.array, np.rint((image - intercept) / slope) * slope + intercept, atol=1e-3
    )


def test_slopes_that_differ_between_slices(tmp_path):
    """As PET has them: the first slice must not decide the type of all."""
    image, _ = whole()
    paths = write_series(tmp_path, image, STRAIGHT, slope=1.0, intercept=0.0)
    for number, path in enumerate(paths):
        file = pydicom.dcmread(path)
        file.RescaleSlope = 1.0 + 0.25 * number
        file.save_as(path)
    volume = read_series(paths)
    np.testing.assert_allclose(volume.array[:, :, 5], image[:, :, 5] * 2.25, atol=1e-3)


def test_a_compressed_series(tmp_path):
    image, _ = whole()
    paths = write_series(tmp_path, image, STRAIGHT)
    for path in paths:
        file = pydicom.dcmread(path)
        file.compress(pydicom.uid.RLELossless)
        file.save_as(path)
    np.testing.assert_array_equal(read_series(paths).array, image)


def test_a_tilted_gantry_is_kept_and_said(tmp_path):
    image, label = whole()
    paths = write_series(tmp_path / "a", image, STRAIGHT, tilt=0.5)
    write_seg(tmp_path / "seg.dcm", paths, {"liver": label})
    volume = read_series(paths)
    np.testing.assert_array_equal(volume.array, image)
    assert skewness(volume.affine) == pytest.approx(np.degrees(np.arctan(0.5 / 2.0)), abs=0.1)
    assert skewness(STRAIGHT) == 0
    (finding,) = check(select(open_dataset(tmp_path))).findings
    assert finding.severity == "warning"
    assert "14.0° away from right angles" in finding.sentence


def moved(paths, number, by):
    file = pydicom.dcmread(paths[number])
    file.ImagePositionPatient = [
        *file.ImagePositionPatient[:2],
        float(file.ImagePositionPatient[2]) + by,
    ]
    file.save_as(paths[number])


def edited(path, **tags):
    file = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            delattr(file, tag)
        else:
            setattr(file, tag, value)
    file.save_as(path)


def missing_slice(folder):
    write_series(folder, whole()[0], STRAIGHT, left_out=(4,))


def uneven(folder):
    moved(write_series(folder, whole()[0], STRAIGHT), 4, 0.7)


def twice_at_one_place(folder):
    moved(write_series(folder, whole()[0], STRAIGHT), 4, 2.0)


def other_size(folder):
    paths = write_series(folder, whole()[0], STRAIGHT)
    edited(paths[2], PixelSpacing=[1.0, 1.5])


def other_direction(folder):
    paths = write_series(folder, whole()[0], STRAIGHT)
    edited(paths[2], ImageOrientationPatient=[0, 1, 0, 1, 0, 0])


def no_position(folder):
    edited(write_series(folder, whole()[0], STRAIGHT)[0], ImagePositionPatient=None)


def many_frames(folder):
    edited(write_series(folder, whole()[0], STRAIGHT)[0], NumberOfFrames=9)


def colours(folder):
    edited(write_series(folder, whole()[0], STRAIGHT)[0], SamplesPerPixel=3)


def one_slice(folder):
    write_series(folder, whole()[0], STRAIGHT, left_out=tuple(range(1, 9)))


def cut_short(folder):
    path = write_series(folder, whole()[0], STRAIGHT)[3]
    path.write_bytes(path.read_bytes()[:-100])


BAD = [
    (
        missing_slice,
        (
            "slices are missing between IM0006 and IM0004, which lie 4 mm apart where others lie 2"
            " mm apart"
        ),
    ),
    (uneven, "slices lie 1.3 to 2.7 mm apart; an even spacing is needed"),
    (twice_at_one_place, "two slices at one place"),
    (other_size, r"mixes slices of voxel size 1×1.2 \(IM0001\) and 1×1.5 \(IM0007\) in one series"),
    (other_direction, "mixes slices of direction"),
    (no_position, "does not say where its slice lies"),
    (many_frames, "holds 9 frames in one file"),
    (colours, "is a colour picture"),
    (one_slice, "a single slice; a volume is needed"),
    (cut_short, "cannot be decoded|cannot be read as DICOM"),
]


@pytest.mark.parametrize(
    ("spoil", "sentence"), BAD, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_is_no_volume_is_refused_in_one_sentence(tmp_path, spoil, sentence, capfd):
    spoil(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        read_series(sorted(tmp_path.iterdir()))
    assert "\n" not in str(caught.value)
    assert "DOE" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_series_with_segmentations(tmp_path):
    """Series go with the segmentation that refers to them, wherever the files lie and whatever
    they are called.
    """
    for number in range(3):
        image, label = whole(number)
        paths = write_series(tmp_path / f"p{number}" / "scan", image, STRAIGHT)
        masks = {"spleen": image < -500, "liver": label} if number == 1 else {"liver": label}
        if number < 2:
            write_seg(tmp_path / f"mask of {1 - number}.dcm", paths, masks)
    (tmp_path / "p0" / "notes.txt").write_text("not a scan")
    (tmp_path / "loop").symlink_to(tmp_path)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.warnings) == ("dicom", ("CT",), ())
    assert dict(dataset.labels) == {"liver": (1,), "spleen": (2,)}
    assert [case.id for case in dataset.cases] == ["p0_scan", "p1_scan"]
    assert [case.id for case in dataset.unlabelled] == ["p2_scan"]
    assert check(dataset, shots=1).errors == ()
    image, label = whole(1)
    volume, stored = dataset.cases[1].image("CT"), dataset.cases[1].label()
    assert np.array_equal(volume.affine, stored.affine)
    np.testing.assert_array_equal(stored.array, np.where(label, 1, np.where(image < -500, 2, 0)))
    np.testing.assert_array_equal(volume.array, image)
    (only,) = select(dataset, ["spleen"]).cases
    np.testing.assert_array_equal(only.label().array, np.where(image < -500, 2, 0))


def test_series_without_the_chosen_segment_are_left_out(tmp_path):
    for number in range(2):
        image, label = whole(number)
        masks = {"spleen": image < -500, "liver": label} if number == 1 else {"liver": label}
        write_seg(
            tmp_path / f"{number}.dcm",
            write_series(tmp_path / f"p{number}", image, STRAIGHT),
            masks,
        )
    dataset = select(open_dataset(tmp_path), ["spleen"])
    assert [case.id for case in dataset.cases] == ["p1"]
    assert [case.id for case in dataset.unlabelled] == ["p0"]
    (finding,) = check(dataset).findings
    assert finding.severity == "warning"
    assert finding.sentence.endswith("no mask of the chosen labels (spleen): p0")


def test_a_datalist_cannot_say_dicom(tmp_path):
    """Written all the same, it would hide the segmentations."""
    image, label = whole()
    write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "a", image, STRAIGHT), {"liver": label})
    with pytest.raises(DataError, match="case a lies in DICOM slices"):
        write_datalist(tmp_path)
    assert [case.id for case in open_dataset(tmp_path).cases] == ["a"]


def test_several_series_in_one_folder(tmp_path):
    write_series(tmp_path / "a", whole(0)[0], STRAIGHT, number=2, names="v{:03d}.dcm")
    paths = write_series(tmp_path / "a", whole(1)[0], STRAIGHT, number=5, names="w{:03d}.dcm")
    write_series(
        tmp_path / "a",
        whole(2)[0],
        STRAIGHT,
        number=1,
        left_out=tuple(range(1, 9)),
        names="scout{:03d}.dcm",
    )
    write_series(
        tmp_path / "a",
        whole(2)[0],
        STRAIGHT,
        number=9,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        names="l{}.dcm",
    )
    write_seg(tmp_path / "seg", paths, {"liver": whole(1)[1]})
    dataset = open_dataset(tmp_path)
    assert [case.id for case in (*dataset.cases, *dataset.unlabelled)] == ["a_5", "a_2"]
    np.testing.assert_array_equal(dataset.cases[0].image("CT").array, whole(1)[0])
    assert dataset.warnings == ("a_1 is ignored: it is a single slice",)


def test_segmentations_that_fit_nothing(tmp_path):
    image, label = whole()
    paths = write_series(tmp_path / "a", image, STRAIGHT)
    other = write_series(tmp_path / "b", image, STRAIGHT)
    write_seg(tmp_path / "one.dcm", paths, {"liver": label})
    write_seg(tmp_path / "two.dcm", paths, {"liver": label})
    with pytest.raises(
        DataError, match=r"two\.dcm and one\.dcm are both segmentations of one series"
    ):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"one\.dcm cannot be laid over its series"):
        read_segmentation(tmp_path / "one.dcm", other, {1: (1,)})
    header = pydicom.dcmread(tmp_path / "one.dcm")
    for frame in header.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    header.save_as(tmp_path / "one.dcm")
    # where it does not say on which images it was drawn, its frames go where they lie
    np.testing.assert_array_equal(
        read_segmentation(tmp_path / "one.dcm", paths, {1: (1,)}).array, label
    )
    (tmp_path / "two.dcm").write_bytes((tmp_path / "two.dcm").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"two\.dcm cannot be laid over"):
        read_segmentation(tmp_path / "two.dcm", paths, {1: (1,)})
    for path in paths:
        os.remove(path)
    os.remove(tmp_path / "two.dcm")
    with pytest.raises(DataError, match="no labelled one"):
        open_dataset(tmp_path)


def test_a_mask_comes_back_from_dicom_seg(tmp_path):
    image, label = whole()
    paths = write_series(tmp_path / "a", image, STRAIGHT)
    mask = np.where(label, 7, np.where(image < -500, 300, 0)).astype(np.uint16)
    (tmp_path / "a.dcm").write_bytes(
        segmentation_bytes(mask, paths[::-1], {"liver": 7, "Luft, außen": 300, "none": 9})
    )
    header = pydicom.dcmread(tmp_path / "a.dcm")
    assert [str(item.SegmentLabel) for item in header.SegmentSequence] == ["liver", "Luft, außen"]
    assert header.PatientID == "4711"
    assert (
        header.ReferencedSeriesSequence[0].SeriesInstanceUID
        == pydicom.dcmread(paths[0]).SeriesInstanceUID
    )
    back = read_segmentation(tmp_path / "a.dcm", paths, {7: (1,), 300: (2,)})
    np.testing.assert_array_equal(back.array, mask)
    nothing = segmentation_bytes(np.zeros_like(mask), paths, {"liver": 7})
    (tmp_path / "b.dcm").write_bytes(nothing)
    assert not read_segmentation(tmp_path / "b.dcm", paths, {1: (1,)}).array.any()


TILTED = np.eye(4)  # about all three axes, with voxels of three sizes
TILTED[:3, :3] = Rotation.from_euler("xyz", (0.4, -0.3, 0.2)).as_matrix() @ np.diag(
    [-1.1, -1.3, 2.5]
)
TILTED[:3, 3] = 40, -20, 1300


@pytest.fixture(scope="module")
def torso():
    """Every second voxel of a phantom's labels, and their names and values."""
    dataset = phantom_dataset("low-dose-ct", 1)
    mask = np.asarray(dataset.cases[0].label().array)[::2, ::2, ::2]
    return mask, {name: codes[0] for name, codes in dataset.labels.items()}


@pytest.mark.parametrize("affine", [STRAIGHT, CORONAL, TILTED], ids=["axial", "coronal", "oblique"])
def test_a_structure_set_gives_the_masks_back(tmp_path, torso, affine):
    mask, values = torso
    paths = write_series(tmp_path / "a", np.where(mask, 50, -1000), affine)
    mask = mask if np.linalg.det(affine[:3, :3]) > 0 else mask[:, :, ::-1]  # as the series is read
    colours = {name: f"#{number:02x}80ff" for number, name in enumerate(values)}
    (tmp_path / "rs.dcm").write_bytes(structure_set_bytes(mask, paths[::-1], values, colours))
    drawn = rasterised(tmp_path / "rs.dcm", paths)
    assert len(drawn) == 11
    assert drawn.keys() == {name for name, value in values.items() if (mask == value).any()}
    for name, where in drawn.items():
        np.testing.assert_array_equal(where, mask == values[name])  # a Dice of 1


def test_what_a_structure_set_says(tmp_path):
    image, label = whole()
    paths = write_series(tmp_path / "a", image, STRAIGHT)
    values = {"liver": 7, "Luft, außen": 300, "none": 9}
    mask = np.where(label, 7, np.where(image < -500, 300, 0)).astype(np.uint16)
    colours = {"liver": "#ff8000", "Luft, außen": "#0072B2", "none": "#000000"}
    (tmp_path / "rs.dcm").write_bytes(structure_set_bytes(mask, paths, values, colours))
    found, source = pydicom.dcmread(tmp_path / "rs.dcm"), pydicom.dcmread(paths[0])
    assert found.SOPClassUID.name == "RT Structure Set Storage"
    same = (
        "PatientName",
        "PatientID",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "AccessionNumber",
        "FrameOfReferenceUID",
    )
    assert {tag: found[tag].value for tag in same} == {tag: source[tag].value for tag in same}
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert (found.Modality, found.ApprovalStatus) == ("RTSTRUCT", "UNAPPROVED")
    frame = found.ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    listed = {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence}
    assert listed == {pydicom.dcmread(path).SOPInstanceUID for path in paths}
    assert [item.ROIName for item in found.StructureSetROISequence] == ["liver", "Luft, außen"]
    assert [list(item.ROIDisplayColor) for item in found.ROIContourSequence] == [
        [255, 128, 0],
        [0, 114, 178],
    ]
    assert [item.ReferencedROINumber for item in found.RTROIObservationsSequence] == [1, 2]
    nothing = structure_set_bytes(np.zeros_like(mask), paths, {"liver": 7}, colours)
    (tmp_path / "none.dcm").write_bytes(nothing)
    assert not rasterised(tmp_path / "none.dcm", paths)["liver"].any()


def test_a_structure_set_needs_a_frame_of_reference(tmp_path):
    image, label = whole()
    paths = write_series(tmp_path / "a", image, STRAIGHT)
    for path in paths:
        file = pydicom.dcmread(path)
        del file.FrameOfReferenceUID
        file.save_as(path)
    with pytest.raises(DataError, match="names no frame of reference"):
        structure_set_bytes(label, paths, {"liver": 1}, {"liver": "#ff8000"})


def test_without_the_extra_there_is_a_command(tmp_path, monkeypatch):
    write_series(tmp_path / "a", whole()[0], STRAIGHT)
    real = builtins.__import__

    def missing(name, *args):
        if name.partition(".")[0] in ("pydicom", "highdicom"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(
        DataError,
        match=(
            r"is DICOM, and reading it needs pydicom; install it with pip install"
            r" 'sea_peft\[dicom\]'"
        ),
    ):
        open_dataset(tmp_path)
