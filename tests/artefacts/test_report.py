from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from example_run import make_events, make_result, write_run

from sea_peft.artefacts import figures
from sea_peft.artefacts.commands import Commands
from sea_peft.artefacts.findings import findings
from sea_peft.artefacts.history import History
from sea_peft.artefacts.plots import png
from sea_peft.artefacts.report import Picture, report_html, report_markdown
from sea_peft.loop import events as ev

CLINICAL = "not a medical device"


def test_a_clear_win_is_said_with_its_rivals():
    found = findings(make_events())
    assert found.helps is True
    assert found.headline.startswith("The adapter helps: mean Dice 0.8")
    assert re.search(r"against 0\.6\d+ unadapted, 0\.6\d+ head only", found.headline)


@pytest.mark.parametrize(
    ("adapted", "sentence"),
    [
        (0.50, "does not win over the unadapted backbone and training the head alone"),
        (0.63, "does not win over training the head alone"),
    ],
)
def test_losing_is_said_plainly(adapted, sentence):
    found = findings(make_events(adapted=adapted))
    assert found.helps is False
    assert sentence in found.headline


def rescored(events, arm, dice):
    """The same run with `arm` scoring `dice` (one per case) on a single label."""
    scores = {
        case: {"liver": value} for case, value in zip(events[0].split["test"], dice, strict=False)
    }
    mean = sum(dice) / len(dice)
    new = ev.Scored(arm=arm, dice=mean, per_label={"liver": mean}, per_case=scores, seconds=1.0)
    return [new if isinstance(e, ev.Scored) and e.arm == arm else e for e in events]


def test_cross_validation_is_not_advised_for_a_run_that_went_on_from_another():
    started, *rest = (event for event in make_events() if not isinstance(event, ev.Scored))
    advised = [each.text for each in findings([started, *rest]).advice]
    gone_on = dataclasses.replace(started, begun_from="0" * 64)
    left = [each.text for each in findings([gone_on, *rest]).advice]
    assert "To score every shot by an adapter that never saw it:" in advised
    assert "To score every shot by an adapter that never saw it:" not in left
    assert "To score it on other labelled scans:" in left


def test_a_gain_within_the_spread_of_cases_is_not_called_a_win():
    events = rescored(make_events(), "adapted", [0.9, 0.5, 0.9, 0.5])
    events = rescored(rescored(events, "head_only", [0.6, 0.75, 0.6, 0.75]), "unadapted", [0.1] * 4)
    found = findings(events)
    assert found.helps is None
    assert "not clearly over training the head alone" in found.headline
    assert any("which chance can explain" in sentence for sentence in found.verdict)


def test_two_scans_are_too_few_to_be_sure_however_large_the_gain():
    events = rescored(make_events(), "adapted", [0.9, 0.8])
    events = rescored(rescored(events, "head_only", [0.2, 0.1]), "unadapted", [0.1] * 2)
    found = findings(events)
    assert found.helps is None
    assert "scores higher, but on too few scans to be sure: mean Dice" in found.headline


def test_that_unknown_labels_count_as_nothing_in_the_unadapted_mean_is_said():
    events = rescored(make_events(), "unadapted", [0.4] * 4)
    known = findings(events).caveats
    new = [
        (
            dataclasses.replace(e, per_label={**e.per_label, "cyst": 0.5})
            if isinstance(e, ev.Scored) and e.arm == "adapted"
            else e
        )
        for e in rescored(events, "adapted", [0.8] * 4)
    ]
    said = [sentence for sentence in findings(new).caveats if sentence not in known]
    assert any("does not know cyst" in sentence for sentence in said)


def _with_errors(error):
    """The same run with this standard error of every utility."""
    return [
        dataclasses.replace(
            e, rows=[dataclasses.replace(row, standard_error=error) for row in e.rows]
        )
        if isinstance(e, ev.Ranked)
        else e
        for e in make_events()
    ]


