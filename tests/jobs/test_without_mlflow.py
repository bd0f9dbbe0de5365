"""What makes masks of an adapter works in a process where MLflow cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys

from toys import TINY

_CODE = """
import sys
sys.modules["mlflow"] = None
from sea_peft.cli import run
adapter, weights, data, out = sys.argv[1:]
predict = ["predict", adapter, data, "--out", out + "/masks"]
merge = ["merge", adapter, "--out", out + "/m.safetensors"]
for verb in (predict, ["evaluate", adapter, data], merge):
    code = run([*verb, "--weights", weights])
    assert code == 0, verb
    assert "pandas" not in sys.modules, "MONAI takes nothing along that only costs time"
import pandas
import sea_peft.jobs.export
"""


def test_predict_evaluate_and_merge_need_no_mlflow(adapter, weights, toy, tmp_path):
    given = [str(path) for path in (adapter, weights, toy, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 5
    assert (tmp_path / "m.safetensors").is_file()


_ASKED = """
import sys
sys.modules["mlflow"] = None
from sea_peft.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_what_needs_mlflow_says_so_before_anything_else_and_adapt_does_without(
    weights, toy, tmp_path
):
    def asked(*given: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _ASKED, *map(str, given)],
            capture_output=True,
            text=True,
            check=False,
        )

    line = [
        "adapt",
        toy,
        "--weights",
        weights,
        *TINY,
        "--budget",
        "20%",
        "--test",
        "1",
        "--out",
        tmp_path / "run",
    ]
    for refused in (asked("ui", "--runs", tmp_path), asked(*line)):
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith("MLflow is not installed")
        assert "adapt with --no-mlflow" in refused.stderr
        assert "http" not in refused.stderr
    assert not (tmp_path / "run").exists()
    done = asked(*line, "--no-mlflow")
    assert done.returncode == 0, done.stderr
    assert "mlflow" not in json.loads((tmp_path / "run" / "config.json").read_text())["versions"]


def test_doctor_looks_at_all_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _ASKED, "doctor", "--runs", str(tmp_path), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    checks = {each["name"]: each["state"] for each in json.loads(done.stdout)["checks"]}
    assert "MLflow store" not in checks
    assert checks["telemetry"] == "ok"
