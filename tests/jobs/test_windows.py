"""Blending windows plane by plane gives what MONAI gives over the whole scan."""

import itertools

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.ndimage import gaussian_filter

from sea_peft.data.geometry import whole_geometry
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow
from sea_peft.jobs.inference import probabilities
from sea_peft.jobs.windows import blended


def two(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Two outputs that depend on the place in the window."""
    ramp = torch.linspace(0, 1, x.shape[2])[:, None, None]
    return torch.cat([x, x * ramp, x**2], dim=1), x * 2 + ramp


@pytest.mark.parametrize("shape", [(23, 17, 40), (8, 8, 8), (5, 30, 6), (9, 8, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_blending_agrees_with_monai(shape: tuple[int, ...], overlap: float, batch: int) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    roi = (8, 8, 16)
    expected = sliding_window_inference(image[None], roi, 1, two, overlap=overlap, mode="gaussian")
    sizes: list[int] = []

    def network(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(x))
        return two(x)

    slabs = list(
        blended(
            network, image, SlidingWindow(patch=roi, overlap=overlap), torch.device("cpu"), batch
        )
    )
    assert max(sizes) < 2 * batch
    in_a_row = 1 if shape == (8, 8, 8) else 2  # each shape has as many along H and W
    assert min(sizes) >= min(batch, in_a_row)
    for number, whole in enumerate(expected):
        ours = torch.cat([slab[number] for slab in slabs], dim=1)
        torch.testing.assert_close(ours, whole[0], atol=1e-5, rtol=1e-5)
    if shape[0] > 8 and overlap < 0.7:
        assert len(slabs) > 1


# What nnU-Net 2.8's compute_steps_for_sliding_window gives for steps of half a patch; the first is
# its own example
NNUNET_STARTS = {
    (110, 64): [0, 23, 46],
    (76, 48): [0, 14, 28],
    (20, 16): [0, 4],
    (16, 16): [0],
    (33, 8): [0, 4, 7, 11, 14, 18, 21, 25],
}


def test_windows_in_nnunets_way_are_evenly_spread() -> None:
    image, roi = torch.rand(1, 20, 33, 16, generator=torch.Generator().manual_seed(1)), (16, 8, 16)
    total, weight = torch.zeros(3, 20, 33, 16), torch.zeros(20, 33, 16)
    peak = np.zeros(roi)
    peak[tuple(n // 2 for n in roi)] = 1
    gaussian = torch.from_numpy(
        gaussian_filter(peak, [n / 8 for n in roi], mode="constant")
    ).float()
    gaussian = (gaussian / gaussian.max()).clamp(min=2**-24 / 10)
    starts = [NNUNET_STARTS[pair] for pair in zip(image.shape[1:], roi, strict=True)]
    for corner in itertools.product(*starts):
        d, h, w = (slice(start, start + side) for start, side in zip(corner, roi, strict=True))
        total[:, d, h, w] += two(image[None, :, d, h, w])[0][0] * gaussian
        weight[d, h, w] += gaussian
    window = SlidingWindow(patch=roi, overlap=0.5, inferer="nnunet")
    ours = torch.cat([slab for slab, _ in blended(two, image, window, torch.device("cpu"))], dim=1)
    torch.testing.assert_close(ours, total / weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "side"), NNUNET_STARTS)
def test_places_are_those_of_nnunet(size: int, side: int) -> None:
    seen: list[int] = []

    def look(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(int(x.min()))
        return (x,)

    image = torch.arange(float(size))[None, :, None, None].expand(1, size, 4, 4)
    list(
        blended(
            look, image, SlidingWindow(patch=(side, 4, 4), inferer="nnunet"), torch.device("cpu")
        )
    )
    assert seen == NNUNET_STARTS[size, side]


def test_logits_are_averaged_where_the_window_is_nnunets_and_probabilities_elsewhere() -> None:
    image, roi = torch.rand(1, 20, 12, 16, generator=torch.Generator().manual_seed(1)), (16, 8, 16)
    scan = Scan(
        id="a",
        image=image,
        label=None,
        geometry=whole_geometry((20, 12, 16), np.eye(4), "RAS", (1, 1, 1)),
        notes=(),
    )

    def logits(x: torch.Tensor) -> torch.Tensor:
        return 20 * two(x)[0]

    found = {}
    for inferer, before in (("monai", lambda y: y.softmax(dim=1)), ("nnunet", lambda y: y)):
        window, on = SlidingWindow(patch=roi, inferer=inferer), torch.device("cpu")
        (planes,) = probabilities(logits, scan, window, on, batch=2)
        found[inferer] = planes.read(0, 20)
        averaged = torch.cat(
            [y for (y,) in blended(lambda x, f=before: (f(logits(x)),), image, window, on)], dim=1
        )
        expected = averaged if inferer == "monai" else averaged.softmax(dim=0)
        torch.testing.assert_close(found[inferer].float(), expected, atol=2e-3, rtol=0)
    assert not torch.allclose(found["monai"].float(), found["nnunet"].float(), atol=0.02)


def test_a_small_scan_is_padded_with_what_the_window_says() -> None:
    image, seen = torch.rand(1, 6, 5, 4, generator=torch.Generator().manual_seed(1)), []
    list(
        blended(
            lambda x: seen.append(x) or (x,),
            image,
            SlidingWindow(patch=(8, 8, 8), pad=-3.0),
            torch.device("cpu"),
        )
    )
    (window,) = seen
    torch.testing.assert_close(window[0, :, 1:7, 1:6, 2:6], image)
    assert int((window == -3.0).sum()) == 8**3 - image.numel()
