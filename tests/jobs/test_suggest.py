"""Which scans to label next: the order, its words, the verb."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import TINY, toy_dataset

import sea_peft
from sea_peft import cli
from sea_peft.adapters import Adapted
from sea_peft.backbones import find_sites
from sea_peft.backbones.typed import Typed
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.features import bottleneck, distances, pooling
from sea_peft.jobs.suggest import in_turn, suggest

NONE = np.zeros((0, 1))


def test_far_and_doubted_first_and_no_two_alike():
    features = np.array([[0.0], [10.0], [10.1], [5.0], [-4.0]])
    near = np.array([[0.0]])
    assert [i for i, _ in in_turn([1, 1, 1, 1, 1], features, near)] == [2, 3, 4, 1, 0]
    assert in_turn([1, 1, 1, 1, 1], features, near)[0][1] == pytest.approx(10.1)
    # the far ones are trusted, the one between is not
    assert in_turn([1, 0.1, 0.1, 0.9, 0.2], features, near)[0] == (3, 5.0)


def test_a_copy_of_a_shot_or_of_a_chosen_scan_comes_last_however_doubted():
    order = in_turn([0.9, 0.2, 0.2], np.array([[1.0], [3.0], [3.0]]), np.array([[1.0]]))
    assert order == [(1, 2.0), (0, 0.0), (2, 0.0)]


def test_without_shots_the_first_is_the_one_in_most_doubt():
    order = in_turn([0.1, 0.3, 0.2], np.array([[0.0], [1.0], [9.0]]), NONE)
    assert order == [(1, np.inf), (2, 8.0), (0, 1.0)]
    assert in_turn([], NONE, NONE) == []


def test_distance_is_to_the_nearest():
    assert distances(
        np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [3.0, 4.0]])
    ) == pytest.approx([1, 0])


class Two(nn.Module):
    """A network with one strided convolution for a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3, padding=1)
        self.down = nn.Conv3d(4, 6, 2, stride=2)
        self.norm = nn.InstanceNorm3d(6)
        self.up = nn.ConvTranspose3d(6, 4, 2, stride=2)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(torch.relu(self.norm(self.down(torch.relu(self.stem(x)))))))


def test_features_are_the_bottlenecks_means_over_windows_and_places():
    torch.manual_seed(0)
    network, example = Two(), torch.randn(1, 1, 8, 8, 8)
    sites = find_sites(network, example)
    assert bottleneck(sites) == "down"
    model = Adapted(network, sites, (), (1,), 2, example)
    windows = torch.randn(3, 1, 8, 8, 8)
    with pooling(model) as pooled, torch.no_grad():
        model(windows[:1])
        model(windows[1:])
        found = pooled.take()
        wanted = network.down(torch.relu(network.stem(windows))).mean(dim=(0, 2, 3, 4))
        pooled.forget()
        with pytest.raises(ValueError, match="not run"):
            pooled.take()
    assert found == pytest.approx(wanted.numpy(), abs=1e-6)
    assert not network.down._forward_hooks


def command(run: Path, weights: Path, *given: object) -> list[str]:
    return ["suggest", str(run), *map(str, given), "--weights", str(weights)]


@pytest.fixture(scope="module")
def run_on_toys(tmp_path_factory: pytest.TempPathFactory, toy: Path, weights: Path) -> Path:
    """A real run on the toy data."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    given = [
        "adapt",
        toy,
        "--weights",
        weights,
        "--out",
        folder,
        "--budget",
        "20%",
        "--no-mlflow",
        "-q",
        *TINY,
    ]
    assert cli.run(list(map(str, given))) == 0
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six scans without labels, the last of them damaged, the first twice."""
    made = toy_dataset(tmp_path / "new", 5) / "imagesTr"
    shutil.copy(made / "toy_0_0000.nii.gz", made / "twin_0000.nii.gz")
    dark = read_volume(made / "toy_3_0000.nii.gz")
    write_volume(
        made / "toy_3_0000.nii.gz",
        Volume(np.asarray(dark.array, dtype=np.float32) - 900, dark.affine),
    )
    (made / "toy_4_0000.nii.gz").write_bytes(b"no scan")
    return made


