"""What runs, steps and audits cost on a GPU: `python -m benchmarks.gpu`, which `benchmarks/gpu.sh` calls after it has
installed everything and has run the tests that need one.

Writes `results/gpu-<card>.json` and `.md`. `--device cpu --small --out DIR` walks through all of it on any machine, in
minutes; what it then times is not worth keeping.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell import machine
from benchmarks.step_cost import fixed_step, prepared
from benchmarks.step_peer import PEER, arms, opened_first, versions
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
from sea_peft.loop.audit import Auditor
from sea_peft.loop.training import Trainer

AUDITED = 8  # units of a timed audit
WARM_UP = 2  # rounds before the timed ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        backbones: bundled ones, of the default run, the steps and the forms.
        run: options of a default run, beside backbone and device.
        large: options of a large run, beside the same and its weights.
        swin: settings of the SwinUNETR of the large runs.
        beside: the bundled backbone of the large runs.
        rounds: timed steps and audits.
        compiler: backend of torch.compile.
    """

    backbones: tuple[str, ...]
    run: Mapping[str, Any]
    large: Mapping[str, Any]
    swin: Mapping[str, Any]
    beside: str
    rounds: int
    compiler: str


WHOLE = Size(
    backbones=("segresnet", "unet"),
    run={},
    large={
        "data": "phantom:low-dose-ct@1.5",
        "spacing": (1.5,) * 3,
        "patch": (96,) * 3,
        "steps": 60,
        "test": 2,
        "time_limit": 300,
    },
    swin={"feature_size": 48},
    beside="segresnet",
    rounds=20,
    compiler="inductor",
)
SMALL = Size(
    backbones=("unet",),
    run={"steps": 8, "cycles": 1, "shots": 2, "test": 1, "profile": "lora"},
    large={"patch": (64,) * 3, "steps": 8, "cycles": 1, "shots": 2, "test": "none", "profile": "lora"},
    swin=architecture("swinunetr").small,
    beside="unet",
    rounds=1,
    compiler="eager",
)


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--small", action="store_true", help="tiny runs and a single round: only whether everything works"
    )
    parser.add_argument("--only", action="append", choices=list(_PARTS), help="a part; may be given again")
    parser.add_argument("--out", type=Path, help="the folder to write to, benchmarks/results on a GPU")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --small --out DIR tries everything without one")
    if asked.out is None and (device.type != "cuda" or asked.small):
        parser.error("numbers of a CPU or of --small are not kept among the results; give --out")
    print(*measure(device, SMALL if asked.small else WHOLE, asked.only or list(_PARTS), asked.out or RESULTS), sep="\n")


def measure(device: torch.device, size: Size, parts: list[str], out: Path) -> tuple[Path, Path]:
    """The parts in turn. Writes JSON and Markdown anew after each, so that what is done is kept."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    path = out / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    found: dict[str, Any] = {
        "machine": machine(),
        "card": card,
        "bfloat16": _in_bfloat16(device),
        "rounds": size.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            began = time.monotonic()
            found[part] = _PARTS[part](device, size, Path(folder) / part)
            print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(_page(found), encoding="utf-8")
    return path, path.with_suffix(".md")


def _in_bfloat16(device: torch.device) -> bool:
    """Whether `adapt` trains in bfloat16 there (`Trainer.mixed_precision`)."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


# -- whole runs ------------------------------------------------------------------------------------------------


def _default_runs(device: torch.device, size: Size, folder: Path) -> list[dict[str, Any]]:
    """The default command on each bundled backbone."""
    return [
        _run(name, AdaptOptions(backbone=name, device=str(device), out=folder / name, mlflow=False, **size.run))
        for name in size.backbones
    ]


