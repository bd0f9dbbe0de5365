"""The installed command, in a process of its own: its exit codes, what an end from outside
leaves, and that it works without a terminal.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("seapeft")
TINY = [
    "--steps",
    "8",
    "--cycles",
    "1",
    "--patch",
    "16,16,16",
    "--shots",
    "2",
    "--device",
    "cpu",
    "--no-mlflow",
]

pytestmark = pytest.mark.skipif(
    not COMMAND.is_file(), reason="seapeft is not installed beside this Python"
)


def seapeft(
    folder: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def one_sentence(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, ["adapt", "{toy}", "--budget", "1"], "write 1% for one per cent"),
        (
            3,
            ["adapt", "{toy}", "--shots", "10", "--weights", "{weights}"],
            "10 shots were asked for",
        ),
        pytest.param(
            4,
            ["adapt", "{toy}", "--shots", "2", "--budget", "3", "--weights", "{weights}"],
            "fits no unit",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            5,
            ["predict", "{toy}", "{toy}", "--out", "masks"],
            "has no readable adapter_config.json",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            6,
            ["adapt", "{toy}", "--device", "cuda:77", "--weights", "{weights}"],
            "use --device cpu",
            marks=pytest.mark.slow,
        ),
        (
            7,
            ["evaluate", "{adapter}", "{toy}", "--weights", "{weights}", "--min-dice", "1"],
            "is below --min-dice 1",
        ),
    ],
)
def test_exit_codes(
    toy: Path,
    weights: Path,
    adapter: Path,
    tmp_path: Path,
    code: int,
    arguments: list[str],
    words: str,
) -> None:
    places = {"toy": toy, "weights": weights, "adapter": adapter}
    done = seapeft(tmp_path, "-q", *(argument.format(**places) for argument in arguments))
    assert done.returncode == code
    one_sentence(done, words)
    assert [path for path in tmp_path.iterdir() if path.name != "home"] == []


def test_success_is_0_and_json_is_one_document(tmp_path: Path) -> None:
    done = seapeft(tmp_path, "adapters", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["families"]


def test_internal_errors_are_1(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    patch = (
        "import sea_peft.jobs.listing as m\ndef broken(): raise ZeroDivisionError('by"
        " chance')\nm.list_backbones = broken\n"
    )
    (tmp_path / "broken" / "sitecustomize.py").write_text(patch)
    done = seapeft(tmp_path, "backbones", "list", PYTHONPATH=str(tmp_path / "broken"))
    assert done.returncode == 1
    one_sentence(done, "Internal error: ZeroDivisionError: by chance (--debug shows the traceback)")


def test_partial_failures_are_8(adapter: Path, weights: Path, toy: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(toy / "imagesTr" / "toy_0_0000.nii.gz", scans / "good scan.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    done = seapeft(
        tmp_path, "predict", adapter, scans, "--out", "masks", "--weights", weights, "--json"
    )
    assert done.returncode == 8
    assert {case["case"]: case["status"] for case in json.loads(done.stdout)["cases"]} == {
        "bad": "failed",
        "good scan": "done",
    }
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "good scan.json",
        "good scan.nii.gz",
    ]


@pytest.mark.parametrize(
    "ending", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_end_from_outside_is_130_and_can_be_resumed(
    toy: Path, weights: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    """Scans that do not fit into memory lie in files meanwhile; nothing of them is left."""
    arguments = ["adapt", toy, "--weights", weights, "--out", "run", "--budget", "20%", *TINY]
    slow = tmp_path / "slow"
    slow.mkdir()
    patch = "import sea_peft.data.spill as m\nm.ScanCache.__init__.__defaults__ = (0, None)\n"
    (slow / "sitecustomize.py").write_text(patch)
    process = subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(slow)},
        # tests that run in the background of a shell inherit that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("cycle 0"):
            process.send_signal(ending)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert (
        err.strip()
        .splitlines()[-1]
        .startswith(f"Interrupted; go on with `seapeft adapt --resume run --weights {weights}`")
    )
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    resumed = seapeft(tmp_path, "adapt", "--resume", "run", "--weights", weights, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["status"] == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        pytest.param(["data", "check", "{toy}", "--label", "liver=1"], marks=pytest.mark.slow),
        ["data", "check", "{toy}", "--label", "liver=1", "--json"],
    ],
)
def test_an_output_that_is_full_is_one_sentence(
    toy: Path, tmp_path: Path, arguments: list[str]
) -> None:
    line = [COMMAND, "-q", *(argument.format(toy=toy) for argument in arguments)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            line, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 6
        one_sentence(done, "The output cannot be written (No space left on device)")
        silent = subprocess.run(
            line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, check=False
        )
        assert silent.returncode == 0
        assert silent.stdout


def test_an_encoding_that_lacks_letters_is_no_error(toy: Path, tmp_path: Path) -> None:
    data = shutil.copytree(toy, tmp_path / "Übung")
    described = json.loads((data / "dataset.json").read_text())
    described["labels"] = {"background": 0, "Niere ü 肝": 1, "spot": 2}
    (data / "dataset.json").write_text(json.dumps(described))
    for flags in ([], ["--json"]):
        done = seapeft(tmp_path, "data", "check", data, *flags, PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stdout.isascii()) == (0, True), done.stderr
    assert "Niere ü 肝" in json.loads(done.stdout)["labels"]
