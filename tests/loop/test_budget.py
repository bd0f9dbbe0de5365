"""The budget in every form that is understood, everything that is refused, and the profiles."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sea_peft.adapters import Unit, families
from sea_peft.artefacts.profile import load_profile, profiles_folder
from sea_peft.backbones import Site
from sea_peft.errors import BudgetError, UsageError
from sea_peft.loop.budget import check_feasible, parse_budget
from sea_peft.loop.space import Space


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("1%", 47_000),
        ("0.1%", 4_700),
        (".5%", 23_500),
        ("100%", 4_700_000),
        ("1 %", 47_000),
        (" 1% ", 47_000),
        ("0.01", 47_000),
        (".01", 47_000),
        ("0.5", 2_350_000),
        ("47000", 47_000),
        ("47k", 47_000),
        ("47 k", 47_000),
        ("4.7k", 4_700),
        ("0.2M", 200_000),
        ("2M", 2_000_000),
        ("2", 2),
        ("47000.0", 47_000),
    ],
)
def test_what_a_budget_may_look_like(text, parameters):
    assert parse_budget(text, 4_700_000) == parameters


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1", "can mean 100% or one parameter"),
        ("1.0", "can mean 100% or one parameter"),
        ("2.5", "neither a share below 1 nor a whole count"),
        ("0", "not between 0 and 100%"),
        ("0%", "not between 0 and 100%"),
        ("0k", "not between 0 and 100%"),
        ("101%", "not between 0 and 100%"),
        ("", "is not a budget"),
        ("one", "is not a budget"),
        ("-1%", "is not a budget"),
        ("1e3", "is not a budget"),
        ("1,000", "is not a budget"),
        ("1%%", "is not a budget"),
        ("nan", "is not a budget"),
        ("inf", "is not a budget"),
        ("5K", "is not a budget"),
    ],
)
def test_what_is_no_budget_is_refused_with_the_way_out(text, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        parse_budget(text, 4_700_000)
    assert str(caught.value).endswith(".")


@given(st.integers(1, 10_000), st.integers(1, 10**8))
@example(2900, 100)
@example(1001, 10)
def test_no_parameter_is_lost_to_rounding(hundredths, parameters):
    """Shares and counts are decimal numbers: 29% of 100 is 29, and 1.001k is 1001."""
    text = f"{hundredths // 100}.{hundredths % 100:02d}"
    assert parse_budget(f"{text}%", parameters) == math.floor(
        Fraction(hundredths, 10_000) * parameters
    )
    count = f"{hundredths // 1000}.{hundredths % 1000:03d}k"
    assert parse_budget(count, max(parameters, hundredths)) == hundredths


@pytest.mark.parametrize(
    "text", ["48k", "47001", "999999999999999999999k", "9" * 5000, "1" * 18 + "M"]
)
def test_more_than_the_backbone_has_is_no_budget(text):
    with pytest.raises(
        UsageError, match=r"is more than the backbone's 47,000 parameters|is not a budget"
    ) as caught:
        parse_budget(text, 47_000)
    assert len(str(caught.value)) < 300


def offered(limit: int, head: int, *costs: int) -> Space:
    """A space whose units cost this much."""
    site = Site(
        path="conv",
        kind="conv",
        in_channels=8,
        out_channels=8,
        stride=(1.0, 1.0, 1.0),
        stage="encoder",
        order=0,
    )
    return Space(
        tuple(
            Unit(family="lora", level=level, placement="", site=site, cost=cost)
            for level, cost in enumerate(costs, 1)
        ),
        limit,
        head,
    )


def test_a_budget_that_fits_no_unit_says_what_would():
    assert check_feasible(offered(150, 100, 20, 30), 10_000) is None
    with pytest.raises(
        BudgetError,
        match=r"fits no unit: the head takes 100 and the cheapest unit 20; ask for at least 120",
    ):
        check_feasible(offered(119, 100, 30, 20), 10_000)
    with pytest.raises(BudgetError, match="offers no unit on this backbone"):
        check_feasible(offered(119, 0), 10_000)


def test_a_budget_that_leaves_nothing_to_choose_says_what_others_open():
    units = tuple(
        Unit(
            family="lora",
            level=level,
            placement="",
            site=Site(
                path=f"conv{i}",
                kind="conv",
                in_channels=8,
                out_channels=8,
                stride=(1.0, 1.0, 1.0),
                stage="encoder",
                order=i,
            ),
            cost=cost * level,
        )
        for i, cost in enumerate((20, *(400 for _ in range(8))))
        for level in (1, 2)
    )
    said = check_feasible(Space(units, 964, 396), 96_408)
    assert said is not None
    assert said.startswith(
        "A budget of 964 parameters opens 2 of the 9 sites beside the head's 396, which leaves"
        " nothing to choose."
    )
    assert "3 with 1,216 (1.3%), 5 with 2,016 (2.1%), 9 with 3,616 (3.8%)" in said
    assert check_feasible(Space(units, 1_216, 396), 96_408) is None


# -- profiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(profiles_folder().glob("*.toml")), ids=lambda path: path.stem
)
def test_every_shipped_profile_offers_what_there_is(path):
    profile = load_profile(path.stem)
    assert profile.name == path.stem
    assert profile.about
    assert 0 < parse_budget(profile.budget, 4_700_000) < 4_700_000
    for name, offer in profile.offers().items():
        family = families()[name]
        assert set(offer.levels or ()) <= set(family.levels)
        assert set(offer.placements or ()) <= set(family.placements)
        assert set(offer.kinds or ()) <= family.kinds


def test_a_profile_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'budget = "5k"\nhead = "frozen"\n[families.lora]\nlevels = [2]\n[families.affine]\n'
    )
    profile = load_profile(str(path))
    assert (profile.name, profile.budget, profile.head) == ("mine", "5k", "frozen")
    assert profile.offers()["lora"].levels == (2,)
    assert profile.offers()["affine"].levels is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("families = 3", "toml: families"),
        ("[families.lora]\nranks = [2]", "toml: families.lora.ranks"),
        ("[families.lora]\nlevels = ['two']", "toml: families.lora.levels.0"),
        ("head = 'thaw'\n[families.lora]", "toml: head"),
        ("budget = '1%'", "toml: families"),
        ("budget = ", "is not valid TOML"),
        ("colour = 'red'\n[families.lora]", "toml: colour"),
    ],
)
def test_a_profile_with_a_mistake_is_refused_with_its_field(tmp_path, text, sentence):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        load_profile(str(path))


def test_a_profile_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(UsageError, match=r"there are all, .*default"):
        load_profile("defualt")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not valid TOML"):
        load_profile(str(binary))
