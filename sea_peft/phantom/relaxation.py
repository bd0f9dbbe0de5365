"""The look of tissues in MR: relaxation times and proton densities, from `tissues_mr.csv`, and the
signal equations of the sequences.

Abdomen: T1 and T2 of liver, spleen, pancreas, kidney, muscle, marrow and fat at 3 T are those
measured by de Bazelaire et al., Radiology 230:652 (2004); the others are chosen round numbers.
Brain: chosen round numbers within the published range, which is wide (T1 of white matter at 3 T
from 0.6 to 1.1 s, Assländer 2024, arXiv 2409.05318). Proton densities are chosen.

T1 shortens at lower field. For everything but free water it is assumed to follow a power of the
field (`T1_EXPONENT`, chosen; the law is Bottomley's, Med Phys 11:425, 1984). T2 hardly changes and
is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sea_peft.phantom.tissues import table

T1_EXPONENT = 0.35
RELAXIVITY = 4.5  # of a gadolinium chelate in 1/(s mM); chosen


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """One tissue.

    Attributes:
        t1: in ms at 3 T.
        t2: in ms at 3 T.
        density: proton density relative to water.
        gadolinium: concentration in mM that a contrast agent leaves in it.
        free_water: whether T1 is independent of the field.
    """

    t1: float
    t2: float
    density: float
    gadolinium: float = 0.0
    free_water: bool = False

    def t1_at(self, tesla: float, contrast: bool) -> float:
        """T1 in ms at a field, with or without the contrast agent."""
        t1 = self.t1 if self.free_water else self.t1 * (tesla / 3.0) ** T1_EXPONENT
        return 1 / (1 / t1 + contrast * self.gadolinium * RELAXIVITY / 1000)


_NUMBERS = ("t1", "t2", "density", "gadolinium")


def _tissues(region: str) -> Mapping[str, Tissue]:
    return {
        row["tissue"]: Tissue(
            **{name: float(row[name]) for name in _NUMBERS}, free_water=row["free_water"] == "yes"
        )
        for row in table("tissues_mr.csv")
        if row["region"] == region
    }


ABDOMEN, BRAIN = _tissues("abdomen"), _tissues("brain")


@dataclass(frozen=True)
class SpinEcho:
    """M = density · |1 − 2 exp(−TI/T1) + exp(−TR/T1)| · exp(−TE/T2) with an inversion, 1 −
    exp(−TR/T1) without. Times in ms.
    """

    tr: float
    te: float
    ti: float | None = None
    contrast: bool = False

    def signal(self, tissue: Tissue, tesla: float) -> float:
        """Magnitude relative to fully relaxed water."""
        t1 = tissue.t1_at(tesla, self.contrast)
        left = np.exp(-self.tr / t1)
        recovered = 1 - left if self.ti is None else abs(1 - 2 * np.exp(-self.ti / t1) + left)
        return float(tissue.density * recovered * np.exp(-self.te / tissue.t2))


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """M = density · sin α (1 − E)/(1 − E cos α), E = exp(−TR/T1), at a TE so short that T2*
    does not count. TR in ms, α in degrees.
    """

    tr: float
    flip: float
    contrast: bool = False

    def signal(self, tissue: Tissue, tesla: float) -> float:
        """Magnitude relative to fully relaxed water after a 90° pulse."""
        e = np.exp(-self.tr / tissue.t1_at(tesla, self.contrast))
        a = np.radians(self.flip)
        return float(tissue.density * np.sin(a) * (1 - e) / (1 - e * np.cos(a)))


Sequence = SpinEcho | SpoiledGradientEcho
