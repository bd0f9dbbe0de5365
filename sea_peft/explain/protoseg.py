"""ProtoSeg: what a layer's features can tell apart, without any training.

Sheng He, Yanfang Feng, P. Ellen Grant, Yangming Ou: Segmentation ability map: Interpret deep
features for medical image segmentation. Medical Image Analysis 84 (2023) 102726, arXiv 2212.09206.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sea_peft.adapters import Adapted
from sea_peft.explain.layers import overlap, watching


@torch.no_grad()
def ability_maps(features: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    """The segmentation ability map (SAM) of each label.

    A label's prototype a is the mean of the features weighted by its probability p; the
    background's prototype b is the mean weighted by 1 − p. A voxel belongs to the label if its
    features f are nearer to a (squared Euclidean distance): ‖f − a‖² < ‖f − b‖², which is f·(a − b)
    > (‖a‖² − ‖b‖²) / 2. Like the authors, this interpolates features on a coarser grid to the
    guide's. Since interpolation is linear, only the one number per label that matters is
    interpolated, not every channel.

    Args:
        features: `[C, d, h, w]`, of any layer.
        guide: `[L, D, H, W]`, the network's probability of each label.

    Returns:
        bool `[L, D, H, W]`.
    """
    grid, size = features.shape[1:], guide.shape[1:]
    flat = features.flatten(1)
    each = torch.cat([guide, torch.ones_like(guide[:1])]).to(flat)
    shares = _spread_back(each, grid).flatten(1)  # [L + 1, n]: the weight of each feature
    sums, weights = flat @ shares.T, shares.sum(1)  # [C, L + 1], [L + 1]
    tiny = torch.finfo(flat.dtype).tiny
    label = sums[:, :-1] / weights[:-1].clamp_min(tiny)
    rest = (sums[:, -1:] - sums[:, :-1]) / (weights[-1] - weights[:-1]).clamp_min(tiny)
    lead = ((label - rest).T @ flat).unflatten(1, grid)
    threshold = (label.square().sum(0) - rest.square().sum(0)) / 2
    return F.interpolate(lead[None], size=size, mode="trilinear")[0] > threshold.view(-1, 1, 1, 1)


def _spread_back(values: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """The transpose of trilinear interpolation: `[L, D, H, W]` → `[L, *grid]`.

    Weighting interpolated features by `values` equals weighting the features themselves by the
    result.
    """
    with torch.enable_grad():
        coarse = values.new_zeros((1, values.shape[0], *grid), requires_grad=True)
        fine = F.interpolate(coarse, size=values.shape[1:], mode="trilinear")
        (shares,) = torch.autograd.grad(fine, coarse, values[None])
    return shares[0]


def segmentation_abilities(
    model: Adapted,
    paths: Sequence[str],
    image: torch.Tensor,
    guide: torch.Tensor,
    label: torch.Tensor,
) -> dict[str, list[float]]:
    """Segmentation ability (SA) of each layer for each label: the Dice of its ability map with the
    label.

    Args:
        model: with its gates as they are to be examined.
        paths: sites of the backbone. Those whose output lies on no voxel grid are left out of the
            result.
        image: `[1, C, D, H, W]`.
        guide: `[L, D, H, W]`, probabilities. The paper uses the examined network's own output. To
            compare two states of one network, give both the same guide, so that only the features
            differ.
        label: `[D, H, W]`, 0 = background, 1..L.

    Returns:
        Path → SA of each label, 0 to 1; NaN for labels that are not in this image. Features without
            information reach about 2p / (2p + 1) for a label that fills a share p of the image.
    """
    wanted = [label == index for index in range(1, guide.shape[0] + 1)]
    found: dict[str, list[float]] = {}

    def look(path: str, y: torch.Tensor) -> None:
        maps = ability_maps(y[0], guide)
        found[path] = [
            overlap(m, w) if bool(w.any()) else float("nan")
            for m, w in zip(maps, wanted, strict=True)
        ]

    with torch.no_grad(), watching(model.backbone, paths, look):
        model(image)
    return found
