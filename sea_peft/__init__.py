"""Few-shot adaptation of frozen pretrained 3D segmentation networks, audited and allocated by the engine itself."""

__version__ = "0.1.0"
