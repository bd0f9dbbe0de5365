"""ProtoSeg and Grad-CAM against cases worked out by hand, against the definition, and against
MONAI.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from monai.visualize import GradCAM
from torch import nn

from sea_peft.adapters import Adapted, Offer, units_for
from sea_peft.backbones import architecture, find_sites
from sea_peft.explain.gradcam import class_maps, otsu
from sea_peft.explain.layers import overlap, watching
from sea_peft.explain.protoseg import ability_maps, segmentation_abilities

LABEL = torch.zeros(8, 8, 8, dtype=torch.bool)
LABEL[2:5, 2:6, 1:4] = True


@pytest.fixture(scope="module")
def model() -> Adapted:
    """A tiny SegResNet with a trained-looking LoRA and affine unit everywhere they fit."""
    arch = architecture("segresnet")
    torch.manual_seed(3)
    network = arch.build(in_channels=1, out_channels=3, **arch.small)
    example = arch.example(1)
    sites = find_sites(network.eval(), example)
    units = units_for(network, sites, {"lora": Offer(levels=(1,)), "affine": Offer()})
    model = Adapted(network, sites, units, (1, None), 3, example)
    model.bank.activate([unit.id for unit in units])
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.bank.parameters(model.bank.active):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.head.weight += torch.randn(model.head.weight.shape, generator=generator)
        # so that every label gets some of the voxels
        logits = model(random_image())[0].flatten(1)
        lead = (logits[0] - logits[1:]).mean(1)
        model.head.bias[torch.tensor(model.head.rows)] += lead
    return model.eval()


def random_image() -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def image() -> torch.Tensor:
    return random_image()


def test_features_that_separate_the_label_have_ability_one() -> None:
    features = torch.stack([torch.where(LABEL, 3.0, -1.0), torch.full((8, 8, 8), 2.0)])
    (found,) = ability_maps(features, LABEL[None].float())
    assert torch.equal(found, LABEL)
    assert overlap(found, LABEL) == 1.0


def test_prototypes_are_weighted_by_the_guide() -> None:
    # values 0, 4 and 10; p = 1, 0.5, 0: label prototype (0 + 0.5·4) / 1.5 = 4/3, background (0.5·4
    # + 10) / 1.5 = 8, halfway 14/3
    features = torch.tensor([0.0, 4.0, 10.0]).view(1, 3, 1, 1)
    guide = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    assert ability_maps(features, guide).flatten().tolist() == [True, True, False]
    # p = 0.2 in the middle: 0.8 / 1.2 = 2/3 and (3.2 + 10) / 1.8 = 22/3, halfway exactly 4, and a
    # tie is background
    guide[0, 1] = 0.2
    features[0, 1] = 4.001
    assert ability_maps(features, guide).flatten().tolist() == [True, False, False]


def test_noise_is_near_chance_and_constant_features_find_nothing() -> None:
    label = torch.zeros(24, 24, 24, dtype=torch.bool)
    # p = 1/8: half of everything found, by chance, gives Dice 2p / (2p + 1) = 0.2
    label[:6, :12] = True
    noise = torch.randn(5, 24, 24, 24, generator=torch.Generator().manual_seed(1))
    assert overlap(ability_maps(noise, label[None].float())[0], label) == pytest.approx(
        0.2, abs=0.03
    )
    assert not ability_maps(torch.ones(4, 24, 24, 24), label[None].float()).any()


def test_coarse_features_are_judged_as_if_interpolated_first() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(6, 4, 3, 5, generator=generator, dtype=torch.float64)
    guide = torch.rand(2, 8, 6, 10, generator=generator, dtype=torch.float64)
    fine = F.interpolate(features[None], size=guide.shape[1:], mode="trilinear")[0]
    for found, p in zip(ability_maps(features, guide), guide, strict=True):
        label = (fine * p).sum((1, 2, 3)) / p.sum()
        rest = (fine * (1 - p)).sum((1, 2, 3)) / (1 - p).sum()
        to_label, to_rest = ((fine - m.view(-1, 1, 1, 1)).square().sum(0) for m in (label, rest))
        assert torch.equal(found, to_label < to_rest)


def test_abilities_of_a_network_are_those_of_the_features_it_gives(
    model: Adapted, image: torch.Tensor
) -> None:
    label = torch.zeros(16, 16, 16, dtype=torch.uint8)
    label[4:9, 4:10, 4:8] = 1  # and no voxel of the second label
    guide = model(image).detach().softmax(1)[0, 1:]
    paths = [site.path for site in model.sites]
    found = segmentation_abilities(model, paths, image, guide, label)
    assert list(found) == paths
    features: dict[str, torch.Tensor] = {}
    with watching(
        model.backbone, paths, lambda path, y: features.update({path: y.detach().clone()})
    ):
        model(image)
    for path, (first, second) in found.items():
        assert first == overlap(ability_maps(features[path][0], guide)[0], label == 1)
        assert second != second
    with model.unadapted():
        assert segmentation_abilities(model, paths, image, guide, label) != found


def test_looking_changes_nothing(model: Adapted, image: torch.Tensor) -> None:
    before = model(image).detach()
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    paths = [site.path for site in model.sites]
    class_maps(model, paths, image)
    with pytest.raises(RuntimeError, match="looked"), watching(model.backbone, paths, _fails):
        model(image)
    assert torch.equal(model(image).detach(), before)
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert all(not p.requires_grad and p.grad is None for p in model.backbone.parameters())


def _fails(path: str, y: torch.Tensor) -> None:
    raise RuntimeError("looked")


class _Scores(nn.Module):
    """The mean logit of each label over the voxels given to it: what MONAI's classifier
    Grad-CAM can take the gradient of.
    """

    def __init__(self, model: Adapted) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)[0]
        given = logits.argmax(0)
        return torch.stack([logits[k][given == k].mean() for k in range(len(logits))])[None]


@pytest.fixture
def fresh_hooks(model: Adapted) -> Iterator[None]:
    """MONAI leaves its hooks behind."""
    before = [(m, dict(m._forward_hooks), dict(m._backward_hooks)) for m in model.modules()]
    yield
    for module, forward, backward in before:
        for hooks, kept in ((module._forward_hooks, forward), (module._backward_hooks, backward)):
            for key in set(hooks) - set(kept):
                del hooks[key]


@pytest.mark.usefixtures("fresh_hooks")
def test_class_maps_agree_with_monai(model: Adapted, image: torch.Tensor) -> None:
    paths = [
        [s.path for s in model.sites if s.stage == stage][-1] for stage in ("encoder", "bottleneck")
    ]
    found = class_maps(model, paths, image)
    for path in paths:
        for index in (1, 2):
            ours = found[path][index - 1]
            if ours is None:
                continue
            theirs = GradCAM(_Scores(model), f"model.backbone.{path}", postprocessing=lambda m: m)
            expected = theirs(image.clone().requires_grad_(), class_idx=index)[0, 0].detach()
            expected = expected.clamp_min(0) / max(float(expected.max()), 1e-30)
            assert torch.allclose(ours, expected, atol=1e-4)
    assert sum(float(m.max()) > 0.99 for maps in found.values() for m in maps if m is not None) > 1


def test_rounding_is_not_an_explanation(model: Adapted, image: torch.Tensor) -> None:
    """Behind these convolutions a norm takes the mean, and the mean of the gradient with it."""
    site = next(s for s in model.sites if s.path.endswith("conv1.conv"))
    norm = next(
        m
        for n, m in model.backbone.named_modules()
        if n == site.path.replace("conv1.conv", "norm2")
    )
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == norm.num_channels
    with model.bank.only(()):
        assert all(
            m is not None and not m.any() for m in class_maps(model, [site.path], image)[site.path]
        )


def test_a_label_without_voxels_has_no_map(model: Adapted, image: torch.Tensor) -> None:
    path = model.sites[-1].path
    bias = model.head.bias
    with torch.no_grad():
        bias[1] -= 100.0
    try:
        assert class_maps(model, [path], image)[path][0] is None
    finally:
        with torch.no_grad():
            bias[1] += 100.0


def test_otsu_by_hand() -> None:
    # two heaps: every threshold between them is best, and the lowest is taken
    values = torch.cat(
        [torch.zeros(30), torch.full((10,), 0.1), torch.full((10,), 0.9), torch.ones(5)]
    )
    assert 0.1 <= otsu(values) < 0.9
    assert (values > otsu(values)).sum() == 15
    assert not (torch.full((9,), 0.4) > otsu(torch.full((9,), 0.4))).any()


def test_otsu_is_the_best_of_all_splits() -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(0)).square()

    def between(threshold: float) -> float:
        up, down = values[values > threshold], values[values <= threshold]
        return float(len(up) * len(down) * (up.mean() - down.mean()) ** 2)

    best = max(between(float(v)) for v in values.sort().values[:-1])
    assert between(otsu(values)) == pytest.approx(best, rel=1e-3)
