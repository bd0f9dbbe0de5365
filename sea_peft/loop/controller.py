"""The controller: warm-up; then cycles of search, audit and allocation; then the final choice and
its refit on all shots.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sea_peft.adapters import Adapted
from sea_peft.backbones import batch_for_masks
from sea_peft.data.crops import CropSampler
from sea_peft.errors import BudgetError
from sea_peft.loop import events
from sea_peft.loop.audit import Auditor
from sea_peft.loop.comparison import compare
from sea_peft.loop.outcome import Baseline, Outcome
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.processes import ALONE, Processes
from sea_peft.loop.settings import LoopSettings, Shots
from sea_peft.loop.space import Space
from sea_peft.loop.training import Trainer, warm_up, warm_up_cosine

_REFIT_CHECKPOINT_EVERY = 25
_REFIT_WARM_UP = 10  # the least steps of warm-up, in a refit of at least twice as many


class Controller:
    """Runs one policy. Policies differ in their choice of units only: they share steps, splits,
    data order, budget check and trace.

    Args:
        model: the adapted network.
        space: the units on offer under the budget.
        policy: chooses the units.
        shots: the labelled scans.
        settings: how the steps are divided.
        seed: of crops and augmentation.
        callback: receives every event.
        save: receives the whole state (JSON types and tensors) at each point from which a run can
            be resumed. A resumed run emits exactly the events that an uninterrupted one would have
            emitted from there.
        train_head: whether the head is trained too.
        baseline: a simpler policy to compare with.
        processes: each runs this same controller, emits the same events and ends with the same
            model.
        begun_with: units that are already trained. They stay on while the head warms up, since the
            head belongs to them.
        mixed_precision: as for `Trainer`.
    """

    def __init__(
        self,
        model: Adapted,
        space: Space,
        policy: Policy,
        shots: Shots,
        settings: LoopSettings,
        seed: int,
        callback: events.Callback = events.ignore,
        save: Callable[[Mapping[str, object]], None] | None = None,
        train_head: bool = True,
        baseline: Baseline | None = None,
        processes: Processes = ALONE,
        begun_with: Sequence[str] = (),
        mixed_precision: bool | None = None,
    ) -> None:
        self.model, self.space, self.policy, self.settings = model, space, policy, settings
        self.baseline, self._begun_with = baseline, tuple(begun_with)
        self.callback = callback
        self._save = save
        self.processes = processes
        self._trainer = Trainer(
            model,
            settings.batch_size,
            train_head,
            mixed_precision,
            head_alone=policy.head_alone,
            holds_known=settings.holds_known,
            processes=processes,
        )
        self.independent = shots.independent
        self._search_crops = CropSampler(shots.search, settings.window, seed, settings.augmentation)
        self._refit_crops = CropSampler(shots.all, settings.window, seed + 1, settings.augmentation)
        images, labels = CropSampler(shots.audit, settings.window, seed + 2).fixed(
            settings.audit_patches
        )
        self.auditor = Auditor(
            model,
            images,
            labels,
            batch_for_masks(model.backbone),
            dice=settings.audit_dice,
            processes=processes,
        )
        self._started = time.monotonic()
        self.seconds = {"train": 0.0, "audit": 0.0, "allocate": 0.0}
        # saved in checkpoints, beside tensors and the policy's own state
        self._phase, self._cycle, self._step = "warmup", 0, 0
        self._refitted = self._refit = (
            0  # not step − (steps − refit): a time limit ends the search early
        )
        self._previous: tuple[str, ...] = ()
        self._chosen: tuple[str, ...] = ()
        self._measured: set[str] = set()
        self._patches = self._naive_patches = 0

    def search(self) -> None:
        """Run from the current state to the end of the search: the final set is chosen, but not
        yet refitted.
        """
        warmup, cycles, _ = self.settings.plan()
        if self._phase == "warmup":
            self._train(
                "warmup",
                -1,
                Allocation(active=self._begun_with),
                self._search_crops,
                warmup,
                lambda i: warm_up(i, warmup // 2),
            )
            self._enter("search")
        while self._phase == "search" and self._cycle < len(cycles) and not self._out_of_time():
            self._search_cycle(cycles[self._cycle], first=self._cycle == 0)
            self._cycle += 1
            self._enter("search")
        if self._phase == "search":
            self._choose()
            self._refit = self._refit_steps()
            self._enter("refit")

    def run(self) -> Outcome:
        """Run from the current state to the end. Leaves the chosen units trained and open."""
        self.search()
        while self._refitted < self._refit:
            count = min(_REFIT_CHECKPOINT_EVERY, self._refit - self._refitted)
            # this set has never been trained together, so even a short refit starts with small
            # steps
            over = max(self._refit // 10, min(_REFIT_WARM_UP, self._refit // 2))
            schedule = functools.partial(
                warm_up_cosine, total=self._refit, over=over, start=self._refitted
            )
            self._train(
                "refit",
                self._cycle,
                Allocation(active=self._chosen),
                self._refit_crops,
                count,
                schedule,
            )
            self._refitted += count
            self._enter("refit")
        self.model.bank.activate(self._chosen)
        used = self.space.used(self._chosen)
        _, cycles, refit = self.settings.plan()
        whole = self._cycle == len(cycles) and self._refit == refit
        reason = (
            "all steps done"
            if whole
            else (
                f"time limit: {self._cycle} of {len(cycles)} cycles, {self._refit} of {refit} steps"
                " of the refit"
            )
        )
        return Outcome(
            active=self._chosen,
            used=used,
            patches=self._patches,
            naive_patches=self._naive_patches,
            seconds=self.seconds,
            reason=reason,
        )

    def as_baseline(self) -> Baseline:
        """This search's result, for another policy to be compared with."""
        return Baseline(self.policy.name, self.auditor.dice_of(self._chosen))

    def state_dict(self) -> dict[str, object]:
        """Everything that `load_state_dict` needs: JSON types, and tensors under `adapters`, `head`
        and `optimizer`.
        """
        bank = self.model.bank
        return {
            "phase": self._phase,
            "cycle": self._cycle,
            "step": self._step,
            "refitted": self._refitted,
            "refit": self._refit,
            "open": sorted(bank.active),
            "previous": list(self._previous),
            "chosen": list(self._chosen),
            "measured": sorted(self._measured),
            "patches": self._patches,
            "naive_patches": self._naive_patches,
            "elapsed": time.monotonic() - self._started,
            "seconds": dict(self.seconds),
            "policy": self.policy.state_dict(),
            "adapters": bank.state_dict(bank.built),
            "head": {
                name: tensor.detach().cpu().clone()
                for name, tensor in self.model.head.state_dict().items()
            },
            "optimizer": self._trainer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved."""
        self._phase, self._cycle, self._step = state["phase"], state["cycle"], state["step"]
        self._refitted, self._refit = state["refitted"], state["refit"]
        self._previous, self._chosen = tuple(state["previous"]), tuple(state["chosen"])
        self._measured = set(state["measured"])
        self._patches, self._naive_patches = state["patches"], state["naive_patches"]
        self._started = time.monotonic() - state["elapsed"]
        self.seconds = dict(state["seconds"])
        self.policy.load_state_dict(state["policy"])
        self.model.bank.load_state_dict(state["adapters"])
        self.model.bank.activate(state["open"])
        self.model.head.load_state_dict(state["head"])
        self._trainer.load_state_dict(state["optimizer"])

    # -- the parts of one cycle --------------------------------------------------------------------

    def _search_cycle(self, steps: int, first: bool) -> None:
        cycle, policy = self._cycle, self.policy
        wanted = policy.needs_saliency(cycle)
        if wanted:
            began = time.monotonic()
            saliency = self._trainer.saliency(
                wanted, self._search_crops, cycle, self.settings.saliency_batches
            )
            policy.told_saliency(cycle, saliency)
            self.callback(events.SaliencyMeasured(cycle, saliency, self._spent("train", began)))
        began = time.monotonic()
        allocation = policy.allocate(cycle)
        self._allocated(cycle, allocation, final=False, began=began)
        over = steps // 4 if first else 1
        self._train(
            "search", cycle, allocation, self._search_crops, steps, lambda i: warm_up(i, over)
        )
        if policy.audits:
            self._audit(cycle)

    def _audit(self, cycle: int) -> None:
        began = time.monotonic()
        units = self.policy.to_audit(cycle)
        result = self.auditor.audit(units, self.settings.audit_error)
        self._measured.update(units)
        patches = result.forwards
        naive = result.patches * (1 + len(self.space.units))
        self._patches += patches
        self._naive_patches += naive
        rows = list(result.rows)
        self.callback(
            events.Audited(
                cycle=cycle,
                dice_on=result.dice_on,
                hard_dice=result.hard_dice,
                rows=rows,
                patches=patches,
                naive_patches=naive,
                independent=self.independent,
                seconds=self._spent("audit", began),
            )
        )
        self.callback(events.Ranked(cycle, self.policy.audited(cycle, rows)))

    def _choose(self) -> None:
        began, searched = time.monotonic(), tuple(self.model.bank.active)
        allocation = self.policy.final()
        self._allocated(self._cycle, allocation, final=True, began=began)
        self._chosen = allocation.active
        self.model.bank.inherit(self._chosen)
        if self.policy.audits or self.auditor.patches:
            self._compare(searched)

    def _compare(self, searched: Sequence[str]) -> None:
        """Compare the search's result with the unadapted backbone and the baseline, before the
        refit.

        `searched`: the units that the last cycle trained. They stand in for the final choice, which
        has not been trained together yet, whereas the baseline has trained one set all along.
        """
        unadapted = self.auditor.dice_of((), head=False) if self.model.head.knows_a_label else None
        verdict = compare(
            self.policy.name, self.auditor.dice_of(searched), self.baseline, unadapted
        )
        self.callback(
            events.Compared(verdict.dice, verdict.chosen, verdict.reason, verdict.per_patch)
        )

    def _train(
        self,
        phase: str,
        cycle: int,
        allocation: Allocation,
        crops: CropSampler,
        count: int,
        schedule: Callable[[int], float],
    ) -> None:
        began, first = time.monotonic(), self._step
        self._check_budget(allocation)

        def on_step(step: int, loss: float) -> None:
            self.callback(events.TrainingStep(phase, step + 1, self.settings.steps, loss))

        loss = self._trainer.train(allocation.open, crops, first, count, schedule, on_step)
        self._step += count
        self.callback(
            events.Searched(
                cycle=cycle,
                phase=phase,
                first_step=first,
                last_step=self._step,
                loss=0.0 if math.isnan(loss) else loss,
                active=list(allocation.active),
                probes=list(allocation.probes),
                seconds=self._spent("train", began),
            )
        )

    def _allocated(self, cycle: int, allocation: Allocation, final: bool, began: float) -> None:
        used = self._check_budget(allocation)
        self.processes.require_equal(lambda: self._digest(allocation))
        changes = len(set(self._previous) ^ set(allocation.active))
        self._previous = allocation.active
        self.callback(
            events.Allocated(
                cycle=cycle,
                active=list(allocation.active),
                probes=list(allocation.probes),
                used=used,
                limit=self.space.limit,
                head=self.space.head,
                value=allocation.value,
                changes=changes,
                coverage=len(self._measured) / max(1, len(self.space.units)),
                decisions=list(allocation.decisions),
                final=final,
                seconds=self._spent("allocate", began),
                trial=len(self.policy.trial),
                debt=len(set(self.policy.trial) - self._measured),
            )
        )

    def _digest(self, allocation: Allocation) -> str:
        """A digest of the allocation and of everything learnt so far."""
        digest = hashlib.sha256(repr(allocation.open).encode())
        for parameter in (
            *self.model.bank.parameters(self.model.bank.built),
            *self.model.head.parameters(),
        ):
            digest.update(parameter.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _check_budget(self, allocation: Allocation) -> int:
        """What the allocation uses, everything trainable counted. Raises BudgetError above the
        budget.
        """
        used = self.space.used(allocation.open)
        if not (
            self.policy.outside_budget
            or self.space.fits(self.space.by_id[u] for u in allocation.open)
        ):
            raise BudgetError(
                f"Policy {self.policy.name} asked for {used:,} {self.space.kind.many} of"
                f" {self.space.limit:,}."
            )
        return used

    def _enter(self, phase: str) -> None:
        self._phase = phase
        if self._save is not None:
            self._save(self.state_dict())

    def _refit_steps(self) -> int:
        """Steps of the refit: as planned, or as many as the time limit leaves at the search's pace;
        at least one.
        """
        planned, limit = self.settings.plan()[2], self.settings.time_limit
        if limit is None:
            return planned
        pace = self.seconds["train"] / max(1, self._step)
        left = limit - (time.monotonic() - self._started)
        return self.processes.of_first(
            lambda: max(1, min(planned, int(left / pace) if pace > 0 else planned))
        )

    def _out_of_time(self) -> bool:
        """Whether the search must end. The second half of the time limit is kept for the refit."""
        limit = self.settings.time_limit
        return limit is not None and self.processes.of_first(
            lambda: time.monotonic() - self._started > limit / 2
        )

    def _spent(self, what: str, began: float) -> float:
        spent = time.monotonic() - began
        self.seconds[what] += spent
        return round(spent, 3)
