"""Short names of sites."""

from __future__ import annotations

from example_run import make_events

from sea_peft.artefacts.history import History
from sea_peft.artefacts.names import in_short, short_names
from sea_peft.artefacts.view import summarise


def test_every_site_has_a_name_of_its_own() -> None:
    sites = [
        ("body.0.a", "encoder", "conv"),
        ("first", "stem", "conv"),
        ("body.0.b", "encoder", "conv"),
        ("body.0.c", "encoder", "norm"),
        ("body.1.a", "encoder", "conv"),
        ("up", "decoder", "transposed"),
        ("body.0.d", "encoder", "conv"),
    ]
    assert short_names(sites) == {
        "body.0.a": "enc1.conv1",
        "first": "stem.conv1",
        "body.0.b": "enc1.conv2",
        "body.0.c": "enc1.norm1",
        "body.1.a": "enc2.conv1",
        "up": "dec.transposed1",
        "body.0.d": "enc1.conv3",
    }


def test_sentences_that_name_units_are_shortened_whole_names_only() -> None:
    names = {"up.1": "dec1.conv1", "up.1.0": "dec1.conv2"}
    said = (
        "score +0.1 of lora-8@up.1.0 over 1 audit: lora-4@up.1 is taken here; lora-1@up.12 is not."
    )
    assert (
        in_short(said, names)
        == "score +0.1 of lora-8@dec1.conv2 over 1 audit: lora-4@dec1.conv1 is taken here;"
        " lora-1@up.12 is not."
    )
    assert in_short(said, {}) == said


def test_units_are_found_by_either_name() -> None:
    history = History(make_events())
    unit = next(iter(history.units))
    short = in_short(unit, history.names)
    assert short != unit
    assert [row.unit for row in summarise(history, pattern=short)] == [unit]
    assert [row.unit for row in summarise(history, pattern=unit)] == [unit]
