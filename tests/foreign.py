"""Synthetic checkpoints: random tensors under the key names and shapes that the public sources of
each origin give.

None of them is a real file. What they show is that published names are led to the right tensors of
our networks; that a real checkpoint has exactly these names, and that it segments after importing,
is verified nowhere here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sea_peft.backbones import architecture
from sea_peft.backbones.weights import unique_tensors

SWIN = {"feature_size": 12, "num_heads": (3, 6, 12, 24), "window_size": 7, "mlp_ratio": 4.0}
"""The published SwinUNETR at a quarter of its width of 48: same names, same number of blocks
and heads.
"""


def network(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = architecture(name).build(**{"in_channels": 1, "out_channels": 3, **kwargs})
        for key, tensor in unique_tensors(
            made
        ).items():  # norms too, so that a swapped pair would be seen
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand(tensor.shape)
                    if "running_var" in key
                    else 0.1 * torch.randn(tensor.shape)
                )
    return made.eval()


def _trained(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """As SuPreM's and CLIP-driven's train.py save it."""
    return {
        "net": dict(tensors),
        "optimizer": {"state": {}},
        "scheduler": {"last_epoch": 2100},
        "epoch": 2100,
    }


def _text_parts(features: int) -> dict[str, torch.Tensor]:
    """What stands beside `backbone` in the universal model, in its published shapes."""
    return {
        "organ_embedding": torch.randn(32, 512),
        "precls_conv.0.weight": torch.randn(features),
        "precls_conv.2.weight": torch.randn(8, features, 1, 1, 1),
        "GAP.3.weight": torch.randn(256, 8 * features, 1, 1, 1),
        "controller.weight": torch.randn(153, 512, 1, 1, 1),
        "text_to_vision.weight": torch.randn(256, 512),
    }


def suprem_segresnet(of: nn.Module) -> dict[str, Any]:
    return _trained({f"module.{key}": t for key, t in of.state_dict().items()})


def suprem_universal(of: nn.Module) -> dict[str, Any]:
    """U-Net and SwinUNETR: no classifier of their own."""
    own = {k: t for k, t in of.state_dict().items() if not k.startswith(("out_tr.", "out."))}
    return _trained(
        {f"module.backbone.{key}": t for key, t in own.items()}
        | {f"module.{key}": t for key, t in _text_parts(16).items()}
    )


def fseft(of: nn.Module) -> dict[str, Any]:
    own = {k: t for k, t in of.state_dict().items() if not k.startswith(("out_tr.", "out."))}
    return own | {
        "classifier.weight": torch.randn(29, 12, 1, 1, 1),
        "classifier.bias": torch.randn(29),
    }


def _older_names(key: str) -> str:
    return key.replace("mlp.linear", "mlp.fc")


def swin_vit(of: nn.Module) -> dict[str, Any]:
    """`model_swinvit.pt`: the transformer alone, and the heads of its pretraining."""
    own = {
        k.removeprefix("swinViT."): t
        for k, t in of.state_dict().items()
        if k.startswith("swinViT.")
    }
    heads = {
        "rotation_head.weight": torch.randn(4, 192),
        "contrastive_head.weight": torch.randn(512, 192),
    }
    heads["conv.0.weight"] = torch.randn(96, 192, 3, 3, 3)
    return {
        "epoch": 1,
        "state_dict": {f"module.{_older_names(k)}": t for k, t in (own | heads).items()},
        "optimizer": {},
    }


def swin_whole(of: nn.Module) -> dict[str, Any]:
    """Self-supervised files with the whole network, as SuPreM's own train.py reads them."""
    own = {k: t for k, t in of.state_dict().items() if not k.startswith("out.")}
    heads = {
        f"{part}.weight": torch.randn(4, 192)
        for part in ("rotation_pre", "rotation_head", "contrastive_head")
    }
    heads |= {
        "contrastive_pre.bias": torch.randn(4),
        "conv.0.weight": torch.randn(96, 192, 3, 3, 3),
    }
    older = {
        f"module.{_older_names(k).replace('swinViT', 'swin_vit')}": t
        for k, t in (own | heads).items()
    }
    return {"state_dict": older}


def btcv(of: nn.Module) -> dict[str, Any]:
    return {"epoch": 4999, "best_acc": 0.8, "state_dict": dict(of.state_dict())}


