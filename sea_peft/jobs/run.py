"""One run in its folder: the head alone, leave-one-out, the policy; then three arms scored, and
adapter, report and result written.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from sea_peft.artefacts.adapter_file import save_adapter
from sea_peft.artefacts.checkpoint import (
    RunState,
    belonging,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from sea_peft.artefacts.commands import Commands, to_resume
from sea_peft.artefacts.quality import Network, Quality
from sea_peft.artefacts.report import report_markdown
from sea_peft.artefacts.result import Result
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import TraceWriter, read_trace
from sea_peft.artefacts.tracker import Tracker
from sea_peft.atomic import remove_leftovers
from sea_peft.data.digest import case_hash
from sea_peft.data.split import Split
from sea_peft.errors import DiskError
from sea_peft.jobs.choosing_parts import candidates, chosen
from sea_peft.jobs.keeping import Keep
from sea_peft.jobs.model import NETWORKS, adapter_tensors
from sea_peft.jobs.patch_cost import cost_of_patch
from sea_peft.jobs.pictures import images_for_mlflow
from sea_peft.jobs.quality import Look, look_at_shot, quality
from sea_peft.jobs.records import Reached, adapter_config, run_result, run_started
from sea_peft.jobs.scoring import ARMS, HEAD_ONLY, ArmScores, score, score_held_out_labels, scored
from sea_peft.jobs.setup import Setup
from sea_peft.jobs.shots import prepared_shots
from sea_peft.loop import events
from sea_peft.loop.controller import Controller
from sea_peft.loop.outcome import Baseline, Outcome
from sea_peft.loop.recommendation import recommend
from sea_peft.loop.settings import Shots

_T = TypeVar("_T")
Say = Callable[[str], None]


class Run:
    """One run in one folder. Passes events to trace, MLflow and listener, and can stop and be
    resumed at every checkpoint.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        listen: events.Callback,
        warn: Say,
        began: float,
        baselines: Mapping[str, events.Scored],
    ) -> None:
        self.setup, self.folder, self.listen, self.warn = setup, folder, listen, warn
        self.baselines = baselines if setup.tested_on == "cases" else {}
        self.began = began
        self.writes = setup.processes.first
        self.trace: TraceWriter | None = None
        self.state, self.past = setup.processes.of_first(self._opened)
        self.tracker = Tracker(folder, warn) if setup.options.mlflow and self.writes else None
        self.seconds = dict(self.state.seconds)

    def _opened(self) -> tuple[RunState, list[events.Event]]:
        """The state of the run, and its events so far. Drops anything later from the trace."""
        state = load_checkpoint(self.folder.checkpoint) or RunState.at_the_start()
        self.trace = TraceWriter(self.folder.trace, append=True)
        try:
            # damage anywhere in it shows now, and not at the end
            past = read_trace(self.folder.trace)[: state.events]
            self.trace.truncate(state.events)
            for place in (self.folder.path, self.folder.checkpoint):
                remove_leftovers(place)
        except BaseException:
            self.trace.close()
            raise
        return state, past

    def run(self) -> Result:
        """Run to the end, or to an exception, after which the run can be resumed."""
        try:
            result = self._run()
        except BaseException as error:
            if self.tracker is not None:
                self.tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            if isinstance(error, DiskError):
                again = to_resume(self.folder.path, self.setup.options.typed)
                raise DiskError(
                    f"{str(error).rstrip('.')}; what the run has written is kept, and `{again}`"
                    " goes on from there."
                ) from error
            raise
        finally:
            if self.trace is not None:
                self.trace.close()
        return result

    def _run(self) -> Result:
        setup = self.setup
        for sentence in setup.warnings:
            self.warn(sentence)
        if not self.past:
            self._emit(run_started(setup))
        shots = self._timed(
            "data", lambda: prepared_shots(setup, self.folder.path, self.listen, self.warn)
        )
        if len(self.past) == 1 and (cost := cost_of_patch(setup, shots.all[0])) is not None:
            self.warn(cost)
        for fold in setup.folds[self.state.fold :]:
            self._fold(fold, shots)
        head_only = self._before_the_policy(shots)
        outcome = self._policy(shots)
        adapted = adapter_tensors(setup.model, outcome.active)
        scores = self._timed("test", lambda: self._scores(head_only))
        made = {**scored(setup, scores, "cv" if setup.folds else "test"), **self.baselines}
        arms = {arm: made[arm] for arm in ARMS if arm in made}
        for event in arms.values():
            self._emit(event)
        recommended = recommend(setup.new_labels, arms, self._on_held_out())
        self._emit(recommended)
        self._emit(events.RunFinished("done", list(outcome.active), outcome.used, outcome.reason))
        rates = scores.mean_rates(tuple(setup.dataset.labels))
        known = quality(
            self._looks(shots), tuple(setup.dataset.labels), self._confidence(), self.state.held_out
        )
        return self._ship(
            outcome, adapted, Reached(arms, self._on_held_out(), rates, recommended), known
        )

    def _looks(self, shots: Shots) -> list[Look]:
        return [
            look_at_shot(shot, tuple(self.setup.dataset.labels), self.setup.recipe.spacing)
            for shot in shots.all
        ]

    def _confidence(self) -> dict[Network, Mapping[str, Mapping[str, float]]]:
        """Confidence of the two networks on what was held out."""
        return {
            network: self.state.confidence[network]
            for network in NETWORKS
            if network in self.state.confidence
        }

    def _policy(self, shots: Shots) -> Outcome:
        """Run the policy to the end. After its search, score the three arms on what was held
        out until then.
        """
        controller = self._controller(self.setup.options.policy, shots, self._emit, "policy")
        controller.search()
        if (
            "adapted" not in self.state.held_out
        ):  # a run that is resumed in the refit has it already
            # arms that nothing else has scored there: the backbone, and a head with nothing to fit
            head = self.state.head_only if HEAD_ONLY not in self.state.held_out else None
            self._score_held_out(shots, head, adapted=True)
            there = ArmScores(
                self.state.held_out,
                kept=self.state.kept,
                seconds=dict.fromkeys(self.state.held_out, 0.0),
            )
            for event in scored(
                self.setup, there, "held_out" if shots.independent else "held_out_labels"
            ).values():
                self._emit(event)
            if kept := chosen(list(self.state.parts.values())):
                self._emit(
                    events.PartsKept(
                        rules={label: rule for label, (rule, _) in kept.items()},
                        gains={label: round(gain, 6) for label, (_, gain) in kept.items()},
                        scans=len(self.state.parts),
                    )
                )
        return controller.run()

    def _score_held_out(
        self, shots: Shots, head: Mapping[str, torch.Tensor] | None, adapted: bool
    ) -> None:
        """Score the arms as the search has left them, on the scans that it did not train on or, at
        one shot, on its held-out labels.
        """
        folder, told = self.folder.path, self._told("held_out")
        rules = self._rules(shots) if adapted and shots.independent else None
        found = self._timed(
            "test",
            lambda: (
                score(self.setup, self.setup.split.audit, head, adapted, folder, told, rules)
                if shots.independent
                else score_held_out_labels(self.setup, shots.audit[0], head, adapted, folder, told)
            ),
        )
        if adapted and head is not None and self.setup.space.head:
            del found.dice[HEAD_ONLY]  # it was not fitted: its scores come from another run
        self.state = self.state.model_copy(
            update={
                "held_out": {**self.state.held_out, **found.dice},
                "confidence": {**self.state.confidence, **found.confidence},
                "kept": {**self.state.kept, **found.kept},
                "parts": {**self.state.parts, **found.parts},
            }
        )

    def _rules(self, shots: Shots) -> dict[str, list[Keep]]:
        """For connected parts, to try on what was held out."""
        drawn = [shot.label.numpy() for shot in shots.all if shot.label is not None]
        return candidates(
            drawn, list(self.setup.dataset.labels), math.prod(self.setup.recipe.spacing) / 1000
        )

    def _scores(self, head_only: Mapping[str, torch.Tensor]) -> ArmScores:
        """The scores of the three arms on the test cases, or collected from leave-one-out."""
        if not self.setup.folds:
            fitted = None if self.baselines else head_only
            return score(
                self.setup,
                self.setup.split.test,
                fitted,
                True,
                self.folder.path,
                self._told("test"),
            )
        together = ArmScores()
        for fold in self.past:
            if isinstance(fold, events.Folded):
                (case,) = fold.split["test"]
                for arm, dice in fold.dice.items():
                    together.add(arm, case, dice)
                together.add_rates(case, fold.rates)
        return together

    def _on_held_out(self) -> dict[str, events.Scored]:
        return {e.arm: e for e in self.past if isinstance(e, events.Scored) and e.held_out}

    def _fold(self, split: Split, shots: Shots) -> None:
        """Search and refit without one of the shots, and score the arms on that one."""
        scans = {
            id(case): scan for case, scan in zip(self.setup.split.shots, shots.all, strict=True)
        }
        part = Shots.of([scans[id(c)] for c in split.support], [scans[id(c)] for c in split.audit])
        began, fold = time.monotonic(), self.state.fold
        head_only = self._before_the_policy(part, compared=False)

        def steps_only(event: events.Event) -> None:
            if isinstance(event, events.TrainingStep):
                self.listen(dataclasses.replace(event, phase=self._without))

        outcome = self._controller(self.setup.options.policy, part, steps_only, "policy").run()
        scores = self._timed(
            "test",
            lambda: score(
                self.setup, split.test, head_only, True, self.folder.path, self._told("held_out")
            ),
        )
        (case,) = (case_hash(c.id, self.setup.salt) for c in split.test)
        roles = {
            "support": [s.id for s in part.search],
            "audit": [s.id for s in part.audit],
            "test": [c.id for c in split.test],
        }
        self._emit(
            events.Folded(
                fold=fold,
                split={
                    role: [case_hash(name, self.setup.salt) for name in names]
                    for role, names in roles.items()
                },
                active=list(outcome.active),
                used=outcome.used,
                dice={arm: per_case[case] for arm, per_case in scores.dice.items()},
                rates={rate: per_case[case] for rate, per_case in scores.rates.items()},
                seconds=round(time.monotonic() - began, 3),
            )
        )
        self._next_arm(HEAD_ONLY, fold=fold + 1, head_only=None)

    @property
    def _without(self) -> str:
        """The current fold of leave-one-out, in words."""
        return f"without shot {self.state.fold + 1} of {len(self.setup.folds)}"

    def _told(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, of: self.listen(events.TrainingStep(phase, done, of, 0.0))

    def _before_the_policy(
        self, shots: Shots, compared: bool | None = None
    ) -> dict[str, torch.Tensor]:
        """Fit the head alone, with as many steps as the policy. Then reset head and bank.

        Args:
            shots: the scans to fit it on.
            compared: whether it is needed as a baseline; None: if the policy is compared with one.

        Returns:
            The head's tensors; zero if it was not fitted.
        """
        baselines = bool(self.baselines)
        compared = self.setup.policy.audits if compared is None else compared
        if self.state.arm == HEAD_ONLY:
            if compared or (self.setup.space.head and not baselines):
                self._fit_head(shots, refit=not baselines)
            head = self.setup.model.head.state_dict()
            self._next_arm(
                "policy", head_only={name: t.detach().cpu().clone() for name, t in head.items()}
            )
        assert self.state.head_only is not None, "it was fitted, or left at zero, before"
        return self.state.head_only

    def _fit_head(self, shots: Shots, refit: bool) -> None:
        """Search with the head alone, and refit it if it is to be scored. Keeps its search's result
        for the comparison.
        """

        def steps_only(event: events.Event) -> None:
            if isinstance(event, events.TrainingStep):
                phase = (
                    HEAD_ONLY
                    if self.state.fold == len(self.setup.folds)
                    else f"{self._without}, the head alone"
                )
                self.listen(dataclasses.replace(event, phase=phase))

        controller = self._controller(HEAD_ONLY, shots, steps_only, HEAD_ONLY)
        controller.search()
        if (
            self.state.fold == len(self.setup.folds) and self.state.baseline is None
        ):  # else it was resumed in the refit
            self.state = self.state.model_copy(
                update={"baseline": list(controller.as_baseline().dice)}
            )
            self._score_held_out(shots, self.setup.model.head.state_dict(), adapted=False)
        if refit:
            controller.run()

    def _next_arm(self, arm: str, **kept: Any) -> None:
        self.state = self.state.model_copy(update={"arm": arm, "controller": None, **kept})
        model = self.setup.model
        model.bank.forget()
        model.head.load_state_dict(
            {name: torch.zeros_like(t) for name, t in model.head.state_dict().items()}
        )

    def _controller(
        self, policy: str, shots: Shots, callback: events.Callback, arm: str
    ) -> Controller:
        setup = self.setup

        def save(state: Mapping[str, object]) -> None:
            stands = {
                "arm": arm,
                "events": len(self.past),
                "seconds": {**self.seconds, "before": self._so_far()},
                "controller": dict(state),
            }
            self.state = self.state.model_copy(update=stands)
            if self.writes:
                save_checkpoint(self.folder.checkpoint, self.state)

        earlier = setup.earlier if arm == "policy" else None
        resumed = self.state.controller if self.state.arm == arm else None
        if earlier is not None and resumed is None:
            earlier.begin(setup.model, tuple(setup.dataset.labels))
        kept = self.state.baseline if arm == "policy" and setup.policy.audits else None
        controller = Controller(
            setup.model,
            setup.space,
            setup.fresh_policy(policy),
            shots,
            setup.settings,
            setup.options.seed,
            callback,
            save,
            train_head=setup.space.head > 0,
            baseline=None if kept is None else Baseline(HEAD_ONLY, tuple(kept)),
            processes=setup.processes,
            begun_with=() if earlier is None else earlier.units,
            mixed_precision=setup.mixed_precision,
        )
        if resumed is not None:
            with belonging(self.folder.checkpoint):
                controller.load_state_dict(resumed)
        return controller

    def _ship(
        self,
        outcome: Outcome,
        tensors: Mapping[str, torch.Tensor],
        reached: Reached,
        known: Quality,
    ) -> Result:
        """Write adapter, report and result, in this order: a folder with a result holds
        everything else.
        """
        setup = self.setup
        kept = next((event.rules for event in self.past if isinstance(event, events.PartsKept)), {})
        result = run_result(
            setup, outcome, reached, kept, self.folder.path, self.seconds, self._so_far()
        )
        if not self.writes:
            return result
        commands = Commands.of(self.folder.read_config().typed, code=setup.options.typed.code)
        report = report_markdown(result, read_trace(self.folder.trace), commands)
        config = adapter_config(setup, outcome.active, result, known)
        save_adapter(self.folder.adapter, config, tensors, report=report, trace=self.folder.trace)
        self.folder.write_report(report)
        if self.tracker is not None:
            result = result.model_copy(update={"mlflow_run_id": self.tracker.run_id})
        self.folder.write_result(result)
        if self.tracker is not None:
            self.tracker.finish(
                images_for_mlflow(self.folder, self.warn, setup.options.typed, str(setup.device))
            )
        remove_checkpoint(self.folder.checkpoint)
        return result

    def _emit(self, event: events.Event) -> None:
        if self.trace is not None:
            self.trace(event)
        if not isinstance(event, events.TrainingStep):
            self.past.append(event)
        if self.tracker is not None:
            self.tracker(event)
        self.listen(event)

    def _timed(self, what: str, work: Callable[[], _T]) -> _T:
        began = time.monotonic()
        done = work()
        self.seconds[what] += time.monotonic() - began
        return done

    def _so_far(self) -> float:
        """Seconds that the run has taken, including the time before a resume."""
        return time.monotonic() - self.began + self.seconds["before"]
