"""Blending windows plane by plane gives what MONAI gives over the whole scan, in windows that the network takes."""

import pytest
import torch
from monai.inferers import sliding_window_inference

from sea_peft.backbones import architecture
from sea_peft.backbones.limits import Limits
from sea_peft.jobs.inference import window
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
    slabs = list(blended(two, image, roi, overlap, torch.device("cpu")))
    for number, whole in enumerate(expected):
        ours = torch.cat([slab[number] for slab in slabs], dim=1)
        torch.testing.assert_close(ours, whole[0], atol=1e-5, rtol=1e-5)
    if shape[0] > 8 and overlap < 0.7:
        assert len(slabs) > 1


THIN = {"strides": (1, (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2), 2, 2)}


@pytest.mark.parametrize(
    ("name", "kwargs", "shape", "patch", "expected"),
    [
        # whole where it is short, the patch where it is long, each axis rounded up to its own multiple
        ("segresnet", {}, (21, 144, 145), (96, 96, 96), (24, 144, 96)),
        ("dynunet", THIN, (20, 300, 500), (20, 320, 256), (20, 320, 256)),
        ("dynunet", THIN, (18, 321, 300), (20, 320, 256), (20, 384, 320)),
        # no side is shorter than the least that the network takes
        ("segresnet", {}, (5, 30, 30), (16, 16, 16), (16, 16, 16)),
        ("segresnet", {}, (5, 20, 24), (16, 16, 16), (16, 24, 24)),
        # too little would be left at the bottom for its norms
        ("unet", {}, (10, 16, 12), (64, 64, 64), (64, 64, 64)),
        ("dynunet", THIN, (5, 60, 60), (20, 320, 256), (20, 320, 256)),
        # one size only
        ("unetr", {}, (100, 100, 100), (96, 96, 96), (96, 96, 96)),
    ],
)
def test_the_window_is_one_that_the_network_takes(name, kwargs, shape, patch, expected) -> None:
    arch = architecture(name)
    assert window(shape, patch, arch.limits_of(kwargs)) == expected
    arch.check_size(expected, kwargs)


def test_sides_are_rounded_up_where_the_minimum_is_no_multiple() -> None:
    limits = Limits((16, 1, 4), (40, 8, 4))
    assert limits.holding((3, 3, 3)) == (48, 8, 4)
    assert window((3, 9, 5), (64, 64, 64), limits) == (48, 9, 8)
