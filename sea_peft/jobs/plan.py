"""`seapeft adapt --dry-run`: everything resolved and checked, nothing trained and nothing
written.
"""

from collections.abc import Callable
from typing import Any

from sea_peft.jobs.duration import expected
from sea_peft.jobs.listing import fitting
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import prepare_run


def plan(
    options: AdaptOptions,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """What a run with these options would do, and how long it would take here, as JSON types.
    Raises the same errors as `adapt`.
    """
    setup = prepare_run(options, say, progress)
    duration = expected(setup)
    warmup, cycles, refit = setup.settings.plan()
    card, need = setup.backbone.pretrained.card, setup.need()
    return {
        "status": "planned",
        "data": {
            "name": setup.dataset.name,
            "layout": setup.dataset.layout,
            "labels": {name: list(codes) for name, codes in setup.dataset.labels.items()},
            "new_labels": [
                name
                for name, row in zip(setup.dataset.labels, setup.rows, strict=True)
                if row is None
            ],
            "channels": list(setup.dataset.channels),
            "support": len(setup.split.support),
            "audit": len(setup.split.audit),
            "test": len(setup.split.test),
            "tested_on": setup.tested_on,
        },
        "backbone": {
            "architecture": card.architecture,
            "weights": card.name,
            "parameters": setup.backbone.pretrained.parameters,
            "sha256": setup.backbone.pretrained.sha256,
        },
        "budget": {
            "limit": setup.space.limit,
            "head": setup.space.head,
            "capacity": setup.space.capacity,
            "whole": setup.whole,
            "counts": setup.space.kind.many,
        },
        "units": {"offered": len(setup.space.units), "fitting": fitting(setup.space)},
        "policy": options.policy,
        "seed": options.seed,
        "steps": {"warmup": warmup, "search": sum(cycles), "cycles": len(cycles), "refit": refit},
        "patch": list(setup.window.patch),
        "spacing": list(setup.recipe.spacing),
        "recipe": setup.recipe.model_dump(mode="json"),
        "device": str(setup.device),
        "memory_bytes": need.memory,
        "disk_bytes": need.disk,
        "seconds": {"step": round(duration.step, 3), "total": round(duration.total, 1)},
        "warnings": list(setup.warnings),
    }
