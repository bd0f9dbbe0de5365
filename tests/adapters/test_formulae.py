"""Families that no tensor of the backbone can hold, against their formulae written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from references import adapter_at, prepared, random, site_at
from torch import nn

from sea_peft.adapters import Adapted, Adapter, Offer, families, units_for
from sea_peft.backbones import Site, find_sites

# -- ConvAdapter against its formula ---------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("placement", ["parallel", "sequential"])
def test_conv_adapter_is_its_formula(placement, stride):
    channels_in, channels_out, level = 8, 12, 4
    module = prepared(nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1))
    x = random((2, channels_in, 6, 6, 6), seed=1)
    y = module(x)
    adapter = adapter_at("conv_adapter", module, x, level, placement)
    z, step = (x, stride) if placement == "parallel" else (y, 1)
    width = z.shape[1] // level
    # a hidden channel sees its own `level` channels of z, an output channel sees every hidden
    # channel
    hidden = [
        F.conv3d(
            z[:, h * level : (h + 1) * level], adapter.depth[h : h + 1], stride=step, padding=1
        ).clamp_min(0)
        for h in range(width)
    ]
    change = [
        adapter.alpha[o] * sum(adapter.point[o, h] * hidden[h][:, 0] for h in range(width))
        for o in range(channels_out)
    ]
    torch.testing.assert_close(adapter(x, y), y + torch.stack(change, dim=1), rtol=1e-9, atol=1e-9)
    assert (
        sum(p.numel() for p in adapter.parameters())
        == 27 * z.shape[1] + width * channels_out + channels_out
    )


def test_conv_adapter_does_not_fit_where_a_parallel_branch_cannot_follow():
    up, x = nn.ConvTranspose3d(8, 8, 2, stride=2), torch.randn(1, 8, 4, 4, 4)
    assert not families()["conv_adapter"].fits(site_at(up, x), up, 2, "parallel")
    odd, x = nn.Conv3d(6, 8, 3, padding=1), torch.randn(1, 6, 4, 4, 4)
    assert not families()["conv_adapter"].fits(site_at(odd, x), odd, 4, "parallel")
    assert families()["conv_adapter"].fits(site_at(odd, x), odd, 4, "sequential")


# -- bottlenecks and blocks against their formulae -------------------------------------------------


class MLP(nn.Module):
    """linear–activation–linear, as in a transformer."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Linear(channels, 3 * channels),
            nn.Linear(3 * channels, channels),
        )

    def forward(self, x):
        return self.second(F.gelu(self.first(x)))


