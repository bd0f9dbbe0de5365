"""Several adapters on each scan: against what each of them says alone, and what does not fit
together.
"""

from __future__ import annotations

import csv
import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from toys import install, make_adapter, tiny_weights, toy_scan

from sea_peft.artefacts.adapter_file import CONFIG_NAME, Recommendation, read_adapter_config
from sea_peft.backbones.typed import Typed
from sea_peft.cli import run
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import UsageError
from sea_peft.jobs import evaluate as evaluating
from sea_peft.jobs.ensemble import Ensemble
from sea_peft.jobs.evaluate import evaluate
from sea_peft.jobs.predict import predict

LABELS = {"organ": [1], "spot": [2]}


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> list[Path]:
    """Two more adapters of the toy data's labels on the same backbone."""
    folder = tmp_path_factory.mktemp("others")
    return [
        make_adapter(folder / "ssf", weights, LABELS, ["CT"], ("ssf",)),
        make_adapter(folder / "conv", weights, LABELS, ["CT"], ("conv_adapter", "lora")),
    ]


def changed(adapter: Path, folder: Path, **fields: object) -> Path:
    """A copy of an adapter whose record says something else."""
    shutil.copytree(adapter, folder)
    config = read_adapter_config(folder).model_copy(update=fields)
    (folder / CONFIG_NAME).write_text(config.model_dump_json())
    return folder


def probabilities(folder: Path, case: str) -> np.ndarray:
    """`[1 + L, I, J, K]` as written by predict, the background first."""
    labels = np.stack(
        [read_volume(folder / f"{case}_probability_{label}.nii.gz").array for label in LABELS]
    )
    return np.concatenate([1 - labels.sum(axis=0, keepdims=True), labels])


def test_the_mean_of_what_each_says_and_where_they_disagree(
    adapter, others, weights, tmp_path
) -> None:
    scan, typed = tmp_path / "toy_0.nii.gz", Typed(weights=str(weights))
    write_volume(
        scan, Volume(toy_scan(0)[0], np.diag([2.0, 2.0, 2.0, 1.0]))
    )  # on the recipe's grid
    each = []
    for number, one in enumerate([adapter, *others]):
        predict(one, [scan], tmp_path / str(number), typed=typed, probabilities=True)
        each.append(probabilities(tmp_path / str(number), "toy_0"))
    out = tmp_path / "out"
    (status,) = predict(adapter, [scan], out, typed=typed, probabilities=True, ensemble=others)
    np.testing.assert_allclose(probabilities(out, "toy_0"), np.mean(each, axis=0), atol=1e-5)
    where = read_volume(out / "toy_0_disagreement.nii.gz")
    expected = np.mean([np.abs(p - q).sum(axis=0) / 2 for p, q in combinations(each, 2)], axis=0)
    assert expected.max() > 0.1, "toy adapters that all say the same show nothing"
    np.testing.assert_allclose(where.array, expected, atol=1e-5)
    np.testing.assert_array_equal(where.affine, read_volume(scan).affine)
    sidecar = json.loads((out / "toy_0.json").read_text())
    assert sidecar["disagreement"] == status.disagreement
    assert sidecar["disagreement_map"] == "toy_0_disagreement.nii.gz"
    assert [one["policy"] for one in sidecar["ensemble"]["with"]] == ["sea", "sea"]
    masks = [p.argmax(axis=0) for p in each]
    for index, label in enumerate(LABELS, start=1):
        pairs = [(a == index, b == index) for a, b in combinations(masks, 2)]
        dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if (a | b).any()]
        assert status.disagreement[label] == (
            pytest.approx(1 - np.mean(dice), abs=1e-3) if dice else None
        )
    assert any(status.disagreement.values())


def test_two_adapters_share_their_backbone_and_leave_no_gate_open(adapter, others, weights) -> None:
    ensemble = Ensemble(adapter, others, Typed(weights=str(weights)), "cpu")
    backbones = {id(member.model.backbone) for member in ensemble.members}
    assert len(backbones) == 1
    assert [member.model.bank.active for member in ensemble.members] == [frozenset()] * 3


