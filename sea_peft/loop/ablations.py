"""`sea` without each of its parts, as policies of their own: a part is worth what is lost without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sea_peft.loop.ranking import RankingSettings
from sea_peft.loop.sea import Sea, SeaSettings
from sea_peft.loop.utility import UtilitySettings


@dataclasses.dataclass(frozen=True)
class Variant:
    """`changes`: to `SeaSettings`. `cycles`: of the search, None for as many as the run has."""

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cycles: int | None = None

    def settings(self, whole: SeaSettings) -> SeaSettings:
        """The settings of the whole `sea`, changed."""
        return dataclasses.replace(whole, **self.changes)


SEA_VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        Sea.name: Variant(),
        # the last audit alone speaks: no average, no median over a window, no penalty for scatter
        "sea_no_smoothing": Variant({"utility": UtilitySettings(decay=0.0, window=1, iqr_weight=0.0, exploration=0.0)}),
        # one audit promotes or demotes, whatever its size, and at once
        "sea_no_ranking": Variant({"ranking": RankingSettings(votes=1, guard=0, hysteresis=0.0)}),
        # no share of the budget is kept for units that were never tried
        "sea_no_probes": Variant({"probe_share": 0.0}),
        # everything that is open makes room in every cycle, until all on trial was tried
        "sea_in_turn": Variant({"probe_share": 1.0}),
        # cost and promise alone choose
        "sea_no_audits": Variant({"audit_units": 0}),
        # until audits say otherwise, cost alone chooses
        "sea_no_promise": Variant({"promise": 0.0}),
        # trained once, audited once, chosen from once
        "sea_one_shot": Variant(cycles=1),
    }
)
"""Policy name → what it changes, the whole `sea` first."""