def test_how_many_units_matter_beyond_their_error_is_said():
    last = {}
    for event in make_events():
        if isinstance(event, ev.Ranked):
            last |= {row.unit: abs(row.ema) for row in event.rows if row.ema is not None}
    largest, least = max(last.values()), min(last.values())
    assert least < largest  # or the limit between them would tell nothing
    between = sum(size > (least + largest) / 2 for size in last.values())

    def said(error):
        return [s for s in findings(_with_errors(error)).caveats if "twice" in s]

    assert said(largest) == [
        f"None of {len(last)} measured units changes Dice by more than twice its error: which"
        " units are on hardly matters here, and --policy cheapest needs no audits."
    ]
    assert said((least + largest) / 4) == [
        f"{between} of {len(last)} measured units change Dice by more than twice their error, by"
        f" {largest * 100:.1f} points at most: so much depends on any one unit."
    ]


def test_with_one_test_case_nothing_is_proven():
    events = rescored(
        rescored(rescored(make_events(), "adapted", [0.9]), "head_only", [0.5]), "unadapted", [0.4]
    )
    found = findings(events)
    assert found.helps is None
    assert any("too few to tell from chance" in sentence for sentence in found.verdict)


def test_a_backbone_that_cannot_predict_the_labels_is_no_rival():
    found = findings(make_events(unadapted=None))
    assert found.helps is True
    assert any(
        "unadapted backbone cannot predict these labels" in sentence for sentence in found.verdict
    )
    assert found.dice.rows[0][1] == "–"


def test_a_label_that_the_rival_lacks_counts_as_zero_in_the_pairs():
    events = make_events()
    unadapted = next(e for e in events if isinstance(e, ev.Scored) and e.arm == "unadapted")
    poorer = dataclasses.replace(
        unadapted,
        dice=unadapted.per_label["liver"] / 2,
        per_label={"liver": unadapted.per_label["liver"]},
        per_case={case: {"liver": row["liver"]} for case, row in unadapted.per_case.items()},
    )
    adapted = next(e for e in events if isinstance(e, ev.Scored) and e.arm == "adapted")
    found = findings([poorer if e is unadapted else e for e in events])
    points = 100 * (adapted.dice - poorer.dice)
    assert any(f"{points:.1f} Dice points higher" in sentence for sentence in found.verdict)


def test_labels_that_became_worse_are_named_even_where_the_mean_wins():
    events = make_events()
    unadapted = next(e for e in events if isinstance(e, ev.Scored) and e.arm == "unadapted")
    better = dataclasses.replace(unadapted, per_label={**unadapted.per_label, "spleen": 0.9})
    found = findings([better if e is unadapted else e for e in events])
    assert found.helps is None  # no green box
    assert found.headline.startswith("The adapter helps")
    assert "It lost on spleen (0.900 → 0.790)." in found.headline
    assert "Worse than the unadapted backbone on spleen (0.900 → 0.790)." in found.verdict
    assert any(advice.command == "seapeft report RUN --images" for advice in found.advice)


def test_a_label_that_lost_little_is_not_green_and_not_in_the_headline():
    events = make_events()
    unadapted = next(e for e in events if isinstance(e, ev.Scored) and e.arm == "unadapted")
    better = dataclasses.replace(unadapted, per_label={**unadapted.per_label, "spleen": 0.8})
    found = findings([better if e is unadapted else e for e in events])
    assert found.helps is None
    assert "spleen" not in found.headline


