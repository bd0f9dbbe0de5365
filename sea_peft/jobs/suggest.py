"""`seapeft suggest`: which unlabelled scans to label next, the least trusted and most different
first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sea_peft.artefacts.quality import Quality
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.atomic import new_folder, write_bytes, write_text
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.cases import Case, FileCase, safe_name
from sea_peft.data.prepare import restore
from sea_peft.data.progress import Progress, unwatched, within
from sea_peft.data.wording import count
from sea_peft.errors import SeaPeftError, UsageError
from sea_peft.jobs.case_results import input_notes, picture
from sea_peft.jobs.features import Pooled, distances, pooling
from sea_peft.jobs.inference import confidences
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.memory import needed
from sea_peft.jobs.predictor import Predictor, reason
from sea_peft.jobs.qc_files import ShownMask, page_of_masks
from sea_peft.jobs.quality import Judged, judge, look_at_prediction
from sea_peft.jobs.reopened import reopen
from sea_peft.loop.events import RunStarted

_PAGE = "suggest.html"
_SAME = 1e-5  # of the usual distance: the rounding error between a scan and its copy


@dataclasses.dataclass(frozen=True, eq=False)
class LookedAt:
    """The basis for ranking one scan: the judgement of `--qc` on its mask, and its features `[C]`
    (`features.pooling`).
    """

    case: str
    judged: Judged
    features: np.ndarray

    @property
    def doubt(self) -> float:
        """1 minus the expected Dice, as a mean over labels."""
        return 1.0 - self.judged.mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One suggested scan.

    Attributes:
        rank: from 1.
        scan: its name.
        expected_dice: mean over the labels in its mask.
        distance: to the nearest shot or scan before it, relative to the usual distance among the
            scans; None for the first if no shots are known.
        why: in words.
        flags: those of `predict --qc`.
        picture: file in the output folder.
    """

    rank: int
    scan: str
    expected_dice: float
    distance: float | None
    why: str
    flags: tuple[str, ...]
    picture: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suggestions:
    """The result of `suggest`.

    Attributes:
        network: the one whose masks and features these are.
        shots: number of shots that distances were first measured to; 0 if the run's shots are not
            available.
        suggested: the scans to label next.
        others: the rest, in the order in which they would be suggested.
        failed: scan → why it could not be examined.
        warnings: assumptions that had to be made about scans.
        page: the page with the pictures, if asked for.
    """

    network: str
    shots: int
    suggested: tuple[Suggestion, ...]
    others: tuple[Suggestion, ...]
    failed: Mapping[str, str]
    warnings: tuple[str, ...]
    page: Path | None

    def document(self) -> dict[str, object]:
        """As JSON types."""
        return {**dataclasses.asdict(self), "page": None if self.page is None else str(self.page)}


