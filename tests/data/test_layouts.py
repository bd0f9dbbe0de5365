import json
import os

import numpy as np
import pytest
from synthetic_scans import AFFINE, scan

from sea_peft.data.checks import check
from sea_peft.data.layouts import open_dataset
from sea_peft.data.layouts.folders import FLARE22_LABELS
from sea_peft.data.select import select
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.errors import DataError


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array, AFFINE))


def edit(root, **entries):
    path = root / "dataset.json"
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def ids(cases):
    return [case.id for case in cases]


def test_nnunet_v2(nnunet):
    root = nnunet(3, channels=("FLAIR", "T1c"))
    put(root / "imagesTr" / "extra_0000.nii.gz", scan(9)[0])
    dataset = open_dataset(root)
    assert (dataset.name, dataset.layout, dataset.channels) == (
        "Dataset001_Toy",
        "nnunet_raw",
        ("FLAIR", "T1c"),
    )
    assert dict(dataset.labels) == {"liver": (1,), "spleen": (2,)}
    assert ids(dataset.cases) == ["toy_000", "toy_001", "toy_002"]
    assert ids(dataset.unlabelled) == ["extra"]
    case = dataset.cases[1]
    assert case.channels == ("FLAIR", "T1c")
    assert np.array_equal(case.image("T1c").array, scan(1)[0] + 1)
    assert np.array_equal(case.label().array, scan(1)[1])
    assert dataset.warnings == ()


def test_nnunet_v1_regions_ignore_label_and_test_cases(nnunet):
    root = nnunet(2)
    edit(
        root,
        channel_names=None,
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver", "2": "spleen"},
    )
    assert dict(open_dataset(root).labels) == {"liver": (1,), "spleen": (2,)}
    edit(root, labels={"background": 0, "organs": [1, 2], "ignore": 3}, regions_class_order=[1])
    put(root / "imagesTs" / "t_0000.nii.gz", scan(5)[0])
    put(root / "labelsTs" / "t.nii.gz", scan(5)[1])
    put(root / "imagesTs" / "u_0000.nii.gz", scan(6)[0])
    dataset = open_dataset(root)
    assert dict(dataset.labels) == {"organs": (1, 2)}
    assert dataset.codes == {1, 2, 3}
    assert (ids(dataset.test_cases), ids(dataset.unlabelled)) == (["t"], ["u"])
    assert dict(select(dataset).labels) == {"organs": (1, 2)}


@pytest.mark.parametrize("labels", [{"liver": 1, "ignore": 3}, {"1": "liver", "3": "Ignore"}])
@pytest.mark.parametrize("by_list", [False, True])
def test_voxels_that_nobody_labelled_are_not_taken_for_background(nnunet, labels, by_list):
    root = nnunet(2)
    edit(root, labels=labels)
    if by_list:
        case = {"image": "imagesTr/toy_001_0000.nii.gz", "label": "labelsTr/toy_001.nii.gz"}
        (root / "datalist.json").write_text(json.dumps({"labels": labels, "training": [case]}))
        (root / "dataset.json").unlink()
    assert check(open_dataset(root)).errors == ()
    stored = scan(1)[1]
    stored[0, 0, :2] = 3
    put(root / "labelsTr" / "toy_001.nii.gz", stored)
    dataset = select(open_dataset(root), ["liver"])
    assert dict(dataset.labels) == {"liver": (1,)}
    (finding,) = check(dataset).errors
    assert finding.case == "toy_001"
    assert (
        "label holds 2 voxels of code 3, which is declared as ignore (not labelled)"
        in finding.sentence
    )
    with pytest.raises(DataError, match="2 voxels of code 3"):
        dataset.cases[-1].label()  # as it is read to be scored


def test_misspelt_keys_are_named(nnunet):
    root = nnunet(2, file_endng=".nii.gz", colour="red")
    warnings = open_dataset(root).warnings
    assert (
        "key 'file_endng' is not known and is ignored; did you mean 'file_ending'?" in warnings[0]
    )
    assert warnings[1].endswith("key 'colour' is not known and is ignored")
    edit(root, labels=None, lables={"a": 1})
    with pytest.raises(DataError, match=r"no 'labels'.*'lables' a misspelling"):
        open_dataset(root)