def test_a_simpler_recipe_that_did_better_is_named_with_the_whole_command():
    options = {"data": "phantom:mr-t1", "shots": 5, "budget": "1%"}
    ahead = ev.Compared({"sea": 0.5, "affine_lora": 0.59, "unadapted": 0.3}, "sea", "")
    events = [ahead if isinstance(e, ev.Compared) else e for e in make_events()]
    found = findings(events, Commands.of(options, "runs/1"))
    (advice,) = [a for a in found.advice if "simpler" in a.text]
    assert (
        advice.text
        == "A simpler recipe did better on the check scan (0.59 against 0.50). To try it:"
    )
    assert (
        advice.command == "seapeft adapt phantom:mr-t1 --shots 5 --budget 1% --policy affine_lora"
    )
    one_shot = [ahead if isinstance(e, ev.Compared) else e for e in make_events(shots=1)]
    assert any(
        "on held-out labels of the one scan (0.59" in a.text for a in findings(one_shot).advice
    )


def test_where_nothing_is_found_there_is_no_verdict():
    events = make_events()
    for arm in ("unadapted", "head_only", "adapted"):
        events = rescored(events, arm, [0.0] * 8)
    found = findings(events)
    assert found.helps is None
    assert found.headline.startswith("No verdict, since nothing finds the labels")
    assert any(a.command.endswith("--steps 180") for a in found.advice)


def without_tests(events, on=None):
    """The same run without test cases, `on`: scored there instead."""
    bare = [e for e in events if not isinstance(e, ev.Scored)]
    scored = (
        [dataclasses.replace(e, on=on) for e in events if isinstance(e, ev.Scored)] if on else []
    )
    split = {**events[0].split, "test": []}
    return [dataclasses.replace(bare[0], split=split), *bare[1:-1], *scored, bare[-1]]


def test_a_run_without_test_cases_says_so_and_shows_what_was_held_out():
    found = findings(without_tests(make_events(), "held_out"))
    assert found.helps is None
    assert found.headline.startswith("Not scored on unseen scans. Before the refit: mean Dice 0.8")
    assert found.dice.rows
    assert found.scored_on == "Dice on the check scans, before the refit"
    assert any(a.command.endswith("--test cv") for a in found.advice)
    labels = findings(without_tests(make_events(shots=1), "held_out_labels"))
    assert "on the held-out labels of the one shot" in labels.headline
    assert labels.scored_on == "Dice on the held-out labels of the one shot, before the refit"
    bare = findings(without_tests(make_events(shots=1)))
    assert bare.headline.startswith("Not scored on unseen scans")
    assert not bare.dice.rows


def test_leave_one_out_is_called_that():
    found = findings(without_tests(make_events(), "cv"))
    assert found.helps is True
    assert "on 8 shots, each left out in turn" in found.headline
    assert any(
        "each made without the shot that it was scored on" in caveat for caveat in found.caveats
    )


def test_what_predictions_use_comes_first():
    events = make_events()
    told = [
        *events[:-1],
        ev.Recommended("unadapted", "8 test cases: -3.0 ± 1.0 points"),
        events[-1],
    ]
    first = findings(told).advice[0]
    assert first.text.startswith(
        "Predictions use the unadapted network (8 test cases: -3.0 ± 1.0 points)."
    )
    assert first.command == "seapeft predict RUN SCANS --out masks --use adapted"


def test_unfinished_and_unscored_runs_judge_nothing():
    events = make_events()
    assert "has not finished" in findings(events[:-1]).headline
    assert "Not scored" in findings([e for e in events if not isinstance(e, ev.Scored)]).headline
    assert findings(events[:1]).helps is None


def test_caveats_tell_shots_and_independence():
    said = " ".join(findings(make_events()).caveats)
    assert "5 labelled scans: 4 trained on, 1 held out" in said
    assert "rest on 1 audit case" in said
    assert CLINICAL in said
    alone = " ".join(findings(make_events(shots=1)).caveats)
    assert "1 labelled scan, no case held out" in alone
    assert "not independent" in alone


def test_units_placed_without_measurement_are_counted():
    events = make_events()
    idle = next(
        unit for unit in (row.unit for row in events[0].units) if not measured(events, unit)
    )
    events[-1] = dataclasses.replace(events[-1], active=[*events[-1].active, idle])
    assert any("1 of them are on all the same" in caveat for caveat in findings(events).caveats)


