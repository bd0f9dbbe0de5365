"""`python -m benchmarks.peers.nnunet ROOT OUT SECONDS`: nnU-Net v2 from scratch, its own
planning, trainer and predictor. Imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(root: Path, out: Path, seconds: float) -> None:
    """Plan, train for about so many CPU seconds, planning included, then a mask of every test
    case.
    """
    began = _cpu_seconds()
    for part in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{part}"] = str(root / part)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation import nnUNetTrainerNoMirroring

    torch.set_num_threads(1)
    torch.manual_seed(1)
    name = "Dataset001_Peers"
    preprocessed = root / "preprocessed" / name
    if not preprocessed.exists():
        extract_fingerprints([1], num_processes=1)
        plan_experiments([1])
        preprocess([1], configurations=["3d_fullres"], num_processes=[1])
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text(encoding="utf-8")) | {
        "continue_training": False
    }
    described = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))

    os.environ |= {
        "nnUNet_n_proc_DA": "0"
    }  # crops are made in this process: one thread for everything
    trainer = nnUNetTrainerNoMirroring.nnUNetTrainerNoMirroring(
        plans, "3d_fullres", "all", described, device=torch.device("cpu")
    )
    trainer.on_train_start()
    steps, first_rate = 0, trainer.initial_lr
    # its own steps and its own schedule, without what stands between its epochs: plots, validation
    # and checkpoints
    while (spent := (_cpu_seconds() - began) / seconds) < 1:
        trainer.optimizer.param_groups[0]["lr"] = first_rate * (1 - spent) ** 0.9
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1

    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"))
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        described,
        None,
        None,
    )
    predictor.predict_from_files_sequential(str(root / "raw" / name / "imagesTs"), str(out))
    network = plans["configurations"]["3d_fullres"]
    trained = {
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "steps": steps,
        "plan": {key: network[key] for key in ("patch_size", "batch_size", "spacing")},
    }
    for beside in out.glob("*.json"):
        beside.unlink()
    (out / "trained.json").write_text(json.dumps(trained), encoding="utf-8")


def _cpu_seconds() -> float:
    """Of this process and of the finished ones that it began: preprocessing has workers."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
