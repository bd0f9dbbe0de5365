"""A user's own network with its own weights: deepbet's, real and pretrained, where it can be
had.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip(
    "benchmarks.deepbet_backbone", reason="the benchmarks are not in this installation"
)

from benchmarks.deepbet_backbone import VARIABLE, largest_difference, linknet, model_file
from sea_peft.backbones import architecture, find_sites
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import load_typed
from sea_peft.errors import WeightsError

SPEC = "benchmarks.deepbet_backbone:linknet"
needs_file = pytest.mark.skipif(
    model_file() is None, reason=f"deepbet is not installed and {VARIABLE} is not set"
)


@needs_file
def test_the_network_in_plain_torch_is_the_script():
    assert largest_difference(model_file()) < 1e-5


@needs_file
def test_it_is_a_backbone_with_weights_and_sites():
    pretrained = load_typed(Typed(SPEC))
    assert pretrained.card.labels == ["background", "brain"]
    assert pretrained.parameters == 2_126_258
    sites = find_sites(pretrained.network, pretrained.example)
    assert {site.kind for site in sites} == {"conv", "transposed", "norm", "block"}


def test_without_its_file_it_is_refused_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing.pt"))
    with pytest.raises(WeightsError, match=f"unpack its wheel and set {VARIABLE}"):
        Typed(SPEC).architecture().build()


def test_sides_are_multiples_of_32():
    network = architecture("linknet").build(width=4).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, 64, 64, 64)).shape == (1, 2, 64, 64, 64)
    assert linknet.divisor == 32
