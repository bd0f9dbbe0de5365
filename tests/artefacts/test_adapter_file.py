from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from sea_peft.artefacts.adapter_file import (
    CONFIG_NAME,
    FORMAT_VERSION,
    MODEL_NAME,
    AdapterConfig,
    AdapterUnit,
    ArmDice,
    BackboneIdentity,
    Recommendation,
    load_adapter_files,
    save_adapter,
)
from sea_peft.artefacts.record import HeadShape
from sea_peft.data.recipe import Recipe
from sea_peft.data.sliding import SlidingWindow
from sea_peft.documents import Invalid, upgraded
from sea_peft.errors import DiskError, WeightsError

HASH = "ab" * 32


def backbone(**changes) -> BackboneIdentity:
    fields = {
        "architecture": "segresnet",
        "kwargs": {"init_filters": 16},
        "weights": "phantom-source",
    }
    return BackboneIdentity(**{**fields, "sha256": HASH, "parameters": 4_700_000, **changes})


def config(**changes) -> AdapterConfig:
    unit = AdapterUnit(
        id="lora@down.0.conv#r4",
        family="lora",
        level=4,
        placement="parallel",
        path="down.0.conv",
        cost=10,
    )
    fields = {
        "sea_peft_version": "0.1.0",
        "backbone": backbone(),
        "labels": {"spleen": [2], "liver": [1, 3]},
        "channels": ["CT"],
        "recipe": Recipe(spacing=(1.5, 1.5, 1.5)),
        "window": SlidingWindow(patch=(48, 48, 32), overlap=0.25),
        "head": HeadShape(rows=[1, None], classes=None, on_features=None),
        "units": [unit],
        "dice": ArmDice(unadapted=None, head_only=0.6, adapted=0.8),
        "recommended": Recommendation(
            network="adapted", evidence="12 test cases: +20.0 ± 2.0 points"
        ),
        "policy": "sea",
        "seed": 0,
        "shots": 5,
    }
    return AdapterConfig(**{**fields, **changes})


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 2, generator=generator)
    return {"b.up": shared, "a.down": shared.T, "scale": torch.tensor(2.0, dtype=torch.float64)}


def test_tensors_come_back_bit_for_bit_and_config_equal(tmp_path, tensors):
    written = save_adapter(tmp_path / "adapter", config(), tensors, report="# hello", trace=None)
    read, loaded = load_adapter_files(tmp_path / "adapter")
    assert read == written
    assert list(read.labels) == ["spleen", "liver"]
    assert read.tensors["a.down"].shape == (2, 4)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert (tmp_path / "adapter" / "report.md").read_text() == "# hello"


def test_same_adapter_same_bytes(tmp_path, tensors):
    for name in ("one", "two"):
        save_adapter(
            tmp_path / name, config(), dict(sorted(tensors.items(), reverse=name == "two"))
        )
    for file in (CONFIG_NAME, MODEL_NAME):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_adapter_that_lies_there_is_replaced_whole(tmp_path, tensors):
    save_adapter(tmp_path / "adapter", config(), tensors, report="old")
    save_adapter(tmp_path / "adapter", config(seed=1), {"other": torch.ones(1)})
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [CONFIG_NAME, MODEL_NAME]
    assert load_adapter_files(tmp_path / "adapter")[0].seed == 1
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failed_save_leaves_the_old_adapter_and_nothing_else(
    tmp_path, tensors, monkeypatch, failing
):
    save_adapter(tmp_path / "adapter", config(), tensors)
    original = getattr(os, failing)

    def full(*args):
        if failing == "rename" and args[1] != tmp_path / "adapter":
            return original(*args)
        if failing == "rename" and ".old" in str(args[0]):
            return original(*args)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(DiskError, match="the disk is full"):
            save_adapter(tmp_path / "adapter", config(seed=1), tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert load_adapter_files(tmp_path / "adapter")[0].seed == 0


def edit(folder, **changes):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "install a newer sea_peft"),
        ({"format_version": None}, "not a version number"),
        ({"format_version": True}, "not a version number"),
        ({"surprise": 1}, "surprise"),
        ({"seed": "zero"}, "seed"),
        ({"tensors": {}}, "holds the tensor 'a.down' that adapter_config.json does not list"),
        (
            {"tensors": {"x": {"shape": [1], "dtype": "float32"}}},
            "'a.down' that adapter_config.json does not",
        ),
    ],
)
def test_each_defect_of_the_config_is_one_sentence(tmp_path, tensors, changes, sentence):
    save_adapter(tmp_path / "adapter", config(), tensors)
    edit(tmp_path / "adapter", **changes)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_adapter_files(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\ud800"])
def test_a_config_that_is_no_json_object(tmp_path, tensors, text):
    save_adapter(tmp_path / "adapter", config(), tensors)
    (tmp_path / "adapter" / CONFIG_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsError, match="copy the adapter again"):
        load_adapter_files(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (
            {"a.down": torch.zeros(2, 4), "scale": torch.tensor(2.0).double()},
            "lacks the tensor 'b.up'",
        ),
        ({"b.up": torch.zeros(4, 3)}, r"'a.down'"),
        (
            {
                "a.down": torch.zeros(2, 5),
                "b.up": torch.zeros(4, 2),
                "scale": torch.tensor(1.0).double(),
            },
            r"'a.down' is float32 \[2, 5\] but adapter_config.json says float32 \[2, 4\]",
        ),
        (
            {"a.down": torch.zeros(2, 4), "b.up": torch.zeros(4, 2), "scale": torch.tensor(1.0)},
            r"'scale' is float32 \[\] but adapter_config.json says float64 \[\]",
        ),
    ],
)
def test_tensors_must_be_those_of_the_config(tmp_path, tensors, stored, sentence):
    save_adapter(tmp_path / "adapter", config(), tensors)
    save_file(stored, tmp_path / "adapter" / MODEL_NAME)
    with pytest.raises(WeightsError, match=sentence):
        load_adapter_files(tmp_path / "adapter")


