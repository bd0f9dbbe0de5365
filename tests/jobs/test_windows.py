"""Blending windows plane by plane gives what MONAI gives over the whole scan."""

import pytest
import torch
from monai.inferers import sliding_window_inference

from sea_peft.data.sliding import SlidingWindow
from sea_peft.jobs.windows import blended


def two(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Two outputs that depend on the place in the window."""
    ramp = torch.linspace(0, 1, x.shape[2])[:, None, None]
    return torch.cat([x, x * ramp, x**2], dim=1), x * 2 + ramp


@pytest.mark.parametrize("shape", [(23, 17, 40), (8, 8, 8), (5, 30, 6), (9, 8, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_blending_agrees_with_monai(shape: tuple[int, ...], overlap: float) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    roi = (8, 8, 16)
    expected = sliding_window_inference(image[None], roi, 1, two, overlap=overlap, mode="gaussian")
    slabs = list(blended(two, image, SlidingWindow(patch=roi, overlap=overlap), torch.device("cpu")))
    for number, whole in enumerate(expected):
        ours = torch.cat([slab[number] for slab in slabs], dim=1)
        torch.testing.assert_close(ours, whole[0], atol=1e-5, rtol=1e-5)
    if shape[0] > 8 and overlap < 0.7:
        assert len(slabs) > 1
