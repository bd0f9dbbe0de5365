"""Grad-CAM in 3D for segmentation: the places that a label's output rests on, seen from one layer.

Selvaraju et al.: Grad-CAM, ICCV 2017, arXiv 1610.02391; for segmentation, with the score summed
over the voxels of a label: Vinogradova, Dibrov, Myers: Seg-Grad-CAM, AAAI 2020, arXiv 2002.11434.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sea_peft.adapters import Adapted
from sea_peft.explain.layers import watching

_BINS = 256
_ROUNDING = 1e-5


def class_maps(
    model: Adapted, paths: Sequence[str], image: torch.Tensor
) -> dict[str, list[torch.Tensor | None]]:
    """Grad-CAM of each label at each layer: ReLU(Σ_c w_c · A_c).

    A are the layer's features, and w_c is the mean gradient of the label's score with respect to
    A_c. The score is the label's mean logit over the voxels that the network gives to it. MONAI's
    `GradCAM` gives the same numbers, but fails at layers before a module that writes in place (the
    ReLU behind most norms) and leaves its hooks on the network.

    Args:
        model: with its gates as they are to be examined.
        paths: sites of the backbone. Those whose output lies on no voxel grid are left out of the
            result.
        image: `[1, C, D, H, W]`.

    Returns:
        Path → for each label its map `[D, H, W]`, 0 to 1 (all 0 if nothing supports the label);
            None if the network gives no voxel to the label.
    """
    kept: dict[str, torch.Tensor] = {}

    def look(path: str, y: torch.Tensor) -> torch.Tensor:
        kept[path] = y if y.requires_grad else y.detach().requires_grad_()
        return kept[path].clone()  # the next module may write into its input

    with torch.enable_grad(), watching(model.backbone, paths, look):
        logits = model(image)[0]
    given = logits.argmax(dim=0)
    maps: dict[str, list[torch.Tensor | None]] = {path: [] for path in kept}
    for index in range(1, logits.shape[0]):
        here = given == index
        if not bool(here.any()):
            for found in maps.values():
                found.append(None)
            continue
        score = logits[index][here].mean()
        gradients = torch.autograd.grad(
            score, list(kept.values()), retain_graph=True, allow_unused=True
        )
        for (path, features), gradient in zip(kept.items(), gradients, strict=True):
            weighted = _importance(gradient, features) * features.detach()
            seen = F.interpolate(
                weighted.sum(1, keepdim=True).relu(), size=image.shape[2:], mode="trilinear"
            )[0, 0]
            maps[path].append(seen / seen.max().clamp_min(torch.finfo(seen.dtype).tiny))
    return maps


def _importance(gradient: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    """Mean gradient of each channel, `[1, C, 1, 1, 1]`.

    A norm right behind the layer removes each channel's mean from the gradient; the rest is then
    rounding, and counts as 0.
    """
    weights = (torch.zeros_like(features) if gradient is None else gradient).mean(
        dim=(2, 3, 4), keepdim=True
    )
    size = 0.0 if gradient is None else float(gradient.abs().mean())
    return torch.where(weights.abs() > _ROUNDING * size, weights, torch.zeros_like(weights))


def otsu(values: torch.Tensor) -> float:
    """The threshold that splits `values` into two groups with the largest variance between their
    means, over 256 bins.

    The upper group is `values > threshold`, which is empty if all values are equal. Source: Otsu,
    IEEE Trans. SMC 9(1), 1979.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return high
    counts = torch.histc(values.detach().double().cpu(), _BINS, low, high)
    edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum(0)[:-1]
    above = counts.sum() - below
    sums = (counts * centres).cumsum(0)
    difference = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    return float(edges[1:-1][(below * above * difference.square()).argmax()])