def _large_runs(device: torch.device, size: Size, folder: Path) -> list[dict[str, Any]]:
    """SwinUNETR, whose values are random since time does not depend on them, and a bundled one, on fine phantoms in large patches."""
    card = card_of(None)
    network = architecture("swinunetr").build(
        in_channels=len(card.channels), out_channels=len(card.labels), **size.swin
    )
    described = {
        **card.model_dump(mode="json", include={"labels", "channels", "recipe", "licence"}),
        **{"name": "random_swinunetr", "architecture": "swinunetr", "kwargs": dict(size.swin)},
        "patch": size.large["patch"],
    }
    file = save_weights(folder / "weights", network, described, half=False).with_suffix(".safetensors")
    weights = {"swinunetr": str(file), size.beside: None}
    return [
        _run(
            name,
            AdaptOptions(
                backbone=name, weights=of, device=str(device), out=folder / name, mlflow=False, **size.large
            ),
        )
        for name, of in weights.items()
    ]  # fmt: skip


def _run(name: str, options: AdaptOptions) -> dict[str, Any]:
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result = adapt(options)
    seconds = result.seconds.model_dump()
    return {
        "backbone": name,
        "parameters": result.budget.backbone_parameters,
        "used": result.budget.used,
        "seconds": seconds,
        "audit_share": seconds["audit"] / (seconds["audit"] + seconds["train"]),
        "patches": result.audit.patches,
        "dice": result.dice.model_dump(include={"unadapted", "head_only", "adapted"}),
        "device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "host_bytes": result.peak_memory_bytes,
    }


# -- single steps and audits -----------------------------------------------------------------------------------


def _peers(device: torch.device, size: Size, _folder: Path) -> dict[str, Any]:
    """Steps of `step_peer`, in float32 and in bfloat16."""
    rows = []
    for backbone in size.backbones:
        for mixed in (False, True):
            steps, parameters = arms(backbone, device, mixed)
            seconds: dict[str, list[float]] = {arm: [] for arm in steps}
            for step in range(WARM_UP + size.rounds):
                for arm, run in steps.items():
                    took = _timed(device, functools.partial(run, step))
                    if step >= WARM_UP:
                        seconds[arm].append(took)
            rows += [
                {"backbone": backbone, "bfloat16": mixed, "arm": arm, "parameters": parameters[arm], "seconds": of}
                for arm, of in seconds.items()
            ]
    return {"versions": versions(), "rows": rows}


def _forms(device: torch.device, size: Size, _folder: Path) -> list[dict[str, Any]]:
    """A training step and an audit of the same units: as they are, with channels last in memory, and compiled."""
    changes: dict[str, Callable[[Adapted], object]] = {
        "as it is": lambda model: None,
        "channels_last_3d": _channels_last,
        "torch.compile": lambda model: model.backbone.compile(backend=size.compiler),
    }
    return [
        {"backbone": backbone, "form": form} | _form(device, size, backbone, change)
        for backbone in size.backbones
        for form, change in changes.items()
    ]


def _channels_last(model: Adapted) -> None:
    for parameter in model.backbone.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.contiguous(memory_format=torch.channels_last_3d)


def _form(device: torch.device, size: Size, backbone: str, change: Callable[[Adapted], object]) -> dict[str, Any]:
    setup = prepared(backbone, "sea", str(device))
    shots = [prepare(c, setup.recipe, setup.dataset.channels, setup.dataset.labels) for c in setup.split.support]
    crops = CropSampler(shots, setup.window, 0)
    units = sorted(opened_first(setup))
    images, labels = crops.fixed(4)
    torch.compiler.reset()
    try:
        change(setup.model)
        trainer = Trainer(setup.model, setup.settings.batch_size)
        step = _several(device, size, lambda i: fixed_step(trainer, units, crops, i))
        auditor = Auditor(setup.model, images, labels, batch=2)
        audit = _several(device, size, lambda i: auditor.audit(dict.fromkeys(units[:AUDITED], 0.0)))
        dice = auditor.audit(dict.fromkeys(units[:AUDITED], 0.0)).dice_on
    except Exception as error:  # what a compiler cannot do is a result too
        return {"fails": f"{type(error).__name__}: {first_line(error)}"}
    return {"step": step, "audit": audit, "dice": dice}


def _several(device: torch.device, size: Size, run: Callable[[int], object]) -> dict[str, float]:
    """Seconds of the first time, and the median of the rounds after the warm-up."""
    took = [_timed(device, functools.partial(run, i)) for i in range(WARM_UP + size.rounds)]
    return {"first": took[0], "median": statistics.median(took[WARM_UP:])}


