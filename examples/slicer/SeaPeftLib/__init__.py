"""The part of the module that needs no 3D Slicer."""
