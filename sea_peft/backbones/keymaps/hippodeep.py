"""hippodeep (Thyreau et al. 2018): one sigmoid that finds the hippocampus in a box of 48×72×64 mm
around it, on one side.

The authors register heads to MNI space at 1 mm, axes left, anterior, superior, cut a box on each
side, and mirror the left one: the network has only seen right hippocampi. Grey values are z-scores,
of the head and then of the box.
"""

from sea_peft.backbones.keymaps.origin import Known, Origin, keep
from sea_peft.data.recipe import Recipe, ZScore

_RECIPE = Recipe(orientation="LAS", spacing=(1.0, 1.0, 1.0), intensity=ZScore())
_ONE_SIDE = (
    "It was trained on the right hippocampus and on mirrored left ones; "
    "for scans of the left side give the orientation RAS, which mirrors them."
)

HIPPODEEP = Origin(
    name="hippodeep",
    about="hippodeep, Thyreau et al. 2018, github.com/bthyreau/hippodeep_pytorch",
    backbones=("hippodeep",),
    recognises=lambda checkpoint: (
        checkpoint.has_key_under("conv0a_0.") and checkpoint.has_key_under("conv_extract.")
    ),
    rename=keep,
    know=lambda _checkpoint, _backbone: Known(
        labels=("hippocampus",),
        channels=("T1",),
        recipe=_RECIPE,
        patch=(48, 72, 64),
        notes=(_ONE_SIDE,),
    ),
)
