"""The embedded phantoms: a case is a number, organs are plausible, every target renders with
its labels.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from sea_peft.errors import DataError
from sea_peft.phantom import (
    LABELS,
    SOURCE,
    SOURCES,
    TARGETS,
    PhantomCase,
    phantom_dataset,
    phantom_target,
    render,
)
from sea_peft.phantom.anatomy import draw_abdomen
from sea_peft.phantom.brain import TUMOUR
from sea_peft.phantom.patient import STRUCTURES, Build
from sea_peft.phantom.relaxation import ABDOMEN, BRAIN, SpinEcho, SpoiledGradientEcho
from sea_peft.phantom.sampling import Grid, label_map, sample

# Adult volumes in ml: wide enough for the schematic anatomy and partly imaged organs, narrow enough
# to catch slips
VOLUMES = {
    "liver": (700, 2600),
    "spleen": (60, 450),
    "right_kidney": (70, 300),
    "left_kidney": (70, 300),
    "stomach": (150, 900),
    "pancreas": (30, 170),
    "aorta": (45, 250),
    "inferior_vena_cava": (50, 280),
    "spine": (250, 800),
    "lungs": (400, 2500),
    "gallbladder": (6, 70),
    "duodenum": (20, 170),
    "psoas": (90, 450),
}


def _labels(number: int, grid: Grid) -> np.ndarray:
    return label_map(sample(draw_abdomen(number, Build()), grid), grid.shape, STRUCTURES)


def test_a_case_is_a_number() -> None:
    for source in SOURCES.values():
        first, second, other = (render(source, n) for n in (7, 7, 8))
        assert first[0].keys() == second[0].keys()
        assert all(np.array_equal(first[0][c], second[0][c]) for c in first[0])
        assert np.array_equal(first[1], second[1])
        assert not any(np.array_equal(first[0][c], other[0][c]) for c in first[0])
        assert not np.array_equal(first[1], other[1])


def test_scanners_see_the_same_patient() -> None:
    image, label, affine = render(SOURCE, 1000)
    low_image, low_label, low_affine = render(TARGETS["low-dose-ct"], 1000)
    assert np.array_equal(label, low_label)
    assert np.array_equal(affine, low_affine)
    assert not np.array_equal(image["CT"], low_image["CT"])


@pytest.mark.parametrize("number", [0, 1003, 2011])
def test_organs_have_plausible_volumes_and_sides(number: int) -> None:
    grid = Grid()
    label = _labels(number, grid)
    for name, (low, high) in VOLUMES.items():
        millilitres = (label == 1 + STRUCTURES.index(name)).sum() * np.prod(grid.spacing) / 1000
        assert low < millilitres < high, f"{name}: {millilitres:.0f} ml"

    def centre(name: str) -> np.ndarray:
        return np.argwhere(label == 1 + STRUCTURES.index(name)).mean(0)

    # the first axis runs to the patient's right, the third to the head
    assert centre("liver")[0] > centre("stomach")[0] > centre("spleen")[0]
    assert centre("right_kidney")[0] > centre("spine")[0] > centre("left_kidney")[0]
    assert centre("lungs")[2] > centre("liver")[2] > centre("psoas")[2]


def test_neighbours_touch() -> None:
    label = _labels(2, Grid())
    pairs = {tuple(sorted(p)) for axis in range(3) for p in _touching(label, axis)}
    code = {name: 1 + i for i, name in enumerate(STRUCTURES)}
    for a, b in (
        ("liver", "lungs"),
        ("pancreas", "duodenum"),
        ("spine", "psoas"),
        ("liver", "right_kidney"),
    ):
        assert tuple(sorted((code[a], code[b]))) in pairs, f"{a} and {b} lie apart"


def _touching(label: np.ndarray, axis: int) -> np.ndarray:
    a, b = np.delete(label, -1, axis).ravel(), np.delete(label, 0, axis).ravel()
    return np.unique(np.stack([a, b], 1)[(a != b) & (a > 0) & (b > 0)], axis=0)


def test_resolution_changes_the_grid_and_not_the_patient() -> None:
    grid = Grid()
    fine = grid.refined(1.5)
    assert fine.shape == (96, 96, 72)
    assert np.allclose(np.multiply(fine.shape, fine.spacing), np.multiply(grid.shape, grid.spacing))
    coarse_label, fine_label = _labels(5, grid), _labels(5, fine)
    for code in (1, 3, 9):
        ratio = (
            (fine_label == code).sum()
            * np.prod(fine.spacing)
            / ((coarse_label == code).sum() * 125)
        )
        assert 0.93 < ratio < 1.07


@pytest.mark.parametrize("name", [*SOURCES, *TARGETS])
def test_every_target_renders_with_its_labels(name: str) -> None:
    dataset = phantom_dataset(name)
    assert dataset.layout == "phantom"
    assert len(dataset.cases) == 12
    assert len(dataset.test_cases) >= 12
    assert not {c.id for c in dataset.cases} & {c.id for c in dataset.test_cases}
    codes = {code for codes in dataset.labels.values() for code in codes}
    seen: set[int] = set()
    for case in (*dataset.cases[:2], dataset.test_cases[0]):
        label = case.label()
        assert label is not None
        assert label.array.dtype == np.uint8
        for channel in dataset.channels:
            volume = case.image(channel)
            assert volume.array.dtype == np.int16
            assert volume.array.shape == label.array.shape
            assert np.array_equal(volume.affine, label.affine)
        seen |= set(np.unique(label.array).tolist())
    assert seen == {0, *codes}
    assert case.image(channel) is volume  # rendered once


def test_source_labels_leave_out_the_novel_organs() -> None:
    novel = phantom_dataset("novel-organs").labels
    assert len(STRUCTURES) >= 12
    assert not set(LABELS) & set(novel)
    assert set(LABELS) | set(novel) == set(STRUCTURES)
    assert phantom_dataset("source").labels == {name: (code,) for name, code in LABELS.items()}


def test_low_dose_is_noisier_and_has_no_contrast() -> None:
    source, low = (render(t, 1000)[0]["CT"].astype(float) for t in (SOURCE, TARGETS["low-dose-ct"]))
    label = render(SOURCE, 1000)[1]
    liver = binary_erosion(
        label == LABELS["liver"], iterations=3
    )  # away from the edges, which blur mixes
    aorta = label == LABELS["aorta"]
    assert low[liver].std() > 1.3 * source[liver].std()
    assert source[aorta].mean() - low[aorta].mean() > 60
    assert abs(low[aorta].mean() - 42) < 25


def test_mr_is_positive_and_ct_is_in_hounsfield_units() -> None:
    assert render(TARGETS["mr-t1"], 1000)[0]["MR"].min() >= 0
    assert render(SOURCE, 1000)[0]["CT"].min() < -900


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean low-dose-ct"):
        phantom_dataset("low-dose")
    with pytest.raises(DataError, match="channel MR is missing"):
        PhantomCase(SOURCE, 1).image("MR")


def test_the_source_is_the_one_the_bundled_weights_were_trained_on() -> None:
    image, label, _ = render(SOURCE, 0)
    counts = np.bincount(label.ravel(), minlength=len(STRUCTURES) + 1)[1:12]
    trained_on = [8177, 1326, 1019, 928, 3532, 570, 695, 860, 3294, 8673, 124]
    assert np.allclose(counts, trained_on, rtol=0.01, atol=3), (
        "the source changed: train the bundled weights again"
    )
    assert image["CT"][label == LABELS["liver"]].mean() == pytest.approx(99.1, abs=1.0)


def test_the_brain_source_is_the_one_the_bundled_weights_were_trained_on() -> None:
    images, label, _ = render(SOURCES["brain-source"], 0)
    counts = np.bincount(label.ravel(), minlength=len(TUMOUR) + 1)[1:]
    trained_on = [211, 4360, 461]
    assert np.allclose(counts, trained_on, rtol=0.01, atol=3), (
        "the source changed: train the bundled weights again"
    )
    ratio = np.median(images["t1c"][label == 3]) / np.median(images["t1c"][label == 2])
    assert ratio == pytest.approx(2.29, abs=0.03)


def test_oral_contrast_fills_the_stomach() -> None:
    low = render(TARGETS["low-dose-ct"], 1001)[0]["CT"]
    layers = sample(draw_abdomen(1001, Build()), Grid())
    inside = next(layer for layer in layers if layer.tissue == "stomach_content")
    assert np.median(low[inside.where][inside.share > 0.5]) > 0
    assert np.percentile(low[inside.where][inside.share > 0.5], 90) > 150


def test_a_target_can_be_had_at_another_resolution_by_name() -> None:
    fine, plain = phantom_dataset("low-dose-ct@1.5"), phantom_dataset("low-dose-ct")
    assert fine.name == "low-dose-ct@1.5"
    assert fine.labels == plain.labels
    assert [case.id for case in fine.cases] == [case.id for case in plain.cases]
    assert fine.cases[0].image("CT").array.shape == (96, 96, 72)
    assert phantom_target("paediatric-ct@2").grid.shape == (96, 96, 64)


@pytest.mark.parametrize(
    "name", ["low-dose-ct@", "low-dose-ct@fine", "low-dose-ct@96", "low-dose-ct@0.5"]
)
def test_odd_resolutions_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"factor from 1 to 3, for instance low-dose-ct@1\.5"):
        phantom_dataset(name)


def test_gliomas_are_rings_in_oedema_and_stand_out_as_they_do() -> None:
    images, label, _ = render(SOURCES["brain-source"], 1000)
    code = {name: 1 + index for index, name in enumerate(TUMOUR)}
    core, ring, oedema = (label == code[name] for name in ("necrotic", "enhancing", "oedema"))
    assert 0 < core.sum() < ring.sum() + oedema.sum()
    touching = {tuple(sorted(pair)) for axis in range(3) for pair in _touching(label, axis)}
    assert tuple(sorted((code["necrotic"], code["enhancing"]))) in touching

    def grey(channel: str, where: np.ndarray) -> float:
        return float(np.median(images[channel][where]))

    brain = (images["t1"] > 0) & (label == 0)
    assert grey("t1c", ring) > 1.3 * grey("t1c", oedema), "only the ring takes up contrast medium"
    assert grey("flair", oedema) > 1.2 * grey("flair", brain), "oedema is bright in FLAIR"
    assert grey("t2", core) > grey("t2", ring), "necrosis is the brightest in T2"
    assert all((image == 0).mean() > 0.2 for image in images.values()), "outside the brain all is 0"


def test_low_field_is_noisier_and_shortens_t1() -> None:
    high, low = (
        render(SOURCES["brain-source"], 1001)[0],
        render(TARGETS["low-field-brain"], 1001)[0],
    )
    inside = binary_erosion(high["t1"] > 0, iterations=6)
    for channel in ("t1", "t1c"):
        rough = [
            float(np.abs(np.diff(i[channel].astype(float), axis=0))[inside[1:]].mean())
            for i in (high, low)
        ]
        level = [float(i[channel][inside].mean()) for i in (high, low)]
        assert rough[1] / level[1] > 1.5 * rough[0] / level[0], channel
    t1 = {tesla: BRAIN["white_matter"].t1_at(tesla, contrast=False) for tesla in (3.0, 0.3)}
    assert 300 < t1[0.3] < 0.5 * t1[3.0]


def test_signal_equations() -> None:
    water, tumour = BRAIN["cerebrospinal_fluid"], BRAIN["tumour"]
    assert SpinEcho(tr=1e6, te=0).signal(water, 3.0) == pytest.approx(water.density)
    null = SpinEcho(
        tr=1e6, te=0, ti=float(water.t1 * np.log(2))
    )  # where inverted magnetisation crosses zero
    assert null.signal(water, 3.0) == pytest.approx(0, abs=1e-9)
    assert SpinEcho(600, 10, contrast=True).signal(tumour, 3.0) > 1.3 * SpinEcho(600, 10).signal(
        tumour, 3.0
    )
    assert SpoiledGradientEcho(tr=1e6, flip=90).signal(water, 3.0) == pytest.approx(water.density)
    t1 = {name: SpoiledGradientEcho(tr=4.2, flip=12).signal(ABDOMEN[name], 3.0) for name in ABDOMEN}
    assert (
        t1["pancreas"]
        > t1["liver"]
        > t1["kidney_cortex"]
        > t1["kidney_medulla"]
        > t1["cerebrospinal_fluid"]
    )
