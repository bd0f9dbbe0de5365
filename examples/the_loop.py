"""The search–audit–allocate loop, top to bottom, from the package's own parts: what `seapeft adapt`
does, without its run folder.

    python examples/the_loop.py

Copy it, and change what you study: another network, another loss, another way to choose. Five
phantom scans, two minutes on a CPU.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from sea_peft.adapters import Adapted
from sea_peft.artefacts.profile import load_profile
from sea_peft.backbones import batch_for_masks
from sea_peft.backbones.typed import Typed
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare, restore
from sea_peft.data.sliding import SlidingWindow
from sea_peft.jobs.inference import dice_per_label, probabilities
from sea_peft.jobs.model import audit_space, matching_rows, open_backbone
from sea_peft.jobs.target import open_data
from sea_peft.loop.audit import Auditor
from sea_peft.loop.policies import make_policy
from sea_peft.loop.space import Space
from sea_peft.loop.training import Trainer, warm_up, warm_up_cosine


def main(steps: int = 30, refit: int = 60, cycles: int = 3, seed: int = 0) -> float:
    """Adapt the bundled UNet to the low-dose CT phantoms. Returns the mean Dice on two test
    cases.
    """
    # A frozen network, and every unit that could be opened in it
    backbone = open_backbone(Typed("unet"))
    card, network = backbone.pretrained.card, backbone.pretrained.network
    units = audit_space(backbone, load_profile("default").offers())

    # Five scans as the network takes them: four to train on, one to audit on
    data = open_data("phantom:low-dose-ct")
    scans = [prepare(case, card.recipe, data.channels, data.labels) for case in data.cases[:5]]
    window = SlidingWindow(patch=(48, 48, 32))
    crops = CropSampler(scans[:4], window, seed)
    images, labels = CropSampler(scans[4:], window, seed + 1).fixed(6)

    # The adapted network: adapters behind gates, and a head for the target's labels
    rows = matching_rows(card.labels, tuple(data.labels))
    model = Adapted(network, backbone.sites, units, rows, len(card.labels), backbone.example, seed)
    space = Space(units, limit=backbone.pretrained.parameters // 100, head=model.head.cost)
    policy = make_policy("sea", space, seed=seed, cycles=cycles)
    trainer = Trainer(model, batch_size=2)
    auditor = Auditor(model, images, labels, batch_for_masks(network))

    # Search, audit, allocate
    trainer.train((), crops, 0, steps // 3, lambda i: warm_up(i, 5), quiet)  # the head alone
    done = steps // 3
    for cycle in range(cycles):
        wanted = policy.needs_saliency(cycle)
        if wanted:
            policy.told_saliency(cycle, trainer.saliency(wanted, crops, cycle, 4))
        allocation = policy.allocate(cycle)
        loss = trainer.train(allocation.open, crops, done, steps, lambda i: warm_up(i, 5), quiet)
        done += steps
        audit = auditor.audit(policy.to_audit(cycle), error=0.01)
        policy.audited(cycle, audit.rows)
        best = max(audit.rows, key=lambda row: row.delta)
        print(
            f"cycle {cycle}: loss {loss:.2f}, Dice {audit.hard_dice:.3f} on the audit patches;"
            f" {best.unit} is worth {100 * best.delta:+.1f} points"
        )

    # The final choice, trained on all five scans
    chosen = policy.final().active
    model.bank.inherit(chosen)
    everything = CropSampler(scans, window, seed + 2)
    trainer.train(
        chosen, everything, done, refit, lambda i: warm_up_cosine(i, refit, refit // 10), quiet
    )
    print(f"{len(chosen)} units, {space.used(chosen):,} of {space.limit:,} parameters")

    # Scored on whole scans that nothing above has seen
    model.eval()
    found = []
    for case in data.test_cases[:2]:
        scan = prepare(case, card.recipe, data.channels)
        (output,) = probabilities(
            model, scan, window, torch.device("cpu"), batch_for_masks(network)
        )
        reference = case.label()
        assert reference is not None
        dice = dice_per_label(restore(output, scan.geometry), reference.array, data.labels)
        found.append(statistics.fmean(dice.values()))
    print(f"mean Dice {statistics.fmean(found):.3f} on {len(found)} test cases")
    return statistics.fmean(found)


def quiet(step: int, loss: float) -> None:
    """Told after every step."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("steps", 30), ("refit", 60), ("cycles", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    main(**vars(parser.parse_args()))