def test_nnunet_cases_listed_by_file(nnunet, tmp_path):
    root = nnunet(2)
    other = tmp_path / "listed"
    other.mkdir()
    case = {
        "images": ["../Dataset001_Toy/imagesTr/toy_001_0000.nii.gz"],
        "label": str(root / "labelsTr/toy_001.nii.gz"),
    }
    content = {"channel_names": {"0": "CT"}, "labels": {"liver": 1}, "file_ending": ".nii.gz"}
    (other / "dataset.json").write_text(json.dumps(content | {"dataset": {"b": case, "a": case}}))
    dataset = open_dataset(other)
    assert (dataset.layout, ids(dataset.cases)) == ("nnunet_raw", ["a", "b"])
    assert np.array_equal(dataset.cases[0].label().array, scan(1)[1])
    for wrong in (
        [],
        {"a": 3},
        {"a": {"images": "x", "label": "y"}},
        {"a": {"images": [1], "label": "y"}},
    ):
        (other / "dataset.json").write_text(json.dumps(content | {"dataset": wrong}))
        with pytest.raises(DataError, match=r"must list 1 images|must map case names"):
            open_dataset(other)


def test_strays_are_named(nnunet):
    root = nnunet(2, numTraining=7)
    put(root / "imagesTr" / "toy_000_0003.nii.gz", scan(0)[0])
    put(root / "labelsTr" / "lonely.nii.gz", scan(0)[1])
    text = "\n".join(open_dataset(root).warnings)
    assert "numTraining is 7, but 2" in text
    assert "toy_000_0003.nii.gz is ignored" in text
    assert (
        "labelsTr/lonely.nii.gz is ignored: there is no image imagesTr/lonely_0000.nii.gz" in text
    )


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"labels": []}, "labels must map names to codes"),
        ({"labels": {"background": 0}}, "nothing but background"),
        ({"labels": {"liver": -1}}, "must lie in 0..65535"),
        ({"labels": {"liver": 1.5}}, "a whole number"),
        ({"labels": {"liver": "one"}}, "a whole number"),
        ({"labels": {"liver": []}}, "a whole number"),
        ({"labels": {"1": "liver", "2": "liver"}}, "declared twice"),
        ({"channel_names": {"1": "CT"}}, "must run from 0"),
        ({"channel_names": ["CT"]}, "must map numbers to names"),
        ({"channel_names": {"0": "CT", "1": "ct"}}, "not unique"),
        ({"channel_names": {"0": 7}}, "must map a number to a name"),
        ({"file_ending": ".mha"}, "holds no .mha files"),
    ],
)
def test_wrong_entries_are_refused(nnunet, entries, sentence):
    with pytest.raises(DataError, match=sentence):
        open_dataset(nnunet(1, **entries))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "\x00", "{" * 5000, '{"a": 1' + "0" * 5000 + "}"]
)
def test_broken_json_is_refused(nnunet, text):
    root = nnunet(1)
    (root / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_dataset(root)
    (root / "dataset.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="not a JSON text file"):
        open_dataset(root)


def test_decathlon_with_4d_images(tmp_path):
    import nibabel

    root = tmp_path / "Task01_BrainTumour"
    image, label = scan(0)
    put(root / "labelsTr" / "BRATS_1.nii.gz", label)
    (root / "imagesTr").mkdir()
    nibabel.save(
        nibabel.Nifti1Image(np.stack([image, image * 2], -1), AFFINE),
        root / "imagesTr" / "BRATS_1.nii.gz",
    )
    content = {
        "name": "BRATS", "relase": "2.0", "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema"}, "numTraining": 1, "numTest": 1,
        "training": [{"image": "./imagesTr/BRATS_1.nii.gz", "label": "./labelsTr/BRATS_1.nii.gz"}],
        "test": ["./imagesTs/BRATS_9.nii.gz"],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    dataset = open_dataset(root)
    assert (dataset.layout, dataset.channels, dict(dataset.labels)) == (
        "datalist",
        ("FLAIR", "T1w"),
        {"edema": (1,)},
    )
    assert (ids(dataset.cases), ids(dataset.unlabelled)) == (["BRATS_1"], ["BRATS_9"])
    assert np.array_equal(dataset.cases[0].image("T1w").array, image * 2)
    assert dataset.warnings == ()


def test_auto3dseg_datalist_in_a_file_of_any_name(tmp_path):
    for number in range(3):
        image, label = scan(number)
        put(tmp_path / "data" / f"p{number}" / "image.mha", image)
        put(tmp_path / "data" / f"p{number}" / "label.nrrd", label * 3)
    entries = [
        {"image": f"data/p{n}/image.mha", "label": f"data/p{n}/label.nrrd", "fold": n}
        for n in range(3)
    ]
    entries[2]["lable"] = entries[2].pop("label")
    path = tmp_path / "my task.json"
    path.write_text(
        json.dumps({"training": entries[:1], "validation": entries[1:], "testing": entries[:1]})
    )
    dataset = open_dataset(path)
    assert (dataset.name, dataset.channels) == ("my_task", ("image",))
    assert dict(dataset.labels) == {"label_3": (3,)}  # nothing declared: read from the label maps
    assert dataset.codes is None
    assert (ids(dataset.cases), ids(dataset.test_cases)) == (["p0", "p1"], ["p0"])
    assert any(
        "'lable' is not known and is ignored; did you mean 'label'?" in w for w in dataset.warnings
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"trainings": []}, "no list 'training' .it has trainings, a misspelling"),
        ({"training": {}}, "must be a list"),
        ({"training": [{"imge": "a"}]}, "no 'image' .it has imge"),
        ({"training": [3]}, "no 'image'"),
        ({"training": [{"image": 3}]}, "a file path is needed"),
        ({"training": [{"image": "a\0b"}]}, "a file path is needed"),
        (
            {"training": [{"image": ["a", "b"]}], "modality": {"0": "A", "1": "B", "2": "C"}},
            "lists 2 images, but 3",
        ),
        (
            {
                "training": [
                    {"image": "a.mha", "label": "x/a.mha"},
                    {"image": "b.mha", "label": "y/a.mha"},
                ]
            },
            "rename",
        ),
        ({"training": [{"image": "a.nii"}]}, "no labelled one"),
    ],
)
def test_wrong_datalists_are_refused(tmp_path, content, sentence):
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=sentence):
        open_dataset(tmp_path)


