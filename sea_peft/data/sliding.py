"""The part of a scan that the network sees: one window for training, audits, scores and
prediction.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sea_peft.documents import Number, Patch, Record

Inferer = Literal["monai", "nnunet"]
"""How the window slides: as in MONAI's `sliding_window_inference` in mode "gaussian", averaging
probabilities, in equal steps but for the last; or as in nnU-Net's predictor, averaging logits, in
equal steps.
"""


class SlidingWindow(Record):
    """The patch that an adapter was trained on, moved over a scan.

    A scan smaller than the patch is padded on both sides, and training crops are padded in the same
    way. Norms with statistics over their input make the output depend on the window's size, so an
    adapter is never used with another size.

    Attributes:
        patch: voxels along D, H, W.
        overlap: of neighbouring windows, as a share of the patch. The default is measured: `python
            -m benchmarks overlap`.
        inferer: whose way of placing and averaging windows to use.
        pad: the prepared grey value of the padding.
    """

    patch: Patch
    overlap: float = Field(default=0.5, ge=0, le=0.9)
    inferer: Inferer = "monai"
    pad: Number = 0.0
