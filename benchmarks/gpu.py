"""What runs, steps and audits cost on a GPU: `python -m benchmarks.gpu`, which `benchmarks/gpu.sh`
calls after it has installed everything and has run the tests that need one.

Writes `results/gpu-<card>.json` and `.md`, anew after each row. What fails is a row too, and the
others go on. `--device cpu --small --out DIR` walks through all of it on any machine, in minutes;
what it then times is not worth keeping.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell import machine
from benchmarks.gpu_page import page, precision
from benchmarks.step_cost import fixed_step, prepared
from benchmarks.step_peer import arms, opened_first, versions
from benchmarks.store import RESULTS
from sea_peft.adapters import Adapted
from sea_peft.backbones import architecture
from sea_peft.backbones.weights import card_of
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.errors import first_line
from sea_peft.jobs.adapt import adapt
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.weights_file import save_weights
from sea_peft.loop.audit import Auditor, AuditResult
from sea_peft.loop.training import Trainer

# one row: what it is of, and what measures it
Row = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        backbones: bundled ones, of the default run, the steps and the forms.
        run: options of a default run, beside backbone and device.
        large: options of a large run, beside the same and its weights.
        swin: settings of the SwinUNETR of the large runs.
        beside: the bundled backbone of the large runs.
        warm_up: steps and audits before the timed ones.
        rounds: timed steps and audits.
        audited: units of a timed audit.
        patches: patches of a timed audit.
        compiler: backend of torch.compile.
        limit: most seconds of a row, since a compiler may take for ever.
        whole: most seconds of all rows; later ones are not begun.
    """

    backbones: tuple[str, ...]
    run: Mapping[str, Any]
    large: Mapping[str, Any]
    swin: Mapping[str, Any]
    beside: str
    warm_up: int
    rounds: int
    audited: int
    patches: int
    compiler: str
    limit: float
    whole: float


WHOLE = Size(
    backbones=("segresnet", "unet"),
    run={},
    large={
        "data": "phantom:low-dose-ct@1.5",
        "spacing": (1.5,) * 3,
        "patch": (96,) * 3,
        "steps": 60,
        "test": 2,
        "time_limit": 150,
    },
    swin={"feature_size": 48},
    beside="segresnet",
    warm_up=2,
    rounds=20,
    audited=8,
    patches=4,
    compiler="inductor",
    limit=210,
    whole=900,
)
SMALL = Size(
    backbones=("unet",),
    run={"steps": 8, "cycles": 1, "shots": 2, "test": 1, "profile": "lora"},
    large={
        "patch": (64,) * 3,
        "steps": 8,
        "cycles": 1,
        "shots": 2,
        "test": "none",
        "profile": "lora",
    },
    swin=architecture("swinunetr").small,
    beside="unet",
    warm_up=1,
    rounds=1,
    audited=2,
    patches=2,
    compiler="eager",
    limit=600,
    whole=3600,
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure and write. Returns the exit code: 1 where a row failed that should not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--small",
        action="store_true",
        help="tiny runs and a single round: only whether everything works",
    )
    parser.add_argument(
        "--only", action="append", choices=list(_PARTS), help="a part; may be given again"
    )
    parser.add_argument(
        "--out", type=Path, help="the folder to write to, benchmarks/results on a GPU"
    )
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch sees no CUDA device; --device cpu --small --out DIR tries everything without one"
        )
    out = asked.out or RESULTS
    if (device.type != "cuda" or asked.small) and out.resolve() == RESULTS.resolve():
        parser.error(
            "numbers of a CPU or of --small are not kept among the results; give another folder to"
            " --out"
        )
    path, failed = measure(device, SMALL if asked.small else WHOLE, asked.only or list(_PARTS), out)
    print(path, path.with_suffix(".md"), sep="\n")
    for row in failed:
        print(f"failed: {row}", file=sys.stderr)
    return 1 if failed else 0


