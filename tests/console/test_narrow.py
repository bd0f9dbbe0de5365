"""A terminal of 80 columns: nothing longer, and no column lost."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sea_peft.backbones import architectures
from sea_peft.backbones.weights import BUNDLED
from sea_peft.cli import run
from sea_peft.console.output import console
from sea_peft.console.runs import evaluation_tables
from sea_peft.data.metrics import Scores
from sea_peft.jobs.evaluate import Evaluation

WEIGHTS = sorted(card.stem for card in BUNDLED.glob("*.json"))
SMALLEST = "phantom_brain_unet"
OFFER = ("units", "sites", "number", "cheapest", "dearest", "all", "fit")
Seen = Callable[..., str]


@pytest.fixture
def seen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What a terminal of 80 columns shows, without colours."""
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)

    def call(*words: str) -> str:
        assert run(words) == 0
        shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert max(map(len, shown.splitlines())) <= 80
        return shown

    return call


def has_columns(shown: str, *names: str) -> None:
    """A line of headers names them all, in this order and whole."""
    lines = [line.split() for line in shown.splitlines()]
    assert list(names) in lines, shown


@pytest.mark.slow
def test_backbones_list(seen: Seen) -> None:
    shown = seen("backbones", "list")
    has_columns(shown, "--weights", "parameters", "labels", "mm", "Dice", "hash")
    has_columns(shown, "--backbone", "parameters", "licence")
    for name in (*WEIGHTS, *architectures()):
        assert re.search(rf"^{re.escape(name)} +[\d,]+\b", shown, re.MULTILINE), name


@pytest.mark.parametrize(
    "name",
    [
        SMALLEST,
        *(pytest.param(name, marks=pytest.mark.slow) for name in WEIGHTS if name != SMALLEST),
    ],
)
def test_backbones_info_and_adapters_list(seen: Seen, name: str) -> None:
    has_columns(seen("backbones", "info", name), "stage", "kind", "sites")
    shown = seen("adapters", "list", "--weights", name, "--units")
    has_columns(shown, *OFFER)
    has_columns(shown, "unit", "stage", "kind", "cost")
    ids = re.findall(r"^\S+@\S+", shown, re.MULTILINE)
    assert ids
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_every_family_on_every_architecture(seen: Seen, name: str) -> None:
    shown = seen("adapters", "list", "--backbone", name, "--units", "--profile", "all")
    has_columns(shown, *OFFER)
    ids = re.findall(r"^\S+@\S+", shown, re.MULTILINE)
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_data_check(seen: Seen) -> None:
    shown = seen("data", "check", "phantom:low-dose-ct")
    has_columns(shown, "label", "in", "cases", "voxels")
    has_columns(shown, "case", "voxels", "mm", "labelled", "voxels", "state")


def test_the_scores_of_cases_fit_into_80_columns_of_a_file_too(capsys) -> None:
    scores = Scores(
        dice=0.9,
        nsd=0.9,
        hd95=12.3,
        sensitivity=0.9,
        specificity=0.999,
        precision=0.9,
        volume_difference=-1.0,
        reference_volume=20.0,
    )
    case, label = "low-dose-ct_1000", "liver_lesion"
    found = Evaluation(
        data="scans",
        labels=(label,),
        cases={case: {label: scores}},
        roles={case: "test"},
        failed={},
    )
    to_a_file = console()
    assert to_a_file.width > 80
    to_a_file.print(evaluation_tables(found)[0])
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown[2].split() == [
        *(case, label, "0.900", "0.900", "12.3", "0.900", "0.999", "0.900", "test")
    ]
    assert max(map(len, shown)) <= 80
