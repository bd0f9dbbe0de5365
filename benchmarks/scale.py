"""What a cohort costs: processes side by side against one, start-up, and `predict` against MONAI's
own sliding window.

`python -m benchmarks scale` writes `results/scale.json` and `.md`. The machine may be busy with
other things: arms are measured in turn in short rounds, CPU time stands beside wall time, and the
load beside both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft.backbones.typed import NOTHING
from sea_peft.data.cases import FileCase
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.merge import fold
from sea_peft.jobs.model import open_adapter
from sea_peft.jobs.predictor import Predictor
from sea_peft.phantom import SOURCE, render

SCANS, ROUNDS = 300, 2
PATIENTS = 12
SHAPE = (48, 48, 32)  # one window of the example's
ADAPTER = Path(__file__).parents[1] / "runs" / "example"
ARMS = {  # arm → processes, threads of each
    "one process of one thread": (1, 1),
    "two processes of one thread": (2, 1),
    "one process of two threads": (1, 2),
}
_STARTS = {  # what is run until → its code
    "torch alone": "import torch",
    "first window": (
        "import sys; import sea_peft.jobs.inference as inference\n"
        "def first(*_, **__): raise KeyboardInterrupt\n"
        "inference.blended = first\n"
        "from sea_peft import cli\n"
        "assert cli.run(['predict', *sys.argv[1:]]) == 130"
    ),
}


def measure() -> Path:
    """Everything in turn. Writes JSON and Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scans = _scans(root / "scans")
        arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        starts: dict[str, list[dict[str, Any]]] = {name: [] for name in _STARTS}
        for number in range(ROUNDS):
            for arm, (jobs, threads) in ARMS.items():
                out = root / f"{number} {arm}"
                arms[arm].append(_cohort(scans, out, jobs, threads))
            for name, code in _STARTS.items():
                given = [
                    ADAPTER,
                    scans / "case_000.nii.gz",
                    "--out",
                    root / "none",
                    "--device",
                    "cpu",
                    "-q",
                ]
                starts[name].append(_run([sys.executable, "-c", code, *map(str, given)], 1))
        masks = [
            {p.name: p.read_bytes() for p in (root / f"0 {arm}").glob("*.nii.gz")}
            for arm in list(ARMS)[:2]
        ]
        result = {
            "machine": machine(),
            "scans": SCANS,
            "rounds": ROUNDS,
            "shape": SHAPE,
            "input_bytes": sum(p.stat().st_size for p in scans.iterdir()) / SCANS,
            "output_bytes": (
                sum(p.stat().st_size for p in (root / f"0 {next(iter(ARMS))}").iterdir()) / SCANS
            ),
            "same_masks": masks[0] == masks[1] and len(masks[0]) == SCANS,
            "arms": arms,
            "until": starts,
            "against_monai": _against_monai(root),
        }
    path = RESULTS / "scale.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_page(result), encoding="utf-8")
    return path


def _scans(folder: Path) -> Path:
    """Parts of phantoms, each from another place."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    patients = [render(SOURCE, number) for number in range(PATIENTS)]
    for number in range(SCANS):
        images, _, affine = patients[number % PATIENTS]
        image = images["CT"] if isinstance(images, dict) else images
        start = [
            int(rng.integers(0, max(1, n - size + 1)))
            for n, size in zip(image.shape, SHAPE, strict=True)
        ]
        part = image[tuple(slice(s, s + size) for s, size in zip(start, SHAPE, strict=True))]
        write_volume(
            folder / f"case_{number:03d}.nii.gz", Volume(np.ascontiguousarray(part), affine)
        )
    return folder


def _cohort(scans: Path, out: Path, jobs: int, threads: int) -> dict[str, Any]:
    given = [ADAPTER, scans, "--out", out, "--device", "cpu", "--jobs", jobs, "-q"]
    return _run([sys.executable, "-m", "sea_peft", "predict", *map(str, given)], threads)


def _run(command: list[str], threads: int) -> dict[str, Any]:
    """Wall and CPU seconds of a command and its children, the largest resident set of each
    process, and the load. Raises RuntimeError.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    environment.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # an installed package is not compiled at every start either
    before, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        peaks: dict[int, int] = {}
        while True:
            for pid in _family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.2)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read().decode(errors="replace"))
    return {
        "wall": round(time.monotonic() - began, 1),
        "cpu": round(usage.ru_utime + usage.ru_stime, 2),  # of children that were waited for, too
        "peak_bytes": sorted(peaks.values(), reverse=True),
        "load": [round(before, 2), round(os.getloadavg()[0], 2)],
    }