def measured(events, unit):
    return any(row.unit == unit for e in events if isinstance(e, ev.Ranked) for row in e.rows)


def test_a_policy_outside_the_budget_is_marked():
    events = make_events()
    events[-1] = dataclasses.replace(events[-1], used=events[0].limit + 1)
    assert any(
        "more parameters than the budget allows" in caveat for caveat in findings(events).caveats
    )


def test_placement_adds_up():
    events = make_events(cycles=6)
    found = findings(events)
    units, parameters = re.fullmatch(r"(\d+) \(([\d,]+)\)", found.placement.rows[-1][-1]).groups()
    assert int(units) == len(events[-1].active)
    assert int(parameters.replace(",", "")) == events[-1].used - events[0].head


def test_markdown_has_every_part_and_whole_tables():
    events = make_events()
    text = report_markdown(make_result(events), events)
    titles = (
        "Before you trust it",
        "Dice on the test",
        "Budget",
        "What was placed",
        "Why these",
        "Why not those",
    )
    for title in titles:
        assert f"## {title}" in text
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.M):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    assert CLINICAL in text
    assert report_markdown(None, events[:5]).startswith("# The run has not finished")


class Outside(HTMLParser):
    """Collects everything that a browser would fetch or run, and what is open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images = 0

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "srcset") and not (value or "").startswith(
                "data:image/"
            ):
                self.fetched.append(f"{tag} {name}={value}")
        self.images += tag == "img"
        if tag in ("script", "link", "iframe", "object"):
            self.fetched.append(tag)


def test_page_is_whole_fetches_nothing_and_escapes_what_it_is_given(tmp_path):
    events = make_events()
    events[0].units[:2] = [
        dataclasses.replace(row, site="<script>alert(1)</script>") for row in events[0].units[:2]
    ]
    folder = write_run(tmp_path, events)
    picture = png(figures.budget_ledger(History(events)), dpi=40)
    page = report_html(
        folder, [Picture("worst <b>case</b>", picture)], [Picture("ProtoSeg", picture)]
    )
    seen = Outside()
    seen.feed(page)
    assert seen.fetched == []
    assert seen.images == len(figures.FIGURES) + 2
    assert "<script" not in page
    assert "worst &lt;b&gt;case" in page
    assert "url(" not in page
    assert CLINICAL in page
    assert page == report_html(
        folder, [Picture("worst <b>case</b>", picture)], [Picture("ProtoSeg", picture)]
    )


def test_no_line_of_the_page_breaks_inside_the_id_of_a_unit(tmp_path):
    page = report_html(write_run(tmp_path, make_events()))
    rows = re.findall(r'<td title="([^"]*@[^"]*)">(.*?)</td>', page)
    assert rows
    for unit, cell in rows:
        assert re.fullmatch(
            rf'<span class="id">{re.escape(unit.partition("@")[0])}@\S+</span>', cell
        )
    assert ".id { white-space: nowrap; }" in page


def test_page_of_a_run_in_progress(tmp_path):
    folder = write_run(tmp_path, make_events()[:6])
    assert "has not finished" in report_html(folder)


def test_nothing_of_the_config_is_on_the_page(tmp_path):
    folder = write_run(tmp_path, make_events())
    assert "Jane" not in report_html(folder)


def test_the_dice_is_said_to_be_without_the_parts_that_predictions_leave_out() -> None:
    kept = ev.PartsKept(rules={"liver": "largest"}, gains={"liver": 0.012}, scans=1)
    said = [
        sentence
        for sentence in findings([*make_events(), kept]).verdict
        if "connected parts" in sentence
    ]
    assert said == [
        "predict and evaluate keep only these connected parts of masks, which helped on 1 scan"
        " held out while searching: liver largest (+1.2 points). The Dice here is without that."
    ]