def test_ids_from_json_cannot_leave_a_folder(tmp_path):
    put(tmp_path / "i.nii.gz", scan(0)[0])
    put(tmp_path / "l.nii.gz", scan(0)[1])
    entry = {"id": "../../etc/x\ny", "image": "i.nii.gz", "label": "l.nii.gz"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry]}))
    assert ids(open_dataset(tmp_path).cases) == ["_.._etc_x_y"]


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("imagesTr", "labelsTr"), ("Images", "masks")]
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_two_folders(tmp_path, names, suffix):
    for number in range(2):
        image, label = scan(number)
        put(tmp_path / names[0] / f"a b{number}_0000{suffix}", image)
        put(tmp_path / names[1] / f"a b{number}.nii.gz", label * 5)
    put(tmp_path / names[0] / f"c_0000{suffix}", image)
    put(tmp_path / names[1] / "d.nii.gz", label)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dict(dataset.labels)) == (
        "folders",
        ("image",),
        {"label_5": (5,)},
    )
    assert (ids(dataset.cases), ids(dataset.unlabelled)) == (["a b0", "a b1"], ["c"])
    (stray,) = dataset.warnings
    assert stray.startswith(
        "label d.nii.gz is ignored: it has no image of its name (images are called like a b0_0000."
    )


