"""The module of 3D Slicer, as far as it needs no Slicer: against the command line itself."""

from __future__ import annotations

import ast
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toys import AFFINE, toy_scan

import sea_peft
from sea_peft import cli
from sea_peft.data.volumes import Volume, read_volume, write_volume

sys.path.insert(
    0, str(Path(__file__).parents[2] / "examples" / "slicer")
)  # as Slicer does with a module's folder

from SeaPeftLib.prediction import CannotStart, Label, Prediction, command, new_folder, read_outcome

MODULE = Path(sys.path[0])


@pytest.fixture
def program(tmp_path, monkeypatch) -> str:
    """`seapeft` as pip makes it."""
    file = tmp_path / "seapeft"
    file.write_text(f"#!{sys.executable}\nfrom sea_peft.cli import main\nmain()\n")
    file.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(sea_peft.__file__).parents[1]))
    return str(file)


@pytest.fixture
def bright(tmp_path) -> Path:
    """A scan unlike the shots, as Slicer writes it."""
    write_volume(tmp_path / "scan.nrrd", Volume(toy_scan(0)[0] + np.int16(100), AFFINE))
    return tmp_path / "scan.nrrd"


def answer(asked, capsys):
    """The outcome of a command that runs in this process."""
    code = cli.run(asked[1:])
    printed = capsys.readouterr()
    return read_outcome(code, printed.out, printed.err, Path(asked[asked.index("--out") + 1]))


def test_a_flagged_mask(program, knowing, weights, bright, tmp_path):
    out = new_folder(str(tmp_path / "results"))
    asked = command(program, str(knowing), str(bright), out, weights=str(weights), device="cpu")
    prediction = Prediction(asked, str(tmp_path), os.environ)
    while prediction.running():
        time.sleep(0.1)
    assert prediction.progress()
    outcome = prediction.outcome()
    assert (
        outcome.sentence
        == "The mask is done, and should be checked before it is used: see the flags. It is the"
        " adapted network's."
    )
    assert any(remark.startswith("Flag: Grey values of CT") for remark in outcome.remarks())
    assert outcome.segmentation == Path(out, "scan.seg.nrrd")
    np.testing.assert_allclose(read_volume(outcome.segmentation).affine, AFFINE, atol=1e-4)
    organ, spot = outcome.labels
    assert organ.cells() == (
        "organ",
        "–",
        "–",
        "0.0 ml",
    )  # as this adapter, which was never trained, has it
    assert spot.millilitres > 0
    dice, low, high = spot.expected
    assert 0 <= low <= dice <= high <= 1


def test_a_cancelled_prediction(program, adapter, bright, tmp_path):
    out = new_folder(str(tmp_path))
    prediction = Prediction(command(program, str(adapter), str(bright), out), str(tmp_path))
    assert prediction.running()
    prediction.cancel()
    assert prediction.outcome().sentence == "The prediction was cancelled."
    assert not any(Path(out).iterdir())


def test_a_mask_without_expected_dice(adapter, weights, tmp_path, capsys):
    scan = tmp_path / "scan.nrrd"
    write_volume(scan, Volume(toy_scan(0)[0], AFFINE))
    asked = command(
        "seapeft", str(adapter), str(scan), str(tmp_path / "out"), weights=str(weights), qc=False
    )
    outcome = answer(asked, capsys)
    assert outcome.sentence == "The mask is done. It is the adapted network's."
    assert [label.cells()[:3] for label in outcome.labels] == [
        ("organ", "–", "–"),
        ("spot", "–", "–"),
    ]
    assert outcome.segmentation.is_file()


def test_what_is_refused_is_said_in_one_sentence(adapter, weights, bright, tmp_path, capsys):
    def refused(run, scan, **more):
        outcome = answer(
            command("seapeft", str(run), str(scan), str(tmp_path / "out"), **more), capsys
        )
        assert outcome.segmentation is None
        assert "\n" not in outcome.sentence
        return outcome.sentence

    known = {"weights": str(weights), "device": "cpu"}
    assert refused(adapter, tmp_path / "none.nrrd", qc=False, **known).startswith(
        "The scan is refused (exit code 3): no such file or folder"
    )
    said = refused(adapter, bright, **known)  # made before --qc
    assert said.startswith("seapeft cannot do this with these settings (exit code 2): ")
    assert "adapt again" in said
    assert refused(tmp_path, bright, **known).startswith(
        "The adapter or its weights are refused (exit code 5): "
    )
    assert refused(adapter, bright, weights=str(weights), device="cuda:77").startswith(
        "The device, the memory or the disk does not suffice (exit code 6): "
    )
    empty = tmp_path / "flat.nrrd"
    write_volume(empty, Volume(np.full((20, 20, 20), np.nan, dtype=np.float32), AFFINE))
    assert refused(adapter, empty, qc=False, **known).startswith(
        "The scan could not be predicted (exit code 8): "
    )


def test_what_is_no_answer_of_seapeft():
    assert "check its path" in read_outcome(0, "hello", "", Path()).sentence
    assert "check its path" in read_outcome(0, '{"cases": [{"case": "a"}]}', "", Path()).sentence
    assert read_outcome(-9, "", "a\n\n", Path()).sentence.endswith(
        "(signal 9), often for want of memory: a"
    )
    assert (
        read_outcome(120, "[]", "", Path()).sentence
        == "seapeft ended without an answer (exit code 120)."
    )


def test_what_cannot_start(tmp_path):
    with pytest.raises(CannotStart, match="give the path of the program `seapeft`"):
        Prediction(command(str(tmp_path / "nothing"), "run", "scan", "out"), str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="choose another"):
        new_folder(str(tmp_path / "file" / "in it"))
    assert new_folder(str(tmp_path)) != new_folder(str(tmp_path))


def test_a_row_of_the_table():
    assert Label("liver", 1503.27, (0.912, 0.85, 0.95)).cells() == (
        "liver",
        "0.91",
        "0.85 to 0.95",
        "1503.3 ml",
    )


@pytest.mark.parametrize("file", sorted(MODULE.rglob("*.py")), ids=lambda file: file.name)
def test_slicers_python_can_read_it(file):
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {
        getattr(node, "module", None) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    imported |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not any(name.startswith("sea_peft") for name in imported)