def suggest(
    run: Path,
    scans: Sequence[Path],
    n: int = 3,
    *,
    out: Path | None = None,
    typed: Typed = NOTHING,
    device: str = "auto",
    use: str | None = None,
    channels: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    progress: Progress = unwatched,
) -> Suggestions:
    """Rank unlabelled scans, the least trusted and most different first (`in_turn`).

    Args:
        run: a run folder, whose shots distances are measured to; or an adapter folder, which does
            not know them.
        scans: files, folders of scans, or data sets, of which only scans without a label are taken.
        n: how many to suggest.
        out: a folder to make, with a picture of each and a page; None for none.
        typed: the backbone or its weights, if they are not installed under the name in the adapter.
        device: as on the command line.
        use: "adapted" or "unadapted"; None for the network that the adapter's run recommends.
        channels: as for `predict`.
        say: receives sentences for the user.
        progress: called with (looks done, of): one at each of the run's shots and of the scans, and
            another at each scan that is drawn.

    Returns:
        The ranking. A scan that cannot be examined does not stop the others.

    Raises:
        UsageError: `n` is below 1, `out` exists, or the adapter does not say what its run saw.
        DataError: an input does not exist or holds no unlabelled scan.
        WeightsError: the adapter is refused.
        DeviceError: the device is refused.
        DiskError: `out` cannot be written.
    """
    if n < 1:
        raise UsageError(f"-n {n} is not a number of scans; ask for 1 or more.")
    if out is not None and out.exists():
        raise UsageError(f"{out} exists already; choose another --out.")
    tell = say or (lambda _sentence: None)
    predictor = Predictor(run, typed, device, use, "suggest")
    known = predictor.seen("")
    cases = find_cases(scans, predictor.channels, channels, say, labelled=False)
    shots = _shots(run, predictor, tell)
    tell(predictor.choice())
    tell(needed("Ranking", predictor.estimate(cases)))
    of = len(shots) + len(cases) + (0 if out is None else min(n, len(cases)))
    looked: list[LookedAt] = []
    failed: dict[str, str] = {}
    warnings: list[str] = []
    near: list[np.ndarray] = []
    with pooling(predictor.model) as pooled:
        for done, (case, own) in enumerate(shots):
            try:
                near.append(_features(predictor, pooled, case, own, within(progress, done, of)))
            except SeaPeftError as error:
                tell(f"A shot of the run is not compared with: {error}")
            progress(done + 1, of)
        for done, found in enumerate(cases, start=len(shots)):
            try:
                warnings += input_notes(found)
                looked.append(look(predictor, known, pooled, found, within(progress, done, of)))
            except Exception as unforeseen:
                failed[found.id] = reason(unforeseen)
            progress(done + 1, of)
    ranked = _in_words(looked, near)
    suggested, page = ranked[:n], None
    if out is not None and suggested:
        by_id = {case.id: case for case in cases}
        judged = {each.case: each.judged for each in looked}
        chosen = [(each, by_id[each.scan], judged[each.scan]) for each in suggested]
        suggested = _draw(
            predictor,
            out,
            chosen,
            len(looked),
            lambda drawn, _of: progress(of - len(chosen) + drawn, of),
        )
        page = out / _PAGE
    return Suggestions(
        network=predictor.network,
        shots=len(near),
        suggested=tuple(suggested),
        others=tuple(ranked[n:]),
        failed=failed,
        warnings=tuple(warnings),
        page=page,
    )


def look(
    predictor: Predictor, known: Quality, pooled: Pooled, case: Case, progress: Progress = unwatched
) -> LookedAt:
    """Predict a scan and return the basis for its rank. `known`: of the adapter; `pooled`: of
    `pooling(predictor.model)`. Raises SeaPeftError.
    """
    pooled.forget()
    scan = predictor.prepared(case)
    output = predictor.probabilities(scan, progress=progress)
    labels = list(predictor.labels)
    found = look_at_prediction(scan, output, labels, predictor.recipe.spacing)
    judged = judge(known, predictor.network, found, confidences(output, labels), predictor.channels)
    return LookedAt(case.id, judged, pooled.take())


def in_turn(
    doubts: Sequence[float], features: np.ndarray, near: np.ndarray
) -> list[tuple[int, float]]:
    """All scans in the order in which to label them: each time the one of the largest doubt ×
    distance.

    The distance is that to the nearest shot or scan already chosen, so that two similar scans are
    not both among the first. This is the greedy k-center rule of core-sets (Sener and Savarese,
    arXiv 1708.00489, algorithm 1), here weighted by the network's doubt, since in segmentation of a
    few scans neither uncertainty nor diversity alone is reliable (COLosSAL, arXiv 2307.12004; ClaSP
    PE, arXiv 2601.13677). Without known shots, the most doubtful scan comes first.

    Args:
        doubts: of n scans, 0 or more.
        features: of the scans, `[n, C]`.
        near: of the shots, `[m, C]`; m may be 0.

    Returns:
        (index, its distance when it was chosen) for each of the n scans; infinite for the first if
            m is 0.
    """
    doubt = np.asarray(doubts, dtype=np.float64)
    apart = distances(features, near)
    left, order = list(range(len(doubt))), []
    while left:
        worth = {
            i: (doubt[i] * apart[i] if np.isfinite(apart[i]) else doubt[i], doubt[i], apart[i])
            for i in left
        }
        best = max(left, key=lambda i: (worth[i], -i))
        left.remove(best)
        order.append((best, float(apart[best])))
        apart = np.minimum(apart, distances(features, features[best : best + 1]))
    return order


def _features(
    predictor: Predictor, pooled: Pooled, case: Case, channels: tuple[str, ...], progress: Progress
) -> np.ndarray:
    pooled.forget()
    predictor.probabilities(predictor.prepared(case, channels), progress=progress)
    return pooled.take()