def test_an_adapter_of_another_backbone_has_its_own(
    adapter, weights, toy, tmp_path, monkeypatch
) -> None:
    install(weights)
    monkeypatch.setattr("torch.manual_seed", lambda _: None)  # other random weights
    (tmp_path / "other").mkdir()
    twin = tiny_weights(tmp_path / "other")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for suffix in (".safetensors", ".json"):
        twin.with_suffix(suffix).rename(twin.with_name(f"twin{suffix}"))
    card = json.loads(twin.with_name("twin.json").read_text())
    twin.with_name("twin.json").write_text(json.dumps({**card, "name": "twin"}))
    install(twin.with_name("twin.safetensors"))
    other = make_adapter(
        tmp_path / "adapter", twin.with_name("twin.safetensors"), LABELS, ["CT"], ("affine",)
    )
    said: list[str] = []
    scan = toy / "imagesTr" / "toy_0_0000.nii.gz"
    (status,) = predict(adapter, [scan], tmp_path / "out", ensemble=[other], say=said.append)
    assert status.status == "done"
    assert said[0] == "Averaging the probabilities of 2 adapters on the backbones tiny, twin."


def test_what_does_not_fit_is_named_before_anything_is_written(
    adapter, others, weights, toy, tmp_path
) -> None:
    typed = Typed(weights=str(weights))
    config = read_adapter_config(adapter)
    recipe, window = config.recipe, config.window
    rejected = Recommendation(network="unadapted", evidence="3 test cases")
    codes = changed(others[0], tmp_path / "codes", labels={"organ": [1], "spot": [3]})
    channel = changed(others[0], tmp_path / "channel", channels=["MR"])
    coarse = changed(
        others[0],
        tmp_path / "coarse",
        recipe=recipe.model_copy(update={"spacing": (2.0, 2.0, 3.0)}),
    )
    patch = changed(
        others[0], tmp_path / "patch", window=window.model_copy(update={"patch": (16, 16, 24)})
    )
    unadapted = changed(others[0], tmp_path / "unadapted", recommended=rejected)
    cases = [
        (
            [codes],
            {},
            r"codes does not fit: its label 2 is spot \(3\), the first adapter's is spot \(2\)",
        ),
        ([channel], {}, "its channels are MR, the first adapter's CT"),
        ([coarse], {}, "its spacing is 2 × 2 × 3, the first adapter's 2 × 2 × 2"),
        ([patch], {}, "its window's patch is 16 × 16 × 24, the first adapter's 16 × 16 × 16"),
        ([unadapted], {}, r"unadapted recommends the unadapted network \(3 test cases\)"),
        ([others[0], others[0]], {}, "is an adapter that is there already"),
        ([others[0]], {"use": "unadapted"}, "--with averages adapters"),
        ([others[0]], {"qc": True}, "--qc is calibrated for the masks of one adapter"),
    ]
    for ensemble, options, said in cases:
        with pytest.raises(UsageError, match=said):
            predict(adapter, [toy], tmp_path / "out", typed=typed, ensemble=ensemble, **options)
    assert not (tmp_path / "out").exists()


def test_results_of_one_adapter_are_not_taken_for_those_of_several(
    adapter, others, weights, toy, tmp_path
) -> None:
    typed, scan = Typed(weights=str(weights)), [toy / "imagesTr" / "toy_0_0000.nii.gz"]
    table = tmp_path / "numbers.csv"
    for name, ensemble in (("one", []), ("both", others[:1]), ("three", others)):
        predict(adapter, scan, tmp_path / name, typed=typed, ensemble=ensemble)
    for name, ensemble in (
        ("one", others),
        ("both", []),
        ("both", others),
        ("three", others[::-1]),
    ):
        with pytest.raises(UsageError, match=r"was made with other adapters beside it \(--with\)"):
            predict(adapter, scan, tmp_path / name, typed=typed, ensemble=ensemble, resume=True)
    before = (tmp_path / "three" / "toy_0.nii.gz").stat()
    (status,) = predict(
        adapter, scan, tmp_path / "three", typed=typed, ensemble=others, resume=True
    )
    assert status.disagreement is not None
    assert (tmp_path / "three" / "toy_0.nii.gz").stat() == before
    predict(adapter, scan, tmp_path / "numbers", typed=typed, ensemble=others, statistics=table)
    rows = csv.DictReader(table.read_text().splitlines())
    apart = {
        row["label"]: float(row["disagreement"]) if row["disagreement"] else None for row in rows
    }
    assert apart == status.disagreement
    with pytest.raises(UsageError, match="no table of this adapter's statistics"):
        predict(adapter, scan, tmp_path / "z", typed=typed, statistics=table)


