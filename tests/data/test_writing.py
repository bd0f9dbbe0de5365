import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from synthetic_scans import AFFINE, MemoryCase, scan

from sea_peft.data.cases import Dataset
from sea_peft.data.layouts import open_dataset
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.data.write import write_datalist, write_nnunet_raw
from sea_peft.errors import DataError, DiskError


def in_memory(count=2, tests=1, label_dtype=np.uint8):
    def case(number):
        image, label = scan(number)
        return MemoryCase(f"p{number}", {"CT": image, "PET": image * 2}, label.astype(label_dtype))

    return Dataset(
        name="toy",
        layout="phantom",
        channels=("PET", "CT"),
        labels={"liver": (1,), "both": (2, 3)},
        cases=tuple(case(n) for n in range(count)),
        test_cases=tuple(case(n + 50) for n in range(tests)),
    )


def test_cases_in_memory_become_an_nnunet_folder(tmp_path):
    seen = []
    out = write_nnunet_raw(
        in_memory(), tmp_path / "new" / "Dataset007_Toy", lambda *done: seen.append(done)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert os.listdir(out.parent) == ["Dataset007_Toy"]
    back = open_dataset(out)
    assert (back.layout, back.channels) == ("nnunet_raw", ("PET", "CT"))
    assert dict(back.labels) == {"liver": (1,), "both": (2, 3)}
    assert [c.id for c in back.cases] == ["p0", "p1"]
    assert [c.id for c in back.test_cases] == ["p50"]
    assert back.warnings == ()
    assert np.array_equal(back.cases[1].image("PET").array, scan(1)[0] * 2)
    assert np.array_equal(back.cases[1].label().array, scan(1)[1])
    np.testing.assert_allclose(back.cases[1].label().affine, AFFINE)


def test_an_nnunet_folder_appears_whole_or_not_at_all(tmp_path):
    data = in_memory()
    data.cases[1]._label = None
    with pytest.raises(DataError, match="case p1 has no label"):
        write_nnunet_raw(data, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="exists already and is not empty"):
        write_nnunet_raw(in_memory(), tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="Cannot write"):
        write_nnunet_raw(in_memory(), tmp_path / "file" / "out")


def test_a_datalist_says_what_the_folder_says(tmp_path):
    for number in range(2):
        image, label = scan(number)
        for folder, name, array in (
            ("images", "_0000", image),
            ("images", "_0001", image + 1),
            ("labels", "", label),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_volume(tmp_path / folder / f"Ä {number}{name}.nii.gz", Volume(array, AFFINE))
    (tmp_path / "labels" / "Ä 1.nii.gz").unlink()
    before = open_dataset(tmp_path)
    path = write_datalist(tmp_path)
    after = open_dataset(tmp_path)
    assert path.name == "datalist.json"
    assert (before.layout, after.layout) == ("folders", "datalist")
    assert after.channels == before.channels == ("channel_0", "channel_1")
    assert dict(after.labels) == dict(before.labels) == {"label_1": (1,)}
    assert [c.id for c in after.cases] == ["Ä 0"]
    assert [c.id for c in after.unlabelled] == ["Ä 1"]
    assert np.array_equal(after.cases[0].image("channel_1").array, scan(0)[0] + 1)
    assert str(tmp_path) not in path.read_text()
    assert after.warnings == ()
    with pytest.raises(DataError, match="exists already"):
        write_datalist(tmp_path)
    assert json.loads(path.read_text())["labels"]["background"] == 0


def test_what_a_datalist_cannot_say_is_left_alone(tmp_path):
    image, label = scan(0)
    (tmp_path / "s1" / "segmentations").mkdir(parents=True)
    write_volume(tmp_path / "s1" / "ct.nii.gz", Volume(image, AFFINE))
    write_volume(tmp_path / "s1" / "segmentations" / "liver.nii.gz", Volume(label, AFFINE))
    with pytest.raises(
        DataError,
        match=(
            r"case s1 lies in DICOM slices, in one mask file per structure or in segments of 3D"
            r" Slicer.*as it is"
        ),
    ):
        write_datalist(tmp_path)
    assert os.listdir(tmp_path) == ["s1"]


def test_a_folder_that_takes_no_file_is_said_in_one_sentence(tmp_path, monkeypatch):
    for folder, array in zip(("images", "labels"), scan(0), strict=True):
        (tmp_path / folder).mkdir()
        write_volume(tmp_path / folder / "a.nii.gz", Volume(array, AFFINE))

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refused)
        with pytest.raises(
            DiskError, match=r"Cannot write .*datalist\.json: permission is denied: make the folder"
        ):
            write_datalist(tmp_path)
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(DiskError, match=r"Cannot write .*out: permission is denied"):
        write_nnunet_raw(in_memory(tests=0, count=0), tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new") == []
