import numpy as np
import pytest
from synthetic_scans import AFFINE, scan

from sea_peft.data.checks import check, refuse_or_pass
from sea_peft.data.digest import case_hash, data_digest
from sea_peft.data.layouts import open_dataset
from sea_peft.data.select import select
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.errors import DataError


def chosen(root, labels=("liver",), channels=()):
    return select(open_dataset(root), labels, channels)


def rewrite(root, name, array=None, affine=AFFINE):
    """Replace one file of the data set (`toy_001_0000` in imagesTr, `toy_001` in labelsTr)."""
    folder = "imagesTr" if name.count("_") == 2 else "labelsTr"
    number = int(name.split("_")[1])
    if array is None:
        array = scan(number)[0 if folder == "imagesTr" else 1]
    write_volume(root / folder / f"{name}.nii.gz", Volume(array, affine))


def test_good_data_has_no_finding(nnunet):
    seen = []
    checked = check(
        chosen(nnunet(4)), shots=3, progress=lambda done, total: seen.append((done, total))
    )
    assert checked.findings == ()
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    first = checked.cases[0]
    assert (first.case, first.shape, first.spacing) == (
        "toy_000",
        (14, 12, 9),
        pytest.approx((1.2, 1.0, 2.0)),
    )
    assert first.voxels == {"liver": int(scan(0)[1].sum())}
    assert [c.id for c in refuse_or_pass(chosen(nnunet(2, name="other")), 1).usable.cases] == [
        "toy_000",
        "toy_001",
    ]


def nan(root):
    array = scan(1)[0]
    array[2:4, 5, 5] = np.nan
    rewrite(root, "toy_001_0000", array)


def other_shape(root):
    rewrite(root, "toy_001", scan(1)[1][:-1])


def empty(root):
    rewrite(root, "toy_001", scan(1)[1] * 0)


def shifted(root):
    moved = AFFINE.copy()
    moved[0, 3] += 4
    rewrite(root, "toy_001", affine=moved)


def undeclared(root):
    rewrite(root, "toy_001", scan(1)[1] * 7)


def fractions(root):
    rewrite(root, "toy_001", scan(1)[1] * np.float32(0.4))


def negative(root):
    rewrite(root, "toy_001", scan(1)[1].astype(np.int16) * -1)


def nan_label(root):
    rewrite(root, "toy_001", np.where(scan(1)[1], np.nan, 0).astype(np.float32))


def constant(root):
    rewrite(root, "toy_001_0000", scan(1)[0] * 0 + 5)


def truncated(root):
    path = root / "imagesTr" / "toy_001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:300])


def missing_channel(root):
    (root / "imagesTr" / "toy_001_0001.nii.gz").unlink()


def twin(root):
    rewrite(root, "toy_001_0000", scan(0)[0])


BAD = [
    (
        nan,
        "channel A",
        (
            "case toy_001: channel A has 2 of 1512 voxels that are NaN or infinite; export the scan"
            " again"
        ),
    ),
    (
        other_shape,
        "label",
        "case toy_001: label has shape 13×12×9, image has shape 14×12×9; resample",
    ),
    (
        empty,
        "label",
        "case toy_001: label is empty (all 1512 voxels are 0); label the case or take it out",
    ),
    (shifted, "label", "label has origin (34, 20, -10) mm, image has origin (30, 20, -10) mm"),
    (undeclared, "label", "label holds code 7 ("),
    (fractions, "label", "label has voxels that are not whole numbers (for instance 0.4)"),
    (negative, "label", "label runs from -1 to 0; label codes must lie in 0..65535"),
    (nan_label, "label", "that are NaN or infinite; export the label again"),
    (constant, "channel A", "holds the single value 5"),
    (truncated, "channel A", "the gzip stream is damaged or cut short"),
    (missing_channel, "channel B", "case toy_001: channel B is missing (it has A); add the file"),
    (twin, "voxels", "case toy_001: channel A holds exactly the same voxels as case toy_000"),
]


