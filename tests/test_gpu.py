"""What must hold on a CUDA device. Each test runs on the CPU too, so that it is known to work
where there is no such device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import install, tiny_weights, toy_dataset

from sea_peft.artefacts.trace import read_trace
from sea_peft.data.cases import FileCase
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.jobs.adapt import adapt, resume
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.predictor import Predictor
from sea_peft.loop import events
from sea_peft.phantom import SOURCE, render

TOP = Path(__file__).parents[1]
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    ],
)
everywhere = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdaptOptions:
    """A run of seconds on toy scans, with installed weights."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return AdaptOptions(
        data=str(toy_dataset(tmp_path / "Dataset007_Toy")),
        weights=install(tiny_weights(tmp_path)),
        shots=3,
        budget="20%",
        steps=12,
        cycles=2,
        mlflow=False,
    )


def _on(options: AdaptOptions, device: str, out: str) -> AdaptOptions:
    return AdaptOptions(**{**vars(options), "device": device, "out": out})


@everywhere
def test_a_run_is_that_of_the_cpu_up_to_rounding(options: AdaptOptions, device: str) -> None:
    losses: dict[str, list[float]] = {"cpu": [], device: []}
    results = {}
    for where, found in losses.items():

        def keep(event: events.Event, found: list[float] = found) -> None:
            if isinstance(event, events.TrainingStep) and event.phase == "warmup":
                found.append(event.loss)

        results[where] = adapt(_on(options, where, f"on_{where}"), listen=keep)
    cpu, other = results["cpu"], results[device]
    assert other.status == cpu.status == "done"
    assert other.device == device
    assert other.budget.limit == cpu.budget.limit
    assert 0 < other.budget.used <= other.budget.limit
    assert (other.support_cases, other.audit_cases, other.test_cases) == (
        cpu.support_cases,
        cpu.audit_cases,
        cpu.test_cases,
    )
    assert losses["cpu"]
    # bfloat16 keeps eight bits
    assert losses[device] == pytest.approx(losses["cpu"], rel=0.02)
    assert other.dice.unadapted == pytest.approx(cpu.dice.unadapted, abs=0.005)
    assert other.dice.adapted == pytest.approx(cpu.dice.adapted, abs=0.1)


@everywhere
def test_masks_are_those_of_the_cpu_in_999_of_1000_voxels(tmp_path: Path, device: str) -> None:
    images, _, affine = render(SOURCE, 0)
    image = images["CT"] if isinstance(images, dict) else images
    write_volume(
        tmp_path / "scan.nii.gz", Volume(np.ascontiguousarray(image[:48, :48, :32]), affine)
    )
    masks = []
    for where in ("cpu", device):
        predictor = Predictor(TOP / "runs" / "example", device=where)
        (case,) = find_cases([tmp_path / "scan.nii.gz"], predictor.channels)
        assert isinstance(case, FileCase)
        masks.append(predictor.label_map(case))
    assert masks[0].any()
    assert (masks[0] == masks[1]).mean() >= 0.999


class _Stopped(Exception):
    """In the place of a kill."""


@everywhere
def test_a_run_that_ends_early_goes_on(options: AdaptOptions, device: str) -> None:
    def stop(event: events.Event) -> None:
        if isinstance(event, events.Ranked):
            raise _Stopped

    with pytest.raises(_Stopped):
        adapt(_on(options, device, "run"), listen=stop)
    result = resume("run")
    assert (result.status, result.device) == ("done", device)
    allocated = [
        event.cycle
        for event in read_trace(Path("run/trace.jsonl"))
        if isinstance(event, events.Allocated)
    ]
    assert allocated == sorted(set(allocated)), "no cycle is lost or told twice"


# what this process may still take: on a device by torch's own limit, on the CPU by the kernel's
_LIMITS = {
    "cuda": "torch.cuda.set_per_process_memory_fraction(1e-4)",
    "cpu": (
        "import resource; import sea_peft.jobs.adapt; import sea_peft.data.augment\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + (512 << 20),) * 2)"
    ),
}


@everywhere
def test_memory_that_runs_out_is_said_in_one_sentence(options: AdaptOptions, device: str) -> None:
    if device == "cpu" and not Path("/proc/self/statm").exists():
        pytest.skip("only Linux says how much memory a process has mapped")
    code = (
        f"import sys, torch\n{_LIMITS[device]}\nfrom sea_peft.cli import"
        " run\nsys.exit(run(sys.argv[1:]))"
    )
    given = (
        "--shots 3 --budget 20% --steps 12 --cycles 2 --patch 128,128,128 --no-mlflow --out run"
        f" --device {device}"
    )
    arguments = ["adapt", options.data, "--weights", options.weights, *given.split()]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 6, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "emory ran out" in last or "does not fit into" in last, done.stderr
    assert "Traceback" not in done.stderr
