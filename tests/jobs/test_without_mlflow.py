"""What makes masks of an adapter works in a process where MLflow cannot be imported."""

from __future__ import annotations

import subprocess
import sys

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
    done = subprocess.run([sys.executable, "-c", _CODE, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 5
    assert (tmp_path / "m.safetensors").is_file()
