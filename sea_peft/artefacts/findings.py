"""The findings of a run, in plain words and small tables: the content of both the Markdown and
the HTML report.
"""

import dataclasses
from collections.abc import Iterable

from sea_peft.artefacts.commands import Commands
from sea_peft.artefacts.finding_tables import (
    ARMS,
    Table,
    budget_table,
    dice_table,
    known_table,
    placement_table,
    unit_cells,
)
from sea_peft.artefacts.history import History
from sea_peft.artefacts.known_labels import known_labels
from sea_peft.artefacts.view import UnitRow, summarise
from sea_peft.data.wording import count
from sea_peft.loop.comparison import UNADAPTED
from sea_peft.loop.events import Event, Scored
from sea_peft.loop.recommendation import LEAST_DICE, Difference, difference

UNKNOWN = Commands()
_MOST_UNITS = 12
_NOISE = 0.005  # Dice by which a score may be lower without being called worse
_ERRORS = 2  # standard errors beyond which a utility is more than noise
_LOSS = 0.02  # Dice that a label may lose without being named first


@dataclasses.dataclass(frozen=True)
class Advice:
    """A sentence that ends in a colon, and the command that follows it."""

    text: str
    command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The verdict of a run and its basis.

    Attributes:
        helps: None if there is no score to judge by, or a label lost.
        headline: the verdict in a sentence.
        verdict: its basis, in sentences.
        advice: which network predictions use, and the commands to continue with.
        scored_on: title of `dice`.
        dice: scores by label and arm.
        known: the labels that the network knew, before and after others were added.
        budget: what was spent.
        placement: units by stage and family.
        placed: the units that are on.
        refused: the best of the others.
        caveats: reasons to be careful.
    """

    helps: bool | None
    headline: str
    verdict: tuple[str, ...]
    advice: tuple[Advice, ...]
    scored_on: str
    dice: Table
    known: Table
    budget: Table
    placement: Table
    placed: Table
    refused: Table
    caveats: tuple[str, ...]


def findings(events: Iterable[Event] | History, commands: Commands = UNKNOWN) -> Findings:
    """Judge a run by its events, even an unfinished one. `commands`: how the user continues
    from it.
    """
    history = events if isinstance(events, History) else History(events)
    rows = summarise(history)
    helps, headline, verdict, advice = _verdict(history, commands)
    measured_off = [
        row for row in rows if not row.on and (row.utility is not None or row.decision == "refuse")
    ]
    return Findings(
        helps=helps,
        headline=headline,
        verdict=(*verdict, *_parts_kept(history)),
        advice=tuple(advice),
        scored_on=_title(history),
        dice=dice_table(history),
        known=known_table(history),
        budget=budget_table(history),
        placement=placement_table(rows),
        placed=unit_cells(history, [row for row in rows if row.on][:_MOST_UNITS]),
        refused=unit_cells(history, measured_off[:_MOST_UNITS]),
        caveats=tuple(_caveats(history, rows)),
    )


def _verdict(
    history: History, commands: Commands
) -> tuple[bool | None, str, list[str], list[Advice]]:
    """Whether the adapter helps, the headline, its basis, and what the user can do."""
    said, advice = _on_the_check_scan(history, commands)
    recommended = _recommended(history, commands)
    if history.finished is None:
        return (
            None,
            "The run has not finished: nothing can be said yet about whether the adapter helps.",
            said,
            advice,
        )
    arms = history.scored or history.held_out
    adapted = arms.get("adapted")
    if adapted is None or adapted.dice is None:
        headline = "Not scored on unseen scans, so whether the adapter helps is not known."
        return None, headline, said, recommended + advice + _other_evidence(history, commands)
    baselines = {arm: arms[arm] for arm in ("unadapted", "head_only") if arm in arms}
    lost, unsure, few = [], [], False
    for arm, baseline in baselines.items():
        name = "the unadapted backbone" if arm == "unadapted" else "training the head alone"
        if baseline.dice is None:
            said.append(
                f"{name[0].upper()}{name[1:]} cannot predict these labels: nothing to compare with."
            )
            continue
        found = difference(adapted, baseline)
        said.append(f"Against {name} ({baseline.dice:.3f}): {_in_words(found, adapted.on)}.")
        worse = [f"{label} ({drop})" for label, drop in _drops(adapted, baseline, _NOISE).items()]
        if worse:
            said.append(f"Worse than {name} on {', '.join(worse)}.")
        if found.mean <= 0:
            lost.append(name)
        elif found.error is None or found.mean <= 2 * found.error:
            unsure.append(name)
            few = found.error is None  # so for every arm, since all are scored on the same cases
    scores = ", ".join(
        f"{baseline.dice:.3f} {ARMS[arm]}"
        for arm, baseline in baselines.items()
        if baseline.dice is not None
    )
    against = f"mean Dice {adapted.dice:.3f} on {_scans(adapted)}" + (
        f", against {scores}" if scores else ""
    )
    longer = Advice("To train longer:", commands.adapt(steps=2 * _steps(history)))
    drops = labels_lost(history)
    harmed = (
        f" It lost on {', '.join(f'{label} ({drop})' for label, drop in drops.items())}."
        if drops
        else ""
    )
    if drops:
        advice.append(Advice(f"To look at {_and(drops)}:", commands.pictures))
    if adapted.held_out:
        headline = f"Not scored on unseen scans. Before the refit: {against}.{harmed}"
        return None, headline, said, recommended + advice + _other_evidence(history, commands)
    if max(arm.dice for arm in arms.values() if arm.dice is not None) < LEAST_DICE:
        return (
            None,
            f"No verdict, since nothing finds the labels: {against}.",
            said,
            [*recommended, *advice, longer],
        )
    if lost:
        if "the unadapted backbone" in lost:
            advice.append(longer)
        if "training the head alone" in lost:
            advice.append(Advice("To fit the head alone:", commands.adapt(policy="head_only")))
        headline = f"The adapter does not win over {_and(lost)}: {against}.{harmed}"
        return False, headline, said, recommended + advice
    if unsure:
        doubt = "on too few scans to be sure" if few else f"not clearly over {_and(unsure)}"
        headline = f"The adapter scores higher, but {doubt}: {against}.{harmed}"
        return None, headline, said, recommended + advice + _other_evidence(history, commands)
    if not scores:
        headline = f"The adapter was scored without anything to compare it with: {against}."
        return None, headline, said, recommended + advice
    unharmed = "unadapted" not in baselines or not _drops(adapted, baselines["unadapted"], _NOISE)
    return (
        True if unharmed else None,
        f"The adapter helps: {against}.{harmed}",
        said,
        recommended + advice,
    )


def labels_lost(history: History) -> dict[str, str]:
    """Labels on which the adapter is more than two Dice points below the unadapted backbone → by
    how much, in words.
    """
    arms = history.scored or history.held_out
    adapted, unadapted = arms.get("adapted"), arms.get("unadapted")
    return {} if adapted is None or unadapted is None else _drops(adapted, unadapted, _LOSS)


def _drops(adapted: Scored, baseline: Scored, least: float) -> dict[str, str]:
    return {
        label: f"{dice:.3f} → {adapted.per_label[label]:.3f}"
        for label, dice in baseline.per_label.items()
        if adapted.per_label.get(label, dice) < dice - least
    }


def _on_the_check_scan(history: History, commands: Commands) -> tuple[list[str], list[Advice]]:
    """The candidates at the end of the search, and how to try those that were ahead."""
    if history.compared is None:
        return [], []
    dice, policy = history.compared.dice, history.started.policy
    where = _check_scan(history)
    said = [
        f"At the end of the search, on {where}:"
        f" {', '.join(f'{name} {value:.3f}' for name, value in dice.items())}."
    ]
    ours = dice.get(policy, next(iter(dice.values())))
    advice = [
        Advice(
            f"A simpler recipe did better on {where} ({value:.2f} against {ours:.2f}). To try it:",
            commands.adapt(policy=name),
        )
        for name, value in dice.items()
        if name not in (policy, UNADAPTED)
        and value > ours + _NOISE
        and max(dice.values()) >= LEAST_DICE
    ]
    return said, advice


def _check_scan(history: History) -> str:
    audit = len(history.started.split.get("audit", ()))
    if not audit:
        return "held-out labels of the one scan"
    return "the check scan" if audit == 1 else "the check scans"


def _recommended(history: History, commands: Commands) -> list[Advice]:
    if history.recommended is None:
        return []
    network, evidence = history.recommended.network, history.recommended.evidence
    if network == "adapted":
        advice = [Advice(f"Predictions use the adapted network ({evidence}):", commands.predict())]
        if known_labels(history.scored, history.held_out):
            said = (
                "To take only the added labels from it, and what the network knew from the"
                " unadapted one:"
            )
            advice.append(Advice(said, commands.predict("both")))
        return advice
    said = f"Predictions use the unadapted network ({evidence}). To use the adapter all the same:"
    return [Advice(said, commands.predict("adapted"))]


def _other_evidence(history: History, commands: Commands) -> list[Advice]:
    """Commands that would give more evidence."""
    shots = sum(len(history.started.split.get(role, ())) for role in ("support", "audit"))
    # the adapter that a run went on from has seen its shots, so `cv` is refused there
    if shots > 1 and history.tested_on != "cv" and history.started.begun_from is None:
        return [
            Advice(
                "To score every shot by an adapter that never saw it:", commands.adapt(test="cv")
            )
        ]
    return [Advice("To score it on other labelled scans:", commands.evaluate)]


def _steps(history: History) -> int:
    return int(history.started.settings["loop"]["steps"])


def _scans(scored: Scored) -> str:
    cases = len(scored.per_case)
    if scored.on == "held_out_labels":
        return "the held-out labels of the one shot"
    if scored.on == "held_out":
        return f"{count(cases, 'scan')} held out while searching"
    return (
        count(cases, "test case")
        if scored.on == "test"
        else f"{count(cases, 'shot')}, each left out in turn"
    )


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)


def _in_words(found: Difference, on: str) -> str:
    amount = f"{abs(found.mean) * 100:.1f} Dice points {'higher' if found.mean > 0 else 'lower'}"
    if found.mean == 0:
        amount = "exactly the same"
    cases = (
        f"better in {found.better} of {count(found.cases, 'test case' if on == 'test' else 'scan')}"
    )
    if found.error is None:
        return f"{amount} ({cases}; too few to tell from chance)"
    chance = "" if abs(found.mean) > 2 * found.error else ", which chance can explain"
    return f"{amount} (± {found.error * 100:.1f} standard error; {cases}){chance}"


def _title(history: History) -> str:
    if history.scored:
        return (
            "Dice on the test cases"
            if history.tested_on == "test"
            else "Dice of every shot, by an adapter that never saw it"
        )
    if any(scored.on == "held_out_labels" for scored in history.held_out.values()):
        return "Dice on the held-out labels of the one shot, before the refit"
    scans = max((len(scored.per_case) for scored in history.held_out.values()), default=1)
    return f"Dice on the check scan{'' if scans == 1 else 's'}, before the refit"


def _parts_kept(history: History) -> list[str]:
    if history.parts_kept is None:
        return []
    gained = history.parts_kept.gains
    rules = [
        f"{label} {rule} (+{100 * gained[label]:.1f} points)"
        for label, rule in history.parts_kept.rules.items()
    ]
    where = f"on {count(history.parts_kept.scans, 'scan')} held out while searching"
    return [
        f"predict and evaluate keep only these connected parts of masks, which helped {where}:"
        f" {', '.join(rules)}. The Dice here is without that."
    ]


def _caveats(history: History, rows: list[UnitRow]) -> list[str]:
    split = {role: len(cases) for role, cases in history.started.split.items()}
    support, audit, test = (split.get(role, 0) for role in ("support", "audit", "test"))
    shots = support + audit
    scans = count(shots, "labelled scan")
    said = []
    if audit:
        said.append(
            f"{scans}: {support} trained on, {audit} held out to choose by; the final fit used all"
            " of them."
        )
    else:
        said.append(f"{scans}, no case held out to choose by.")
    if history.independent is False:
        said.append(
            "Utilities were measured on held-out labels of the scan that was trained on: they are"
            " not independent, and look better than they are."
        )
    elif history.independent and audit == 1:
        said.append(
            "All utilities rest on 1 audit case: what helps there may not help on the next patient."
        )
    if history.finished is not None and history.finished.used > history.started.limit:
        many = history.started.cost_kind.many
        said.append(
            f"This policy takes more {many} than the budget allows: it is there to be compared"
            " with."
        )
    arms = history.scored or history.held_out
    unadapted, adapted = (arms.get(arm) for arm in ("unadapted", "adapted"))
    if unadapted is not None and unadapted.dice is not None and adapted is not None:
        new = [label for label in adapted.per_label if label not in unadapted.per_label]
        if new:
            said.append(
                f"The unadapted backbone does not know {', '.join(new)}: in its mean Dice that"
                " counts as 0."
            )
    if history.tested_on == "cv":
        said.append(
            f"The Dice is that of {len(history.folds)} adapters, each made without the shot that it"
            " was scored on; the one that ships was made with all of them."
        )
    elif not test:
        said.append("Not scored on unseen scans: how well it does on new ones is not known.")
    elif test < 10:
        said.append(f"{count(test, 'test case')}: too few for a precise Dice.")
    unmeasured = [row for row in rows if row.utility is None]
    if unmeasured and history.independent is not None:
        blind = sum(row.on for row in unmeasured)
        said.append(
            f"{len(unmeasured)} of {len(rows)} units were never measured"
            + (f"; {blind} of them are on all the same, for the reasons given." if blind else ".")
        )
    if history.independent is not None:
        said += _what_units_are_worth(rows)
        said.append(
            "A utility tells what a unit does in this jointly trained network, not what it would do"
            " alone."
        )
    said += [
        "One training seed: another one can place other units.",
        "Research software, not a medical device: a qualified person must check every mask.",
    ]
    return said


def _what_units_are_worth(rows: list[UnitRow]) -> list[str]:
    """How many measured units matter beyond their error, and how much: whether it was worth
    choosing.
    """
    measured = [
        (abs(row.utility), row.standard_error)
        for row in rows
        if row.utility is not None and row.standard_error is not None
    ]
    if not measured:
        return []
    clear = [size for size, error in measured if size > _ERRORS * error]
    if not clear:
        return [
            f"None of {count(len(measured), 'measured unit')} changes Dice by more than twice its"
            " error: which units are on hardly matters here, and --policy cheapest needs no audits."
        ]
    return [
        f"{len(clear)} of {count(len(measured), 'measured unit')} change Dice by more than twice"
        f" their error, by {max(clear) * 100:.1f} points at most: so much depends on any one unit."
    ]
