from __future__ import annotations

import json

import pytest

from sea_peft.backbones.label_names import read_label_names
from sea_peft.errors import UsageError

ITK_SNAP = """# ITK-SnAP Label Description File
    0     0    0    0        0  0  0    "Clear Label"
    1   225  140  154        1  1  1    "spleen"
    2    45  170  170        1  1  1    "left kidney"
"""
SLICER = (
    "# Color table\n0 background 0 0 0 0\n1 spleen 225 140 154 255\n2 left_kidney 45 170 170 255\n"
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (ITK_SNAP, ("spleen", "left kidney")),
        (SLICER, ("spleen", "left_kidney")),
        ("spleen\nleft kidney\n", ("spleen", "left kidney")),
        ("background\nspleen\n", ("spleen",)),
        ("1 spleen\n2 left kidney\n", ("spleen", "left kidney")),
        (json.dumps(["Unknown", "spleen"]), ("spleen",)),
        (json.dumps({"R": [0], "labels": ["Unknown", "spleen"]}), ("spleen",)),
        (json.dumps({"labels": {"background": 0, "b": 2, "a": 1}}), ("a", "b")),
        (json.dumps({"1": "a", "2": "b"}), ("a", "b")),
    ],
)
def test_names_come_in_the_order_of_the_outputs(text, names, tmp_path):
    (tmp_path / "labels.txt").write_text(text)
    assert read_label_names(tmp_path / "labels.txt") == names


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no labels"),
        ('{"a": [1]}', "names no labels"),
        ("1 a\n3 b\n", "has no name for output 2"),
    ],
)
def test_files_that_do_not_name_every_output_are_refused(text, sentence, tmp_path):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_label_names(tmp_path / "labels.txt")
