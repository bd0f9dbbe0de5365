"""What an audit costs with and without reuse of unchanged blocks: a ratio, both measured in turn in one process, same numbers out."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.jobs.setup import AdaptOptions, prepare_run
from sea_peft.loop.audit import Auditor
from sea_peft.loop.training import Trainer

ROUNDS = 3
UNITS = 8  # ablated per stage, evenly over its open units: what a forward saves depends on where the unit lies


def measure() -> Path:
    """Audit what the default profile opens first on both bundled backbones, by stage of the unit. Writes JSON and Markdown."""
    rows = []
    for backbone in ("segresnet", "unet"):
        setup = prepare_run(AdaptOptions(backbone=backbone, budget="1%"), lambda sentence: None)
        scan = prepare(setup.split.audit[0], setup.recipe, setup.dataset.channels, setup.dataset.labels)
        crops = CropSampler([scan], setup.settings.patch, setup.options.seed)
        images, labels = crops.fixed(4)
        policy = setup.policy()
        trainer = Trainer(setup.model, setup.settings.batch_size)
        policy.promised(0, trainer.promise(policy.to_promise(0), crops, 0, 1))
        units = policy.allocate(0).open
        trainer.train(units, crops, 0, 3, lambda step: 1.0, lambda step, loss: None)
        stages: dict[str, list[str]] = {"all": list(units)}
        for unit in units:
            stages.setdefault(setup.space.by_id[unit].site.stage, []).append(unit)
        for stage, of_stage in stages.items():
            ids = of_stage[:: -(-len(of_stage) // UNITS)]
            ratios, times = [], []
            for _ in range(ROUNDS):
                took, results = {}, {}
                for reuse in (True, False):
                    auditor = Auditor(setup.model, images, labels, batch=4, reuse=reuse)
                    began = time.perf_counter()
                    results[reuse] = auditor.audit(ids)
                    took[reuse] = time.perf_counter() - began
                if results[True] != results[False]:
                    raise AssertionError(f"reuse changed an audit of {backbone}, {stage}")
                ratios.append(took[False] / took[True])
                times.append(took[True] / (len(ids) + 1))
            rows.append(
                {
                    "backbone": backbone,
                    "units": stage,
                    "count": len(ids),
                    "ratio_median": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                    "seconds_per_forward": statistics.median(times),
                    "patches": 4,
                    "patch": list(setup.settings.patch),
                }
            )
    path = RESULTS / "audit_cost.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Cost of an audit",
        "",
        "Made by `python -m benchmarks audit_cost`. Time without reuse over time with reuse, both in turn in one process;",
        f"the audits' numbers are equal bit for bit (checked in the run). Machine: `{json.dumps(machine(), sort_keys=True)}`.",
        "",
        "| backbone | units toggled | count | without / with reuse (median, min–max) |",
        "|---|---|---|---|",
        *(
            f"| {r['backbone']} | {r['units']} | {r['count']} | {r['ratio_median']:.2f} ({r['ratio_min']:.2f}–{r['ratio_max']:.2f}) |"
            for r in rows
        ),
        "",
    ]
    path.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    return path