def in_two_folders(root, images, labels):
    for number, name in enumerate(images):
        put(root / "images" / f"{name}.nii.gz", scan(number)[0])
    for number, name in enumerate(labels):
        put(root / "labels" / f"{name}.nii.gz", scan(number)[1])
    return open_dataset(root)


@pytest.mark.parametrize(
    ("images", "labels", "cases", "unlabelled"),
    [
        (
            ["amos_0001", "amos_0004"],
            ["amos_0001", "amos_0004"],
            {"amos_0001": 1, "amos_0004": 1},
            [],
        ),
        (
            ["p_0000", "p_0001", "p_0002"],
            ["p_0000", "p_0002"],
            {"p_0000": 1, "p_0002": 1},
            ["p_0001"],
        ),
        (["p_0000", "p_0001"], ["p_0000_seg", "p_0001_seg"], {"p_0000": 1, "p_0001": 1}, []),
        (["p_0000", "p_0001", "q"], ["q"], {"q": 1}, ["p_0000", "p_0001"]),
        (["p_0000", "p_0001", "q_0000", "q_0001"], ["p"], {"p": 2}, ["q"]),
        (["p_image_0000", "p_image_0001"], ["p_label"], {"p": 2}, []),
        (["p_0001_0000", "p_0002_0000"], ["p_0001", "p_0002"], {"p_0001": 1, "p_0002": 1}, []),
        (["p_0001", "q_0001"], ["p", "q"], {"p": 1, "q": 1}, []),
    ],
)
def test_labels_decide_what_a_number_at_the_end_means(tmp_path, images, labels, cases, unlabelled):
    dataset = in_two_folders(tmp_path, images, labels)
    assert {case.id: len(case.channels) for case in dataset.cases} == cases
    assert ids(dataset.unlabelled) == unlabelled
    assert len(dataset.channels) == max(cases.values())


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("channels", ["modality", "channel_names"])
def test_decathlon_cases_that_end_in_four_digits(tmp_path, first, channels):
    """As in AMOS22 and WORD: no file of them is a channel."""
    names = [f"amos_{number:04d}" for number in range(first, first + 3)]
    for number, name in enumerate(names):
        put(tmp_path / "imagesTr" / f"{name}.nii.gz", scan(number)[0])
        put(tmp_path / "labelsTr" / f"{name}.nii.gz", scan(number)[1])
    content = {
        channels: {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
        ],
        "test": ["./imagesTs/amos_0100.nii.gz", "./imagesTs/amos_0101.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, ids(dataset.cases)) == ("datalist", names)
    assert ids(dataset.unlabelled) == ["amos_0100", "amos_0101"]
    del content["training"]
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "CT"}}))
    with pytest.raises(
        DataError,
        match=rf"imagesTr/{names[0]}.* must end in a channel number .* list them as 'training'",
    ):
        open_dataset(tmp_path)


def test_a_datalist_names_cases_by_whole_file_names(tmp_path):
    entries = [
        {"image": f"scan_{number:04d}.nii.gz", "label": f"seg/scan_{number:04d}.nii.gz"}
        for number in range(2)
    ]
    for number, entry in enumerate(entries):
        put(tmp_path / entry["image"], scan(number)[0])
        put(tmp_path / entry["label"], scan(number)[1])
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries}))
    assert ids(open_dataset(tmp_path).cases) == ["scan_0000", "scan_0001"]


def test_flare22_organs_are_known_by_name(tmp_path):
    put(tmp_path / "images" / "FLARE22_Tr_0001_0000.nii.gz", scan(0)[0])
    put(tmp_path / "labels" / "FLARE22_Tr_0001.nii.gz", scan(0)[1] * 13)
    dataset = open_dataset(tmp_path)
    assert dataset.channels == ("CT",)
    assert tuple(dataset.labels) == FLARE22_LABELS
    assert dataset.labels["left_kidney"] == (13,)
    assert ids(dataset.cases) == ["FLARE22_Tr_0001"]


