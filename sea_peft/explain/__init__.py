"""Looking inside an adapted network: what its layers can tell apart (ProtoSeg) and what its output rests on (Grad-CAM).

Functions of tensors and a network; none trains anything, and all leave the network as they found it.
"""