def test_the_verb_ranks_says_why_and_draws(knowing, weights, scans, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    code = cli.run([*command(knowing, weights, scans, "-n", 2, "--out", out), "--json"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert code == 8
    assert found["failed"].keys() == {"toy_4"}
    assert "toy_4" in told.err
    assert "not at hand" in told.err  # an adapter folder does not know its shots
    assert found["shots"] == 0
    ranked = [*found["suggested"], *found["others"]]
    assert [each["rank"] for each in ranked] == [1, 2, 3, 4, 5]
    assert {each["scan"] for each in ranked} == {"toy_0", "toy_1", "toy_2", "toy_3", "twin"}
    assert ranked[0]["distance"] is None
    assert "least trusted of 5" in {each["why"].split(";")[0] for each in ranked}
    assert ranked[-1]["scan"] in ("toy_0", "twin")
    assert ranked[-1]["why"].endswith("the same as a scan above")
    assert any(
        "Grey values" in flag
        for each in ranked
        if each["scan"] == "toy_3"
        for flag in each["flags"]
    )
    pictures = [each["picture"] for each in found["suggested"]]
    assert sorted(path.name for path in out.iterdir()) == sorted([*pictures, "suggest.html"])
    page = (out / "suggest.html").read_text()
    assert all(f'src="{name}"' in page for name in pictures)
    assert found["suggested"][0]["why"] in page

    assert cli.run(command(knowing, weights, scans, "-n", 2, "--out", out)) == 2
    assert "exists already" in capsys.readouterr().err
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    assert cli.run(command(knowing, weights, scans)) == 8
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "To label next, of 5 scans" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_run_folder_knows_its_shots_and_they_come_last(run_on_toys, scans, weights, toy):
    said: list[str] = []
    found = suggest(
        run_on_toys, [scans], typed=Typed(weights=str(weights)), use="adapted", say=said.append
    )
    assert found.shots == 2
    assert not any("not at hand" in sentence for sentence in said)
    copies = [
        each for each in (*found.suggested, *found.others) if each.why.endswith("labelled already?")
    ]
    assert copies
    assert min(each.rank for each in copies) > max(
        each.rank
        for each in (*found.suggested, *found.others)
        if each.distance is not None and each.distance > 0.01
    )
    assert [each.distance for each in copies] == pytest.approx([0.0] * len(copies), abs=1e-5)


def test_progress_goes_on_while_pictures_are_drawn(knowing, weights, scans, tmp_path):
    told: list[tuple[float, int]] = []
    suggest(
        knowing,
        [scans],
        2,
        out=tmp_path / "out",
        typed=Typed(weights=str(weights)),
        progress=lambda *at: told.append(at),
    )
    assert {of for _done, of in told} == {6 + 2}  # the damaged scan counts too
    done = [done for done, _of in told]
    assert done == sorted(done)
    assert {6.0, 7.0, 8.0} <= set(done)
    assert any(6 < each < 7 for each in done)


def test_what_cannot_be_asked(knowing, adapter, weights, scans, toy, tmp_path):
    typed = Typed(weights=str(weights))
    with pytest.raises(UsageError, match="adapt again"):
        suggest(adapter, [scans], typed=typed)
    with pytest.raises(UsageError, match="-n 0"):
        suggest(knowing, [scans], 0, typed=typed)
    with pytest.raises(DataError, match=r"every scan of .* is labelled"):
        suggest(knowing, [toy], typed=typed)
    assert sea_peft.suggest is suggest


def test_of_a_data_set_only_what_is_not_labelled_is_ranked(knowing, weights, toy, tmp_path):
    data = shutil.copytree(toy, tmp_path / "Dataset008_Mixed")
    (data / "imagesTs").mkdir()
    shutil.move(data / "imagesTr" / "toy_4_0000.nii.gz", data / "imagesTs" / "toy_4_0000.nii.gz")
    (data / "labelsTr" / "toy_4.nii.gz").unlink()
    said: list[str] = []
    found = suggest(knowing, [data], typed=Typed(weights=str(weights)), say=said.append)
    assert [each.scan for each in found.suggested] == ["toy_4"]
    assert any("4 of 5 scans labelled" in sentence for sentence in said)