def test_pairs_side_by_side(tmp_path):
    for name in ("lung1", "brain-2"):
        put(tmp_path / f"{name}_image.nrrd", scan(0)[0])
        put(tmp_path / f"{name}_label.nrrd", scan(0)[1])
    assert ids(open_dataset(tmp_path).cases) == ["brain-2", "lung1"]


@pytest.mark.parametrize(
    ("naming", "codes"),
    [
        ({"FLAIR": "_flair", "T1": "_t1", "T1c": "_t1ce", "T2": "_t2", "seg": "_seg"}, (1, 2, 4)),
        ({"FLAIR": "-t2f", "T1": "-t1n", "T1c": "-t1c", "T2": "-t2w", "seg": "-seg"}, (1, 2, 3)),
    ],
)
def test_brats_sequences_go_by_name(tmp_path, naming, codes):
    grey = dict(zip(("T2", "T1c", "FLAIR", "T1"), range(4), strict=True))
    for number in range(2):
        case = f"BraTS-SSA-{number:05d}-000"
        for channel, value in grey.items():
            put(tmp_path / case / f"{case}{naming[channel]}.nii.gz", scan(0)[0] + value)
        put(tmp_path / case / f"{case}{naming['seg']}.nii.gz", scan(0)[1])
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channels) == ("brats", ("FLAIR", "T1", "T1c", "T2"))
    assert tuple(code for group in dataset.labels.values() for code in group) == codes
    for channel, value in grey.items():
        assert np.array_equal(dataset.cases[0].image(channel).array, scan(0)[0] + np.float32(value))
    assert select(dataset, channels=["t1ce", "t2f"]).channels == ("T1c", "FLAIR")


def test_brats_cohorts_in_folders(tmp_path):
    """BraTS 2019 has HGG and LGG, BraTS-Africa 95_Glioma and 51_OtherNeoplasms."""
    cohorts = (("95_Glioma", "00002"), ("51_OtherNeoplasms", "00008"))
    for cohort, number in cohorts:
        case = f"BraTS-SSA-{number}-000"
        for sequence in ("t2f", "t1n", "t1c", "t2w"):
            put(
                tmp_path / "BraTS-Africa" / cohort / case / f"{case}-{sequence}.nii.gz",
                scan(int(number))[0],
            )
        put(tmp_path / "BraTS-Africa" / cohort / case / f"{case}-seg.nii.gz", scan(0)[1] * 3)
    for root in (tmp_path, tmp_path / "BraTS-Africa"):
        dataset = open_dataset(root)
        assert (dataset.layout, dataset.channels) == ("brats", ("FLAIR", "T1", "T1c", "T2"))
        assert ids(dataset.cases) == ["BraTS-SSA-00002-000", "BraTS-SSA-00008-000"]
        assert dict(select(dataset, ["tumour=1,2,3"]).labels) == {"tumour": (1, 2, 3)}
    old = tmp_path / "HGG" / "Brats18_1"
    put(old / "Brats18_1_flair.nii.gz", scan(0)[0])
    put(old / "Brats18_1_seg.nii.gz", scan(0)[1])
    with pytest.raises(
        DataError, match=r"mixes BraTS until 2021 .*code 4.* with BraTS since 2023 .*code 3"
    ):
        open_dataset(tmp_path)
    put(tmp_path / "twice" / "a" / "BraTS_1" / "x_flair.nii.gz", scan(0)[0])
    put(tmp_path / "twice" / "b" / "BraTS_1" / "x_flair.nii.gz", scan(1)[0])
    with pytest.raises(DataError, match="two cases are called BraTS_1"):
        open_dataset(tmp_path / "twice")