@pytest.mark.parametrize("missing", [CONFIG_NAME, MODEL_NAME])
def test_a_missing_file_is_named(tmp_path, tensors, missing):
    save_adapter(tmp_path / "adapter", config(), tensors)
    (tmp_path / "adapter" / missing).unlink()
    with pytest.raises(WeightsError, match=missing):
        load_adapter_files(tmp_path / "adapter")


def test_no_folder_and_damaged_tensors(tmp_path, tensors):
    with pytest.raises(WeightsError, match="There is no adapter folder"):
        load_adapter_files(tmp_path / "none")
    save_adapter(tmp_path / "adapter", config(), tensors)
    data = (tmp_path / "adapter" / MODEL_NAME).read_bytes()
    for damaged in (b"", data[:-3], b"PK\x03\x04" + data):
        (tmp_path / "adapter" / MODEL_NAME).write_bytes(damaged)
        with pytest.raises(WeightsError, match="is damaged"):
            load_adapter_files(tmp_path / "adapter")


@pytest.mark.parametrize(
    "path",
    [
        "/home/jane/w.safetensors",
        "~/w",
        "C:\\w.pt",
        "file:///w",
        "scans/jane.nii.gz",
        "../w",
        "s3://b/w",
    ],
)
def test_paths_do_not_get_into_an_adapter(path):
    with pytest.raises(ValidationError, match=r"holds a path|match pattern"):
        backbone(weights=path)
    with pytest.raises(ValidationError, match="holds a path"):
        config(labels={path: [1], "b": [2]})


def test_a_licence_given_as_a_place_stays_with_the_weights():
    assert backbone(licence="CC BY 4.0").licence == "CC BY 4.0"
    for place in ("https://creativecommons.org/licenses/by/4.0/", "/home/jane/LICENCE"):
        assert backbone(licence=place).licence == "see the card of the weights"


def test_module_paths_and_label_names_are_no_paths():
    assert backbone(weights="module.sub:factory").weights == "module.sub:factory"
    labels = {"kidney/left": [1], "liver": [2]}
    assert config(labels=labels).labels == labels


def test_an_adapter_of_version_1_is_still_read(tmp_path, tensors):
    """The folder was written by sea_peft 0.1.0 when version 1 was current."""
    folder = Path(__file__).parent / "adapter_v1"
    assert json.loads((folder / CONFIG_NAME).read_text())["format_version"] == 1
    read, loaded = load_adapter_files(folder)
    assert read.format_version == FORMAT_VERSION
    assert read.backbone.licence == "not stated"
    assert read.recommended.network == "adapted"  # it was all there was to use
    assert "recommended nothing" in read.recommended.evidence
    again = config(recommended=read.recommended)
    assert read == save_adapter(tmp_path / "again", again, tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_config_of_version_1_without_a_backbone_is_refused(tmp_path, tensors):
    save_adapter(tmp_path / "adapter", config(), tensors)
    edit(tmp_path / "adapter", format_version=1, backbone=None)
    with pytest.raises(WeightsError, match="not as an older sea_peft wrote it"):
        load_adapter_files(tmp_path / "adapter")


def test_older_versions_are_upgraded_step_by_step_and_newer_ones_refused():
    steps = {1: lambda d: {**d, "b": d["a"]}, 2: lambda d: {"c": d["b"]}}
    assert upgraded({"format_version": 1, "a": 5}, steps, 3) == {"c": 5, "format_version": 3}
    assert upgraded({"format_version": 3, "c": 5}, steps, 3) == {"c": 5, "format_version": 3}
    assert upgraded({"a": 5}, steps, 3, first=1) == {"c": 5, "format_version": 3}
    with pytest.raises(Invalid, match="has format version 4 but this sea_peft reads up to 3"):
        upgraded({"format_version": 4}, steps, 3)
