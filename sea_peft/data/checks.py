"""Refuses bad data before any training: checks every case of a data set, and the data set as a
whole.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sea_peft.data.case_check import CaseCheck, Finding, check_case
from sea_peft.data.cases import Dataset
from sea_peft.data.digest import data_digest
from sea_peft.data.intensity import HOUNSFIELD_MINIMUM
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.split import require_enough
from sea_peft.errors import DataError

_RARE_NAMED = 10


@dataclass(frozen=True, eq=False)
class Checked:
    """A checked data set.

    Attributes:
        usable: the data set with its usable cases only.
        cases: one entry for each labelled case, test cases last.
        findings: all findings, those on the data set as a whole last.
        digest: digest of all usable voxels and geometry, without names.
    """

    usable: Dataset
    cases: tuple[CaseCheck, ...]
    findings: tuple[Finding, ...]
    digest: str

    @property
    def holds(self) -> dict[str, frozenset[str]]:
        """Case id → the labels that the case holds."""
        # test cases come last, and one may share its name with a training case
        return {
            entry.case: frozenset(label for label, voxels in entry.voxels.items() if voxels)
            for entry in reversed(self.cases)
        }

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that would stop `adapt`."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def check(dataset: Dataset, shots: int | None = None, progress: Progress = unwatched) -> Checked:
    """Check everything and report everything.

    Args:
        dataset: with the labels and channels that will be used (see `select`).
        shots: number of cases that will be needed; None if that is open.
        progress: called after each case.
    """
    checks = list(_each_case(dataset, progress))
    checked = _conclude(dataset, checks)
    if shots is not None:
        try:
            _require_enough(checked, shots)
        except DataError as error:
            short = Finding("", "cases", "error", str(error))
            checked = dataclasses.replace(checked, findings=(*checked.findings, short))
    return checked


def refuse_or_pass(
    dataset: Dataset, shots: int | None, progress: Callable[[int, int], None] = unwatched
) -> Checked:
    """Check, and stop at the first case that is unfit.

    Every labelled case would become a support, audit or test case, so an error in any of them
    refuses the data set. `shots`: how many must be usable; None if they are named one by one.

    Raises:
        DataError: the first error found, or too few usable cases for the shots.
    """
    if shots is not None:
        require_enough(dataset, shots)  # before reading anything
    checks = []
    for entry in _each_case(dataset, progress):
        errors = [finding for finding in entry.findings if finding.severity == "error"]
        if errors:
            raise DataError(errors[0].sentence)
        checks.append(entry)
    checked = _conclude(dataset, checks)
    if shots is not None:
        _require_enough(checked, shots)
    return checked


def _each_case(dataset: Dataset, progress: Callable[[int, int], None]) -> Iterator[CaseCheck]:
    """The check of each labelled case, with duplicates of earlier cases added to its findings."""
    cases = (*dataset.cases, *dataset.test_cases)
    seen: dict[str, str] = {}
    for done, case in enumerate(cases, start=1):
        entry = check_case(case, dataset)
        twins = [(c, seen[h]) for c, h in entry.image_hashes.items() if h in seen]
        for channel, twin in twins[:1]:
            sentence = (
                f"case {case.id}: channel {channel} holds exactly the same voxels as case {twin},"
                " so one could be trained on and the other tested on; take one of the two out"
            )
            finding = Finding(case.id, "voxels", "error", sentence)
            entry = dataclasses.replace(entry, findings=(*entry.findings, finding))
        seen.update({h: case.id for h in entry.image_hashes.values() if h not in seen})
        progress(done, len(cases))
        yield entry


def _conclude(dataset: Dataset, checks: list[CaseCheck]) -> Checked:
    # By position: a test case may share its name with a training case
    good = [entry.usable for entry in checks]
    count = len(dataset.cases)
    cases = [case for case, usable in zip(dataset.cases, good[:count], strict=True) if usable]
    tests = [case for case, usable in zip(dataset.test_cases, good[count:], strict=True) if usable]
    findings = [finding for entry in checks for finding in entry.findings]
    findings += _mixed_grey_values(dataset, checks)
    findings += _rare_labels(dataset, checks)
    findings += [Finding("", "layout", "warning", sentence) for sentence in dataset.warnings]
    digest = data_digest(entry.digests for entry in checks if entry.usable)
    return Checked(dataset.with_cases(cases, tests), tuple(checks), tuple(findings), digest)


def _mixed_grey_values(dataset: Dataset, checks: list[CaseCheck]) -> Iterator[Finding]:
    """One channel that is in Hounsfield units in some cases only."""
    for channel in dataset.channels:
        lows = {entry.case: entry.values[channel][0] for entry in checks if channel in entry.values}
        hounsfield = [case for case, low in lows.items() if low <= HOUNSFIELD_MINIMUM]
        others = [case for case in lows if case not in hounsfield]
        if hounsfield and others:
            sentence = (
                f"channel {channel} looks like CT in case {hounsfield[0]} (smallest value "
                f"{lows[hounsfield[0]]:.4g}) but not in case {others[0]} ({lows[others[0]]:.4g}); "
                "adapt to one kind of scan at a time"
            )
            yield Finding("", f"channel {channel}", "warning", sentence)


def _rare_labels(dataset: Dataset, checks: list[CaseCheck]) -> Iterator[Finding]:
    """Labels in one case only, or in none: they cannot be both learnt and tested."""
    labelled = [entry for entry in checks if any(entry.voxels.values())]
    rare = []
    for name in dataset.labels if len(labelled) > 1 else ():
        cases = [entry.case for entry in labelled if entry.voxels.get(name, 0)]
        if len(cases) <= 1:
            rare.append(f"{name} (case {cases[0]})" if cases else f"{name} (no case)")
    if rare:
        more = f" and {len(rare) - _RARE_NAMED} more" if len(rare) > _RARE_NAMED else ""
        sentence = (
            f"of {len(labelled)} cases with labels, only one or none holds"
            f" {', '.join(rare[:_RARE_NAMED])}{more}; choose other labels, or label more cases"
        )
        yield Finding("", "labels", "warning", sentence)


def _require_enough(checked: Checked, shots: int) -> None:
    try:
        require_enough(checked.usable, shots)
    except DataError as error:
        reasons = [f.sentence for f in checked.findings if f.case and f.severity != "warning"]
        shown = "".join(f"; {reason}" for reason in reasons[:3])
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise DataError(f"{error}{shown}{more}", *error.settings) from error
