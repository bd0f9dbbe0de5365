"""Which connected parts of a mask are kept: `--keep largest`, `--keep 2`, `--keep min-ml=0.5`, for
all labels or for one.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from sea_peft.errors import UsageError

_TOUCHING = np.ones((3, 3, 3))  # voxels that share a corner are of one part


@dataclasses.dataclass(frozen=True)
class Keep:
    """Keeps the `most` largest parts of a label, or those of at least `least_ml` millilitres, or
    all if both are None.
    """

    most: int | None = None
    least_ml: float | None = None

    @classmethod
    def parse(cls, rule: str) -> "Keep":
        """From `largest`, a number, `min-ml=X` or `all`. Raises UsageError for other words.

        Examples:
            >>> Keep.parse("largest")
            Keep(most=1, least_ml=None)
            >>> Keep.parse("min-ml=0.5")
            Keep(most=None, least_ml=0.5)
        """
        if rule in ("largest", "all"):
            return cls(most=1 if rule == "largest" else None)
        if re.fullmatch(r"[1-9]\d{0,5}", rule):
            return cls(most=int(rule))
        if size := re.fullmatch(r"min-ml=(\d+(?:\.\d*)?|\.\d+)", rule):
            return cls(least_ml=float(size[1]))
        raise UsageError(
            f"--keep {rule} is not known; write largest, a number of parts, min-ml=X or all, or"
            " LABEL= in front of one."
        )

    def __str__(self) -> str:
        if self.least_ml is not None:
            return f"min-ml={self.least_ml:g}"
        return "all" if self.most is None else "largest" if self.most == 1 else str(self.most)


def keeps(asked: Sequence[str], labels: Sequence[str]) -> dict[str, Keep]:
    """Label → its rule, for labels of which not all parts are kept.

    `asked`: rules, each for all labels or `LABEL=rule`, which takes precedence. Raises UsageError
    for an unknown rule or label, and for two rules for the same.
    """
    rules: dict[str | None, Keep] = {}
    for spec in asked:
        label, rule = _split(spec)
        if label is not None and label not in labels:
            raise UsageError(
                f"--keep {spec}: there is no label {label}; there are {', '.join(labels)}."
            )
        if label in rules:
            raise UsageError(f"--keep is given twice for {label or 'all labels'}; give it once.")
        rules[label] = Keep.parse(rule)
    found = {label: rules.get(label, rules.get(None, Keep())) for label in labels}
    return {label: keep for label, keep in found.items() if keep != Keep()}


def _split(spec: str) -> tuple[str | None, str]:
    """`liver=min-ml=2` → the label and its rule. The label of a rule for all is None."""
    found = re.fullmatch(r"(?:(?P<label>.+?)=)??(?P<rule>min-ml=[^=]*|[^=]*)", spec, re.DOTALL)
    return (None, spec) if found is None else (found["label"], found["rule"])


def parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The connected parts of a bool mask `[I, J, K]`, numbered from 1 in an array like it, and
    their number.
    """
    from scipy import ndimage  # here, since most masks are kept whole

    numbered, count = ndimage.label(mask, structure=_TOUCHING)
    return numbered, int(count)


def keep_parts(indices: np.ndarray, keep: Mapping[int, Keep], millilitres: float) -> np.ndarray:
    """Label indices `[I, J, K]` in which parts that are not kept have become background.

    Args:
        indices: 0 is the background.
        keep: label index → its rule.
        millilitres: volume of a voxel.
    """
    left = indices.copy()
    for index, rule in keep.items():
        numbered, count = parts(indices == index)
        sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
        order = np.argsort(-sizes, kind="stable")  # of equal sizes, the first in the scan
        stays = np.zeros(count + 1, dtype=bool)
        stays[1 + order[: rule.most]] = True
        if rule.least_ml is not None:
            stays[1:] &= sizes * millilitres >= rule.least_ml
        left[(indices == index) & ~stays[numbered]] = 0
    return left
