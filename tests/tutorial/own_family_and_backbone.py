"""An adapter family and a backbone of one's own: importing this is all that makes them known."""

from torch import nn, relu, zeros

from sea_peft import adapters, backbones


@adapters.register
class Gain(adapters.Adapter):
    """y ← y + g·y after a norm, one number g a site, zero at first. Source: here. Cost 1."""

    family = "gain"
    kinds = frozenset({"norm"})

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.gain = nn.Parameter(zeros(1))

    def forward(self, x, y):
        return y + self.gain * y


class Pocket(nn.Module):
    """One residual step at half resolution: [B, in, D, H, W] → [B, out, D, H, W]."""

    def __init__(self, in_channels=1, out_channels=2, width=16):
        super().__init__()
        self.down = nn.Conv3d(in_channels, width, 3, stride=2, padding=1)
        self.norm, self.mix = nn.GroupNorm(4, width), nn.Conv3d(width, width, 3, padding=1)
        self.up = nn.ConvTranspose3d(width, width, 2, stride=2)
        self.head = nn.Conv3d(width, out_channels, 1)

    def forward(self, x):
        x = relu(self.norm(self.down(x)))
        return self.head(relu(self.up(x + self.mix(x))))


pocket = {"name": "pocket", "build": Pocket, "divisor": 2, "minimum": 8, "small": {"width": 8}}
backbones.register(backbones.Architecture(**pocket, paper="this example", licence="Apache-2.0"))
