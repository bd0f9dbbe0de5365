"""What a run begins with when nothing is said: the weights that know the data's region of the
body.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toys import AFFINE, toy_scan

from sea_peft.data.volumes import Volume, write_volume
from sea_peft.errors import UsageError
from sea_peft.jobs import setup
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import prepare_run


def _weights(data: str, backbone: str | None = None) -> str:
    resolved = prepare_run(
        AdaptOptions(data=data, backbone=backbone, policy="affine"), say=lambda _: None
    )
    return resolved.backbone.pretrained.card.name


@pytest.mark.parametrize("backbone", [None, "unet"])
def test_an_embedded_target_brings_the_weights_that_know_its_region(backbone: str | None) -> None:
    assert _weights("phantom:low-field-brain", backbone) == "phantom_brain_unet"


def test_where_the_default_weights_know_the_region_they_are_taken_at_any_resolution() -> None:
    assert _weights("phantom:low-dose-ct@1.5", "unet") == "phantom_unet"


def test_an_architecture_without_weights_for_the_region_is_refused_with_the_channels() -> None:
    with pytest.raises(
        UsageError, match=r"phantom_segresnet takes 1 channel.*\(t1, t1c, t2, flair\)"
    ):
        _weights("phantom:low-field-brain", "segresnet")


def test_scans_of_ones_own_are_trained_longer_than_a_phantom_is_looked_at(
    toy: Path, weights: Path
) -> None:
    own = prepare_run(
        AdaptOptions(data=str(toy), weights=str(weights), budget="20%", shots=2), say=lambda _: None
    )
    shown = prepare_run(AdaptOptions(backbone="unet"), say=lambda _: None)
    asked = prepare_run(AdaptOptions(backbone="unet", steps=200), say=lambda _: None)
    assert [setup.settings.steps for setup in (own, shown, asked)] == [480, 120, 200]


def test_a_time_limit_is_for_all_that_is_compared() -> None:
    def seconds(policy: str) -> float | None:
        options = AdaptOptions(backbone="unet", policy=policy, time_limit=100.0)
        return prepare_run(options, say=lambda _: None).settings.time_limit

    assert [seconds(policy) for policy in ("affine", "sea")] == [
        50.0,
        50.0,
    ], "the head alone is fitted beside it"
    assert (
        prepare_run(AdaptOptions(backbone="unet"), say=lambda _: None).settings.time_limit is None
    )


def _of_four_channels(root: Path, names: tuple[str, ...]) -> Path:
    """Two labelled cases in nnU-Net's layout; every channel holds the same image."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for case in range(2):
        image, label = toy_scan(case)
        for number in range(len(names)):
            write_volume(
                root / "imagesTr" / f"c{case}_{number:04d}.nii.gz",
                Volume(image.astype(np.int16), AFFINE),
            )
        write_volume(root / "labelsTr" / f"c{case}.nii.gz", Volume(label, AFFINE))
    description = {
        "channel_names": dict(enumerate(names)),
        "labels": {"background": 0, "organ": 1, "spot": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def _channels(data: Path, asked: tuple[str, ...] = ()) -> tuple[tuple[str, ...], list[str]]:
    options = AdaptOptions(
        data=str(data), weights="phantom_brain_unet", shots=1, channels=asked, policy="affine"
    )
    setup = prepare_run(options, say=lambda _: None)
    return setup.dataset.channels, [
        sentence for sentence in setup.warnings if "channels" in sentence
    ]


def test_at_one_shot_the_scan_that_is_scored_whole_counts_for_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[object, ...]] = []
    real = setup.inference_need
    monkeypatch.setattr(
        setup,
        "inference_need",
        lambda cases, *rest: asked.append(tuple(cases)) or real(cases, *rest),
    )
    one = prepare_run(AdaptOptions(backbone="unet", shots=1, test="none"), lambda _: None)
    one.need()
    assert asked == [one.split.shots]


def test_channels_go_to_the_input_of_their_name_whatever_the_order_of_the_data(
    tmp_path: Path,
) -> None:
    brats = _of_four_channels(tmp_path / "brats", ("FLAIR", "T1", "T1ce", "T2"))
    assert _channels(brats) == (("T1", "T1ce", "T2", "FLAIR"), [])
    assert _channels(brats, ("T2", "T1", "FLAIR", "T1ce"))[0] == (
        "T2",
        "T1",
        "FLAIR",
        "T1ce",
    ), "what is asked for holds"


def test_channels_of_other_names_are_taken_in_the_order_of_the_data_and_that_is_said(
    tmp_path: Path,
) -> None:
    channels, said = _channels(_of_four_channels(tmp_path / "other", ("ADC", "DWI", "PD", "SWI")))
    assert channels == ("ADC", "DWI", "PD", "SWI")
    assert len(said) == 1
    assert "--channel" in said[0]


def test_a_negative_seed_and_a_name_that_reads_like_a_path_are_refused_before_training(
    toy: Path, weights: Path
) -> None:
    with pytest.raises(UsageError, match="--seed -1"):
        prepare_run(AdaptOptions(seed=-1), say=lambda _: None)
    with pytest.raises(UsageError, match="reads like a path"):
        prepare_run(
            AdaptOptions(data=str(toy), weights=str(weights), labels=("/data/organ=1",)),
            say=lambda _: None,
        )
