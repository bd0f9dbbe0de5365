"""`seapeft adapt`: search, audit, allocate, refit; score three arms; recommend one network; leave a run folder."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sea_peft.artefacts.adapter_file import save_adapter
from sea_peft.artefacts.checkpoint import RunState, belonging, load_checkpoint, remove_checkpoint, save_checkpoint
from sea_peft.artefacts.commands import Commands
from sea_peft.artefacts.report import report_markdown
from sea_peft.artefacts.run_folder import Result, RunFolder, dated
from sea_peft.artefacts.trace import TraceWriter, read_trace
from sea_peft.artefacts.tracker import Tracker, rebuild
from sea_peft.atomic import remove_leftovers
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.digest import case_hash
from sea_peft.data.prepare import prepare
from sea_peft.data.spill import ScanCache
from sea_peft.data.split import Split
from sea_peft.errors import DiskError, UsageError
from sea_peft.jobs.memory import needed
from sea_peft.jobs.model import adapter_tensors
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.patch_cost import cost_of_patch
from sea_peft.jobs.pictures import images_for_mlflow
from sea_peft.jobs.records import (
    Reached,
    adapter_config,
    options_of,
    run_config,
    run_result,
    run_started,
    write_case_names,
)
from sea_peft.jobs.scoring import ARMS, HEAD_ONLY, ArmScores, score, score_held_out_labels, scored
from sea_peft.jobs.setup import Setup, prepare_run
from sea_peft.loop import events
from sea_peft.loop.controller import Controller
from sea_peft.loop.outcome import Baseline, Outcome
from sea_peft.loop.recommendation import recommend
from sea_peft.loop.settings import Shots

Say = Callable[[str], None]


def _silent(_sentence: str) -> None:
    """Nobody listens."""


def _unwatched(_folder: RunFolder) -> None:
    """Nobody wants to know where a run lies."""


def adapt(
    options: AdaptOptions,
    listen: events.Callback = events.ignore,
    say: Say = _silent,
    warn: Say = _silent,
    progress: Callable[[int, int], None] | None = None,
    baselines: Mapping[str, events.Scored] | None = None,
    begun: Callable[[RunFolder], None] = _unwatched,
) -> Result:
    """Run one adaptation from start to end.

    Args:
        options: what was asked for.
        listen: gets every event as it happens, training steps included.
        say, warn: get sentences for the user.
        progress: told (done, of) while the data set is checked.
        baselines: the scores of `unadapted` and `head_only` from a run that differs in policy and budget alone, which fits and scores
            those two arms the same: they are taken over instead of being made again. For grids; the caller answers for it.
        begun: told the run folder as soon as the run can be resumed.

    Raises:
        SeaPeftError: with one sentence and its exit code; before anything is written where the request itself is refused.
    """
    began = time.monotonic()
    setup = prepare_run(options, say, progress)
    name = options.name or setup.neutral_name
    # whoever chose --out may have named a patient in it
    config = run_config(setup, dated(name) if options.out else None)
    folder = RunFolder.create_at(Path(options.out)) if options.out else RunFolder.create(Path(options.runs), name)
    say(f"run folder {folder.path}; {needed(setup.need())}")
    write_case_names(folder, setup)
    folder.write_config(
        config if config.name else config.model_copy(update={"name": folder.name})
    )  # last: what has it can be resumed
    begun(folder)
    return _Run(setup, folder, listen, say, warn, began, baselines or {}).run()


def resume(
    path: str | Path,
    listen: events.Callback = events.ignore,
    say: Say = _silent,
    warn: Say = _silent,
    progress: Callable[[int, int], None] | None = None,
    typed: Typed = NOTHING,
) -> Result:
    """Go on with a run that was ended; its trace and adapter become those of an uninterrupted run. `typed`: the backbone or its weights, when
    the weights are not installed by the name that the run has for them.

    Raises:
        SeaPeftError: with one sentence and its exit code: the folder is no run, or a finished one; its config, trace or checkpoint is
            damaged; the data have changed; another process is at it. Nothing but trace lines that the checkpoint does not know is then gone.
    """
    began = time.monotonic()
    folder = RunFolder.open(Path(path))
    config = folder.read_config()
    if folder.result.is_file():
        if not folder.checkpoint.exists():
            raise UsageError(
                f"{path} is finished: there is nothing to resume; look at it with `seapeft inspect {path}`."
            )
        if config.mlflow:  # killed after the last word was written, and perhaps before MLflow had it
            rebuild(folder, images=images_for_mlflow(folder, warn, typed, config.device))
        remove_checkpoint(folder.checkpoint)
        return folder.read_result()
    options, begun = options_of(config, folder, typed)
    setup = prepare_run(options, say, progress, begun)
    if setup.public_digest != config.data_digest:
        raise UsageError(f"The data have changed since {path} was started, so it cannot be resumed; start a new run.")
    _refuse_another_split(folder, setup)
    return _Run(setup, folder, listen, say, warn, began, {}).run()


def _refuse_another_split(folder: RunFolder, setup: Setup) -> None:
    """A split file that was changed meanwhile would bring other cases into the run."""
    begun = read_trace(folder.trace)[:1] if folder.trace.is_file() else []
    if begun and isinstance(begun[0], events.RunStarted) and begun[0].split != run_started(setup).split:
        raise UsageError(
            f"The split of the cases is not the one that {folder.path} was started with, so it cannot be resumed; start a new run."
        )


class _Run:
    """One run on one folder: hands events to trace, MLflow and listener, and can stop and go on at every checkpoint."""

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        listen: events.Callback,
        say: Say,
        warn: Say,
        began: float,
        baselines: Mapping[str, events.Scored],
    ) -> None:
        self.setup, self.folder, self.listen, self.say, self.warn = setup, folder, listen, say, warn
        self.baselines = baselines if setup.tested_on == "cases" else {}
        self.began = began
        self.state = load_checkpoint(folder.checkpoint) or RunState.at_the_start()
        self.trace = TraceWriter(folder.trace, append=True)
        try:
            # damage anywhere in it shows now, and not at the end
            self.past = read_trace(folder.trace)[: self.state.events]
            self.trace.truncate(self.state.events)
            for place in (folder.path, folder.checkpoint):
                remove_leftovers(place)
        except BaseException:
            self.trace.close()
            raise
        self.tracker = Tracker(folder, warn) if setup.options.mlflow else None
        self.seconds = dict(self.state.seconds)

    def run(self) -> Result:
        """To the end, or to an exception, after which it can be resumed."""
        try:
            result = self._run()
        except BaseException as error:
            if self.tracker is not None:
                self.tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            if isinstance(error, DiskError):
                raise DiskError(
                    f"{str(error).rstrip('.')}; what the run has written is kept, and `seapeft adapt --resume "
                    f"{shlex.quote(str(self.folder.path))}{self.setup.options.typed.flags}` goes on from there."
                ) from error
            raise
        finally:
            self.trace.close()
        return result

    def _run(self) -> Result:
        setup = self.setup
        for sentence in setup.warnings:
            self.warn(sentence)
        if self.trace.count == 0:
            self._emit(run_started(setup))
        shots = self._timed("data", self._shots)
        if self.trace.count == 1 and (cost := cost_of_patch(setup, shots.search[0])) is not None:
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
        return self._ship(outcome, adapted, Reached(arms, self._on_held_out(), rates, recommended))

    def _policy(self, shots: Shots) -> Outcome:
        """What was asked for, to the end; after its search the three arms are scored on what was held out until then."""
        controller = self._controller(self.setup.options.policy, shots, self._emit, "policy")
        controller.search()
        if "adapted" not in self.state.held_out:  # a run that is resumed in the refit has it already
            # what nothing else has scored there: the backbone, and a head that has nothing to fit
            head = self.state.head_only if HEAD_ONLY not in self.state.held_out else None
            self._score_held_out(shots, head, adapted=True)
            kept = ArmScores(self.state.held_out, seconds=dict.fromkeys(self.state.held_out, 0.0))
            for event in scored(self.setup, kept, "held_out" if shots.audit else "held_out_labels").values():
                self._emit(event)
        return controller.run()

    def _score_held_out(self, shots: Shots, head: Mapping[str, torch.Tensor] | None, adapted: bool) -> None:
        """As the search has left them: on the scans that it did not train on, or, at one shot, on the labels."""
        folder, told = self.folder.path, self._told("held_out")
        found = self._timed(
            "test",
            lambda: (
                score(self.setup, self.setup.split.audit, head, adapted, folder, told)
                if shots.audit
                else score_held_out_labels(self.setup, shots.search[0], head, adapted, folder, told)
            ),
        )
        if adapted and head is not None and self.setup.space.head:
            del found.dice[HEAD_ONLY]  # it was not fitted: its scores are taken over from another run
        self.state = self.state.model_copy(update={"held_out": {**self.state.held_out, **found.dice}})

    def _scores(self, head_only: Mapping[str, torch.Tensor]) -> ArmScores:
        """The three arms on the test cases, or put together from leave-one-out."""
        if not self.setup.folds:
            fitted = None if self.baselines else head_only
            return score(self.setup, self.setup.split.test, fitted, True, self.folder.path, self._told("test"))
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
        scans = {id(case): scan for case, scan in zip(self.setup.split.shots, shots.all, strict=True)}
        part = Shots(tuple(scans[id(c)] for c in split.support), tuple(scans[id(c)] for c in split.audit))
        began, fold = time.monotonic(), self.state.fold
        head_only = self._before_the_policy(part, compared=False)

        def steps_only(event: events.Event) -> None:
            if isinstance(event, events.TrainingStep):
                self.listen(dataclasses.replace(event, phase=self._without))

        outcome = self._controller(self.setup.options.policy, part, steps_only, "policy").run()
        scores = self._timed(
            "test", lambda: score(self.setup, split.test, head_only, True, self.folder.path, self._told("held_out"))
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
                split={role: [case_hash(name, self.setup.salt) for name in names] for role, names in roles.items()},
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
        """The part of leave-one-out that is being fitted, in words."""
        return f"without shot {self.state.fold + 1} of {len(self.setup.folds)}"

    def _told(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, of: self.listen(events.TrainingStep(phase, done, of, 0.0))

    def _shots(self) -> Shots:
        setup, cache = self.setup, ScanCache(folder=self.folder.path)
        cases = setup.split.shots
        scans = []
        for done, case in enumerate(cases, start=1):
            scans.append(cache.keep(prepare(case, setup.recipe, setup.dataset.channels, setup.dataset.labels)))
            self.listen(events.TrainingStep("prepare", done, len(cases), 0.0))
        held = {index for scan in scans if scan.label is not None for index in scan.label.unique().tolist()}
        for index, label in enumerate(setup.dataset.labels, start=1):
            if index not in held:
                self.warn(
                    f"Label {label} is in none of the shots at the voxel size of training, so it cannot be learnt; "
                    "choose shots that hold it (another --seed, more --shots) or leave it out with --label."
                )
        support = len(setup.split.support)
        return Shots(tuple(scans[:support]), tuple(scans[support:]))

    def _before_the_policy(self, shots: Shots, compared: bool | None = None) -> dict[str, torch.Tensor]:
        """The arm that a policy is compared with, at the same steps and crops: the head fitted alone, whose tensors are returned. Head and
        bank are left as they were.

        `compared`: whether it is wanted as a baseline at all; left out: where the policy is held against it.
        """
        baselines = bool(self.baselines)
        compared = self.setup.policy.audits if compared is None else compared
        if self.state.arm == HEAD_ONLY:
            if compared or (self.setup.space.head and not baselines):
                self._fit_head(shots, refit=not baselines)
            head = self.setup.model.head.state_dict()
            self._next_arm("policy", head_only={name: t.detach().cpu().clone() for name, t in head.items()})
        assert self.state.head_only is not None, "it was fitted, or left at zero, before"
        return self.state.head_only

    def _fit_head(self, shots: Shots, refit: bool) -> None:
        """Search, and refit where it is to be scored, with the head alone; what its search led to is kept for the comparison."""

        def steps_only(event: events.Event) -> None:
            if isinstance(event, events.TrainingStep):
                phase = HEAD_ONLY if self.state.fold == len(self.setup.folds) else f"{self._without}, the head alone"
                self.listen(dataclasses.replace(event, phase=phase))

        controller = self._controller(HEAD_ONLY, shots, steps_only, HEAD_ONLY)
        controller.search()
        if self.state.fold == len(self.setup.folds) and self.state.baseline is None:  # else it was resumed in the refit
            self.state = self.state.model_copy(update={"baseline": list(controller.as_baseline().dice)})
            self._score_held_out(shots, self.setup.model.head.state_dict(), adapted=False)
        if refit:
            controller.run()

    def _next_arm(self, arm: str, **kept: Any) -> None:
        self.state = self.state.model_copy(update={"arm": arm, "controller": None, **kept})
        model = self.setup.model
        model.bank.forget()
        model.head.load_state_dict({name: torch.zeros_like(t) for name, t in model.head.state_dict().items()})

    def _controller(self, policy: str, shots: Shots, callback: events.Callback, arm: str) -> Controller:
        setup = self.setup

        def save(state: Mapping[str, Any]) -> None:
            stands = {
                "arm": arm,
                "events": self.trace.count,
                "seconds": {**self.seconds, "before": self._so_far()},
                "controller": dict(state),
            }
            self.state = self.state.model_copy(update=stands)
            save_checkpoint(self.folder.checkpoint, self.state)

        kept = self.state.baseline if arm == "policy" and setup.policy.audits else None
        controller = Controller(
            setup.model, setup.space, setup.fresh_policy(policy), shots, setup.settings, setup.options.seed, callback, save,
            train_head=setup.space.head > 0,
            baseline=None if kept is None else Baseline(HEAD_ONLY, tuple(kept)),
        )  # fmt: skip
        if self.state.arm == arm and self.state.controller is not None:
            with belonging(self.folder.checkpoint):
                controller.load_state_dict(self.state.controller)
        return controller

    def _ship(self, outcome: Outcome, tensors: Mapping[str, torch.Tensor], reached: Reached) -> Result:
        """Adapter, report and result, in this order: a folder with a result holds everything else."""
        setup = self.setup
        result = run_result(setup, outcome, reached, self.folder.path, self.seconds, self._so_far())
        commands = Commands.of(self.folder.read_config().typed, code=setup.options.typed.code)
        report = report_markdown(result, read_trace(self.folder.trace), commands)
        config = adapter_config(setup, outcome.active, result)
        save_adapter(self.folder.adapter, config, tensors, report=report, trace=self.folder.trace)
        self.folder.write_report(report)
        if self.tracker is not None:
            result = result.model_copy(update={"mlflow_run_id": self.tracker.run_id})
        self.folder.write_result(result)
        if self.tracker is not None:
            self.tracker.finish(images_for_mlflow(self.folder, self.warn, setup.options.typed, str(setup.device)))
        remove_checkpoint(self.folder.checkpoint)
        return result

    def _emit(self, event: events.Event) -> None:
        self.trace(event)
        if not isinstance(event, events.TrainingStep):
            self.past.append(event)
        if self.tracker is not None:
            self.tracker(event)
        self.listen(event)

    def _timed(self, what: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        done = work()
        self.seconds[what] += time.monotonic() - began
        return done

    def _so_far(self) -> float:
        """Seconds that the run has taken, those before a resume included."""
        return time.monotonic() - self.began + self.seconds["before"]
