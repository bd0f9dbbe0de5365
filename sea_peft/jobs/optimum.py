"""The exact optimum of a knapsack, as a yardstick for the greedy one."""

from collections.abc import Sequence

import numpy as np

from sea_peft.data.capture_stdout import capture_stdout
from sea_peft.loop.knapsack import Item


def optimum(items: Sequence[Item], capacity: int) -> float:
    """The largest total value of items within this cost, at most one per group
    (`scipy.optimize.milp`).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    worth = [item for item in items if item.value > 0 and item.cost <= capacity]
    if not worth:
        return 0.0
    same = np.array(
        [[item.group == group for item in worth] for group in {item.group for item in worth}],
        dtype=float,
    )
    within = LinearConstraint(np.array([[item.cost for item in worth]], dtype=float), ub=capacity)
    with capture_stdout([]):  # the solver writes to the process's stdout even when told not to
        solution = milp(
            -np.array([item.value for item in worth]),
            constraints=[within, LinearConstraint(same, ub=1)],
            integrality=np.ones(len(worth)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
    assert solution.x is not None, "nothing at all is a choice"
    return float(sum(item.value for item, x in zip(worth, solution.x, strict=True) if x > 0.5))
