"""How many crops may go through a network together."""

from torch import nn

from sea_peft.backbones.unet3d import BatchStatisticsNorm


def batch_for_masks(network: nn.Module) -> int:
    """Crops of one forward pass whose output is to be what a mask is made of, in audits and in windows alike.

    One, where what comes out for a crop depends on the others of its batch, so that crops are alike wherever they are. Else two: PyTorch
    takes twice as long, a crop, for a single small one on a CPU, since it does not choose oneDNN's convolution then.
    """
    return 1 if any(map(_mixes, network.modules())) else 2


def _mixes(module: nn.Module) -> bool:
    return isinstance(module, BatchStatisticsNorm) or (
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    )
