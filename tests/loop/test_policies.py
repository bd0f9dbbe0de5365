"""Fixed topologies are policies like any other: within the budget, one level a (site, family),
the same at every call.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import check_allocation, space

import benchmarks.policies  # noqa: F401  (what is registered there keeps what these promise)
from sea_peft.adapters import families, total_cost
from sea_peft.errors import BudgetError, UsageError
from sea_peft.loop.policies import make_policy, policies, policy_entry
from sea_peft.loop.space import Space

FIXED = {name: entry for name, entry in policies().items() if not name.startswith("sea")}
OUTSIDE_BUDGET = {name for name, entry in FIXED.items() if entry.outside_budget}
BOUND = [name for name in FIXED if name not in OUTSIDE_BUDGET]
MIX = "random_mix(draw=1,affine=500,lora=9000)"


def fixed_policy(name: str, audit_space: Space, seed: int):
    """A fresh policy."""
    return make_policy(name, audit_space, seed=seed, cycles=3)


def has_place(name: str) -> bool:
    """Whether the topology can place anything in the spaces of these tests, which have no
    linear layer and three families.
    """
    try:
        fixed_policy(name, space(share=0.9), 0)
    except BudgetError as refused:
        if "has no place on this backbone" not in str(refused):
            raise
        return False
    return True


HERE = [name for name in FIXED if has_place(name)]


@pytest.mark.parametrize("name", [*(n for n in BOUND if n in HERE), MIX])
@given(share=st.floats(0.0005, 0.9), seed=st.integers(0, 100), sites=st.integers(1, 20))
def test_every_topology_stays_within_the_budget(name, share, seed, sites):
    audit_space = space(sites=sites, share=share, seed=seed)
    try:
        policy = fixed_policy(name, audit_space, seed)
    except BudgetError:
        return
    for cycle in range(3):
        check_allocation(policy.allocate(cycle), audit_space)
    assert policy.final().active == policy.allocate(3).active
    assert not policy.outside_budget


@pytest.mark.parametrize("name", [*(n for n in BOUND if n in HERE), MIX])
def test_a_topology_does_not_depend_on_the_order_of_the_units_on_offer(name):
    here = space(share=0.05)
    there = Space(here.units[::-1], here.limit, here.head)
    assert set(fixed_policy(name, here, 0).allocate(0).active) == set(
        fixed_policy(name, there, 0).allocate(0).active
    )


@pytest.mark.parametrize("family", ["lora", "affine"])
@given(share=st.floats(0.002, 1.0))
def test_a_uniform_topology_is_everywhere_at_one_level_or_filled_from_the_cheapest(family, share):
    audit_space = space(share=share)
    own = [u for u in audit_space.units if u.family == family]
    levels = {level: [u for u in own if u.level == level] for level in {u.level for u in own}}
    try:
        chosen = [audit_space.by_id[u] for u in fixed_policy(family, audit_space, 0).final().active]
    except BudgetError:
        assert min(u.cost for u in own) > audit_space.capacity
        return
    assert {u.family for u in chosen} == {family}
    affordable = [
        level for level, units in levels.items() if total_cost(units) <= audit_space.capacity
    ]
    if affordable:
        assert set(chosen) == set(levels[max(affordable)])
    else:
        smallest = sorted(levels[min(levels)], key=lambda u: (u.cost, u.site.order))
        assert set(chosen) == set(smallest[: len(chosen)])


def test_everywhere_means_everywhere_also_where_the_largest_levels_fit_few_sites():
    """Rank 8 fits one site only: a topology of that one site is not LoRA everywhere."""
    lora = [u for u in space(sites=6, levels=(1, 8)).units if u.family == "lora"]
    widest = max(lora, key=lambda u: u.cost)
    units = tuple(u for u in lora if u.level == 1 or u == widest)
    everywhere = total_cost(u for u in units if u.level == 1)
    assert widest.cost > everywhere
    chosen = fixed_policy("lora", Space(units, 50 + widest.cost, 50), 0).final().active
    assert len(chosen) == 6, chosen


def test_affine_lora_takes_every_norm_first_then_rank_4_from_the_cheapest_up():
    audit_space = space(share=0.1)
    chosen = [
        audit_space.by_id[u] for u in fixed_policy("affine_lora", audit_space, 0).final().active
    ]
    assert {u.id for u in chosen if u.family == "affine"} == {
        u.id for u in audit_space.units if u.family == "affine"
    }
    ranks = [u for u in audit_space.units if u.family == "lora" and u.level == 4]
    taken = [u for u in chosen if u.family == "lora"]
    assert taken
    assert max(u.cost for u in taken) <= min((u.cost for u in ranks if u not in taken), default=1e9)


def test_lora_lowest_goes_everywhere_before_any_rank_grows():
    audit_space = space(share=0.3)
    chosen = [
        audit_space.by_id[u]
        for u in fixed_policy("affine_lora_lowest", audit_space, 0).final().active
    ]
    assert {u.level for u in chosen if u.family == "lora"} == {1}
    assert len(chosen) == 24, "12 norms and 12 convolutions"


@given(share=st.floats(0.02, 0.9))
def test_uniform_gives_every_place_what_an_equal_share_pays_for(share):
    audit_space = space(share=share)
    chosen = [audit_space.by_id[u] for u in fixed_policy("uniform", audit_space, 0).final().active]
    groups = {
        u.group: [v for v in audit_space.units if v.group == u.group] for u in audit_space.units
    }
    for unit in chosen:
        larger = [u for u in groups[unit.group] if u.cost > unit.cost]
        equal = audit_space.capacity / len(groups)
        assert not [u for u in larger if u.cost <= equal], "its share would have paid for more"


@pytest.mark.parametrize(
    ("name", "stages"), [("lora_encoder", {"encoder", "bottleneck"}), ("lora_decoder", {"decoder"})]
)
def test_half_of_the_network(name, stages):
    audit_space = space(share=0.5)
    chosen = [audit_space.by_id[u] for u in fixed_policy(name, audit_space, 0).final().active]
    assert {u.site.stage for u in chosen} == stages
    assert {u.family for u in chosen} == {"lora"}


@given(draw=st.integers(0, 50), affine=st.integers(0, 3000), lora=st.integers(1, 30000))
def test_a_random_mix_spends_on_each_family_what_it_was_told_to(draw, affine, lora):
    audit_space = space(share=0.1)
    policy = fixed_policy("cheapest", audit_space, 0)
    try:
        policy = fixed_policy(
            f"random_mix(draw={draw},affine={affine},lora={lora})", audit_space, 0
        )
    except BudgetError:
        assert audit_space.capacity < min(
            u.cost for u in audit_space.units if u.family in ("affine", "lora")
        )
        return
    chosen = [audit_space.by_id[u] for u in policy.final().active]
    assert {u.family for u in chosen} <= {"affine", "lora"}
    check_allocation(policy.allocate(0), audit_space)
    left = audit_space.capacity - total_cost(chosen)
    groups = {u.group for u in chosen}
    assert not [
        u
        for u in audit_space.units
        if u.family in ("affine", "lora") and u.group not in groups and u.cost <= left
    ]


def test_draws_of_a_random_mix_differ_and_repeat():
    audit_space = space(share=0.1)
    draws = [
        fixed_policy(f"random_mix(draw={d},affine=500,lora=9000)", audit_space, 0).final()
        for d in range(8)
    ]
    assert len({d.active for d in draws}) == 8
    assert (
        fixed_policy("random_mix(draw=3,affine=500,lora=9000)", audit_space, 0).final() == draws[3]
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random_mix(draw=1,lara=10)", "no adapter family is called 'lara'"),
        ("random_mix(affine=10)", "needs draw=N"),
        ("random_mix(draw=1)", "at least one FAMILY"),
        ("random_mix(1)", "needs draw=N"),
        ("random_mixture(draw=1)", "No policy is called"),
    ],
)
def test_a_mix_that_cannot_be_read_is_refused(name, said):
    with pytest.raises(UsageError, match=said):
        fixed_policy(name, space(), 0)


def test_adaptive_ranks_follow_importance_and_remember_it():
    audit_space = space(share=0.3)
    policy = fixed_policy("adalora", audit_space, 0)
    by_id = audit_space.by_id

    def tell(policy, cycle, favourite):
        asked = policy.needs_saliency(cycle)
        assert {by_id[u].family for u in asked} == {"lora"}
        assert len({by_id[u].site.path for u in asked}) == len(asked)
        policy.told_saliency(
            cycle,
            {u: by_id[u].level * (9.0 if by_id[u].site.path == favourite else 1.0) for u in asked},
        )

    tell(policy, 0, "conv3")
    first = policy.allocate(0)
    check_allocation(first, audit_space)
    rank = {by_id[u].site.path: by_id[u].level for u in first.active if by_id[u].family == "lora"}
    assert rank["conv3"] == 8
    assert {u for u in first.active if by_id[u].family == "affine"} == {
        u.id for u in audit_space.units if u.family == "affine"
    }
    assert set(rank.values()) != {8}
    assert not set(policy.needs_saliency(1)) & set(first.active), (
        "a trained unit's gradient says nothing of what is lacking"
    )
    copy = fixed_policy("adalora", audit_space, 0)
    copy.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    for cycle in (1, 2):
        for each in (policy, copy):
            tell(each, cycle, "conv5")
        assert policy.allocate(cycle) == copy.allocate(cycle)
        check_allocation(policy.allocate(cycle), audit_space)
    assert policy.final().active == policy.allocate(2).active


def test_random_differs_by_seed_and_repeats_with_it():
    audit_space = space(share=0.05)
    draws = {fixed_policy("random", audit_space, seed).final().active for seed in range(10)}
    assert len(draws) == 10
    assert (
        fixed_policy("random", audit_space, 3).final()
        == fixed_policy("random", audit_space, 3).final()
    )


def test_head_only_has_no_unit_and_what_has_a_size_of_its_own_is_marked_as_outside_the_budget():
    audit_space = space(share=0.01)
    assert fixed_policy("head_only", audit_space, 0).final().active == ()
    assert {"full", "decoder_full", "lora_paper", "conv_adapter_paper"} <= OUTSIDE_BUDGET
    for name in OUTSIDE_BUDGET & set(HERE):
        policy = fixed_policy(name, audit_space, 0)
        assert policy.outside_budget
        assert policy.final().active


@pytest.mark.parametrize("name", [n for n in BOUND if n in HERE and n != "head_only"])
def test_a_budget_that_fits_none_of_it_is_refused(name):
    audit_space = space()
    with pytest.raises(BudgetError, match=f"Policy {name} fits no unit into 3 parameters"):
        fixed_policy(name, Space(audit_space.units, 53, 50), 0)


def test_an_unknown_policy_is_refused_with_those_that_are_there():
    with pytest.raises(UsageError, match="No policy is called 'sae'; there are sea, affine, lora"):
        fixed_policy("sae", space(), 0)


@pytest.mark.parametrize("name", FIXED)
def test_what_a_topology_needs_on_offer_exists(name):
    for family, offer in (policy_entry(name).offers or {}).items():
        assert family in families()
        assert set(offer.levels or ()) <= set(families()[family].levels)
        assert set(offer.kinds or ()) <= families()[family].kinds


def test_a_fixed_topology_asks_for_nothing_and_listens_to_nothing():
    policy = fixed_policy("affine", space(), 0)
    assert (policy.audits, policy.needs_saliency(0), policy.to_audit(0)) == (False, (), {})
    policy.told_saliency(0, {})
    assert policy.audited(0, []) == []
    assert {d.decision for d in policy.allocate(0).decisions} == {"add"}
    assert {d.decision for d in policy.allocate(1).decisions} == {"keep"}
    policy.load_state_dict(policy.state_dict())
    with pytest.raises(ValueError, match="no state"):
        policy.load_state_dict({"votes": 3})
