"""How long a run will take on this machine. Times one training step and one audit pass, and
multiplies by their numbers in the run.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Collection
from typing import TypeVar

import torch

from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.jobs.setup import Setup
from sea_peft.jobs.windows import windows_in
from sea_peft.loop.training import HEAD_STEPS_A_BATCH, Trainer

T = TypeVar("T")

_LONG = 5.0  # seconds, of a first step that is not repeated for a better measure
_SALIENCY_AT_ONCE = 128
_PASSES = 2  # over a scan that is scored: unadapted and head alone together, then adapted


@dataclasses.dataclass(frozen=True)
class Duration:
    """Expected times in seconds.

    Attributes:
        step: one optimizer step, with as many units open as fit.
        total: the whole run.
    """

    step: float
    total: float


def expected(setup: Setup) -> Duration:
    """Measure with the run's own network, crops and window on one of its shots. Learning rates are
    0, so nothing is learnt.
    """
    scan, reading = _timed(
        lambda: prepare(
            setup.split.shots[0], setup.recipe, setup.dataset.channels, setup.dataset.labels
        )
    )
    crops = CropSampler((scan,), setup.window, setup.options.seed, setup.settings.augmentation)
    space, settings, model = setup.space, setup.settings, setup.model
    audits = setup.policy.audits
    # what searches begins with as much as fits; a fixed topology says what it trains
    fill = [unit.id for unit in space.room().fill(space.cheapest_first())]
    units = fill if audits else setup.fresh_policy(setup.options.policy).allocate(0).open

    def train(open_units: Collection[str], steps: int) -> Callable[[], object]:
        trainer = Trainer(
            model,
            settings.batch_size,
            space.head > 0,
            setup.mixed_precision,
            head_alone=not open_units,
            holds_known=settings.holds_known,
        )
        return lambda: trainer.train(open_units, crops, 0, steps, lambda _: 0.0, lambda *_: None)

    head_step = _seconds(train([], HEAD_STEPS_A_BATCH)) / HEAD_STEPS_A_BATCH if space.head else 0.0
    step = _seconds(train(units, 1)) if units else head_step
    image = crops.batch(0, 1)[0].to(setup.device)
    with torch.no_grad():
        look = _seconds(
            lambda: model(image).sum().item()
        )  # a number is there only when the device is done
    model.bank.forget()

    _, cycles, _ = settings.plan()
    ranked = (
        len(cycles) * settings.saliency_batches * math.ceil(len(space.units) / _SALIENCY_AT_ONCE)
        if audits
        else 0
    )
    most = setup.policy.most_audited
    audited = len(units) if most is None else min(len(units), most)
    looks = len(cycles) * audited * settings.audit_patches if audits else 0
    policy = (settings.steps + ranked) * step + looks * look
    if settings.time_limit is not None:
        policy = min(policy, settings.time_limit)
    a_scan = reading + _PASSES * windows_in(scan.image.shape[1:], setup.window) * look
    shots, folds = len(setup.split.shots), len(setup.folds)
    scored = len(setup.split.test) + (1 + folds) * len(setup.split.audit) + folds
    total = shots * reading + (1 + folds) * (policy + settings.steps * head_step) + scored * a_scan
    return Duration(step, total)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    made = work()
    return made, time.perf_counter() - began


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of a second and a third time, since the first also allocates memory and others
    use the machine too.

    If the first takes long, returns that one.
    """
    _, first = _timed(work)
    return first if first > _LONG else min(_timed(work)[1] for _ in range(2))