def mednext_authors(of: nn.Module) -> dict[str, Any]:
    """Names of MIC-DKFZ/MedNeXt; upward stages count down to 0, the output is a transposed
    convolution.
    """
    made: dict[str, torch.Tensor] = {"dummy_tensor": torch.ones(1)}
    for key, tensor in of.state_dict().items():
        part, _, rest = key.partition(".")
        theirs = {
            "enc_stages": "enc_block",
            "down_blocks": "down",
            "up_blocks": "up",
            "dec_stages": "dec_block",
        }
        if part in theirs:
            level, _, rest = rest.partition(".")
            number = 3 - int(level) if part in ("up_blocks", "dec_stages") else int(level)
            made[f"{theirs[part]}_{number}.{rest}"] = tensor
        else:
            made[key] = tensor.transpose(0, 1) if key == "out_0.conv_out.weight" else tensor
    for level in range(1, 5):
        made[f"out_{level}.conv_out.weight"] = torch.randn(4 * 2**level, 3, 1, 1, 1)
        made[f"out_{level}.conv_out.bias"] = torch.randn(3)
    return {"state_dict": {key: t.contiguous() for key, t in made.items()}, "epoch": 1000}


def mednext_monai(of: nn.Module) -> dict[str, Any]:
    out = "out_0.conv_out.weight"
    return of.state_dict() | {
        out: of.state_dict()[out].transpose(0, 1),
        "out_blocks.0.conv_out.bias": torch.randn(3),
    }


def dynunet_supervised(of: nn.Module) -> dict[str, Any]:
    """MONAI's DynUNet with a head for deep supervision, which has two names."""
    head = {"weight": torch.randn(3, 8, 1, 1, 1), "bias": torch.randn(3)}
    names = ("deep_supervision_heads.0.conv.conv", "skip_layers.next_layer.super_head.conv.conv")
    return of.state_dict() | {
        f"{name}.{kind}": tensor for name in names for kind, tensor in head.items()
    }


def segresnet_vae(of: nn.Module) -> dict[str, Any]:
    """MONAI's SegResNetVAE: a SegResNet and some of what its autoencoder adds."""
    vae = {
        "vae_down.2.conv.weight": torch.randn(4, 4, 3, 3, 3),
        "vae_fc1.weight": torch.randn(256, 32),
    }
    return of.state_dict() | vae | {"vae_fc_up_sample.0.conv.weight": torch.randn(8, 2, 1, 1, 1)}


def unetr_of(version: str, of: nn.Module) -> dict[str, Any]:
    """MONAI's UNETR of today as versions of MONAI wrote it: what was in the state dict then, and no
    output depended on.

    `0.7`: a class token, and convolutions of skips whose widths are equal; nothing for another
    input until 1.4; a norm and attention there from 1.4 on; the norm alone from 1.6 on. Names are
    those that issues about failing loads list.
    """
    own = of.state_dict()
    if version == "1.4":
        return own | {"vit.blocks.0.cross_attn.to_q.weight": torch.randn(8, 8)}
    own = {key: tensor for key, tensor in own.items() if "norm_cross_attn" not in key}
    if version == "0.7":
        skips = [
            f"encoder{n}.1.conv3.conv.weight" for n in ("2.blocks.0", "2.blocks.1", "3.blocks.0")
        ]
        own |= {"vit.patch_embedding.cls_token": torch.zeros(1, 1, 8)} | {
            key: torch.randn(4, 4, 1, 1, 1) for key in skips
        }
    return own


CT = {"percentile_00_5": -1004.0, "percentile_99_5": 1588.0, "mean": -50.39, "std": 503.39}


def nnunet(
    of: nn.Module, scheme: str = "CTNormalization", labels: dict[str, Any] | None = None
) -> dict[str, Any]:
    """`checkpoint_final.pth` of nnU-Net v2, with the numpy numbers that it logs."""
    whole = {
        "patch_size": [32, 32, 32],
        "spacing": [3.0, 1.5, 1.5],
        "normalization_schemes": [scheme],
        "use_mask_for_norm": [False],
    }
    plans = {
        "configurations": {
            "3d_lowres": whole,
            "3d_fullres": {"inherits_from": "3d_lowres", "spacing": [2.5, 0.8, 0.8]},
        },
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": CT},
    }
    described = {
        "channel_names": {"0": "CT"},
        "labels": labels or {"background": 0, "spleen": 2, "liver": 1, "ignore": 3},
    }
    return {
        "network_weights": of.state_dict(),
        "optimizer_state": {"state": {}},
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5)],
            "lrs": [np.float32(0.01)],
            "epoch": np.int64(3),
        },
        "_best_ema": np.float64(0.9),
        "current_epoch": 1000,
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": described,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