def _timed(device: torch.device, run: Callable[[], object]) -> float:
    """Wall seconds until the device is done."""
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


# -- the page --------------------------------------------------------------------------------------------------


def _page(found: Mapping[str, Any]) -> str:
    precision = "bfloat16 (torch.autocast), as `adapt` does on this card" if found["bfloat16"] else "float32"
    lines = [
        f"# On {found['card']}",
        "",
        f"Made by `benchmarks/gpu.sh`: wall time. Machine: `{json.dumps(found['machine'], sort_keys=True)}`. Runs train in {precision}, and are "
        "audited and scored in float32.",
    ]
    for part, title in (("runs", "The default run"), ("large", "Five shots at 1.5 mm in patches of 96×96×96")):
        if part in found:
            lines += ["", f"## {title}", "", *_of_runs(found[part])]
    if "peers" in found:
        lines += ["", "## A step against MONAI with HF PEFT", "", *_of_peers(found["peers"], found["rounds"])]
    if "forms" in found:
        lines += ["", "## Channels last, and compiled", "", *_of_forms(found["forms"], found["rounds"])]
    return "\n".join(lines) + "\n"


def _of_runs(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Audits' share: of training and audits together. Memory: the most that torch had allocated on the device, and the largest resident set.",
        "",
        "| backbone | parameters | trained | s | training | audits | scoring | audits' share | device, GiB | host, GiB | Dice unadapted | adapted |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        seconds, dice = r["seconds"], r["dice"]
        held = "–" if r["device_bytes"] is None else f"{r['device_bytes'] / 2**30:.1f}"
        parts = " | ".join(f"{seconds[part]:.1f}" for part in ("total", "train", "audit", "test"))
        scores = " | ".join("–" if dice[arm] is None else f"{dice[arm]:.3f}" for arm in ("unadapted", "adapted"))
        lines.append(
            f"| {r['backbone']} | {r['parameters']:,} | {r['used']:,} | {parts} | {r['audit_share']:.0%} | {held} "
            f"| {r['host_bytes'] / 2**30:.1f} | {scores} |"
        )
    return lines


def _of_peers(found: Mapping[str, Any], rounds: int) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"As in [`step_peer.md`](step_peer.md), where the arms are described; medians of {rounds} steps in turn in one process, {packages}.",
        "",
        "| backbone | forward in | trained | parameters | ms a step | of the peer's |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        its = next(x for x in found["rows"] if x["arm"] == PEER and all(x[k] == r[k] for k in ("backbone", "bfloat16")))
        ratio = statistics.median(own / peer for own, peer in zip(r["seconds"], its["seconds"], strict=True))
        precision = "bfloat16" if r["bfloat16"] else "float32"
        milliseconds = 1000 * statistics.median(r["seconds"])
        lines.append(
            f"| {r['backbone']} | {precision} | {r['arm']} | {r['parameters']:,} | {milliseconds:.1f} | {ratio:.2f} |"
        )
    return lines


def _of_forms(rows: list[dict[str, Any]], rounds: int) -> list[str]:
    lines = [
        f"What `sea` opens first: a training step of two crops, and an audit of {AUDITED} units on up to four patches; medians of {rounds}. "
        "First: the first step, with what is compiled or tuned in it. Dice: of the audit, after all steps.",
        "",
        "| backbone | form | ms a step | ms an audit | first step, s | Dice |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        measured = f"fails: {r['fails']} | | |" if "fails" in r else _of_form(r)
        lines.append(f"| {r['backbone']} | {r['form']} | {measured} |")
    return lines


def _of_form(row: Mapping[str, Any]) -> str:
    step, audit = row["step"], row["audit"]
    return f"{1000 * step['median']:.1f} | {1000 * audit['median']:.1f} | {step['first']:.1f} | {row['dice']:.4f}"


_PARTS: Mapping[str, Callable[[torch.device, Size, Path], Any]] = {
    "runs": _default_runs,
    "large": _large_runs,
    "peers": _peers,
    "forms": _forms,
}


if __name__ == "__main__":
    main()
