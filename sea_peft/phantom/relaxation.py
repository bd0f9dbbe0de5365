"""What tissues look like to MR: relaxation times and proton density, and the signal equations of the sequences.

Abdomen: T1 and T2 of liver, spleen, pancreas, kidney, muscle, marrow and fat at 3 T as measured by de Bazelaire et al., Radiology 230:652
(2004); the others are chosen round numbers. Brain: chosen round numbers in the range of what is published, which is wide (T1 of white
matter at 3 T from 0.6 to 1.1 s, Assländer 2024, arXiv 2409.05318). Proton densities are chosen.

T1 shortens at lower field. For all but free water it is taken to follow a power of the field (`T1_EXPONENT`, chosen; the law is
Bottomley's, Med Phys 11:425, 1984); T2 hardly changes and is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

T1_EXPONENT = 0.35
RELAXIVITY = 4.5  # of a gadolinium chelate in 1/(s mM); chosen


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """T1 and T2 in ms at 3 T, proton density relative to water, gadolinium in mM that a contrast agent leaves in it."""

    t1: float
    t2: float
    density: float
    gadolinium: float = 0.0
    free_water: bool = False

    def t1_at(self, tesla: float, contrast: bool) -> float:
        """T1 in ms at a field, with or without the contrast agent."""
        t1 = self.t1 if self.free_water else self.t1 * (tesla / 3.0) ** T1_EXPONENT
        return 1 / (1 / t1 + contrast * self.gadolinium * RELAXIVITY / 1000)


_NO_SIGNAL = Tissue(t1=1000, t2=1, density=0.0)
_WATER = Tissue(t1=4000, t2=1500, density=1.0, free_water=True)
_WALL = Tissue(t1=1000, t2=45, density=0.85)
_BLOOD = Tissue(t1=1900, t2=50, density=0.6)  # some of it flows out of the slice before it is read

ABDOMEN: Mapping[str, Tissue] = {
    "air": _NO_SIGNAL,
    "table": _NO_SIGNAL,
    "gas": _NO_SIGNAL,
    "metal": _NO_SIGNAL,
    "cortical_bone": Tissue(t1=1000, t2=1, density=0.05),
    "lung": Tissue(t1=1200, t2=10, density=0.1),
    "fat": Tissue(t1=382, t2=68, density=0.15),  # suppressed
    "cancellous_bone": Tissue(t1=586, t2=49, density=0.3),  # half of it fat
    "muscle": Tissue(t1=898, t2=29, density=0.8),
    "heart": Tissue(t1=1200, t2=45, density=0.8),
    "liver": Tissue(t1=809, t2=34, density=0.9),
    "spleen": Tissue(t1=1328, t2=61, density=0.9),
    "pancreas": Tissue(t1=725, t2=43, density=0.9),
    "kidney_cortex": Tissue(t1=1142, t2=76, density=0.95),
    "kidney_medulla": Tissue(t1=1545, t2=81, density=0.95),
    "renal_pelvis": _WATER,
    "lesion": Tissue(t1=1500, t2=80, density=0.9),
    "lesion_core": Tissue(t1=2200, t2=120, density=0.95),
    "bile": Tissue(t1=2500, t2=800, density=1.0),
    "stomach_wall": _WALL,
    "stomach_content": Tissue(t1=3000, t2=500, density=1.0),
    "bowel_wall": _WALL,
    "bowel_fluid": Tissue(t1=3000, t2=500, density=1.0),
    "stool": Tissue(t1=1100, t2=60, density=0.8),
    "blood_artery": _BLOOD,
    "blood_vein": _BLOOD,
    "blood_portal": _BLOOD,
    "disc": Tissue(t1=1300, t2=60, density=0.8),
    "cerebrospinal_fluid": _WATER,
}

BRAIN: Mapping[str, Tissue] = {
    "cerebrospinal_fluid": _WATER,
    "grey_matter": Tissue(t1=1400, t2=95, density=0.82),
    "white_matter": Tissue(t1=850, t2=70, density=0.70),
    "dura": Tissue(t1=1100, t2=50, density=0.6, gadolinium=0.5),
    "choroid_plexus": Tissue(t1=1500, t2=120, density=0.85, gadolinium=0.8),
    "gliosis": Tissue(t1=1350, t2=120, density=0.80),
    "oedema": Tissue(t1=1450, t2=140, density=0.85),
    "tumour": Tissue(t1=1450, t2=110, density=0.84, gadolinium=0.6),
    "necrosis": Tissue(t1=2200, t2=250, density=0.92, gadolinium=0.05),
}


@dataclass(frozen=True)
class SpinEcho:
    """M = density · |1 − 2 exp(−TI/T1) + exp(−TR/T1)| · exp(−TE/T2) with an inversion, 1 − exp(−TR/T1) without. Times in ms."""

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
    """M = density · sin α (1 − E)/(1 − E cos α), E = exp(−TR/T1), at a TE so short that T2* does not count. TR in ms, α in degrees."""

    tr: float
    flip: float
    contrast: bool = False

    def signal(self, tissue: Tissue, tesla: float) -> float:
        """Magnitude relative to fully relaxed water after a 90° pulse."""
        e = np.exp(-self.tr / tissue.t1_at(tesla, self.contrast))
        a = np.radians(self.flip)
        return float(tissue.density * np.sin(a) * (1 - e) / (1 - e * np.cos(a)))


Sequence = SpinEcho | SpoiledGradientEcho
