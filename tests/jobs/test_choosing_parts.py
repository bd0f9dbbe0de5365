"""Which connected parts of masks a run keeps, and that predictions follow it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from sea_peft import cli
from sea_peft.artefacts.adapter_file import CONFIG_NAME, read_adapter_config
from sea_peft.backbones.typed import Typed
from sea_peft.data.codes import IGNORED
from sea_peft.errors import WeightsError
from sea_peft.jobs.choosing_parts import candidates, chosen, gains
from sea_peft.jobs.evaluate import evaluate
from sea_peft.jobs.keeping import Keep

LABELS = {"liver": (7,), "lesion": (2,)}


def blob(shape=(20, 20, 20), *corners: tuple[int, int, int], side: int = 3) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for z, y, x in corners:
        mask[z : z + side, y : y + side, x : x + side] = True
    return mask


def shot(lesions: int) -> np.ndarray:
    """One liver of 10³ voxels, with a stray voxel of the pen, and some lesions of 27."""
    drawn = np.zeros((20, 20, 20), dtype=np.uint8)
    drawn[blob((20, 20, 20), (0, 0, 0), side=10)] = 1
    drawn[19, 0, 0] = 1
    for n in range(lesions):
        drawn[blob((20, 20, 20), (12, 5 * n, 12))] = 2
    return drawn


def test_no_rule_takes_away_what_a_shot_has():
    found = candidates([shot(1), shot(3)], list(LABELS), millilitres=0.1)
    assert found["liver"] == [Keep(most=1), Keep(least_ml=50.0)], "a slip of the pen is no part"
    assert found["lesion"] == [Keep(most=3), Keep(least_ml=1.4)]
    none = shot(0)
    none[15:] = IGNORED
    assert candidates([none], list(LABELS), 0.1).keys() == {"liver"}
    assert candidates([shot(1)], list(LABELS), 1e-5)["lesion"] == [Keep(most=1)], (
        "too small to be written as millilitres"
    )


def test_what_helps_on_held_out_scans_is_chosen():
    drawn = np.where(blob((20, 20, 20), (0, 0, 0), side=10), 7, 0)
    with_stray = np.where((drawn == 7) | blob((20, 20, 20), (15, 15, 15)), 1, 0).astype(np.uint8)
    rules = {"liver": [Keep(most=1), Keep(least_ml=5.0)], "lesion": [Keep(most=1)]}
    found = gains(with_stray, drawn, LABELS, rules, millilitres=0.1)
    assert found.keys() == {"liver"}, "no lesion is drawn here"
    expected = 1 - 2 * 1000 / (2000 + 27)
    assert found["liver"] == {
        "largest": pytest.approx(expected),
        "min-ml=5": pytest.approx(expected),
    }
    assert chosen([found]) == {"liver": ("largest", pytest.approx(expected))}, (
        "of equals the strictest"
    )


def test_a_rule_that_costs_any_scan_or_adds_next_to_nothing_is_not():
    helps, costs = (
        {"liver": {"largest": 0.1, "min-ml=5": 0.05}},
        {"liver": {"largest": -0.01, "min-ml=5": 0.0}},
    )
    assert chosen([helps, costs]) == {"liver": ("min-ml=5", pytest.approx(0.025))}
    assert chosen([{"liver": {"largest": 0.001}}]) == {}
    assert chosen([]) == {}


def test_predictions_and_scores_follow_the_adapter_and_the_flag_overrides(
    adapter, weights, toy, tmp_path, capsys
):
    folder = shutil.copytree(adapter, tmp_path / "keeping")
    config = read_adapter_config(folder).model_copy(update={"keep": {"spot": "min-ml=1000"}})
    (folder / CONFIG_NAME).write_text(config.model_dump_json())
    network = ["--weights", str(weights), "--device", "cpu"]

    def kept(out: str, *flags: str) -> tuple[dict[str, str], float, str]:
        scan = str(toy / "imagesTr" / "toy_0_0000.nii.gz")
        assert (
            cli.run(["predict", str(folder), scan, "--out", str(tmp_path / out), *network, *flags])
            == 0
        )
        (sidecar,) = (tmp_path / out).glob("*.json")
        found = json.loads(sidecar.read_text())
        return found["kept"], found["volumes_ml"]["spot"], " ".join(capsys.readouterr().err.split())

    rules, volume, said = kept("own")
    assert rules == {"spot": "min-ml=1000"}
    assert volume == 0, "no part is a litre large"
    assert "as the run has chosen (--keep all overrides): spot min-ml=1000." in said
    rules, volume, said = kept("all", "--keep", "all")
    assert rules == {}
    assert volume > 0
    assert "as the run has chosen" not in said
    typed = Typed(weights=str(weights))
    assert evaluate(folder, str(toy), typed=typed, device="cpu").mean("spot", "dice") == 0
    whole = evaluate(folder, str(toy), typed=typed, device="cpu", keep=["all"])
    assert whole.mean("spot", "volume_difference") > -whole.mean("spot", "reference_volume")
    (folder / CONFIG_NAME).write_text(
        config.model_copy(update={"keep": {"x": "largest"}}).model_dump_json()
    )
    with pytest.raises(WeightsError, match="no label"):
        read_adapter_config(folder)
