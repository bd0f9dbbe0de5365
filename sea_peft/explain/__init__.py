"""Looks inside an adapted network: what its layers can tell apart (ProtoSeg), and what its output
rests on (Grad-CAM).

These are functions of tensors and a network. None trains anything, and all leave the network
unchanged.
"""
