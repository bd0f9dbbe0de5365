"""What the network sees at once: one window for training, audits, scores and prediction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sea_peft.documents import Number, Patch, Record

Inferer = Literal["monai", "nnunet"]
"""Whose sliding window: MONAI's `sliding_window_inference` in mode "gaussian", here of probabilities, in steps of one length but for the
last; or nnU-Net's predictor's, whose steps are of equal length and which averages logits."""


class SlidingWindow(Record):
    """The patch that an adapter was trained on, moved over a scan.

    A scan smaller than the patch is padded on both sides, and crops for training are in the same way. Norms that take statistics of what the network
    sees make its output depend on the window's size, so no other size is ever used with the same adapter.

    Attributes:
        patch: voxels along D, H, W.
        overlap: of neighbouring windows, as a share of the patch. The default is measured: `python -m benchmarks overlap`.
        inferer: in whose way the windows are placed and averaged.
        pad: the prepared grey value that is put around a scan.
    """

    patch: Patch
    overlap: float = Field(default=0.5, ge=0, le=0.9)
    inferer: Inferer = "monai"
    pad: Number = 0.0