def _family(pid: int) -> list[int]:
    """The process and its children, by Linux's own account."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *map(int, children)]


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0
    )


def _against_monai(root: Path) -> dict[str, Any]:
    """CPU seconds from a prepared scan to probabilities, in one process of one thread, in turn:
    `predict`'s windows with the adapter, and MONAI's `sliding_window_inference` with the merged
    network.
    """
    from monai.inferers import sliding_window_inference

    torch.set_num_threads(1)
    images, _, affine = render(SOURCE, 0)
    write_volume(
        root / "whole.nii.gz", Volume(images["CT"] if isinstance(images, dict) else images, affine)
    )
    predictor = Predictor(ADAPTER, NOTHING, "cpu")
    (case,) = find_cases([root / "whole.nii.gz"], predictor.channels)
    assert isinstance(case, FileCase)
    scan, window = predictor.prepared(case), predictor.config.window
    merged = fold(open_adapter(ADAPTER / "adapter"), "merged").network

    def theirs(batch: int) -> torch.Tensor:
        with torch.no_grad():
            logits = sliding_window_inference(
                scan.image[None],
                window.patch,
                batch,
                merged,
                overlap=window.overlap,
                mode="gaussian",
            )
        assert isinstance(logits, torch.Tensor)
        return logits.softmax(dim=1)

    runs: dict[str, Callable[[], Any]] = {
        "predict": lambda: predictor.probabilities(scan),
        "MONAI, 1 window at a time": lambda: theirs(1),
        "MONAI, 2": lambda: theirs(2),
        "MONAI, 4": lambda: theirs(4),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS + 1):  # the first one warms up
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - began)
    return {"shape": list(scan.image.shape[1:]), "seconds": seconds}


def _page(result: dict[str, Any]) -> str:
    arms = {arm: _mean(rows) for arm, rows in result["arms"].items()}
    one = arms["one process of one thread"]
    lines = [
        "# What a cohort costs",
        "",
        (
            "Made by `python -m benchmarks scale`: `seapeft predict` with the adapter of"
            f" `runs/example` (SegResNet, 4.7 million parameters) on {SCANS} phantoms of"
            f" {'×'.join(map(str, SHAPE))} voxels, one window each, whole commands; {ROUNDS} rounds"
            " of all arms in turn, means. Machine:"
            f" `{json.dumps(result['machine'], sort_keys=True)}`. The load of the whole machine"
            " stands beside."
        ),
        "",
        (
            "Masks of one and of two processes are"
            f" {'the same, bit for bit' if result['same_masks'] else 'NOT the same'}."
        ),
        "",
        "| | wall s | × one | CPU s | load | largest resident set of each process, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for arm, row in arms.items():
        peaks = ", ".join(f"{n >> 20}" for n in row["peak_bytes"])
        lines.append(
            f"| {arm} | {row['wall']:.0f} | {one['wall'] / row['wall']:.2f} | {row['cpu']:.0f} |"
            f" {row['load']:.1f} | {peaks} |"
        )
    starts = {
        name: {key: statistics.median(row[key] for row in rows) for key in ("cpu", "wall")}
        for name, rows in result["until"].items()
    }
    two, start = arms["two processes of one thread"], starts["first window"]["cpu"]
    gains = ", ".join(
        f"{_gain(scans, one, two, start):.2f} for {scans:,} scans" for scans in (SCANS, 100_000)
    )
    lines += [
        "",
        (
            "× one: wall time, which on a busy machine says as much about the others as about the"
            f" processes. By CPU time alone, two processes do {two['cpu'] / one['cpu']:.2f} times"
            " the work of one, the starts of three processes included. On two free cores, where"
            f" the first process starts alone, that would be × one: {gains}."
        ),
        "",
        "| until, medians | CPU s | wall s |",
        "|---|---|---|",
        *(f"| {name} | {row['cpu']:.1f} | {row['wall']:.1f} |" for name, row in starts.items()),
        "",
        (
            f"From a prepared scan of {'×'.join(map(str, result['against_monai']['shape']))} voxels"
            f" to probabilities, one thread, medians of {ROUNDS}; MONAI's"
            " `sliding_window_inference` runs the merged network:"
        ),
        "",
        "| | CPU s | of predict's |",
        "|---|---|---|",
    ]
    seconds = {
        name: statistics.median(of) for name, of in result["against_monai"]["seconds"].items()
    }
    lines += [
        f"| {name} | {value:.2f} | {value / seconds['predict']:.2f} |"
        for name, value in seconds.items()
    ]
    lines += [
        "",
        (
            f"A scan of these takes {result['input_bytes'] / 1000:.0f} kB, and its mask and sidecar"
            f" {result['output_bytes'] / 1000:.1f} kB."
        ),
    ]
    return "\n".join(lines) + "\n"


def _gain(scans: int, one: dict[str, Any], two: dict[str, Any], start: float) -> float:
    """How much faster two processes are on two free cores, by their CPU time: the first starts
    alone, then two others start and share the scans.
    """
    alone, shared = one["cpu"] - start, two["cpu"] - 3 * start
    return (start + scans / SCANS * alone) / (2 * start + scans / SCANS * shared / 2)


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    peaks = zip(*(row["peak_bytes"] for row in rows), strict=False)
    return {
        "wall": statistics.fmean(row["wall"] for row in rows),
        "cpu": statistics.fmean(row["cpu"] for row in rows),
        "load": statistics.fmean(value for row in rows for value in row["load"]),
        "peak_bytes": [max(peak) for peak in peaks],
    }