@pytest.mark.parametrize(
    ("spoil", "field", "sentence"), BAD, ids=lambda value: getattr(value, "__name__", "")
)
def test_bad_cases_are_refused_in_one_sentence(nnunet, spoil, field, sentence):
    root = nnunet(4, channels=("A", "B"))
    spoil(root)
    checked = check(chosen(root))
    (error,) = checked.errors
    assert (error.case, error.field) == ("toy_001", field)
    assert sentence in error.sentence
    assert error.sentence.startswith("case toy_001: ")
    assert "\n" not in error.sentence
    assert [case.id for case in checked.usable.cases] == ["toy_000", "toy_002", "toy_003"]
    with pytest.raises(DataError) as caught:
        refuse_or_pass(chosen(root), 2)
    assert str(caught.value) == error.sentence


def test_channels_that_are_not_used_are_not_judged(nnunet):
    root = nnunet(3, channels=("A", "B"))
    nan(root)
    assert check(chosen(root, channels=["B"])).errors == ()


def test_float_typed_labels_with_rounding_errors_pass(nnunet):
    root = nnunet(3)
    rewrite(root, "toy_001", scan(1)[1] * np.float32(0.9999999))
    assert check(chosen(root)).findings == ()


def test_a_case_without_the_chosen_label_is_left_out(nnunet):
    root = nnunet(4)
    rewrite(root, "toy_002", scan(2)[1] * 2)
    checked = refuse_or_pass(chosen(root), 2)
    (finding,) = checked.findings
    assert finding.severity == "skip"
    assert (
        "label holds codes 2, none of the chosen ones (liver=1); the case is left out"
        in finding.sentence
    )
    assert len(checked.usable.cases) == 3
    with pytest.raises(
        DataError,
        match=r"has 3 usable labelled cases; ask for at most 3.*; case toy_002: label holds",
    ):
        refuse_or_pass(chosen(root), 4)
    assert any(
        f.field == "cases" and f.severity == "error" for f in check(chosen(root), shots=4).findings
    )


def test_too_many_shots_are_refused_before_anything_is_read(nnunet):
    root = nnunet(4)
    for path in (root / "imagesTr").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="10 shots were asked for, but Dataset001_Toy has 4 usable"):
        refuse_or_pass(chosen(root), 10)


def test_oddities_are_warnings(nnunet):
    root = nnunet(4, numTraining=9)
    rewrite(root, "toy_001_0000", (scan(1)[0] + 1000) / 2000)
    rewrite(root, "toy_002_0000", scan(2)[0] * 1e5)
    rewrite(root, "toy_003_0000", affine=AFFINE @ np.diag([30, 1, 1, 1]))
    rewrite(root, "toy_003", affine=AFFINE @ np.diag([30, 1, 1, 1]))
    small = scan(0)[1] * 0
    small[5, 5, 4] = 1
    rewrite(root, "toy_000", small)
    checked = refuse_or_pass(chosen(root), 3)
    text = "\n".join(finding.sentence for finding in checked.findings)
    assert {finding.severity for finding in checked.findings} == {"warning"}
    for expected in (
        "toy_001: channel CT is declared as CT but runs from",
        "toy_002: channel CT runs from -1.0",
        "voxels of 36 × 1 × 2 mm; is the voxel size in millimetres?",
        "toy_000: fewer than 10 voxels are labelled liver (1); Dice",
        "looks like CT in case toy_000",
        "numTraining is 9, but 4",
    ):
        assert expected in text


def test_the_digest_knows_voxels_but_no_names(nnunet):
    first = check(chosen(nnunet(3))).digest
    root = nnunet(3, name="Renamed")
    for folder in ("imagesTr", "labelsTr"):
        for path in list((root / folder).iterdir()):
            path.rename(path.with_name(path.name.replace("toy", "patient")))
    assert check(chosen(root)).digest == first
    image, _ = scan(1)
    image[0, 0, 0] += 1
    write_volume(root / "imagesTr" / "patient_001_0000.nii.gz", Volume(image, AFFINE))
    assert check(chosen(root)).digest != first
    assert data_digest([["a", "b"], ["c"]]) == data_digest([["c"], ["a", "b"]])
    assert data_digest([["a", "b"], ["c"]]) != data_digest([["a"], ["b", "c"]])


def test_case_hashes_hide_names():
    assert case_hash("DOE_JANE", "salt") == case_hash("DOE_JANE", "salt")
    assert case_hash("DOE_JANE", "salt") != case_hash("DOE_JANE", "pepper")
    assert "DOE" not in case_hash("DOE_JANE", "salt")
    assert len(case_hash("x", "y")) == len("case-") + 10
