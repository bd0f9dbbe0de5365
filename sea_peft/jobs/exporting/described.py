"""Describes an exported network: the JSON file beside it, and the files that run it."""

import json
from collections.abc import Mapping
from pathlib import Path

from sea_peft import __version__, atomic
from sea_peft.jobs.case_results import mask_values
from sea_peft.jobs.predictor import Predictor

NAME = "network.json"


def described(predictor: Predictor) -> dict[str, object]:
    """Everything about the network that its own file does not say."""
    config, values = predictor.config, mask_values(predictor.labels)
    return {
        "channels": list(config.channels),
        "labels": {"background": 0, **values},
        "input": (
            f"float32 [1, {len(config.channels)}, {', '.join(map(str, config.window.patch))}]: one"
            " window, called scan"
        ),
        "output": f"float32 logits [1, {1 + len(values)}, …], in the order of labels",
        "recipe": config.recipe.model_dump(mode="json"),
        "window": config.window.model_dump(mode="json"),
        "averaged": "logits" if config.window.inferer == "nnunet" else "probabilities",
        "network": predictor.network,
        "keep": {label: str(rule) for label, rule in predictor.keeping(()).items()},
        "recommended": config.recommended.model_dump(),
        "backbone": {
            "weights": config.backbone.weights,
            "sha256": config.backbone.sha256,
            "licence": config.backbone.licence,
        },
        "units": len(config.units),
        "made_by": f"sea_peft {__version__}",
        "note": (
            "Research software, not a medical device: a qualified person must check every mask."
        ),
    }


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """A JSON file for people and tools."""
    atomic.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def copy_script(folder: Path, *names: str) -> None:
    """Copy files of this package into a folder, to run there without it."""
    for name in names:
        atomic.write_text(folder / name, Path(__file__).with_name(name).read_text(encoding="utf-8"))
