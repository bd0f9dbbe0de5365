"""Killed with SIGKILL at any moment, a verb leaves its results whole or not at all, and the
next one tidies up behind it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

MOMENTS = 10
OPERATIONS = ("open", "mkdir", "fsync", "replace", "rename", "unlink", "rmdir")

Line = list[str]


def run(line: Line, home: str, counted: Connection, last: int | None) -> None:
    """A verb in a process of its own, which kills itself before its `last`-th operation on
    files; tells how many there were.
    """
    os.environ["XDG_DATA_HOME"] = home
    from sea_peft import cli

    done = 0

    def counting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted_and_done(*given: Any, **named: Any) -> Any:
            nonlocal done
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return operation(*given, **named)

        return counted_and_done

    for name in OPERATIONS:
        setattr(os, name, counting(getattr(os, name)))
    code = cli.run(["-q", *line])
    counted.send((code, done))


def visible(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("[!.]*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("verb", ["predict", "predict again", "import", "merge", "report"])
def test_a_killed_verb_leaves_nothing_half(
    tmp_path: Path, toy: Path, weights: Path, adapter: Path, verb: str
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "sea_peft.jobs.predict",
            "sea_peft.jobs.merge",
            "sea_peft.jobs.importing",
            "sea_peft.artefacts.report",
        ]
    )

    def start(line: Line, last: int | None = None) -> tuple[int | None, int]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=run, args=(line, str(tmp_path / "home"), theirs, last))
        process.start()
        theirs.close()
        try:
            answer: tuple[int | None, int] = ours.recv()
        except EOFError:
            answer = None, last or 0
        process.join()
        return answer

    out, scans = tmp_path / "out", tmp_path / "scans"
    scans.mkdir()
    for number in (0, 1):
        shutil.copy(toy / "imagesTr" / f"toy_{number}_0000.nii.gz", scans / f"toy_{number}.nii.gz")
    typed = ["--weights", str(weights)]
    predict = ["predict", str(adapter), str(scans), "--out", str(out), "--preview", *typed]
    lines: dict[str, Line] = {
        "predict": predict,
        "predict again": [*predict, "--overwrite"],
        "import": [
            *(
                "backbones",
                "import",
                str(weights),
                "--as",
                "mine",
                "--backbone",
                "segresnet",
                "--channel",
                "CT",
                "--spacing",
                "2",
            ),
            *(
                "--labels",
                "a,b",
                "--setting",
                "blocks_down=[1,1,1]",
                "--setting",
                "blocks_up=[1,1]",
                "--patch",
                "16,16,16",
            ),
        ],
        "merge": ["merge", str(adapter), "--out", str(out / "m.safetensors"), *typed],
        "report": ["report", str(out)],
    }
    line = lines[verb]
    where = tmp_path / "home" / "sea_peft" / "weights" if verb == "import" else out

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        if verb == "merge":
            out.mkdir()
        if verb == "report":
            shutil.copytree(Path(__file__).parents[2] / "runs" / "example", out)
        if verb == "predict again":
            assert start(predict)[0] == 0

    fresh()
    code, operations = start(line)
    assert code == 0
    whole = visible(where)
    moments = random.Random(verb).sample(range(operations), min(MOMENTS, operations))
    for moment in moments:
        fresh()
        before = visible(where)
        assert start(line, moment)[0] is None
        after = visible(where)
        steady = {name for name in whole if name.endswith((".gz", ".json", ".safetensors", ".png"))}
        assert after.keys() <= whole.keys()
        assert all(
            after[name] in (whole[name], before.get(name)) for name in after if name in steady
        ), "a part of a file"
        if "report.html" in after and "report.html" not in before:
            assert after["report.html"].rstrip().endswith(b"</html>")
        for mask in (name for name in after if name.endswith(".nii.gz")):
            assert {
                mask.replace(".nii.gz", ".json"),
                mask.replace(".nii.gz", ".png"),
            } <= after.keys()
        if any(name.endswith(".safetensors") for name in after):
            assert after == whole, "weights have their card"
        elif any(name.endswith(".nii.gz") for name in after) and verb == "predict":
            assert start([*line, "--overwrite"])[0] == 0
        else:  # what the killed one left is in nobody's way
            assert start(line)[0] == 0
        assert visible(where).keys() == whole.keys()
        assert not list(where.glob(".*")), "what was killed is tidied up"
    print(f"\n{verb}: killed at {len(moments)} of {operations} operations")
