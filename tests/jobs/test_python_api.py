"""The whole way of a user with a checkpoint of his own, in Python: import, adapt, load, predict."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from foreign import network, suprem_universal
from monai.networks.nets import UNETR
from toys import SHORTEST

import sea_peft
from sea_peft import Typed, adapt, load_adapter
from sea_peft.backbones.weights import load_pretrained
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.importing import import_weights
from sea_peft.loop import events


def test_a_checkpoint_without_a_classifier_is_adapted_in_ten_lines(
    toy: Path, tmp_path: Path
) -> None:
    """The checkpoint is synthetic: SuPreM's key names at a sixteenth of its width, random
    tensors.
    """
    torch.save(
        suprem_universal(network("unet3d", width=4)), tmp_path / "supervised_suprem_unet_2100.pth"
    )
    import_weights(tmp_path / "supervised_suprem_unet_2100.pth", "suprem_unet", "unet3d")
    result = adapt(
        dataclasses.replace(SHORTEST, data=str(toy), weights="suprem_unet", labels=("organ",))
    )
    assert result.status == "done"
    assert result.dice.unadapted is None  # no row of the backbone is the organ's
    assert result.dice.adapted is not None
    model, config = load_adapter(Path(result.run) / "adapter")
    assert config.backbone.weights == "suprem_unet"
    assert model.head.weight.abs().sum() > 0
    with torch.no_grad():
        logits = model(load_pretrained("suprem_unet").example)
    assert logits.shape[1] == 2


def test_a_users_own_network_that_comes_with_its_weights_is_adapted(
    toy: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "own_network.py").write_text(
        "import torch\ndef factory():\n    torch.manual_seed(0)\n    c = torch.nn.Conv3d\n   "
        " return torch.nn.Sequential(c(1, 4, 3, padding=1), torch.nn.ReLU(), c(4, 4, 3, padding=1),"
        " torch.nn.ReLU(), c(4, 2, 1))\nfactory.divisor, factory.minimum = 1, 8\nfactory.card ="
        " {'labels': ['background', 'organ'], 'channels': ['CT'], 'patch': [16, 16, 16], 'recipe':"
        " {}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = adapt(
        dataclasses.replace(
            SHORTEST,
            data=str(toy),
            backbone="own_network:factory",
            labels=("organ",),
            budget="50%",
        )
    )
    assert result.dice.unadapted is not None
    with pytest.raises(
        WeightsError, match=r"\(own_network:factory\), and code that a file names is never run"
    ):
        load_adapter(Path(result.run) / "adapter")
    _, config = load_adapter(Path(result.run) / "adapter", Typed("own_network:factory"))
    assert config.backbone.architecture == "own_network:factory"


def test_any_network_is_wrapped_and_trained_in_a_loop_of_ones_own() -> None:
    network = UNETR(
        in_channels=1,
        out_channels=3,
        img_size=(32, 32, 32),
        feature_size=4,
        hidden_size=24,
        mlp_dim=48,
        num_heads=3,
    )
    crop = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        plain = network.eval()(crop)
    model = sea_peft.wrap(network, crop, budget="5%")
    assert sum(p.numel() for p in model.trainable()) <= 0.05 * sum(
        p.numel() for p in network.parameters()
    )
    with torch.no_grad(), model.unadapted():
        assert torch.allclose(model(crop), plain, atol=1e-5)
    optimizer = torch.optim.AdamW(model.trainable(), lr=1e-2)
    reference = torch.ones(1, 32, 32, 32, dtype=torch.long)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(crop), reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"policy": "sea"}, "sea decides while it trains"),
        ({"policy": "nothing"}, "No policy is called"),
        ({"budget": "1"}, "can mean 100% or one parameter"),
    ],
)
def test_what_cannot_be_wrapped_is_said(asked: dict[str, str], said: str) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1)
    )
    with pytest.raises(UsageError, match=said):
        sea_peft.wrap(network, torch.zeros(1, 1, 8, 8, 8), **{"budget": "50%", **asked})


def test_a_network_of_one_output_cannot_be_wrapped() -> None:
    with pytest.raises(UsageError, match="one output channel"):
        sea_peft.wrap(torch.nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 8, 8, 8), budget="50%")


def test_a_run_is_trained_in_the_precision_that_was_asked_for(toy, weights, tmp_path) -> None:
    def losses(out: str, mixed_precision: bool | None) -> list[float]:
        options = dataclasses.replace(
            SHORTEST,
            data=str(toy),
            weights=str(weights),
            policy="affine",
            test="none",
            out=tmp_path / out,
        )
        seen: list[events.Event] = []
        adapt(options, seen.append, mixed_precision=mixed_precision)
        return [event.loss for event in seen if isinstance(event, events.TrainingStep)]

    whole = losses("whole", False)
    assert losses("default", None) == whole, "on a CPU"
    mixed = losses("mixed", True)
    assert mixed != whole
    assert mixed == pytest.approx(whole, rel=0.05)
