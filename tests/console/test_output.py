"""What a terminal sees, and what a file."""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import ProgressSample

from sea_peft.artefacts.commands import Commands
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.view import UnitRow
from sea_peft.console.backbones import in_short
from sea_peft.console.output import Lines, Output, bars, time_left, timer
from sea_peft.console.progress import RunProgress
from sea_peft.console.runs import (
    UnitLines,
    clock,
    next_steps,
    prediction_table,
    roughly,
    run_facts,
    unit_lists,
)
from sea_peft.console.tables import cell, table
from sea_peft.jobs.predict import CaseStatus
from sea_peft.loop.events import Allocated, Audited, Compared, RunStarted, Searched, TrainingStep

EVENTS = [
    RunStarted(
        policy="sea",
        seed=0,
        limit=100,
        head=10,
        backbone_parameters=10_000,
        units=[],
        settings={},
        split={"test": ["c"]},
    ),
    TrainingStep("head_only", 1, 2, 0.5),
    TrainingStep("head_only", 2, 2, 0.4),
    TrainingStep("warmup", 1, 4, 0.5),
    Searched(
        cycle=-1,
        phase="warmup",
        first_step=0,
        last_step=1,
        loss=0.5,
        active=[],
        probes=[],
        seconds=1.0,
    ),
    TrainingStep("search", 2, 4, 0.5),
    Searched(
        cycle=0,
        phase="search",
        first_step=1,
        last_step=2,
        loss=0.5,
        active=["a"],
        probes=["b"],
        seconds=1.0,
    ),
    Audited(
        cycle=0,
        dice_on=0.5,
        hard_dice=0.6,
        rows=[],
        patches=8,
        naive_patches=16,
        independent=False,
        seconds=2.0,
    ),
    Allocated(
        cycle=1,
        active=["a"],
        probes=[],
        used=50,
        limit=100,
        head=10,
        value=0.1,
        changes=1,
        coverage=0.5,
        decisions=[],
        final=True,
        seconds=0.0,
    ),
    Compared({"unadapted": 0.5, "sea": 0.6}, "sea", "higher"),
    TrainingStep("refit", 4, 4, 0.2),
    TrainingStep("test", 1, 1, 0.0),
]


def on_terminal(output: Output) -> io.StringIO:
    screen = io.StringIO()
    output.notes = Console(
        file=screen, force_terminal=True, width=80, highlight=False, markup=False
    )
    return screen


def test_bars_on_a_terminal() -> None:
    output = Output()
    screen = on_terminal(output)
    with RunProgress(output) as listen:
        listen.checked(1, 3)
        for event in EVENTS:
            listen(event)
    text = screen.getvalue()
    for words in (
        "read the data set",
        "part 1 of 5: check the data",
        "part 3 of 5: fit the head alone",
        "part 4 of 5: search and refit",
    ):
        assert words in text
    for words in ("part 5 of 5: score on test cases", "so far", "in all"):
        assert words in text
    assert "not independent" in text