def measure(
    device: torch.device, size: Size, parts: list[str], out: Path
) -> tuple[Path, list[str]]:
    """The parts in turn. Writes JSON and Markdown anew after each row, so that what is done is
    kept.

    Returns:
        The JSON, and the rows that failed and should not: a compiler may fail.
    """
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    path = out / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    end = time.monotonic() + size.whole
    found: dict[str, Any] = {
        "machine": machine(),
        "card": card,
        "bfloat16": _in_bfloat16(device),
        "size": {"rounds": size.rounds, "audited": size.audited, "patches": size.patches},
    }
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            found[part] = []
            for about, run in _PARTS[part](device, size, Path(folder) / part):
                name = ", ".join(
                    [
                        part,
                        about["backbone"],
                        *([about["form"]] if "form" in about else [precision(about)]),
                    ]
                )
                began = time.monotonic()
                try:
                    with _within(min(size.limit, end - began)):
                        row = run()
                except Exception as error:
                    traceback.print_exc()
                    row = {"fails": f"{type(error).__name__}: {first_line(error)}"}
                    if not about.get("compiled"):
                        failed.append(name)
                took = time.monotonic() - began
                found[part].append(about | row | {"took": took})
                print(f"{name}: {'fails after ' if 'fails' in row else ''}{took:.0f} s", flush=True)
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                path.with_suffix(".md").write_text(page(found), encoding="utf-8")
    return path, failed


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in here after that long, at once if that is over."""
    if seconds <= 0:
        raise TimeoutError("not begun, since all the time is over")

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _in_bfloat16(device: torch.device) -> bool:
    """Whether `adapt` trains in bfloat16 there (`Trainer.mixed_precision`)."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


# -- whole runs ------------------------------------------------------------------------------------


def _default_runs(device: torch.device, size: Size, folder: Path) -> Iterator[Row]:
    """The default command on each bundled backbone, and the same in float32 where the device
    would train in bfloat16.
    """
    for name in size.backbones:
        for mixed in (True, False) if _in_bfloat16(device) else (False,):
            out = folder / f"{name}-{'bfloat16' if mixed else 'float32'}"
            options = AdaptOptions(
                backbone=name, device=str(device), out=out, mlflow=False, **size.run
            )
            yield {"backbone": name, "bfloat16": mixed}, functools.partial(_run, options, mixed)


def _large_runs(device: torch.device, size: Size, folder: Path) -> Iterator[Row]:
    """SwinUNETR and a bundled one on fine phantoms in large patches, in the device's own
    precision.
    """
    weights: dict[str, Callable[[], Path | None]] = {
        "swinunetr": lambda: _random_swin(size, folder / "weights"),
        size.beside: lambda: None,
    }
    mixed = _in_bfloat16(device)
    for name, weights_of in weights.items():

        def run(
            name: str = name, weights_of: Callable[[], Path | None] = weights_of
        ) -> dict[str, Any]:
            of = weights_of()
            return _run(
                AdaptOptions(
                    backbone=name,
                    weights=None if of is None else str(of),
                    device=str(device),
                    out=folder / name,
                    mlflow=False,
                    **size.large,
                ),
                mixed,
            )

        yield {"backbone": name, "bfloat16": mixed}, run


def _random_swin(size: Size, path: Path) -> Path:
    """Weights of a SwinUNETR with random values, since time does not depend on them."""
    card = card_of(None)
    network = architecture("swinunetr").build(
        in_channels=len(card.channels), out_channels=len(card.labels), **size.swin
    )
    described = {
        **card.model_dump(mode="json", include={"labels", "channels", "recipe", "licence"}),
        **{"name": "random_swinunetr", "architecture": "swinunetr", "kwargs": dict(size.swin)},
        "patch": size.large["patch"],
    }
    return save_weights(path, network, described, half=False).with_suffix(".safetensors")


