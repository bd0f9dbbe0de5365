"""deepbet (Fisch et al. 2024, doi 10.1016/j.compbiomed.2024.108845; PyPI, MIT): TorchScript of a
LinkNet that finds the brain in T1.

deepbet resizes a head to 256 voxels per side, about 1 mm, and clips at these percentiles. An
instance norm follows the first convolution, so the scaling in between makes no difference. The
script ends in a softmax, which has no tensor.
"""

from sea_peft.backbones.keymaps.origin import Known, Origin, keep
from sea_peft.data.recipe import Percentile, Recipe

_RECIPE = Recipe(
    orientation="RAS", spacing=(1.0, 1.0, 1.0), intensity=Percentile(low=0.5, high=99.5)
)

DEEPBET = Origin(
    name="deepbet",
    about="deepbet, Fisch et al. 2024, github.com/wwu-mmll/deepbet",
    backbones=("linknet",),
    recognises=lambda checkpoint: (
        checkpoint.has_key_under("init.0.") and checkpoint.has_key_under("tp_conv2.")
    ),
    rename=keep,
    know=lambda _checkpoint, _backbone: Known(
        labels=("brain",), channels=("T1w",), recipe=_RECIPE, patch=(128, 128, 128)
    ),
)