class Attention(nn.Module):
    """One head, written with two linear layers."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1)))


def _block(channels_in: int, channels_out: int, stride: float = 1.0) -> Site:
    return Site(
        path="it",
        kind="block",
        in_channels=channels_in,
        out_channels=channels_out,
        stride=(stride,) * 3,
        stage="encoder",
        order=0,
    )


def _of(family: str, site: Site, module: nn.Module, level: int, placement: str = "") -> Adapter:
    adapter = families()[family](
        site, module, level, placement, torch.Generator().manual_seed(0)
    ).double()
    for seed, p in enumerate(adapter.parameters(), start=100):
        p.data = 0.3 * random(p.shape, seed)
    return adapter


def test_adaptformer_is_its_formula_and_stands_beside_mlps_only():
    block, x = MLP().double(), random((2, 5, 8), seed=1)
    site = _block(8, 8)
    adapter, y = _of("adaptformer", site, block, 4), block(x)
    hidden = (x @ adapter.down.T + adapter.down_bias).clamp_min(0)
    expected = y + 0.1 * (hidden @ adapter.up.T + adapter.up_bias)
    torch.testing.assert_close(adapter(x, y), expected, rtol=1e-9, atol=1e-9)
    fits = families()["adaptformer"].fits
    assert fits(site, block, 4, "")
    assert not fits(site, block, 8, "")
    assert not fits(site, Attention(), 4, "")
    assert not fits(site, nn.Sequential(nn.Conv3d(8, 8, 1), nn.Conv3d(8, 8, 1)), 4, "")


def test_houlsby_is_its_formula_on_tokens_and_on_voxels():
    for block, y in (
        (MLP(), random((2, 5, 8), seed=2)),
        (nn.Conv3d(8, 8, 1), random((2, 8, 3, 3, 3), seed=2)),
    ):
        adapter = _of("houlsby", _block(8, 8), block, 4)
        tokens = y if y.ndim == 3 else y.movedim(1, -1)
        change = (
            F.gelu(tokens @ adapter.down.T + adapter.down_bias) @ adapter.up.T + adapter.up_bias
        )
        expected = y + (change if y.ndim == 3 else change.movedim(-1, 1))
        torch.testing.assert_close(adapter(y, y), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [2, 4])
def test_compacter_is_its_formula_with_kroneckers_product_written_out(n):
    y = random((2, 5, 16), seed=2)
    adapter = _of("compacter", _block(16, 16), MLP(16), n)

    def matrix(part):
        return sum(
            torch.kron(part.rule[i], torch.outer(part.left[i], part.right[i])) for i in range(n)
        )

    hidden = F.gelu(y @ matrix(adapter.down).T + adapter.down_bias)
    expected = y + hidden @ matrix(adapter.up).T + adapter.up_bias
    torch.testing.assert_close(adapter(y, y), expected, rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * (n**3 + 16 + 4) + 4 + 16


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_convnext_is_the_paper_s_block_of_layers(placement):
    stride = 2 if placement == "parallel" else 1
    x, y = (
        random((2, 6, 8, 8, 8), seed=1),
        random((2, 4, 8 // stride, 8 // stride, 8 // stride), seed=2),
    )
    adapter = _of("convnext", _block(6, 4, float(stride)), nn.Conv3d(6, 4, 1), 2, placement)
    z = x if placement == "parallel" else y
    channels = z.shape[1]
    layers = nn.Sequential(
        nn.Conv3d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.GroupNorm(channels, channels),
        nn.Conv3d(channels, 2 * channels, 1),
        nn.GELU(),
        nn.Conv3d(2 * channels, 4, 1),
    ).double()
    state = {
        "0.weight": adapter.depth, "1.weight": 1 + adapter.scale, "1.bias": adapter.shift,
        "2.weight": adapter.expand[:, :, None, None, None], "2.bias": adapter.expand_bias,
        "4.weight": adapter.project[:, :, None, None, None], "4.bias": adapter.project_bias,
    }  # fmt: skip
    layers.load_state_dict(state)
    torch.testing.assert_close(adapter(x, y), y + layers(z), rtol=1e-9, atol=1e-9)


def test_what_would_need_space_does_not_fit_a_block_of_tokens():
    for family, placement in (
        ("convnext", "sequential"),
        ("conv_adapter", "sequential"),
        ("conv_adapter", "parallel"),
    ):
        assert not families()[family].fits(_block(8, 8), MLP(), 2, placement)


def test_a_black_box_gives_the_last_convolution_and_the_head_its_features():
    class Ended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 3, 1)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    network, x = Ended().double().eval().requires_grad_(False), random((1, 1, 6, 6, 6), seed=1)
    sites = find_sites(network, x)
    units = units_for(network, sites, {"black_box": Offer()})
    assert [u.site.path for u in units] == ["last"]
    model = Adapted(network, sites, units, (1, None), 3, x).double()
    adapter = model.bank[units[0].id].double()
    for seed, p in enumerate((*adapter.parameters(), *model.head.parameters())):
        p.data = 0.1 * random(p.shape, seed)
    features = torch.relu(network.first(x))
    adapted = features + F.conv3d(
        F.relu(F.conv3d(features, adapter.first, padding=1)), adapter.second, padding=1
    )
    model.bank.activate([units[0].id])
    expected = model.head(adapted, network.last.forward(adapted))
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