def test_brats_without_segmentations_can_be_predicted(tmp_path):
    from sea_peft.jobs.inputs import find_cases

    put(tmp_path / "BraTS20_V_1" / "BraTS20_V_1_flair.nii.gz", scan(0)[0])
    put(tmp_path / "BraTS20_V_1" / "BraTS20_V_1_t1ce.nii.gz", scan(1)[0])
    (case,) = find_cases([tmp_path], ["T1c", "FLAIR"])
    assert case.id == "BraTS20_V_1"
    assert case.images["T1c"].path.name == "BraTS20_V_1_t1ce.nii.gz"
    with pytest.raises(DataError, match="1 scan but no labelled one"):
        open_dataset(tmp_path)


def test_totalsegmentator_masks_become_labels(tmp_path):
    image, label = scan(0)
    for number in range(2):
        put(tmp_path / f"s{number:04d}" / "ct.nii.gz", image)
        for name, mask in (
            ("aorta", label * 0),
            ("liver", label),
            ("spleen", (image < -500).astype(np.uint8)),
            ("vertebrae_T1", label * 0),
            ("vertebrae_T2", label * 0),
        ):
            put(tmp_path / f"s{number:04d}" / "segmentations" / f"{name}.nii.gz", mask)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channels) == ("totalsegmentator", ("CT",))
    assert dict(dataset.labels) == {
        "aorta": (1,), "liver": (2,), "spleen": (3,), "vertebrae_T1": (4,), "vertebrae_T2": (5,)
    }  # fmt: skip
    assert np.array_equal(
        dataset.cases[0].label().array, np.where(label, 2, np.where(image < -500, 3, 0))
    )
    chosen = select(dataset, ["liver"])
    os.remove(
        tmp_path / "s0000" / "segmentations" / "spleen.nii.gz"
    )  # what was not chosen is not read
    assert np.array_equal(chosen.cases[0].label().array, label.astype(np.uint16) * 2)


def test_cases_without_the_chosen_masks_are_left_out(tmp_path):
    for number in range(4):
        image, label = scan(number)
        lesion = label * (np.arange(label.shape[2]) < label.shape[2] // 2)
        put(tmp_path / f"s{number}" / "ct.nii.gz", image)
        put(tmp_path / f"s{number}" / "segmentations" / "liver.nii.gz", label)
        if number != 2:  # s3 has a file with nothing in it
            put(tmp_path / f"s{number}" / "segmentations" / "lesion.nii.gz", lesion * (number < 2))
    dataset = select(open_dataset(tmp_path), ["lesion"])
    assert (ids(dataset.cases), ids(dataset.unlabelled)) == (["s0", "s1", "s3"], ["s2"])
    checked = check(dataset, shots=1)
    assert checked.errors == ()
    assert ids(checked.usable.cases) == ["s0", "s1"]
    assert [(f.case, f.severity, f.sentence) for f in checked.findings] == [
        (
            "s3",
            "skip",
            "case s3: label holds nothing of the chosen ones (lesion=1); the case is left out",
        ),
        ("", "warning", "left out, because they have no mask of the chosen labels (lesion): s2"),
    ]
    put(tmp_path / "s0" / "segmentations" / "liver.nii.gz", label * 0)
    put(tmp_path / "s0" / "segmentations" / "lesion.nii.gz", label * 0)
    (empty,) = check(
        select(open_dataset(tmp_path))
    ).errors  # nothing is chosen away: nobody labelled the case
    assert "case s0: label is empty" in empty.sentence


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(
        DataError, match=r"layout .* not recognised; it should be an nnU-Net folder"
    ):
        open_dataset(tmp_path)
    put(tmp_path / "scan.nii.gz", scan(0)[0])
    with pytest.raises(DataError, match="is a file; give the folder"):
        open_dataset(tmp_path / "scan.nii.gz")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match=r"no such folder|cannot be opened"):
        open_dataset(tmp_path / "loop")


def test_no_path_in_a_data_set_name(tmp_path):
    put(tmp_path / "Müller, Jane" / "images" / "a.nii.gz", scan(0)[0])
    put(tmp_path / "Müller, Jane" / "labels" / "a.nii.gz", scan(0)[1])
    assert open_dataset(tmp_path / "Müller, Jane").name == "M_ller_Jane"
