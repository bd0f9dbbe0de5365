"""The sources that the bundled weights were trained on, and targets that each differ for one
reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from sea_peft.phantom.acquisition import Acquisition
from sea_peft.phantom.anatomy import draw_abdomen
from sea_peft.phantom.brain import TUMOUR, draw_brain
from sea_peft.phantom.ct import CT
from sea_peft.phantom.mr import MR
from sea_peft.phantom.patient import STRUCTURES, Anatomy, Build
from sea_peft.phantom.relaxation import BRAIN, Sequence, SpinEcho
from sea_peft.phantom.sampling import Grid
from sea_peft.phantom.tissues import CYSTS, HYPERVASCULAR, LATE_ARTERIAL, UNENHANCED

NOVEL = ("gallbladder", "duodenum", "psoas")
SOURCE_LABELS = tuple(name for name in STRUCTURES if name not in NOVEL)
LABELS: Mapping[str, int] = MappingProxyType(
    {name: 1 + STRUCTURES.index(name) for name in SOURCE_LABELS}
)


@dataclass(frozen=True)
class Region:
    """A part of the body: the function that draws it, the structures that can have a label there
    (code = 1 + index), and the bundled weights that know it.

    `weights`: their name; None if they are the default backbone's own.
    """

    draw: Callable[[int, Build], Anatomy]
    structures: tuple[str, ...]
    weights: str | None = None


ABDOMEN = Region(draw_abdomen, STRUCTURES)
HEAD = Region(draw_brain, TUMOUR, weights="phantom_brain_unet")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A world of cases: the patients, the scanner, and the labels."""

    name: str
    reason: str
    acquisition: Acquisition = field(default_factory=CT)
    build: Build = field(default_factory=Build)
    labels: tuple[str, ...] = SOURCE_LABELS
    grid: Grid = field(default_factory=Grid)
    region: Region = ABDOMEN

    @property
    def codes(self) -> dict[str, int]:
        """Label → code, in the order of the labels."""
        return {label: 1 + self.region.structures.index(label) for label in self.labels}


SOURCE = Target(
    name="source",
    reason="contrast-enhanced CT in the portal venous phase at full dose: what the weights know",
)


def _four_sequences(t1: SpinEcho, t2: SpinEcho, flair: SpinEcho) -> dict[str, Sequence]:
    """The sequences of a glioma scan; t1c is t1 again with contrast agent."""
    return {"t1": t1, "t1c": replace(t1, contrast=True), "t2": t2, "flair": flair}


_MR_AT_3_T = MR(
    sequences=_four_sequences(
        SpinEcho(tr=600, te=10), SpinEcho(tr=4500, te=95), SpinEcho(tr=9000, te=110, ti=2400)
    ),
    tissues=BRAIN,
    reference="white_matter",
    tissue_spread=0.03,
    resolution=2.0,
    slice_thickness=2.5,
    bias=0.05,
    noise=1.5,
    stripped=True,
)
BRAIN_SOURCE = Target(
    name="brain-source",
    reason="glioma in four sequences at 3 T: what the brain weights know",
    acquisition=_MR_AT_3_T,
    build=Build(scale=(0.94, 1.06), lesion_radius=(12.0, 24.0)),
    labels=TUMOUR,
    grid=Grid(spacing=(3.0, 3.0, 3.0)),
    region=HEAD,
)
SOURCES: Mapping[str, Target] = MappingProxyType(
    {source.name: source for source in (SOURCE, BRAIN_SOURCE)}
)

_TARGETS = (
    Target(
        name="low-dose-ct",
        reason=(
            "another scanner and protocol: low dose, thick slices, contrast medium drunk and not"
            " injected"
        ),
        acquisition=CT(
            enhancement=0.0,
            oral_contrast=200.0,
            noise=28.0,
            noise_blur=6.0,
            slice_thickness=10.0,
            resolution=5.0,
            starvation=20.0,
            cupping=15.0,
            unenhanced=UNENHANCED | CYSTS,  # what is followed up like this are cysts
        ),
    ),
    Target(
        name="sharp-kernel-metal",
        reason=(
            "another reconstruction: thin slices of a bone kernel with their noise, and streaks"
            " from spinal screws"
        ),
        acquisition=CT(
            noise=110.0,  # of voxels that are sampled from thin slices, not averaged over 5 mm
            noise_blur=0.5,
            resolution=1.5,
            slice_thickness=1.5,
            sharpening=2.5,
            metal_streaks=500.0,
        ),
        build=Build(spinal_screws=True),
    ),
    Target(
        name="paediatric-ct",
        reason=(
            "other patients: small children, with large liver and kidneys and little fat, at 80 kVp"
        ),
        acquisition=CT(enhancement=1.5, noise=14.0),
        build=Build(
            scale=(0.50, 0.64),
            fat=(3.0, 8.0),
            organ_scale=(
                ("liver", 1.14),
                ("spleen", 1.1),
                ("right_kidney", 1.15),
                ("left_kidney", 1.15),
                ("pancreas", 1.1),
            ),
        ),
        grid=Grid(shape=(48, 48, 32)),
    ),
    Target(
        name="mr-t1",
        reason=(
            "another modality: fat-suppressed T1-weighted MR, with coil shading and Rician noise"
        ),
        acquisition=MR(),
    ),
    Target(
        name="novel-organs",
        reason=(
            "other labels: structures that the weights know only as background, on the scanner they"
            " know"
        ),
        build=Build(
            organ_scale=(("gallbladder", 1.2), ("duodenum", 1.1))
        ),  # fasting, so both are full
        labels=NOVEL,
    ),
    Target(
        name="small-lesions",
        reason=(
            "another disease: small lesions, bright in the late arterial phase; the weights know"
            " large dark ones"
        ),
        acquisition=CT(phase=LATE_ARTERIAL | HYPERVASCULAR),
        build=Build(lesions=(4, 7), lesion_radius=(10.0, 15.0)),
        labels=("liver_lesion",),
    ),
    replace(
        BRAIN_SOURCE,
        name="low-field-brain",
        # BraTS-Africa (Adewole et al. 2023, arXiv 2305.19369) is of many clinical scanners; 0.3 T
        # is chosen, to be far from 3 T
        reason=(
            "another field strength: glioma at 0.3 T, with thick slices, much noise, coil shading"
            " and motion, in the manner of BraTS-Africa"
        ),
        acquisition=replace(
            _MR_AT_3_T,
            sequences=_four_sequences(
                SpinEcho(tr=450, te=18),
                SpinEcho(tr=4000, te=120),
                SpinEcho(tr=6000, te=100, ti=1500),
            ),
            tesla=0.3,
            tissue_spread=0.05,
            resolution=4.0,
            slice_thickness=7.0,
            bias=0.25,
            motion=1.5,
            noise=6.0,
        ),
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _TARGETS})
