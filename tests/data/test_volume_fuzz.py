"""Damaged volumes end in a refusal of one sentence or are read: no traceback, no process that
dies, none that hangs or fills memory.
"""

import random
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dicom_scans import write_seg, write_series
from reading_child import Reader
from synthetic_scans import scan
from volume_mutations import SHAPE, damaged, seeds

from sea_peft.data.volumes import Volume, write_volume

_LIMIT_S = 20
_MOST_MEMORY = 900 << 20
STRAIGHT = np.array([[-1.2, 0, 0, 30], [0, -1.0, 0, 20], [0, 0, 2.0, -10], [0, 0, 0, 1.0]])


def kinds(folder: Path) -> dict[str, dict[str, bytes]]:
    """Everything that is damaged, DICOM where the extra is there."""
    found = seeds(folder)
    try:
        import highdicom  # noqa: F401
    except ImportError:
        return found
    image, label = scan(3, SHAPE)
    numbers = random.Random(0)
    with pytest.MonkeyPatch.context() as patch:  # the same names every time
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=numbers.getrandbits(128), version=4))
        files = write_series(folder / "d", np.rint(image), STRAIGHT, names="IM{:04d}.dcm")
        write_seg(folder / "seg.dcm", files, {"organ": label})
    content = {path.name: path.read_bytes() for path in (*files, folder / "seg.dcm")}
    found["dicom slice"] = content
    found["dicom seg"] = dict(reversed(content.items()))
    return found


def fuzzed(tmp_path: Path, count: int, seed: int) -> Counter:
    """Damage and read `count` volumes; how many ended how."""
    sound = kinds(tmp_path)
    draw, reader, ends = random.Random(seed), Reader(_LIMIT_S), Counter()
    try:
        for number in range(count):
            kind = draw.choice(list(sound))
            folder = tmp_path / f"{number}"
            folder.mkdir()
            for at, (name, content) in enumerate(sound[kind].items()):
                (folder / name).write_bytes(content if at else damaged(content, draw))
            about = reader.read(folder)
            ends[about["end"]] += 1
            fine = about["end"] in ("read", "refused") and about["peak"] < _MOST_MEMORY
            assert fine, (seed, number, kind, about)
            shutil.rmtree(folder)
    finally:
        reader.close()
    return ends


def test_damaged_volumes(tmp_path):
    ends = fuzzed(tmp_path, 120, seed=1)
    assert ends["refused"] > 40
    assert ends["read"] > 10


@pytest.mark.slow
def test_many_damaged_volumes(tmp_path, capsys):
    ends = fuzzed(tmp_path, 2000, seed=2)
    with capsys.disabled():
        print(
            f"\n2000 damaged volumes: {dict(ends)}, 0 internal errors, 0 deaths, 0 over"
            f" {_LIMIT_S} s"
        )
    assert sum(ends.values()) == 2000


@pytest.mark.slow
def test_damaged_volumes_on_the_command_line(tmp_path, capsys):
    sound = {kind: files for kind, files in kinds(tmp_path).items() if not kind.startswith("dicom")}
    image, label = scan(3, SHAPE)
    draw, ends = random.Random(3), Counter()
    for number in range(40):
        kind, role = draw.choice(list(sound)), draw.choice(("images", "labels"))
        folder = tmp_path / f"{number}"
        for at in ("images", "labels"):
            (folder / at).mkdir(parents=True)
            if at != role:
                write_volume(
                    folder / at / "a.nii", Volume(image if at == "images" else label, STRAIGHT)
                )
        for at, (name, content) in enumerate(sound[kind].items()):
            (folder / role / name).write_bytes(content if at else damaged(content, draw))
        command = [sys.executable, "-m", "sea_peft", "data", "check", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        ends[done.returncode] += 1
        assert done.returncode in (0, 3), (number, kind, done.stderr)
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
    with capsys.disabled():
        print(f"\n40 damaged volumes through `data check`: exit codes {dict(ends)}")
