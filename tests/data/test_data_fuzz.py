"""Mutated files end in a refusal of one sentence or in a correct run, never in a traceback or
half a file.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_scans import AFFINE, scan

from sea_peft.data.checks import check, refuse_or_pass
from sea_peft.data.intensity import choose_intensity
from sea_peft.data.layouts import open_dataset
from sea_peft.data.prepare import prepare, restore
from sea_peft.data.recipe import Recipe
from sea_peft.data.select import select
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import DataError

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
HEADER = 420  # bytes that are mutated most often: all headers lie in them

Mutation = tuple[str, int, bytes]
BYTES = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.sampled_from([b"0", b"9", b"-", b" ", b"\n", b"nan", b"1e300", b"99999999"]),
)
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "cut"]), st.integers(0, HEADER), BYTES
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, mutations: list[Mutation]) -> bytes:
    for kind, at, new in mutations:
        at = min(at, len(content))
        if kind == "cut":
            content = content[:at]
        else:
            end = at + (len(new) if kind != "insert" else 0)
            content = content[:at] + (new if kind != "delete" else b"") + content[end:]
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three cases of one channel, one suffix a case, and every file's own bytes."""
    root = tmp_path_factory.mktemp("fuzz")
    for number, suffix in enumerate(SUFFIXES):
        image, label = scan(number, (7, 6, 5))
        for name, array in (("image", image), ("label", label)):
            write_volume(root / f"c{number}_{name}{suffix}", Volume(array, AFFINE))
    return root


def one_volume(folder: Path, suffix: str, role: str, mutations: list[Mutation]) -> None:
    number = SUFFIXES.index(suffix)
    path = folder / f"c{number}_{role}{suffix}"
    sound = path.read_bytes()
    before = sorted(os.listdir(folder))
    try:
        path.write_bytes(mutated(sound, mutations))
        try:
            volume = read_volume(path)
        except DataError as error:
            assert_one_sentence(error, str(path))
        else:
            assert volume.array.ndim == 3
            assert np.isfinite(volume.affine).all()
        whole_way(folder)
    finally:
        path.write_bytes(sound)
    assert sorted(os.listdir(folder)) == before


def whole_way(path: Path) -> None:
    """Open, select, check, choose the intensity, prepare and restore; only a `DataError` may
    stop it.
    """
    try:
        dataset = select(open_dataset(path))
        findings = check(dataset, shots=1).findings
        assert all("\n" not in finding.sentence for finding in findings)
        usable = refuse_or_pass(dataset, 1).usable
        recipe, _ = choose_intensity(Recipe(spacing=(2, 2, 2)), usable.cases, usable.channels)
        for case in usable.cases:
            if max(case.image(usable.channels[0]).spacing) > 50:
                recipe = recipe.model_copy(
                    update={"spacing": (9e4, 9e4, 9e4)}
                )  # half-metre voxels: keep it quick
            ready = prepare(case, recipe, usable.channels, usable.labels)
            one_hot = ready.label[None].float().expand(len(usable.labels) + 1, -1, -1, -1)
            assert restore(one_hot, ready.geometry).shape == ready.geometry.shape
    except DataError as error:
        assert_one_sentence(error)


def assert_one_sentence(error: DataError, naming: str = "") -> None:
    assert str(error)
    assert "\n" not in str(error)
    assert naming in str(error)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**7)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["training", "labels", "image", "CT", "0", "c0_image.nii", "../x", ".nii.gz", "1"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "channel_names",
        "modality",
        "labels",
        "file_ending",
        "training",
        "validation",
        "test",
        "testing",
        "numTraining",
        "dataset",
        "lables",
        "trainning",
    ]
)


def one_json(
    folder: Path, changes: dict[str, object], mutations: list[Mutation], nnunet: bool
) -> None:
    entries = [
        {"image": f"c{n}_image{s}", "label": f"c{n}_label{s}"} for n, s in enumerate(SUFFIXES)
    ]
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1},
        "training": entries,
    }
    text = json.dumps(content | changes).encode()
    path = folder / "dataset.json"
    images = folder / "imagesTr"
    try:
        if nnunet:
            images.mkdir(exist_ok=True)
            (images / "c_0000.nii").write_bytes((folder / "c0_image.nii").read_bytes())
        path.write_bytes(mutated(text, mutations))
        whole_way(folder)
    finally:
        path.unlink(missing_ok=True)
        if nnunet:
            (images / "c_0000.nii").unlink(missing_ok=True)
            images.rmdir()


def fuzzed(count: int):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=quiet,
    )


VOLUME_ARGUMENTS = {
    "suffix": st.sampled_from(SUFFIXES),
    "role": st.sampled_from(["image", "label"]),
    "mutations": MUTATIONS,
}
JSON_ARGUMENTS = {
    "changes": st.dictionaries(KEYS, JSON, max_size=3),
    "mutations": st.one_of(st.just([]), MUTATIONS),
    "nnunet": st.booleans(),
}


@fuzzed(60)
@given(**VOLUME_ARGUMENTS)
def test_mutated_volumes(folder, suffix, role, mutations):
    one_volume(folder, suffix, role, mutations)


@fuzzed(60)
@given(**JSON_ARGUMENTS)
def test_mutated_json(folder, changes, mutations, nnunet):
    one_json(folder, changes, mutations, nnunet)


@pytest.mark.slow
@fuzzed(1500)
@given(**VOLUME_ARGUMENTS)
def test_many_mutated_volumes(folder, suffix, role, mutations):
    one_volume(folder, suffix, role, mutations)


@pytest.mark.slow
@fuzzed(1500)
@given(**JSON_ARGUMENTS)
def test_many_mutated_json_files(folder, changes, mutations, nnunet):
    one_json(folder, changes, mutations, nnunet)