def _run(options: AdaptOptions, mixed: bool) -> dict[str, Any]:
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    result = adapt(options, mixed_precision=mixed)
    seconds = result.seconds.model_dump()
    return {
        "parameters": result.budget.backbone_parameters,
        "used": result.budget.used,
        "seconds": seconds,
        "audit_share": seconds["audit"] / (seconds["audit"] + seconds["train"]),
        "patches": result.audit.patches,
        "dice": result.dice.model_dump(include={"unadapted", "head_only", "adapted"}),
        "device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "host_bytes": result.peak_memory_bytes,
    }


# -- single steps and audits -----------------------------------------------------------------------


def _peers(device: torch.device, size: Size, _folder: Path) -> Iterator[Row]:
    """Steps of `step_peer`, in float32 and in bfloat16."""
    for backbone in size.backbones:
        for mixed in (False, True):
            yield (
                {"backbone": backbone, "bfloat16": mixed},
                functools.partial(_steps, device, size, backbone, mixed),
            )


def _steps(device: torch.device, size: Size, backbone: str, mixed: bool) -> dict[str, Any]:
    steps, parameters = arms(backbone, device, mixed)
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for step in range(size.warm_up + size.rounds):
        for arm, run in steps.items():
            took = _timed(device, functools.partial(run, step))
            if step >= size.warm_up:
                seconds[arm].append(took)
    return {
        "versions": versions(),
        "arms": [
            {"arm": arm, "parameters": parameters[arm], "seconds": of}
            for arm, of in seconds.items()
        ],
    }


def _forms(device: torch.device, size: Size, _folder: Path) -> Iterator[Row]:
    """A training step and an audit of the same units: as they are, with channels last in
    memory, and compiled.
    """
    changes: dict[str, Callable[[Adapted], object]] = {
        "as it is": lambda model: None,
        "channels_last_3d": _channels_last,
        "torch.compile": lambda model: model.backbone.compile(backend=size.compiler),
        "torch.compile, CUDA graphs": lambda model: model.backbone.compile(
            backend=size.compiler, mode="reduce-overhead"
        ),
    }
    for form, change in changes.items():
        for backbone in size.backbones:
            about = {"backbone": backbone, "form": form} | (
                {"compiled": True} if "compile" in form else {}
            )
            yield about, functools.partial(_form, device, size, backbone, change)


def _channels_last(model: Adapted) -> None:
    for parameter in model.backbone.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.contiguous(memory_format=torch.channels_last_3d)


def _form(
    device: torch.device, size: Size, backbone: str, change: Callable[[Adapted], object]
) -> dict[str, Any]:
    setup = prepared(backbone, "sea", str(device))
    shots = [
        prepare(c, setup.recipe, setup.dataset.channels, setup.dataset.labels)
        for c in setup.split.support
    ]
    crops = CropSampler(shots, setup.window, 0)
    units = sorted(opened_first(setup))
    torch.compiler.reset()
    change(setup.model)
    trainer = Trainer(setup.model, setup.settings.batch_size)
    step = _several(device, size, lambda i: fixed_step(trainer, units, crops, i))
    auditor = Auditor(setup.model, *crops.fixed(size.patches), batch=2)
    audited: list[AuditResult] = []
    cutoffs = dict.fromkeys(units[: size.audited], 0.0)
    audit = _several(device, size, lambda i: audited.append(auditor.audit(cutoffs)))
    return {"step": step, "audit": audit, "dice": audited[-1].dice_on}


def _several(device: torch.device, size: Size, run: Callable[[int], object]) -> dict[str, float]:
    """Seconds of the first time, and the median of the rounds after the warm-up."""
    took = [_timed(device, functools.partial(run, i)) for i in range(size.warm_up + size.rounds)]
    return {"first": took[0], "median": statistics.median(took[size.warm_up :])}


def _timed(device: torch.device, run: Callable[[], object]) -> float:
    """Wall seconds until the device is done."""
    wait = (
        functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    )
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


_PARTS: Mapping[str, Callable[[torch.device, Size, Path], Iterator[Row]]] = {
    "runs": _default_runs,
    "large": _large_runs,
    "peers": _peers,
    "forms": _forms,
}


if __name__ == "__main__":
    sys.exit(main())