def test_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(Output()) as listen:
        for event in EVENTS:
            listen(event)
    caught = capsys.readouterr()
    assert caught.out == ""
    assert "part 4 of 5: search and refit: 4 of 4" in caught.err
    assert "\x1b" not in caught.err


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_says_nothing_but_warnings(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(quiet=True)
    screen = on_terminal(output) if terminal else None
    with RunProgress(output) as listen, output.progress("check") as progress:
        progress(1, 2)
        for event in EVENTS:
            listen(event)
    output.warn("this matters")
    said = screen.getvalue() if screen else capsys.readouterr().err
    assert "this matters" in said
    assert "search" not in said


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize(
    "tell",
    [
        Output.say,
        Output.warn,
        Output.fail,
        lambda output, sentence: output.result({}, cell(sentence)),
    ],
)
def test_a_sentence_breaks_between_words_and_never_inside_a_command(
    tell: Callable[[Output, str], None],
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"COLUMNS": str(columns), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    inside, end = (
        "`seapeft backbones list`",
        f"seapeft backbones try my_network SCAN --label MASK {'--class liver=1 ' * 3}".strip(),
    )
    sentence = (
        f"Orientation and grey values are assumed, since {inside} does not say them. To see their"
        f" effect: {end}"
    )
    tell(Output(), sentence)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "".join(capsys.readouterr())).splitlines()
    assert " ".join(lines).removeprefix("warning: ") == sentence
    assert any(inside in line for line in lines)
    assert lines[-1] == end
    assert max(map(len, lines[:-1])) <= columns


def test_progress_lines_end_with_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(Output(), "predict")
    for done in range(1, 101):
        lines(done, 100)
    assert capsys.readouterr().err == "predict: 100 of 100\n"


def test_what_came_before_the_work_is_no_part_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter((0.0, 73.0, 90.0))  # made, begins, 17 done
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    lines = Lines(Output(), "look")
    lines(0, 192)
    lines(17, 192)
    assert "17 of 192, about 2:55 left" in capsys.readouterr().err


def test_a_first_window_says_nothing_of_the_time_left() -> None:
    assert time_left(5.0, 0.05, 17) == "", "not about 28:15"
    assert time_left(5.0, 0.5, 17) == ", about 2:45 left"


def test_json_is_one_document_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"dice": math.nan, "path": Path("a/b"), "sizes": (1, 2), "name": "Müller"}
    Output(json=True).result(document, "not shown")
    out = capsys.readouterr().out
    assert json.loads(out) == {"dice": None, "path": "a/b", "sizes": [1, 2], "name": "Müller"}
    assert "Müller" in out


def test_names_are_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.result({}, table("", ("case",), [("[bold]a[/bold]",), (":smile:",)]))
    output.say("[red]b[/red] :smile:")
    caught = capsys.readouterr()
    assert "[bold]a[/bold]" in caught.out
    assert ":smile:" in caught.out
    assert caught.err == "[red]b[/red] :smile:\n"


def _row(unit: str, reason: str) -> UnitRow:
    return UnitRow(
        unit=unit,
        stage="bottleneck",
        site="s",
        family="lora",
        level=4,
        cost=12_345,
        state="active",
        on=True,
        utility=0.0123,
        standard_error=0.002,
        score=0.01,
        audits=3,
        decision="keep",
        reason=reason,
    )


@pytest.mark.parametrize("width", [80, 160])
def test_units_fit_the_width(width: int) -> None:
    rows = [
        _row("conv_adapter.parallel-16@encoder.down_layers.3.4", "a reason " * 30),
        _row("lora-4@up_samples.0.0.conv", "twice"),
        _row("affine@x", "twice"),
    ]
    screen = io.StringIO()
    Console(file=screen, width=width).print(
        UnitLines("On", rows, {"encoder.down_layers.3.4": "enc3.conv4"}, "parameters")
    )
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(
        "conv_adapter.parallel-16@enc3.conv4  " in line and "12,345" in line for line in lines
    )
    assert any("these 2: twice" in line for line in lines)
    assert ("bottleneck" in screen.getvalue()) == (width == 160)


def test_units_that_are_not_shown_are_counted_without_those_that_are() -> None:
    shown, hidden = (
        replace(_row(unit, "taken"), on=False, utility=None, decision=decision)
        for unit, decision in (("lora-1@x", "refuse"), ("lora-2@x", None))
    )
    *_, last = unit_lists([shown, hidden], {}, "parameters", everything=False)
    assert str(last) == "1 more are off (1 never measured); --unit '*' shows them."


def test_a_path_that_leaves_no_room_loses_no_column() -> None:
    unit = f"lora-4@{'.'.join(['submodule'] * 8)}"
    screen = io.StringIO()
    Console(file=screen, width=80).print(UnitLines("On", [_row(unit, "twice")], {}, "parameters"))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in (unit, "12,345", "+1.23 ± 0.20", "keep"):
        assert words in text.replace("\n", "") or words in text


