"""Fixed topologies are policies like any other: within the budget, one level a (site, family), the same at every call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import check_allocation, space

from sea_peft.adapters import families, total_cost
from sea_peft.errors import BudgetError, UsageError
from sea_peft.loop.policies import FIXED_POLICIES, OUTSIDE_BUDGET, Space, fixed_policy, policy_offers

BOUND = [name for name in FIXED_POLICIES if name not in OUTSIDE_BUDGET]


@pytest.mark.parametrize("name", BOUND)
@given(share=st.floats(0.0005, 0.9), seed=st.integers(0, 100), sites=st.integers(1, 20))
def test_every_topology_stays_within_the_budget(name, share, seed, sites):
    audit_space = space(sites=sites, share=share, seed=seed)
    try:
        policy = fixed_policy(name, audit_space, seed)
    except BudgetError:
        return
    for cycle in range(3):
        check_allocation(policy.allocate(cycle), audit_space)
    assert policy.final().active == policy.allocate(0).active
    assert not policy.outside_budget


@pytest.mark.parametrize("name", BOUND)
def test_a_topology_does_not_depend_on_the_order_of_the_units_on_offer(name):
    if name in ("random", "bias"):
        pytest.skip("random draws by place in the list; no bias is on offer here")
    here = space(share=0.05)
    there = Space(here.units[::-1], here.limit, here.head)
    assert set(fixed_policy(name, here, 0).final().active) == set(fixed_policy(name, there, 0).final().active)


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
    affordable = [level for level, units in levels.items() if total_cost(units) <= audit_space.capacity]
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
    chosen = [audit_space.by_id[u] for u in fixed_policy("affine_lora", audit_space, 0).final().active]
    assert {u.id for u in chosen if u.family == "affine"} == {u.id for u in audit_space.units if u.family == "affine"}
    ranks = [u for u in audit_space.units if u.family == "lora" and u.level == 4]
    taken = [u for u in chosen if u.family == "lora"]
    assert taken
    assert max(u.cost for u in taken) <= min((u.cost for u in ranks if u not in taken), default=1e9)


def test_random_differs_by_seed_and_repeats_with_it():
    audit_space = space(share=0.05)
    draws = {fixed_policy("random", audit_space, seed).final().active for seed in range(10)}
    assert len(draws) == 10
    assert fixed_policy("random", audit_space, 3).final() == fixed_policy("random", audit_space, 3).final()


def test_head_only_has_no_unit_and_full_is_marked_as_outside_the_budget():
    audit_space = space(share=0.01)
    assert fixed_policy("head_only", audit_space, 0).final().active == ()
    assert fixed_policy("full", audit_space, 0).outside_budget


@pytest.mark.parametrize("name", [n for n in BOUND if n != "head_only"])
def test_a_budget_that_fits_none_of_it_is_refused(name):
    audit_space = space()
    with pytest.raises(BudgetError, match=f"Policy {name} fits no unit into 3 parameters"):
        fixed_policy(name, Space(audit_space.units, 53, 50), 0)


def test_an_unknown_policy_is_refused_with_those_that_are_there():
    with pytest.raises(UsageError, match="No policy is called 'sae'; there are sea, lora"):
        fixed_policy("sae", space(), 0)


@pytest.mark.parametrize("name", FIXED_POLICIES)
def test_what_a_topology_needs_on_offer_exists(name):
    for family, offer in policy_offers(name).items():
        assert family in families()
        assert set(offer.levels or ()) <= set(families()[family].levels)
        assert set(offer.kinds or ()) <= families()[family].kinds


def test_a_fixed_topology_asks_for_nothing_and_listens_to_nothing():
    policy = fixed_policy("affine", space(), 0)
    assert (policy.audits, policy.to_promise(0), policy.to_audit(0)) == (False, (), ())
    for tell in (lambda: policy.promised(0, {}), lambda: policy.audited(0, [])):
        with pytest.raises(RuntimeError, match="asks for no"):
            tell()
    assert {d.decision for d in policy.allocate(0).decisions} == {"add"}
    assert {d.decision for d in policy.allocate(1).decisions} == {"keep"}
    policy.load_state_dict(policy.state_dict())
    with pytest.raises(ValueError, match="no state"):
        policy.load_state_dict({"votes": 3})
