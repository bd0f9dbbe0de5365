"""MedNeXt: checkpoints of the authors' repository (MIC-DKFZ/MedNeXt) and of MONAI's port.

Both end in a transposed convolution of kernel 1, ours in a convolution; its weight is the same with
the first two axes swapped. The outputs of deep supervision are left out.
"""

import dataclasses
import re

import torch

from sea_peft.backbones.keymaps.origin import Origin

_OUT = "out_0.conv_out.weight"


def _rename_authors(key: str) -> str | None:
    """`enc_block_1` → `enc_stages.1`, `down_1` → `down_blocks.1`. In the decoder, their numbers
    count down to 0 and ours up from 0.
    """
    if key == "dummy_tensor" or re.match(r"out_[1-9]\d*\.", key):
        return None
    found = re.match(r"(enc_block|down|up|dec_block)_(\d+)\.", key)
    if found is None:
        return key
    name, level = found[1], int(found[2])
    ours = {
        "enc_block": "enc_stages",
        "down": "down_blocks",
        "up": "up_blocks",
        "dec_block": "dec_stages",
    }[name]
    return f"{ours}.{3 - level if name in ('up', 'dec_block') else level}.{key[found.end() :]}"


def _rename_monai(key: str) -> str | None:
    return None if key.startswith("out_blocks.") else key


def _swap_out(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if _OUT in tensors:
        tensors[_OUT] = tensors[_OUT].transpose(0, 1).contiguous()
    return tensors


MEDNEXT = Origin(
    name="mednext",
    about="MedNeXt, Roy et al. 2023, github.com/MIC-DKFZ/MedNeXt",
    backbones=("mednext_s", "mednext_b", "mednext_m", "mednext_l"),
    recognises=lambda checkpoint: checkpoint.has_key_under("enc_block_0."),
    rename=_rename_authors,
    convert=_swap_out,
)

MONAI_MEDNEXT = dataclasses.replace(
    MEDNEXT,
    name="monai-mednext",
    about="MONAI's MedNeXt",
    recognises=lambda checkpoint: checkpoint.has_key_under("enc_stages.0."),
    rename=_rename_monai,
)
