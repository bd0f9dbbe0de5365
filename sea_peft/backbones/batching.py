"""How many crops may go through a network together."""

from torch import nn

from sea_peft.backbones.unet3d import BatchStatisticsNorm


def batch_for_masks(network: nn.Module) -> int:
    """Crops per forward pass in audits and sliding windows, whose outputs become masks.

    One, if the output for a crop depends on the others in its batch, so that a crop always gives
    the same output. Otherwise two: for a single small crop on a CPU, PyTorch does not choose
    oneDNN's convolution and takes twice as long per crop.
    """
    return 1 if any(map(_mixes, network.modules())) else 2


def _mixes(module: nn.Module) -> bool:
    return isinstance(module, BatchStatisticsNorm) or (
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    )