def test_parts_are_kept_as_all_runs_have_chosen_alike(adapter, others, weights, tmp_path) -> None:
    first = changed(adapter, tmp_path / "first", keep={"organ": "largest", "spot": "largest"})
    second = changed(others[0], tmp_path / "second", keep={"organ": "largest", "spot": "2"})
    ensemble = Ensemble(first, [second], Typed(weights=str(weights)), "cpu")
    assert {label: str(rule) for label, rule in ensemble.keeping(()).items()} == {
        "organ": "largest"
    }


def test_on_the_command_line(adapter, others, weights, toy, tmp_path, capsys) -> None:
    scan = toy / "imagesTr" / "toy_0_0000.nii.gz"
    asked = ["--weights", str(weights), "--out", str(tmp_path / "m")]
    command = ["predict", str(adapter), str(scan), *asked]
    both = [word for other in others for word in ("--with", str(other))]
    assert run([*command, *both, "--ensemble", "mean", "--json"]) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert set(case["disagreement"]) == set(LABELS)
    assert run([*command, "--ensemble", "mean"]) == 2
    assert "name the others, each by --with ADAPTER" in capsys.readouterr().err
    assert run([*command, "--with", str(others[0]), "--ensemble", "vote"]) == 2
    assert "--ensemble vote is not known; there is mean." in capsys.readouterr().err


def test_masks_of_several_adapters_are_scored_as_predicted(
    adapter, others, weights, toy, tmp_path, capsys
) -> None:
    typed = Typed(weights=str(weights))
    scans = toy / "imagesTr"
    predict(adapter, [scans], tmp_path / "masks", typed=typed, ensemble=others)
    masks, drawn = (
        {path.name: read_volume(path).array for path in folder.glob("toy_?.nii.gz")}
        for folder in (tmp_path / "masks", toy / "labelsTr")
    )
    dice = [
        np.mean(
            [
                2
                * ((masks[case] == code) & (drawn[case] == code)).sum()
                / ((masks[case] == code).sum() + (drawn[case] == code).sum())
                for case in drawn
            ]
        )
        for code in (1, 2)
    ]
    both = [word for other in others for word in ("--with", str(other))]
    command = ["evaluate", str(adapter), str(toy), "--weights", str(weights), *both, "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert run([*command, "--ensemble", "vote"]) == 2


def test_a_case_that_one_run_was_trained_on_is_no_test_case_of_both(
    adapter, others, weights, toy, tmp_path, monkeypatch
) -> None:
    roles = {"a": {"toy_0": "support", "toy_1": "test"}, "b": {"toy_0": "test", "toy_1": "test"}}
    paths = {str(adapter): "a", str(others[0]): "b"}
    monkeypatch.setattr(evaluating, "_roles", lambda path, _: dict(roles[paths[str(path)]]))
    for first, second in ((adapter, others[0]), (others[0], adapter)):
        found = evaluate(
            first, str(toy), typed=Typed(weights=str(weights)), cases="test", ensemble=[second]
        )
        assert list(found.cases) == ["toy_1"]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(adapter, others, weights, toy, tmp_path) -> None:
    typed = Typed(weights=str(weights))
    for name, jobs in (("alone", 1), ("together", 2)):
        predict(adapter, [toy], tmp_path / name, typed=typed, ensemble=others, jobs=jobs)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("alone", "together")
    ]
    assert files[0] == files[1]