def _shots(
    run: Path, predictor: Predictor, say: Callable[[str], None]
) -> list[tuple[Case, tuple[str, ...]]]:
    """The run's shots, each with its data set's names for the adapter's channels. If they are not
    available, says so and returns none.
    """
    try:
        folder = RunFolder.open(run)
        (started,) = (event for event in read_trace(folder.trace) if isinstance(event, RunStarted))
        found = reopen(folder, predictor.labels)
        return [
            (found.case(hashed), found.channels)
            for role in ("support", "audit")
            for hashed in started.split[role]
        ]
    except SeaPeftError as error:
        say(
            f"The run's shots are not at hand ({str(error).rstrip('.')}), so distances are among"
            " the scans alone."
        )
        return []


def _in_words(looked: Sequence[LookedAt], near: Sequence[np.ndarray]) -> list[Suggestion]:
    """The ranking, with reasons. `near`: features of each shot."""
    if not looked:
        return []
    features = np.stack([each.features for each in looked])
    shots = np.stack(near) if near else features[:0]
    order = in_turn([each.doubt for each in looked], features, shots)
    least_trusted = sorted(range(len(looked)), key=lambda i: looked[i].judged.mean)
    usual = _usual_distance(features)
    copies = distances(features, shots) <= _SAME * usual
    ranked = []
    for rank, (index, apart) in enumerate(order, start=1):
        distance = apart / usual if np.isfinite(apart) else None
        others = " and ".join(
            what for what, there in (("the shots", near), ("the scans above", rank > 1)) if there
        )
        apart_in_words = (
            "the same as a shot: labelled already?" if copies[index] else _apart(distance, others)
        )
        trusted = _trusted(least_trusted.index(index) + 1, len(looked))
        ranked.append(
            Suggestion(
                rank=rank,
                scan=looked[index].case,
                expected_dice=round(looked[index].judged.mean, 4),
                distance=None if distance is None else round(distance, 4),
                why="; ".join(reason for reason in (trusted, apart_in_words) if reason),
                flags=looked[index].judged.flags,
            )
        )
    return ranked


def _usual_distance(features: np.ndarray) -> float:
    """The median distance between two different scans; 1 if there are no two."""
    between = np.linalg.norm(features[:, None] - features[None], axis=-1)
    return float(np.median(between[between > 0])) if between.any() else 1.0


def _trusted(place: int, of: int) -> str:
    """How its mask is trusted among all: `place` 1 is least.

    Examples:
        >>> _trusted(1, 30), _trusted(2, 30), _trusted(30, 30)
        ('least trusted of 30', '2nd least trusted of 30', 'most trusted of 30')
    """
    if of == 1:
        return "the only scan"
    if place in (1, of):
        return f"{'least' if place == 1 else 'most'} trusted of {of}"
    ending = (
        "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    )
    return f"{place}{ending} least trusted of {of}"


def _apart(distance: float | None, others: str) -> str:
    """How far it is from `others`, in words; empty for the first if no shots are known."""
    if distance is None:
        return ""
    if distance <= _SAME:
        return "the same as a scan above"
    kind = (
        "unlike" if distance > 1.0 else "somewhat unlike" if distance > 0.5 else "much like one of"
    )
    return f"{kind} {others}"


def _draw(
    predictor: Predictor,
    out: Path,
    chosen: Sequence[tuple[Suggestion, FileCase, Judged]],
    of: int,
    progress: Progress,
) -> list[Suggestion]:
    """A folder with a picture of each and a page. They are predicted anew: memory may not hold the
    masks of all that were looked at.
    """
    drawn, shown = [], []
    with new_folder(out) as building:
        for done, (suggestion, case, judged) in enumerate(chosen):
            scan = predictor.prepared(case)
            output = predictor.probabilities(scan, building, within(progress, done, len(chosen)))
            name = f"{suggestion.rank}_{safe_name(case.id)}.png"
            write_bytes(
                building / name,
                picture(predictor, case, restore(output, scan.geometry), scan.geometry),
            )
            drawn.append(dataclasses.replace(suggestion, picture=name))
            shown.append(ShownMask(case.id, judged, name, f"{suggestion.rank}. {suggestion.why}"))
            progress(done + 1, len(chosen))
        about = (
            "The first is in most doubt and most unlike the shots, each next also unlike those"
            " before it. Outlined is the network's own mask."
        )
        heading = f"{count(len(shown), 'scan')} of {of} to label next"
        write_text(building / _PAGE, page_of_masks("Scans to label next", heading, about, shown))
    return drawn