def test_every_time_of_a_bar_has_a_name() -> None:
    console = Console(file=io.StringIO(), width=80)
    drawn = bars(console)
    drawn.add_task("work", total=10)
    (task,) = drawn.tasks
    *_, times = drawn.columns
    task.start_time = task.get_time() - 20
    assert times.render(task).plain == "0:20 so far"
    drawn.update(task.id, completed=1)
    task._progress.append(ProgressSample(task.get_time() - 1, 0))
    task._progress.append(ProgressSample(task.get_time(), 0.1))
    assert re.fullmatch(r"0:20 so far, \d+:\d\d left", times.render(task).plain)
    drawn.update(task.id, completed=10)
    assert times.render(task).plain.startswith("took 0:2")
    assert [timer(s) for s in (8.2, 125, 4320)] == ["0:08", "2:05", "1:12:00"]


def test_something_turns_until_there_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    screen = on_terminal(output)
    with output.at_work():
        for _ in range(100):
            if "working" in screen.getvalue():
                break
            time.sleep(0.02)
        assert "working" in screen.getvalue()
        output.result({}, "done")
        before = screen.getvalue()
        output.rest()
    assert screen.getvalue() == before
    assert "\x1b[?25h" in before  # the cursor is back
    with Output(quiet=True).at_work(), Output().at_work():
        pass
    assert capsys.readouterr().err == ""


def test_of_several_processes_none_leaves_a_line_unfinished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows when another one prints an error on the same terminal."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    output = Output()
    screen = on_terminal(output)
    with output.at_work():
        assert screen.getvalue() == "working …\n"
        with output.progress("look") as progress, RunProgress(output) as listen:
            progress(1, 1)
            for event in EVENTS:
                listen(event)
                assert screen.getvalue().endswith("\n")
    assert "look: 1 of 1\n" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()


def test_settings_are_shown_without_digits_that_nobody_reads() -> None:
    assert (
        in_short({"width": 16, "factor": 3.6889630580680204, "strides": [1, 2]})
        == "width=16, factor=3.689, strides=[1, 2]"
    )


def test_a_command_longer_than_a_line_is_shown_whole() -> None:
    output, screen = Output(), io.StringIO()
    output.results = Console(
        file=screen, force_terminal=True, width=80, highlight=False, markup=False
    )
    commands = Commands(run="runs/" + "x" * 90)
    output.result({}, next_steps(commands))
    assert commands.inspect in screen.getvalue()


def test_clock() -> None:
    assert [roughly(s) for s in (3, 44, 89.9, 91, 540, 8000)] == [
        "10 seconds", "40 seconds", "90 seconds", "2 minutes", "9 minutes", "2.2 hours",
    ]  # fmt: skip
    assert [clock(s) for s in (8.2, 125, 4320)] == ["8 s", "2 min 05 s", "1 h 12 min"]


def test_a_failed_case_has_no_labels_to_count():
    def status(case: str, state: str, volumes: dict[str, float]) -> CaseStatus:
        mask = f"{case}.nii.gz" if volumes else None
        return CaseStatus(
            case=case, status=state, mask=mask, volumes=volumes, seconds=1.0, error=None
        )

    whole = status("a", "done", {"liver": 1.0, "spleen": 0.0, "aorta": 2.0, "spine": 3.0})
    for statuses, counts in (
        ([whole, status("b", "failed", {})], ["3 of 4", "–"]),
        ([status("b", "failed", {})], ["–"]),
    ):
        screen = io.StringIO()
        Console(file=screen, width=80).print(prediction_table(statuses))
        assert [
            line.split("  ")[-1].strip() for line in screen.getvalue().splitlines()[-len(counts) :]
        ] == counts


def test_a_run_that_keeps_parts_of_masks_says_that_its_dice_is_without() -> None:
    result = RunFolder(Path(__file__).parents[2] / "runs" / "example").read_result()
    for keep, said in (({}, 0), ({"liver": "largest", "lesion": "min-ml=0.1"}, 1)):
        screen = io.StringIO()
        Console(file=screen, width=160).print(run_facts(result.model_copy(update={"keep": keep})))
        line = (
            "predict keeps  liver largest, lesion min-ml=0.1 of masks; the Dice above is without"
            " that"
        )
        assert screen.getvalue().count(line) == said
